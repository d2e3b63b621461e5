"""Sampling with a transformers model in this process.

Completions are sampled side by side: prompts are padded on the left, every prompt's K completions are rows of one batch,
and rows leave the batch when they are done. Each row draws one uniform number per token from a generator seeded by
(seed, prompt, completion), so what is sampled does not depend on which prompts share the batch.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from prefloop.batches import Codec
from prefloop.config import GenerateSection
from prefloop.records import Completion, Group, Prompt, Sampling, content_id

COMPACT_BELOW = 0.75
"""Finished rows are removed from the batch when fewer than this share of its rows are still running."""


@dataclass(frozen=True)
class Author:
    """Who the completions are ascribed to."""

    policy: str
    version: int


class HfGenerator:
    """Samples the K completions of each prompt from a model on one device."""

    def __init__(
        self,
        model: PreTrainedModel,
        codec: Codec,
        options: GenerateSection,
        *,
        seed: int,
        author: Author,
        rows: int,
    ) -> None:
        self.model = model
        self.codec = codec
        self.options = options
        self.seed = seed
        self.author = author
        self.rows = rows

    @property
    def prompts_at_once(self) -> int:
        """How many prompts share a batch."""
        return max(1, self.rows // self.options.num_completions)

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[Group]:
        """Yields one group a prompt, in order; a prompt too long for the options yields no completions."""
        waiting: list[Prompt] = []
        for prompt in prompts:
            waiting.append(prompt)
            if len(waiting) == self.prompts_at_once:
                yield from self._generate_together(waiting)
                waiting = []
        if waiting:
            yield from self._generate_together(waiting)

    def _generate_together(self, prompts: Sequence[Prompt]) -> Iterator[Group]:
        limit = min(self.options.max_prompt_length, self._context() - 1)
        ids = [self.codec.prompt_ids(prompt.messages) for prompt in prompts]
        short = [index for index, one in enumerate(ids) if len(one) <= limit]
        sampled = iter(self._sample([ids[index] for index in short], [prompts[index].id for index in short]))
        fits = set(short)
        for index, prompt in enumerate(prompts):
            completions = self._completions(prompt, next(sampled)) if index in fits else ()
            yield Group(prompt=prompt, completions=completions)

    def _context(self) -> int:
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 1 << 30))

    def _completions(self, prompt: Prompt, drawn: "list[Drawn]") -> tuple[Completion, ...]:
        stop = self.codec.terminator_id
        completions = []
        for index, (one, temperature) in enumerate(zip(drawn, self._temperatures(), strict=True)):
            sampling = Sampling(
                temperature=temperature, top_p=self.options.top_p, top_k=self.options.top_k, seed=self.seed
            )
            completions.append(
                Completion(
                    id=content_id(prompt.id, self.author.policy, self.seed, index, one.token_ids),
                    prompt_id=prompt.id,
                    text=self.codec.decode(one.token_ids),
                    token_ids=tuple(one.token_ids),
                    token_logps=tuple(round(value, 6) for value in one.token_logps),
                    finish_reason="stop" if one.token_ids[-1:] == [stop] else "length",
                    sampling=sampling,
                    policy=self.author.policy,
                    policy_version=self.author.version,
                )
            )
        return tuple(completions)

    def _temperatures(self) -> list[float]:
        if self.options.temperatures is None:
            return [self.options.temperature] * self.options.num_completions
        return [share.temperature for share in self.options.temperatures for _ in range(share.count)]

    @torch.inference_mode()
    def _sample(self, prompts: list[list[int]], prompt_ids: list[str]) -> "list[list[Drawn]]":
        """The K draws of each prompt."""
        if not prompts:
            return []
        number, device = self.options.num_completions, self.model.device
        budgets = [
            min(self.options.max_new_tokens, self._context() - len(one))
            for one in prompts
            for _ in range(number)
        ]
        budget = max(budgets)
        uniforms = torch.cat([_uniforms(self.seed, one, number, budget) for one in prompt_ids]).to(device)
        temperatures = torch.tensor(self._temperatures() * len(prompts), device=device)
        state = self._prefill(prompts, number)
        drawn = [Drawn([], []) for _ in range(len(prompts) * number)]
        active = list(range(len(drawn)))
        logits = state.logits
        for step in range(budget):
            rows = torch.tensor(active, device=device)
            tokens, logps = draw(
                logits,
                uniforms[rows, step],
                temperatures[rows],
                top_p=self.options.top_p,
                top_k=self.options.top_k,
            )
            for row, token, logp in zip(active, tokens.tolist(), logps.tolist(), strict=True):
                if row not in state.finished:
                    drawn[row].token_ids.append(token)
                    drawn[row].token_logps.append(logp)
                    if token == self.codec.terminator_id or len(drawn[row].token_ids) == budgets[row]:
                        state.finished.add(row)
            running = [index for index, row in enumerate(active) if row not in state.finished]
            if not running or step + 1 == budget:
                break
            if len(running) < COMPACT_BELOW * len(active):
                active = [active[index] for index in running]
                tokens = state.keep(torch.tensor(running, device=device), tokens)
            logits = self._decode(state, tokens)
        return [drawn[start : start + number] for start in range(0, len(drawn), number)]

    def _prefill(self, prompts: list[list[int]], copies: int) -> "DecodeState":
        """Runs each prompt once and repeats its cache for its copies."""
        width = max(map(len, prompts))
        device = self.model.device
        ids = torch.full((len(prompts), width), self.codec.pad_id, dtype=torch.long)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        out = self.model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            past_key_values=DynamicCache(config=self.model.config),
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        cache.batch_repeat_interleave(copies)
        return DecodeState(
            cache,
            mask.to(device).repeat_interleave(copies, 0),
            positions[:, -1].to(device).repeat_interleave(copies, 0),
            out.logits[:, -1].float().repeat_interleave(copies, 0),
            set(),
        )

    def _decode(self, state: "DecodeState", tokens: Tensor) -> Tensor:
        state.mask = torch.cat([state.mask, state.mask.new_ones(len(tokens), 1)], dim=1)
        state.positions = state.positions + 1
        out = self.model(
            input_ids=tokens.unsqueeze(1),
            attention_mask=state.mask,
            position_ids=state.positions.unsqueeze(1),
            past_key_values=state.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()


@dataclass
class Drawn:
    """One completion as it grows: token ids, and their log-probabilities at temperature 1."""

    token_ids: list[int]
    token_logps: list[float]


@dataclass
class DecodeState:
    """What decoding carries from token to token; changed in place."""

    cache: DynamicCache
    mask: Tensor
    positions: Tensor
    logits: Tensor
    finished: set[int]

    def keep(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Drops all other rows from the batch and returns the tokens of those that stay."""
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]
        self.positions = self.positions[rows]
        return tokens[rows]


