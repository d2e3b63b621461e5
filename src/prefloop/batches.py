"""From conversations to token ids to batches of groups.

One place decides how text becomes tokens: the chat template, exactly one BOS, the terminator exactly once. Token ids that
a sampler emitted are used as they are. Knows nothing about losses.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import torch
from torch import Tensor

from prefloop.attention import NO_BRANCH, STEPS_PER_OCTAVE, Layout, lay_out, rounded
from prefloop.config import RuntimeSection
from prefloop.interfaces import InputError
from prefloop.records import Completion, Message

PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
PADDED_STEP = 8
"""Least multiple to which padded rows are rounded up."""
CPU_TOKENS, ACCELERATOR_TOKENS = 2048, 8192
"""Tokens of one pass, unless the experiment says otherwise."""
NOTHING = -1
"""In place of the token before one that nothing precedes."""

Item = TypeVar("Item")


class Codec:
    """A tokenizer with its chat template and terminator, checked once."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise InputError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template; set model.template to `plain`, "
                "a .jinja file or a template"
            )
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"{tokenizer.name_or_path}: the tokenizer has no EOS token; set model.terminator"
            )
        self.terminator_id: int = tokenizer.eos_token_id
        pad = tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None else self.terminator_id
        bos = tokenizer.bos_token_id
        adds_bos = bos is not None and tokenizer("x").input_ids[:1] == [bos]
        self._wanted_bos: int | None = bos if adds_bos else None
        self._check_bos()
        self._check_terminator()

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The conversation through the template, up to where the answer starts."""
        return self._render(messages, add_generation_prompt=True)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the conversation up to where the answer starts, with the BOS that the tokenizer wants."""
        return self._ids(self.prompt_text(messages))

    def completion_ids(self, messages: Sequence[Message], completion: Completion) -> list[int]:
        """Token ids of an answer: the sampler's own, or its text tokenised in context; the terminator follows unless the
        text was cut off."""
        if completion.token_ids is not None:
            return list(completion.token_ids)
        ids = self.answer_ids(messages, completion.text)
        return ids[:-1] if completion.finish_reason == "length" else ids

    def answer_ids(self, messages: Sequence[Message], text: str) -> list[int]:
        """Token ids of an answer given as text, terminator included, tokenised as it continues the prompt."""
        before = self.prompt_text(messages)
        prompt, joint = self._ids(before), self._ids(before + text)
        # tokenizers may merge across the border; then the answer is tokenised on its own
        ids = joint[len(prompt) :] if joint[: len(prompt)] == prompt else self._tokenize(text)
        return [*ids, self.terminator_id]

    def text_ids(self, text: str) -> list[int]:
        """Token ids of plain text between BOS and terminator."""
        return [*self._ids(text), self.terminator_id]

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of a piece of text on its own, without BOS and terminator."""
        return self._tokenize(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of sampled tokens, without the terminator and other special tokens."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def token_id(self, token: str) -> int:
        """The id of a token by its name. Raises InputError where the vocabulary has none."""
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or (found == self.tokenizer.unk_token_id and token != self.tokenizer.unk_token):
            raise InputError(
                f"generate.stop_tokens: {self.tokenizer.name_or_path} has no token {token!r}; "
                "put text that ends a completion into generate.stop"
            )
        return found

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            roles = ", ".join(message.role for message in messages)
            raise InputError(f"chat template cannot render a conversation of {roles}: {error}") from error

    def _tokenize(self, text: str) -> list[int]:
        # lengths are checked where rows are made; the tokenizer need not warn about them
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def _ids(self, text: str) -> list[int]:
        ids = self._tokenize(text)
        bos = self._wanted_bos
        if bos is not None and ids[:1] != [bos]:
            return [bos, *ids]
        return ids

    def _check_bos(self) -> None:
        bos = self.tokenizer.bos_token_id
        ids = self.prompt_ids([Message(role="user", content="x")])
        if bos is not None and ids[:2] == [bos, bos]:
            raise InputError(
                f"{self.tokenizer.name_or_path}: the chat template adds a second BOS ({self.tokenizer.bos_token}); "
                "remove it from the template"
            )

    def _check_terminator(self) -> None:
        """The template's own end of an answer must be what is learned and stopped at."""
        turns = [Message(role="user", content="x")]
        before = self.prompt_text(turns)
        try:
            after = self._render(
                [*turns, Message(role="assistant", content="y")], add_generation_prompt=False
            )
        except InputError:
            return  # some templates only render prompts
        if not after.startswith(before) or "y" not in after[len(before) :]:
            return
        tail = self._tokenize(after[len(before) :].partition("y")[2])
        special = set(self.tokenizer.all_special_ids)
        ends = [token for token in tail[:2] if token in special]
        if ends and ends[0] != self.terminator_id:
            wanted = self.tokenizer.convert_ids_to_tokens(ends[0])
            raise InputError(
                f"{self.tokenizer.name_or_path}: the chat template ends an answer with {wanted} but the terminator is "
                f"{self.tokenizer.eos_token}; set model.terminator to '{wanted}'"
            )


