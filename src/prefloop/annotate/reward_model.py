"""Scores from a reward model of any kind, through its own chat template."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from prefloop.batches import Codec, TokenGroup
from prefloop.config import RuntimeSection
from prefloop.forward import ScoresModule, all_scores, of_each
from prefloop.interfaces import InputError
from prefloop.modeling import SCORING_KINDS, load_reward_model, reward_notes
from prefloop.records import Completion, Group, Prompt, Score
from prefloop.reward.heads import all_parts, load_heads
from prefloop.reward.rules import rule_group
from prefloop.reward.steps import Reduction, StepsModule, reduced, step_ids, steps_of

Value = tuple[float, dict[str, float] | None]
"""A score, and its parts where it has some."""
Reader = Callable[[Sequence[Group]], list[list[Value]]]
"""What a model says about every completion of groups."""


class RewardModelScorer:
    """Scores every completion with the value of the model's head or heads.

    With `same_tokens` the sampler's token ids are scored as they are; otherwise the text is tokenised by the reward
    model's own tokenizer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        codec: Codec,
        *,
        name: str,
        same_tokens: bool,
        labels: int,
        runtime: RuntimeSection,
    ) -> None:
        self.codec = codec
        self.models = (model,)
        self.name = name
        self.labels = labels
        self._read = _reader(model, Texts(codec, same_tokens=same_tokens), runtime)

    def score(self, groups: Iterable[Group]) -> Iterator[Score]:
        """Yields one score a completion, in order; all groups given share batches."""
        together = list(groups)
        for group, values in zip(together, self._read(together), strict=True):
            for completion, (value, parts) in zip(group.completions, values, strict=True):
                yield Score(
                    prompt_id=group.prompt.id,
                    completion_id=completion.id,
                    value=finite(value, self.name, group.prompt),
                    annotator=self.name,
                    labels=self.labels,
                    parts=parts,
                )


def load_scorer(
    path: Path | str, runtime: RuntimeSection, *, name: str, same_tokens: bool, labels: int
) -> "RewardModelScorer | RuleModelScorer":
    """The scorer of a model folder or hub name; of a rule model, the mean over its rules. Raises InputError."""
    model, codec = load_reward_model(path, runtime, kinds=SCORING_KINDS)
    if reward_notes(model.config).get("kind") == "rules":
        return RuleModelScorer(
            model,
            codec,
            name=name,
            rules=(),
            reduction="mean",
            same_tokens=same_tokens,
            labels=labels,
            runtime=runtime,
        )
    return RewardModelScorer(model, codec, name=name, same_tokens=same_tokens, labels=labels, runtime=runtime)


class Texts:
    """How text becomes tokens for one reward model."""

    def __init__(self, codec: Codec, *, same_tokens: bool) -> None:
        self.codec = codec
        self.same_tokens = same_tokens

    def answer(self, prompt: Prompt, completion: Completion) -> tuple[int, ...]:
        """The tokens of a completion, terminator included."""
        if self.same_tokens:
            return tuple(self.codec.completion_ids(prompt.messages, completion))
        return tuple(self.codec.answer_ids(prompt.messages, completion.text))

    def group(self, group: Group) -> TokenGroup:
        """The prompt and its completions."""
        answers = tuple(self.answer(group.prompt, one) for one in group.completions)
        return TokenGroup(tuple(self.codec.prompt_ids(group.prompt.messages)), answers)


class NotFinite(InputError):
    """A model says no number of an answer."""


def finite(value: float, name: str, prompt: Prompt) -> float:
    """What a model says, if it is a number. Raises NotFinite."""
    if not math.isfinite(value):
        raise NotFinite(
            f"{name} says {value} of an answer to prompt {prompt.id}, which is not a finite number; its weights may be "
            "damaged, or its dtype too narrow for them"
        )
    return value


# --- by kind ---------------------------------------------------------------------------------------------------------


def _reader(model: PreTrainedModel, texts: Texts, runtime: RuntimeSection) -> Reader:
    match reward_notes(model.config).get("kind", "bradley_terry"):
        case "ensemble" | "multi_objective":
            return _parts_reader(model, texts, runtime)
        case "process":
            return _steps_reader(model, texts, runtime)
        case _:
            module = ScoresModule(model, pad_id=texts.codec.pad_id, runtime=runtime)
            return lambda groups: [
                [(value, None) for value in row]
                for row in all_scores(module, [texts.group(one) for one in groups], runtime)
            ]


