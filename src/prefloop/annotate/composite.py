"""One score of several parts: preference, rules, length and form, as Sparrow's reward (arXiv:2209.14375)."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from prefloop.config import CompositeAnnotator
from prefloop.interfaces import InputError, Scorer
from prefloop.records import Completion, Group, Prompt, Refusal, Score

Parts = dict[str, float]
CountTokens = Callable[[Prompt, Completion], int]
ROUNDING = 1e-6
"""Relative deviation of a part that is the same for all answers; models in float32 say no better."""


class CompositeScorer:
    """preference_weight * preference + rule_weight * rules - length_weight * tokens - invalid_weight * [invalid].

    Each part is kept too. With reference groups every part is first brought to the mean 0 and the deviation 1 that it has
    there.
    """

    def __init__(
        self,
        options: CompositeAnnotator,
        preference: Scorer,
        rules: Scorer | None,
        *,
        count_tokens: CountTokens,
        reference: Sequence[Group] = (),
    ) -> None:
        self.name = "composite"
        self._scorers = {"preference": preference} | ({"rules": rules} if rules is not None else {})
        self.models = tuple(one for scorer in self._scorers.values() for one in getattr(scorer, "models", ()))
        self._template = re.compile(options.template, re.DOTALL) if options.template is not None else None
        self._count_tokens = count_tokens
        self._weights = {"preference": options.preference_weight}
        if rules is not None:
            self._weights["rules"] = options.rule_weight
        if options.length_weight:
            self._weights["length"] = -options.length_weight
        if self._template is not None:
            self._weights["invalid"] = -options.invalid_weight
        self.standardised_by: dict[str, tuple[float, float]] = {}
        """Mean and deviation of each part on the reference groups; empty without any."""
        if reference:
            self.standardised_by = self._moments(reference)

    def score(self, groups: Iterable[Group]) -> Iterator[Score | Refusal]:
        """Yields one row a completion, in order; a refusal of any part is a refusal."""
        together = list(groups)
        found = self._parts(together)
        for group in together:
            for completion in group.completions:
                parts = found[completion.id]
                if isinstance(parts, Refusal):
                    yield parts
                    continue
                weighted = {name: self._weighted(name, parts[name]) for name in self._weights}
                yield Score(
                    prompt_id=group.prompt.id,
                    completion_id=completion.id,
                    value=sum(weighted.values()),
                    annotator=self.name,
                    parts=parts | {f"weighted/{name}": value for name, value in weighted.items()},
                )

    def _weighted(self, name: str, value: float) -> float:
        mean, deviation = self.standardised_by.get(name, (0.0, 1.0))
        return self._weights[name] * (value - mean) / deviation

    def _parts(self, groups: Sequence[Group]) -> Mapping[str, Parts | Refusal]:
        """The parts of every completion before weights, by its id."""
        found = {one.id: self._own_parts(group.prompt, one) for group in groups for one in group.completions}
        refused: dict[str, Refusal] = {}
        for name, scorer in self._scorers.items():
            for row in scorer.score(groups):
                if isinstance(row, Refusal):
                    refused |= dict.fromkeys(row.completion_ids, row)
                    continue
                inner = {f"{name}/{part}": value for part, value in (row.parts or {}).items()}
                found[row.completion_id] |= {name: row.value, **inner}
        return {**found, **refused}

    def _own_parts(self, prompt: Prompt, completion: Completion) -> Parts:
        parts: Parts = {}
        if "length" in self._weights:
            parts["length"] = float(self._count_tokens(prompt, completion))
        if self._template is not None:
            parts["invalid"] = float(self._template.fullmatch(completion.text) is None)
        return parts

    def _moments(self, reference: Sequence[Group]) -> dict[str, tuple[float, float]]:
        rows = [parts for parts in self._parts(reference).values() if not isinstance(parts, Refusal)]
        if not rows:
            raise InputError(
                "annotate.annotator.reference: every completion was refused, so there is no scale"
            )
        columns = {name: [parts[name] for parts in rows] for name in self._weights}
        return {name: _moments(one) for name, one in columns.items()}


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and deviation; a part that only rounding tells apart has the deviation 1, so that it is not blown up."""
    mean, deviation = float(np.mean(values)), float(np.std(values))
    return mean, deviation if deviation > ROUNDING * max(1.0, abs(mean)) else 1.0


def token_counter(*scorers: Scorer | None) -> CountTokens:
    """Counts the sampler's tokens; of text that came from a file, those of the first scorer that is a model."""
    codec = next((one for one in (getattr(scorer, "codec", None) for scorer in scorers) if one), None)

    def count(prompt: Prompt, completion: Completion) -> int:
        if completion.token_ids is not None:
            return len(completion.token_ids)
        if codec is None:
            raise InputError(
                f"completion {completion.id}: came from a file, so that its tokens are not known; set "
                "annotate.annotator.length_weight=0"
            )
        return len(codec.answer_ids(prompt.messages, completion.text))

    return count