def resolve_template(setting: str, tokenizer: Any) -> str | None:
    """The chat template that `model.template` asks for. Raises InputError."""
    if setting == "auto":
        return tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    if setting == "plain":
        return PLAIN_TEMPLATE
    if "{" in setting:
        return setting
    path = Path(setting)
    if not path.is_file():
        raise InputError(f"model.template = {setting!r}: not `auto`, `plain`, a template, or a readable file")
    return path.read_text(encoding="utf-8")


@dataclass(frozen=True)
class TokenGroup:
    """A prompt once and its completions, as token ids: the unit of every forward pass. Plain text is its first token and
    one completion."""

    prompt_ids: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that are computed when the prompt is shared."""
        return len(self.prompt_ids) + self.num_completion_tokens

    @property
    def num_completion_tokens(self) -> int:
        """Tokens of all completions."""
        return sum(map(len, self.completions))

    @property
    def num_padded_tokens(self) -> int:
        """Tokens that are computed when each completion is a row of its own, all as long as the longest."""
        return len(self.completions) * self.longest

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longest completion."""
        return len(self.prompt_ids) + max(map(len, self.completions))


@dataclass(frozen=True)
class Batch:
    """Groups as the model reads them: one flat row without padding between them, or a padded row for each completion.

    In both forms positions count through all rows, `row * T + column`. C is the number of completions, in the order of the
    groups; t counts their tokens, without those that nothing precedes.
    """

    input_ids: Tensor
    """[1, N] flat, or [C, T] padded on the right: a causal model needs no mask then."""
    position_ids: Tensor
    """Same shape: where each token stands in its sequence."""
    layout: Layout | None
    """Which tokens see which in the flat form."""
    predictors: Tensor
    """[t], position of the token before, whose hidden state predicts this one."""
    targets: Tensor
    """[t], the tokens themselves."""
    completion_of: Tensor
    """[t], number of the completion."""
    lengths: Tensor
    """[C], tokens of each completion."""
    ends: Tensor
    """[C], position of the last token of each completion."""
    real: Tensor
    """Same shape as `input_ids`: True where a token is not padding."""

    def summed(self, values: Tensor) -> Tensor:
        """Sums [C] over the tokens of each completion, of values [t]."""
        return values.new_zeros(len(self.lengths)).index_add(0, self.completion_of, values)


def cut(
    group: TokenGroup, *, max_length: int, max_prompt_length: int, truncation: str
) -> tuple[TokenGroup, int]:
    """A group that fits, and how many of its completions had to be cut.

    Where prompt and longest completion are too long together, the prompt is cut to its allowance, for all completions
    alike; what is still too long loses its end.
    """
    if group.longest <= max_length:
        return group, 0
    prompt = group.prompt_ids
    if len(prompt) > max_prompt_length:
        prompt = prompt[-max_prompt_length:] if truncation == "keep_end" else prompt[:max_prompt_length]
    room = max(max_length - len(prompt), 0)
    changed = sum(len(prompt) < len(group.prompt_ids) or len(one) > room for one in group.completions)
    return TokenGroup(prompt, tuple(one[:room] for one in group.completions)), changed


def collate(groups: Sequence[TokenGroup], *, share: bool, pad_id: int, device: torch.device) -> Batch:
    """Groups as a flat row in which prompts are shared, or as padded rows."""
    return _flat(groups, pad_id, device) if share else _padded(groups, pad_id, device)