def draw(
    logits: Tensor, uniforms: Tensor, temperatures: Tensor, *, top_p: float = 1.0, top_k: int = 0
) -> tuple[Tensor, Tensor]:
    """One token per row by inverting the cumulative distribution at `uniforms`.

    `logits` [B, V], `uniforms` [B] in [0, 1), `temperatures` [B] (0 takes the most likely token). Returns tokens [B] and
    their log-probabilities under the unmodified policy, temperature 1, [B].
    """
    logps = logits.log_softmax(-1)
    scaled = logits / temperatures.clamp(min=1e-6).unsqueeze(-1)
    if top_k:
        kept = scaled.topk(min(top_k, scaled.shape[-1]), dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < kept, -torch.inf)
    probabilities = scaled.softmax(-1)
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p  # the token that crosses top_p is kept
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(outside, 0.0))
    cumulative = probabilities.double().cumsum(-1)
    tokens = torch.searchsorted(
        cumulative, uniforms.double().unsqueeze(-1) * cumulative[:, -1:], right=True
    ).squeeze(-1)
    tokens = torch.where(temperatures == 0, logits.argmax(-1), tokens.clamp(max=logits.shape[-1] - 1))
    return tokens, logps.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _uniforms(seed: int, prompt_id: str, number: int, length: int) -> Tensor:
    """[number, length] uniform draws that depend on the seed and the prompt only."""
    digest = hashlib.blake2b(f"{seed}/{prompt_id}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.rand((length, number), generator=generator).T
