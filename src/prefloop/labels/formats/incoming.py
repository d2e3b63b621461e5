"""What comes in: prompts with completions to publish as tasks, and the judgements that a file already has of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.fields import BadRowError
from prefloop.formats import Example
from prefloop.labels.formats.values import check_value
from prefloop.labels.rows import JudgementRow, RowCompletion, RowPrompt, TaskKind
from prefloop.records import Completion, Group, PreferencePair, Prompt, Sampling, content_id, file_completion


@dataclass(frozen=True)
class ImportedTask:
    """A prompt, its completions, and what was said about them.

    The judgements have no number yet and are all of one annotator called "import", unless the file names people.
    """

    prompt: Prompt
    completions: tuple[RowCompletion, ...]
    judgements: tuple[JudgementRow, ...] = ()

    @property
    def loop_completions(self) -> tuple[Completion, ...]:
        """The completions as the loop keeps them."""
        return tuple(
            Completion(
                id=one.id,
                prompt_id=self.prompt.id,
                text=one.text,
                token_ids=one.token_ids,
                sampling=None if one.sampling is None else Sampling.model_validate(one.sampling),
                policy=one.policy,
            )
            for one in self.completions
        )


def task_of(prompt: Prompt, example: Example) -> ImportedTask:
    """A task from a row of a data set, with the order, choice, ranks or scores that it gives."""
    completions = completions_of(prompt, example.completions)
    return ImportedTask(prompt, completions, tuple(_said(prompt, completions, example)))


def from_group(group: Group) -> ImportedTask:
    """A task of a group that the loop sampled."""
    return ImportedTask(group.prompt, tuple(map(_row_completion, group.completions)))


def from_pair(pair: PreferencePair) -> ImportedTask:
    """A task of a pair that the loop selected, and what its annotator said."""
    completions = (_row_completion(pair.chosen), _row_completion(pair.rejected))
    said = {"choice": "a", "strength": None, "p_a": pair.p_chosen, "margin": pair.margin}
    made = judgement(pair.prompt, completions, "pairwise", said, annotator=pair.annotator)
    return ImportedTask(pair.prompt, completions, (made,))


def _row_completion(one: Completion) -> RowCompletion:
    sampling = None if one.sampling is None else one.sampling.model_dump(mode="json")
    return RowCompletion(one.id, one.text, one.policy, sampling, one.token_ids)


def completions_of(
    prompt: Prompt, texts: Sequence[str], policies: object = None
) -> tuple[RowCompletion, ...]:
    """Completions with the ids that the loop gives to text from files. Raises BadRowError for empty ones.

    `policies` are their names, where a file has a list with one each.
    """
    for place, text in enumerate(texts):
        if not text.strip():
            raise BadRowError("empty_completion", f"completion {place} is empty; fix the row")
    names = [""] * len(texts)
    if isinstance(policies, list) and len(policies) == len(texts):
        names = [str(one) for one in policies]
    return tuple(
        RowCompletion(id=file_completion(prompt, text, place).id, text=text, policy=name)
        for place, (text, name) in enumerate(zip(texts, names, strict=True))
    )


def judgement(
    prompt: Prompt,
    completions: tuple[RowCompletion, ...],
    kind: TaskKind,
    value: Mapping[str, Any],
    *,
    annotator: str = "import",
    comment: str = "",
) -> JudgementRow:
    """One judgement of a file. Its task is named by what was judged, so that a second import finds it again.

    Raises BadRowError for a value that says nothing.
    """
    ids = [one.id for one in completions]
    made = JudgementRow(
        judgement_id=0,
        task_id=content_id("import", kind, prompt.id, ids),
        task_kind=kind,
        prompt=RowPrompt(prompt.id, prompt.messages, prompt.answer, prompt.source),
        completions=completions,
        value=value,
        annotator=annotator,
        comment=comment,
    )
    return check_value(made)


def _said(prompt: Prompt, completions: tuple[RowCompletion, ...], example: Example) -> list[JudgementRow]:
    number = len(completions)
    if example.all_bad and number == 2:
        return [judgement(prompt, completions, "pairwise", {"choice": "both_bad"})]
    if example.all_bad:
        return [judgement(prompt, completions, "rank", {"groups": [], "unrankable": list(range(number))})]
    if example.ranked and number == 2:
        return [judgement(prompt, completions, "pairwise", {"choice": "a", "margin": example.margin})]
    if example.ranked or example.ranks:
        return [_ranking(prompt, completions, example)]
    return [
        judgement(prompt, (completions[place],), "form", {"ratings": {"overall": score}, "flags": {}})
        for place, score in enumerate(example.scores)
        if score is not None
    ]


def _ranking(prompt: Prompt, completions: tuple[RowCompletion, ...], example: Example) -> JudgementRow:
    values = example.values
    levels = sorted({value for value in values if value is not None}, reverse=True)
    groups = [[place for place, value in enumerate(values) if value == level] for level in levels]
    left = [place for place, value in enumerate(values) if value is None]
    if len(completions) == 2 and not left:
        choice = "tie" if len(groups) == 1 else "ab"[groups[0][0]]
        return judgement(prompt, completions, "pairwise", {"choice": choice})
    return judgement(prompt, completions, "rank", {"groups": groups, "unrankable": left})
