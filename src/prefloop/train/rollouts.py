"""Rollouts: the policy answers prompts, the answers are scored, and scores become advantages.

Made batch by batch while the policy is trained, from the weights as they are then. Knows nothing about losses.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from prefloop import shaping
from prefloop.advantages import Moments, advantages_of, completion_returns, win_rates
from prefloop.algorithms import vary
from prefloop.batches import Codec, TokenGroup
from prefloop.config import ConstraintSection, GenerateSection, RlSection, RuntimeSection, SppoSection
from prefloop.forward import LogpsModule, all_token_logps, all_values, plain
from prefloop.interfaces import Generator, InputError, Scorer
from prefloop.launch import processes
from prefloop.losses import adapted_kl_coef, counted, kl_k1, kl_k3, truncated_weights
from prefloop.modeling import Dtype
from prefloop.records import Group, Prompt, Rollout, Score, content_id
from prefloop.selection import Choice
from prefloop.store import RowFile
from prefloop.train.actor import ActorCritic
from prefloop.train.adapters import WithoutAdapters
from prefloop.train.ahead import Ahead
from prefloop.trust import compare_with_trainer

ROLLOUTS = 1
"""Tells the random numbers that cut a batch from others of the same seed."""
CHECKED = 2
"""Groups of the first batch whose log-probabilities are compared with the trainer's."""
KEPT = 2
"""Groups of a batch that are kept to be looked at."""


class GeneratorOf(Protocol):
    """Makes a generator of a model that is in memory, adapters inside, with the weights that it has when it is asked."""

    def __call__(
        self,
        model: Any,
        codec: Codec,
        options: GenerateSection,
        *,
        seed: int,
        version: int,
        runtime: RuntimeSection,
    ) -> Generator: ...


@dataclass(frozen=True)
class Sample:
    """A prompt with its completions, and what is known of their tokens, [t] each, when they were sampled."""

    name: str
    tokens: TokenGroup
    advantages: Tensor | None = None
    """None where completions are compared with each other instead."""
    old_logps: Tensor | None = None
    """None where the batch serves a single step: they are the policy's own then."""
    reference_logps: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None
    weights: Tensor | None = None
    """What each token counts, where the sampler was another than the trainer's policy."""
    pairs: tuple[Choice, ...] = ()
    """Completions of which one is better than the other."""
    win_rates: Tensor | None = None
    """How often each completion beats the others, [C]."""
    texts: tuple[TokenGroup, ...] = ()
    """Pretraining text that is learned from in the same step."""
    text_weight: float = 0.0
    """What each of its tokens counts beside one count of the step."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each completion."""
        return [len(one) for one in self.tokens.completions]


@dataclass(frozen=True)
class Scored:
    """A group that was sampled and scored, and what models say of its tokens, a tensor for each completion."""

    place: int
    """In the batch of prompts."""
    group: Group
    tokens: TokenGroup
    scores: tuple[Score, ...]
    violations: tuple[float, ...]
    """Of the constraint, one a completion; empty where there is none."""
    gold: tuple[float, ...]
    """Scores that are logged only; empty where there are none."""
    old_logps: list[Tensor]
    reference_logps: list[Tensor] | None
    values: list[Tensor] | None

    def first(self, number: int) -> "Scored":
        """The same with so many completions; gold scores that are not known of all are left out."""
        completions = self.group.completions
        return replace(
            self,
            group=self.group.model_copy(update={"completions": completions[:number]}),
            tokens=replace(self.tokens, completions=self.tokens.completions[:number]),
            scores=self.scores[:number],
            violations=self.violations[:number],
            gold=self.gold[:number] if len(self.gold) == len(completions) else (),
            old_logps=self.old_logps[:number],
            reference_logps=self.reference_logps[:number] if self.reference_logps is not None else None,
        )