def _flat(groups: Sequence[TokenGroup], pad_id: int, device: torch.device) -> Batch:
    layout = lay_out(
        [len(one.prompt_ids) for one in groups],
        [[len(ids) for ids in one.completions] for one in groups],
        device,
    )
    ids: list[int] = []
    starts: list[tuple[int, int]] = []  # the first token of each completion, and the token before it
    for group in groups:
        ids += group.prompt_ids
        before = len(ids) - 1 if group.prompt_ids else NOTHING
        for completion in group.completions:
            starts.append((len(ids), before))
            ids += completion
    real = layout.branches != NO_BRANCH
    ids += [pad_id] * (len(real) - len(ids))
    return _batch([ids], layout.positions.unsqueeze(0), layout, starts, groups, real.unsqueeze(0), device)


def _padded(groups: Sequence[TokenGroup], pad_id: int, device: torch.device) -> Batch:
    width = rounded(max(one.longest for one in groups), PADDED_STEP, STEPS_PER_OCTAVE[1])
    rows = [[*group.prompt_ids, *completion] for group in groups for completion in group.completions]
    prompts = [len(group.prompt_ids) for group in groups for _ in group.completions]
    starts = [
        (number * width + prompt, number * width + prompt - 1 if prompt else NOTHING)
        for number, prompt in enumerate(prompts)
    ]
    positions = torch.arange(width, device=device).expand(len(rows), width)
    real = positions < torch.tensor([[len(row)] for row in rows], device=device)
    padded = [[*row, *[pad_id] * (width - len(row))] for row in rows]
    return _batch(padded, positions, None, starts, groups, real, device)


def _batch(
    rows: list[list[int]],
    positions: Tensor,
    layout: Layout | None,
    starts: Sequence[tuple[int, int]],
    groups: Sequence[TokenGroup],
    real: Tensor,
    device: torch.device,
) -> Batch:
    """The batch, with what follows from where each completion starts."""
    lengths = torch.tensor([len(ids) for group in groups for ids in group.completions])
    first, before = torch.tensor(starts).unbind(1)
    completion_of = torch.arange(len(lengths)).repeat_interleave(lengths)
    within = torch.arange(int(lengths.sum())) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    positions_of = first[completion_of] + within
    predictors = torch.where(within == 0, before[completion_of], positions_of - 1)
    predicted = predictors != NOTHING
    input_ids = torch.tensor(rows)
    return Batch(
        input_ids.to(device),
        positions,
        layout,
        predictors[predicted].to(device),
        input_ids.flatten()[positions_of[predicted]].to(device),
        completion_of[predicted].to(device),
        lengths.to(device),
        (first + lengths - 1).to(device),
        real,
    )


def tokens_at_once(runtime: RuntimeSection, device: torch.device) -> int:
    """Tokens of one forward and backward pass on a device."""
    if runtime.microbatch_tokens == "auto":
        return CPU_TOKENS if device.type == "cpu" else ACCELERATOR_TOKENS
    return runtime.microbatch_tokens


def microbatches(
    items: Sequence[Item], tokens: Callable[[Item], int], *, max_tokens: int
) -> list[list[Item]]:
    """Cuts items into as few parts of similar size as stay within `max_tokens`; an item alone may exceed it.

    Items are grouped by similar length; the order within a step does not matter because losses are summed.
    """
    ordered = sorted(items, key=tokens)
    left = sum(map(tokens, ordered))
    parts: list[list[Item]] = []
    size = 0
    fair = 0.0
    for item in ordered:
        if not parts or size + tokens(item) > max_tokens or size >= fair:
            fair = left / math.ceil(left / max_tokens)
            parts.append([])
            size = 0
        parts[-1].append(item)
        size += tokens(item)
        left -= tokens(item)
    return parts


def check_tokenizer_has_distinct_pad(tokenizer: Any, name: str) -> None:
    """A reward model reads the last token that is not padding, so padding must be a token of its own."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise InputError(
            f"{name}: the reward model's pad token is its EOS token, so its scores would not see the end of an answer; "
            "give it a pad token of its own"
        )