def _parts_reader(model: PreTrainedModel, texts: Texts, runtime: RuntimeSection) -> Reader:
    module = load_heads(str(model.name_or_path), model, pad_id=texts.codec.pad_id, runtime=runtime)

    def read(groups: Sequence[Group]) -> list[list[Value]]:
        found = all_parts(module, [texts.group(one) for one in groups], runtime)
        return [
            [(value, dict(zip(module.part_names, parts, strict=True))) for value, *parts in row]
            for row in found
        ]

    return read


def _steps_reader(model: PreTrainedModel, texts: Texts, runtime: RuntimeSection) -> Reader:
    module = StepsModule(model, pad_id=texts.codec.pad_id, runtime=runtime)
    notes = reward_notes(model.config)
    codec, separator, reduction = texts.codec, notes["separator"], notes["reduction"]

    def read(groups: Sequence[Group]) -> list[list[Value]]:
        solutions = [
            [step_ids(codec, steps_of(one.text, separator), separator) for one in group.completions]
            for group in groups
        ]
        tokens = [
            TokenGroup(tuple(codec.prompt_ids(group.prompt.messages)), tuple(ids for ids, _ in row))
            for group, row in zip(groups, solutions, strict=True)
        ]
        logits = of_each(module, tokens, module.by_completion, runtime)
        return [
            [
                _solution_value(values[list(ends)].sigmoid().tolist(), reduction)
                for values, (_, ends) in zip(row, solution, strict=True)
            ]
            for row, solution in zip(logits, solutions, strict=True)
        ]

    return read


def _solution_value(probabilities: Sequence[float], reduction: Reduction) -> Value:
    parts = {f"step_{number}": value for number, value in enumerate(probabilities)}
    return reduced(probabilities, reduction), parts


class RuleModelScorer:
    """Scores completions by how likely they follow rules in words: the mean or the sum over the rules."""

    def __init__(
        self,
        model: PreTrainedModel,
        codec: Codec,
        *,
        name: str,
        rules: Sequence[str],
        reduction: str,
        same_tokens: bool,
        labels: int,
        runtime: RuntimeSection,
    ) -> None:
        self.name = name
        self.rules = tuple(rules) or tuple(reward_notes(model.config).get("rules", ()))
        if not self.rules:
            raise InputError(f"{name}: the model names no rules; list them in rules")
        self.codec = codec
        self.models = (model,)
        self._reduction = reduction
        self._texts = Texts(codec, same_tokens=same_tokens)
        self._labels = labels
        self._runtime = runtime
        self._module = ScoresModule(model, pad_id=codec.pad_id, runtime=runtime)

    def score(self, groups: Iterable[Group]) -> Iterator[Score]:
        """Yields one score a completion, in order, with P(follows) of each rule as its parts."""
        together = [(group.prompt, completion) for group in groups for completion in group.completions]
        tokens = [
            rule_group(self._texts.codec, prompt, self._texts.answer(prompt, completion), self.rules)
            for prompt, completion in together
        ]
        logits = all_scores(self._module, tokens, self._runtime)
        for (prompt, completion), row in zip(together, logits, strict=True):
            follows = (-torch.tensor(row, dtype=torch.float64)).sigmoid().tolist()
            yield Score(
                prompt_id=prompt.id,
                completion_id=completion.id,
                value=finite(over_rules(follows, self._reduction), self.name, prompt),
                annotator=self.name,
                labels=self._labels,
                parts=dict(zip(self.rules, follows, strict=True)),
            )


def over_rules(follows: Sequence[float], reduction: str) -> float:
    """What P(follows) of several rules amounts to."""
    return sum(follows) if reduction == "sum" else sum(follows) / len(follows)


def load_rule_scorer(
    path: str,
    runtime: RuntimeSection,
    *,
    name: str,
    rules: Sequence[str],
    reduction: str,
    same_tokens: bool,
    labels: int,
) -> RuleModelScorer:
    """The scorer of a rule model's folder or hub name. Raises InputError for other models."""
    model, codec = load_reward_model(path, runtime, kinds=frozenset({"rules"}))
    return RuleModelScorer(
        model,
        codec,
        name=name,
        rules=rules,
        reduction=reduction,
        same_tokens=same_tokens,
        labels=labels,
        runtime=runtime,
    )