@dataclass
class Standing:
    """What is carried from batch to batch, and into checkpoints."""

    kl_coef: float
    """Weight of the KL to the reference, as it is now."""
    price: float = 0.0
    """Of a violation of the constraint, as it is now."""
    scores: Moments = field(default_factory=Moments)
    """Of all scores so far."""
    returns: Moments = field(default_factory=Moments)
    """Of what completions earned in all batches before this one."""
    rows: Counter[str] = field(default_factory=Counter)
    """Prompts that were asked about, and what became of them."""
    sources: Counter[str] = field(default_factory=Counter)
    """Prompts that were learned from, by where they came from."""
    said: dict[str, float] = field(default_factory=dict)
    """Mean score of the first and of the last batch, and its KL to the reference."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        moments = {name: list(vars(getattr(self, name)).values()) for name in ("scores", "returns")}
        return {
            "kl_coef": self.kl_coef,
            "price": self.price,
            "rows": dict(self.rows),
            "sources": dict(self.sources),
            "said": self.said,
            **moments,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.price = state["price"]
        self.kl_coef, self.rows, self.said = state["kl_coef"], Counter(state["rows"]), dict(state["said"])
        self.sources = Counter(state["sources"])
        self.scores, self.returns = Moments(*state["scores"]), Moments(*state["returns"])


class Rollouts:
    """Batches of samples; each is cut into the steps of `minibatches`, `inner_epochs` times."""

    def __init__(
        self,
        module: ActorCritic,
        reference: LogpsModule | WithoutAdapters | None,
        sampler: "GeneratorOf",
        scorer: Scorer,
        codec: Codec,
        prompts: Sequence[Prompt],
        options: RlSection,
        *,
        constraint: Scorer | None = None,
        gold: Scorer | None = None,
        texts: Sequence[TokenGroup] = (),
        file: RowFile | None = None,
        spare: Any = None,
        dtype: Dtype,
        seed: int,
        runtime: RuntimeSection,
    ) -> None:
        """`file` gets the first groups of every batch; `spare` is a second policy, for `ahead`."""
        self.options = options
        self.steps_together = options.steps_together
        self.row = options.row
        """As it holds for the batch that is being learned from: the weight of its KL may have been adapted. None where
        completions are compared with each other."""
        price = options.constraint.start if options.constraint is not None else 0.0
        self.standing = Standing((self.row and self.row.kl_coef) or 0.0, price)
        self.reads_old = self.row is not None and (
            options.steps_together > 1
            or options.weight_cap is not None
            or self.row.kl == "reward_k1"
            or self.row.update == "trust_region"
        )
        """Whether anything needs the trainer's log-probabilities from before the first step of a batch."""
        self.ahead = Ahead(spare) if spare is not None else None
        """Samples the next batch meanwhile."""
        self.moved: list[float] = []
        """KL of a token and number of tokens, by turns, of the microbatches of the last step."""
        self.num_tokens = 0
        """Tokens of the completions of the batch that is being learned from."""
        self._module, self._reference, self._scorer, self._codec = module, reference, scorer, codec
        self._sampler, self._constraint, self._gold = sampler, constraint, gold
        self._prompts, self._texts, self._file = prompts, texts, file
        self._several_sources = len({one.source for one in prompts}) > 1
        self._dtype: Dtype = dtype
        self._seed, self._runtime = seed, runtime
        self._figures: dict[str, float] = {}
        self._sampling = GenerateSection(
            num_completions=options.num_completions // (2 if options.asks_reference else 1),
            max_new_tokens=options.max_new_tokens,
            max_prompt_length=options.max_prompt_length,
        )

    # --- what the optimiser loop asks for ---

    @property
    def kept(self) -> list[Any]:
        """What changes from batch to batch, for checkpoints."""
        return [self.standing, *([self.ahead] if self.ahead is not None else [])]

    def close(self) -> None:
        """Ends what samples ahead."""
        if self.ahead is not None:
            self.ahead.close()

    def steps(self, done: int) -> Iterator[Sequence[Sample] | None]:
        """The samples of each step. Raises InputError where nothing of a batch can be learned from."""
        for number in range(done // self.steps_together, self.options.steps):
            samples = self.batch(number)
            self.moved.clear()
            stopped = False
            for epoch in range(self.options.inner_epochs):
                for part in self._minibatches(samples, number, epoch):
                    stopped = stopped or self._has_moved_too_far()
                    self.moved.clear()
                    yield None if stopped or not part else part

    def figures(self) -> Mapping[str, float]:
        """What is to be logged about a batch, once."""
        found, self._figures = self._figures, {}
        return found

    def _has_moved_too_far(self) -> bool:
        if self.options.max_step_kl is None or (self.row and self.row.update == "trust_region"):
            return False
        sums = gather_object([(sum(self.moved[::2]), sum(self.moved[1::2]))])
        kl, tokens = (sum(column) for column in zip(*sums, strict=True))
        return kl > self.options.max_step_kl * max(tokens, 1)

    def _minibatches(self, samples: Sequence[Sample], number: int, epoch: int) -> Iterator[list[Sample]]:
        rng = np.random.default_rng([self._seed, ROLLOUTS, number, epoch])
        for places in np.array_split(rng.permutation(len(samples)), self.options.minibatches):
            yield self._with_texts([samples[place] for place in places.tolist()], rng)

    def _with_texts(self, samples: list[Sample], rng: np.random.Generator) -> list[Sample]:
        """The samples with rows of pretraining text, whose tokens together count as much as the step does."""
        if not self._texts or not samples:
            return samples
        assert self.row is not None, "pretraining text goes with a row that has a weight for it"
        rows = self.options.pretraining_rows * self.options.num_completions
        drawn = [
            rng.choice(len(self._texts), rows, replace=rows > len(self._texts)).tolist() for _ in samples
        ]
        texts = [tuple(self._texts[place] for place in one) for one in drawn]
        tokens = sum(len(text.completions[0]) for one in texts for text in one)
        reduction = self.row.reduction
        count = sum(counted(torch.tensor(one.lengths), reduction=reduction) for one in samples)
        return [
            replace(one, texts=some, text_weight=count / tokens)
            for one, some in zip(samples, texts, strict=True)
        ]

    # --- one batch ---

    def batch(self, number: int) -> list[Sample]:
        """Samples the prompts of a batch by the weights as they are; says how much better each token was than expected."""
        training = self._module.training
        self._module.eval()
        state = processes(self._runtime)
        prompts, mine = self.prompts_of(number), self._mine(number)
        began = time.perf_counter()
        groups = self.ahead.groups(number) if self.ahead is not None else None
        if groups is None:
            groups = self._sampled(self._module.policy.model, mine, number, version=number)
        if self.ahead is not None and number + 1 < self.options.steps:
            following = self._mine(number + 1)
            self.ahead.begin(
                number + 1,
                self._module.policy.model,
                lambda model: self._sampled(model, following, number + 1, version=number),
            )
        sampled = time.perf_counter()
        places = range(state.process_index, len(prompts), state.num_processes)
        scored, lost = self._scored(list(zip(places, groups, strict=True)))
        if state.num_processes > 1:
            scored = sorted(gather_object(scored), key=lambda one: one.place)
            lost = sum(gather_object([lost]), Counter())
        self._module.train(training)
        self.standing.rows += Counter(prompts=len(prompts)) + lost
        if not scored:
            reasons = ", ".join(f"{count} {reason}" for reason, count in lost.items() if count)
            raise InputError(f"rl: no prompt of batch {number + 1} can be learned from: {reasons}")
        if self._file is not None and self._file.items <= number:  # one that is made again is the same
            self._file.append(
                [Rollout(batch=number + 1, group=one.group, scores=one.scores) for one in scored[:KEPT]],
                items=1,
            )
        samples = self._samples(scored)
        self._figures |= {
            "rl/batch": number + 1,
            "rl/generate_s": round(sampled - began, 3),
            "rl/score_s": round(time.perf_counter() - sampled, 3),
        }
        return samples

    def prompts_of(self, number: int) -> list[Prompt]:
        """The prompts of a batch: seeded permutations of all, cut into whole batches."""
        size = self.options.prompts_per_step
        each = len(self._prompts) // size
        epoch, place = divmod(number, each)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._prompts)).tolist()
        return [self._prompts[one] for one in order[place * size : (place + 1) * size]]

    def _mine(self, number: int) -> list[Prompt]:
        """The prompts of a batch that this process asks about."""
        state = processes(self._runtime)
        return self.prompts_of(number)[state.process_index :: state.num_processes]

    def _sampled(self, model: Any, prompts: Sequence[Prompt], number: int, *, version: int) -> list[Group]:
        """Answers of the model; half of them the reference's where the algorithm asks it too."""
        groups = self._answers(model, prompts, "rollout", number, version=version)
        if number == 0:
            self._check(groups)
        if not self.options.asks_reference:
            return groups
        assert self._reference is not None, "what asks the reference reads it"
        others = self._answers(self._reference.model, prompts, "reference", number, version=version)
        return [
            one.model_copy(update={"completions": one.completions + other.completions})
            for one, other in zip(groups, others, strict=True)
        ]

    def _check(self, groups: Sequence[Group]) -> None:
        """Raises PrefloopError where the engine's log-probabilities are not those of the weights in training."""
        said = [group for group in groups if group.completions][:CHECKED]
        policy = self._module.policy
        gap = compare_with_trainer(said, policy, self._codec, self._runtime, dtype=self._dtype)
        if gap is not None:
            self.standing.said["engine_gap"] = gap

    def _answers(
        self, model: Any, prompts: Sequence[Prompt], whose: str, number: int, *, version: int
    ) -> list[Group]:
        # another seed for each batch: a prompt that comes again is answered anew
        seed = int(content_id(whose, self._seed, number), 16) >> 33
        generator = self._sampler(
            plain(model), self._codec, self._sampling, seed=seed, version=version, runtime=self._runtime
        )
        with self._autocast():
            return list(generator.generate(prompts))

    def _scored(self, groups: Sequence[tuple[int, Group]]) -> tuple[list[Scored], Counter[str]]:
        """Groups whose completions were all scored, and how many others there are, by reason."""
        answered = [(place, group) for place, group in groups if group.completions]
        asked = [group for _, group in answered]
        said = _said(self._scorer, asked)
        kept_to = _said(self._constraint, asked) if self._constraint is not None else None
        gold = _said(self._gold, asked) if self._gold is not None else {}
        kept: list[tuple[int, Group, tuple[Score, ...], tuple[float, ...]]] = []
        for place, group in answered:
            scores = tuple(said[one.id] for one in group.completions if one.id in said)
            wanted, missing = len(group.completions), ()
            if kept_to is not None:
                missing = tuple(1 - kept_to[one.id].value for one in group.completions if one.id in kept_to)
            if len(scores) == wanted and (kept_to is None or len(missing) == wanted):
                kept.append((place, group, scores, missing))
        lost = Counter(prompt_too_long=len(groups) - len(answered), not_scored=len(answered) - len(kept))
        tokens = [self._tokens(group) for _, group, *_ in kept]
        with self._autocast():
            reference, values = None, None
            if self.reads_old:
                old = all_token_logps(self._module.policy, tokens, self._runtime)
            else:  # for the log the engine's are good enough
                old = [[torch.tensor(one.token_logps) for one in group.completions] for _, group, *_ in kept]
            if self._reference is not None:
                reference = all_token_logps(self._reference, tokens, self._runtime)
            if self._module.critic is not None:
                values = all_values(self._module.critic, tokens, self._runtime)
        found = [
            Scored(
                place,
                group,
                tokens[index],
                scores,
                missing,
                tuple(gold[one.id].value for one in group.completions if one.id in gold),
                old[index],
                reference[index] if reference is not None else None,
                values[index] if values is not None else None,
            )
            for index, (place, group, scores, missing) in enumerate(kept)
        ]
        return found, lost

    def _tokens(self, group: Group) -> TokenGroup:
        prompt = self._codec.prompt_ids(group.prompt.messages)
        return TokenGroup(tuple(prompt), tuple(one.token_ids or () for one in group.completions))

    def _autocast(self) -> Any:
        device = next(self._module.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self._dtype == "bfloat16")

    # --- from scores to advantages ---

    def _samples(self, scored: Sequence[Scored]) -> list[Sample]:
        """The samples of a batch, which must be whole: what is whitened depends on all of it."""
        shaped = self._shaped(scored)
        if self.row is not None and self.row.kl != "none":
            self.row = vary(self.row, kl_coef=self.standing.kl_coef)
        self._note(*self._policys_own(scored, shaped))
        if self.options.mixed_groups_only:
            mixed = shaping.mixed_groups(shaped, _group_of(scored)).tolist()
            if any(mixed):
                self.standing.rows["all_alike"] += len(mixed) - sum(mixed)
                shaped = shaped[torch.tensor(mixed)[_group_of(scored)]]
                scored = [one for one, keep in zip(scored, mixed, strict=True) if keep]
        self.standing.sources += Counter(one.group.prompt.source for one in scored)
        if self.row is None:
            return self._compared(scored, shaped)
        lengths, group_of = _lengths(scored), _group_of(scored)
        old = _flat([one.old_logps for one in scored])
        reference = _flat_if_known([one.reference_logps for one in scored])
        values = _flat_if_known([one.values for one in scored])
        rewards = self._rewards(shaped, lengths, old, reference)
        found = advantages_of(
            self.row,
            rewards,
            lengths,
            group_of,
            values=values,
            # a completion is scored as it stands, cut off or not: nothing is still to come
            bootstrap=torch.zeros(len(lengths)) if values is not None else None,
            earlier=self.standing.returns,
        )
        self.standing.returns += Moments.of(completion_returns(rewards, lengths, gamma=self.row.gamma))
        sizes = [one.tokens.num_completion_tokens for one in scored]
        self.num_tokens = sum(sizes)

        def parts(whole: Tensor | None) -> Sequence[Tensor | None]:
            return [None] * len(sizes) if whole is None else whole.split(sizes)

        read = old if self.reads_old else None
        weights = self._weights(scored, old)
        others = zip(*map(parts, (read, reference, values, found.returns, weights)), strict=True)
        return [
            Sample(one.group.prompt.id, one.tokens, advantages, *known)
            for one, advantages, known in zip(scored, found.advantages.split(sizes), others, strict=True)
        ]

    def _rewards(self, shaped: Tensor, lengths: Tensor, old: Tensor, reference: Tensor | None) -> Tensor:
        """Of tokens, [t]: the score at the last one, and what it costs to leave the reference where the reward says so."""
        rewards = shaping.token_rewards(shaped, lengths)
        if self.row is None or self.row.kl != "reward_k1":
            return rewards
        assert reference is not None and self.row.kl_coef is not None
        return rewards + shaping.kl_rewards(old, reference, kl_coef=self.row.kl_coef)

    def _policys_own(self, scored: Sequence[Scored], shaped: Tensor) -> tuple[Sequence[Scored], Tensor]:
        """The batch and its shaped scores [C] without what was sampled from the reference."""
        if not self.options.asks_reference:
            return scored, shaped
        number = self._sampling.num_completions
        return [one.first(number) for one in scored], shaped.view(len(scored), -1)[:, :number].flatten()

    def _weights(self, scored: Sequence[Scored], old: Tensor) -> Tensor | None:
        """What each token counts, [t], where its sampler was another than the policy before this batch's first step."""
        if self.options.weight_cap is None:
            return None
        sampled = torch.cat([torch.tensor(c.token_logps) for one in scored for c in one.group.completions])
        weights = truncated_weights(old, sampled, cap=self.options.weight_cap)
        self._figures |= {
            "rl/weight": float(weights.mean()),
            "rl/sampler_kl": float(kl_k3(sampled, old).mean()),
        }
        return weights

    def _compared(self, scored: Sequence[Scored], shaped: Tensor) -> list[Sample]:
        """The samples of a batch whose completions are compared: how often each wins, or which pairs differ."""
        found, alike = [], 0
        for one, scores in zip(scored, shaped.split([len(one.scores) for one in scored]), strict=True):
            assert one.reference_logps is not None or not self.options.needs_reference
            reference = torch.cat(one.reference_logps) if one.reference_logps is not None else None
            sample = Sample(one.group.prompt.id, one.tokens, reference_logps=reference)
            if isinstance(self.options.algorithm, SppoSection):
                found.append(replace(sample, win_rates=win_rates(scores)))
            elif pairs := self._pairs(scores.tolist()):
                found.append(replace(sample, pairs=pairs))
            else:
                alike += 1
        self.standing.rows["all_alike"] += alike
        return found

    def _pairs(self, scores: Sequence[float]) -> tuple[Choice, ...]:
        """The best against the worst; each sample of the policy against one of the reference where that is asked too."""
        if not self.options.asks_reference:
            places = [(scores.index(max(scores)), scores.index(min(scores)))]
        else:
            places = [(one, one + len(scores) // 2) for one in range(len(scores) // 2)]
        ordered = [(a, b) if scores[a] > scores[b] else (b, a) for a, b in places if scores[a] != scores[b]]
        return tuple(Choice(a, b, scores[a] - scores[b]) for a, b in ordered)

    def _shaped(self, scored: Sequence[Scored]) -> Tensor:
        """Scores [C] as they are optimised; the price of violations for the next batch."""
        options, lengths = self.options, _lengths(scored)
        scores = torch.tensor([score.value for one in scored for score in one.scores])
        truncated = torch.tensor(
            [c.finish_reason == "length" for one in scored for c in one.group.completions]
        )
        self.standing.scores += Moments.of(scores)
        if options.score_scale == "running":
            scores = shaping.normalised(scores, self.standing.scores)
        elif options.score_scale == "rank":
            scores = shaping.rank_scores(-scores, _group_of(scored))
        if options.score_clip is not None:
            scores = shaping.clipped(scores, limit=options.score_clip)
        if options.unfinished_penalty:
            scores = shaping.without_terminator(scores, truncated, penalty=options.unfinished_penalty)
        if options.length_penalty:
            scores = shaping.by_length(scores, lengths, penalty=options.length_penalty)
        if options.overlong_margin is not None:
            scores = shaping.overlong(
                scores, lengths, max_length=options.max_new_tokens, margin=options.overlong_margin
            )
        return scores if options.constraint is None else self._constrained(scores, scored, options.constraint)

    def _constrained(self, scores: Tensor, scored: Sequence[Scored], options: ConstraintSection) -> Tensor:
        violations = torch.tensor([one for group in scored for one in group.violations])
        own = [one for group in scored for one in group.violations[: self._sampling.num_completions]]
        price, mean = self.standing.price, sum(own) / len(own)
        self._figures |= {"rl/violation": mean, "rl/price": price}
        self.standing.price = shaping.next_multiplier(price, mean, limit=options.limit, rate=options.rate)
        return shaping.constrained(scores, violations, multiplier=price)

    def _note(self, scored: Sequence[Scored], shaped: Tensor) -> None:
        """Figures of all that the policy said, learned from or not; the weight of the KL for the next batch."""
        lengths, old = _lengths(scored), _flat([one.old_logps for one in scored])
        reference = _flat_if_known([one.reference_logps for one in scored])
        rewards = self._rewards(shaped, lengths, old, reference)
        scores = [score for one in scored for score in one.scores]
        completions = [c for one in scored for c in one.group.completions]
        number = len(completions)
        parts: Counter[str] = Counter()
        for score in scores:
            parts.update(score.parts or {})
        self._figures |= {
            "rl/score": sum(one.value for one in scores) / number,
            "rl/reward": float(shaped.mean()),
            "rl/return": float(rewards.sum()) / number,
            "rl/length": float(lengths.float().mean()),
            "rl/unfinished": sum(one.finish_reason == "length" for one in completions) / number,
            **{f"rl/score/{name}": value / number for name, value in parts.items()},
            **(_by_source(scored) if self._several_sources else {}),
        }
        if gold := [value for one in scored for value in one.gold]:
            self._figures["rl/gold"] = sum(gold) / len(gold)
        self.standing.said.setdefault("score_first", self._figures["rl/score"])
        self.standing.said["score_last"] = self._figures["rl/score"]
        if reference is None:
            return
        kl = self.standing.said["kl"] = float(kl_k1(old, reference).sum()) / number
        self._figures |= {"rl/kl": kl, "rl/kl_coef": self.standing.kl_coef}
        if self.options.kl_target is not None:
            self.standing.kl_coef = adapted_kl_coef(
                self.standing.kl_coef, kl, target=self.options.kl_target, gain=self.options.kl_gain
            )


def _said(scorer: Scorer, groups: Sequence[Group]) -> dict[str, Score]:
    """Scores by completion; those that were refused are left out."""
    return {row.completion_id: row for row in scorer.score(groups) if isinstance(row, Score)}


def _by_source(scored: Sequence[Scored]) -> dict[str, float]:
    """Prompts of each source, and the mean score and parts of what was said to them."""
    found: dict[str, float] = {}
    for source in sorted({one.group.prompt.source for one in scored}):
        groups = [one for one in scored if one.group.prompt.source == source]
        scores = [score for one in groups for score in one.scores]
        parts: Counter[str] = Counter()
        for score in scores:
            parts.update(score.parts or {})
        found[f"rl/source/{source}/prompts"] = len(groups)
        found[f"rl/source/{source}/score"] = sum(one.value for one in scores) / len(scores)
        found |= {
            f"rl/source/{source}/score/{name}": value / len(scores)
            for name, value in parts.items()
            if not name.startswith("weighted/")  # the weights are the same for all sources
        }
    return found


def _lengths(scored: Sequence[Scored]) -> Tensor:
    return torch.tensor([len(one) for group in scored for one in group.tokens.completions])


def _group_of(scored: Sequence[Scored]) -> Tensor:
    return torch.arange(len(scored)).repeat_interleave(
        torch.tensor([len(one.tokens.completions) for one in scored])
    )


def _flat(values: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.cat([one for group in values for one in group])


def _flat_if_known(values: Sequence[Sequence[Tensor] | None]) -> Tensor | None:
    known = [one for one in values if one is not None]
    return _flat(known) if known else None
