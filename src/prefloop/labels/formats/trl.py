"""Formats that TRL reads: preferences, labelled completions and steps, prompts, conversations; and soft preferences."""

import itertools
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from prefloop.labels.formats.options import ExportOptions
from prefloop.labels.formats.shapes import (
    NOT_FOR_THIS_FORMAT,
    Column,
    Made,
    Refused,
    Rows,
    answer,
    by_task,
    turns,
    written,
)
from prefloop.labels.formats.verdicts import (
    BOTH_BAD,
    COMPARED,
    TIE,
    JudgedPair,
    choice_of,
    from_pairs,
    group_id,
    groups_of,
    p_first,
    pairs_of,
)
from prefloop.labels.rows import JudgementRow, RowCompletion
from prefloop.records import Message

CORRECT, INCORRECT = "correct", "incorrect"
GROUP_COLUMNS: dict[str, Column] = {"group_id": "text", "group_weight": "number"}

# --- pairs -----------------------------------------------------------------------------------------------------------


def trl_preference(rows: Rows, options: ExportOptions) -> Iterator[Made | Refused]:
    """Prompt, chosen and rejected as turns."""

    def record(row: JudgementRow, pair: JudgedPair, weight: float) -> dict[str, Any]:
        prompt = {"prompt": turns(row.prompt.messages)}
        return prompt | _sides((), pair) | _margin(pair, options) | _group(row, weight)

    return from_pairs(rows, options, record)


def trl_preference_implicit(rows: Rows, options: ExportOptions) -> Iterator[Made | Refused]:
    """Chosen and rejected as whole conversations."""

    def record(row: JudgementRow, pair: JudgedPair, weight: float) -> dict[str, Any]:
        return _sides(row.prompt.messages, pair) | _margin(pair, options) | _group(row, weight)

    return from_pairs(rows, options, record)


def preference_columns(options: ExportOptions) -> dict[str, Column]:
    """Of `trl-preference`."""
    return {"prompt": "turns", **implicit_columns(options)}


def implicit_columns(options: ExportOptions) -> dict[str, Column]:
    """Of `trl-preference-implicit`."""
    margin: dict[str, Column] = {} if options.margins is None else {"margin": "number"}
    return {"chosen": "turns", "rejected": "turns", **margin, **GROUP_COLUMNS}


def _sides(before: tuple[Message, ...], pair: JudgedPair) -> dict[str, Any]:
    return {
        "chosen": turns(before) + answer(pair.chosen.text),
        "rejected": turns(before) + answer(pair.rejected.text),
    }


def _margin(pair: JudgedPair, options: ExportOptions) -> dict[str, Any]:
    return {} if options.margins is None else {"margin": pair.margin}


def _group(row: JudgementRow, weight: float) -> dict[str, Any]:
    return {"group_id": group_id(row), "group_weight": weight}


# --- soft preferences ------------------------------------------------------------------------------------------------


@dataclass
class _Votes:
    """What was said about two completions of a task, by numbers."""

    p_first: list[float] = field(default_factory=list)
    rows: list[JudgementRow] = field(default_factory=list)


def soft_pref(rows: Rows, options: ExportOptions) -> Iterator[Made | Refused]:
    """One record for every two completions of a task that its votes, together, order: `p_chosen` is their weighted mean.

    A tie is half a vote for each. `annotator_weights` is a list, so that all rows have the same columns.
    """
    for task in by_task(rows):
        votes: dict[tuple[int, int], _Votes] = defaultdict(_Votes)
        for row in task:
            said = _soft_votes(row, options)
            if isinstance(said, str):
                yield Refused(row, said)
                continue
            for two, p in said.items():
                votes[two].p_first.append(p)
                votes[two].rows.append(row)
        leads = {two: _lead(said, options) for two, said in votes.items()}
        told = {two: p for two, p in leads.items() if p != 0.5}
        for two in leads.keys() - told.keys():
            yield from (Refused(row, TIE) for row in votes[two].rows)
        for two, p in told.items():
            yield _soft_record(task[0], two, p, votes[two], 1 / len(told), options)


def soft_columns(options: ExportOptions) -> dict[str, Column]:
    """Of `soft-pref`."""
    shape: dict[str, Column] = {"prompt": "turns", "chosen": "turns", "rejected": "turns"}
    return {
        **shape,
        "p_chosen": "number",
        "num_votes": "integer",
        "annotator_weights": "json",
        **GROUP_COLUMNS,
    }


def _soft_votes(row: JudgementRow, options: ExportOptions) -> dict[tuple[int, int], float] | str:
    if row.task_kind == "rank":
        places = {number: place for place, group in enumerate(groups_of(row)) for number in group}
        two = itertools.combinations(sorted(places), 2)
        said = {(a, b): (1 + (places[a] < places[b]) - (places[a] > places[b])) / 2 for a, b in two}
        return said or BOTH_BAD
    if row.task_kind not in COMPARED or len(row.completions) != 2:
        return NOT_FOR_THIS_FORMAT
    if choice_of(row) == BOTH_BAD:
        return BOTH_BAD
    if any(not one.text.strip() for one in row.completions):
        return "empty"
    p = p_first(row, options)
    return NOT_FOR_THIS_FORMAT if p is None else {(0, 1): p}


def _lead(said: _Votes, options: ExportOptions) -> float:
    weights = [_weight(row, options) for row in said.rows]
    if not sum(weights):
        return 0.5
    return sum(p * weight for p, weight in zip(said.p_first, weights, strict=True)) / sum(weights)


def _weight(row: JudgementRow, options: ExportOptions) -> float:
    return options.annotator_weights.get(row.annotator, 1.0)


def _soft_record(
    row: JudgementRow, two: tuple[int, int], p: float, said: _Votes, weight: float, options: ExportOptions
) -> Made:
    first, second = (row.completions[number] for number in two)
    chosen, rejected = (first, second) if p > 0.5 else (second, first)
    record = {
        "prompt": turns(row.prompt.messages),
        "chosen": answer(chosen.text),
        "rejected": answer(rejected.text),
        "p_chosen": max(p, 1 - p),
        "num_votes": len(said.rows),
        "annotator_weights": [
            {"annotator": one.annotator, "weight": _weight(one, options)} for one in said.rows
        ],
        "group_id": row.task_id,
        "group_weight": weight,
    }
    return Made(record, tuple(said.rows))


# --- one completion --------------------------------------------------------------------------------------------------


def trl_unpaired(rows: Rows, options: ExportOptions) -> Iterator[Made | Refused]:
    """Completions labelled good or bad: from ratings and flags of forms, and both sides of "both bad"."""
    for row in rows:
        if row.task_kind in COMPARED and choice_of(row) == BOTH_BAD:
            labelled = [(one, False) for one in row.completions]
        elif row.task_kind == "form" and len(row.completions) == 1:
            label = _form_label(row, options)
            if isinstance(label, str):
                yield Refused(row, label)
                continue
            labelled = [(row.completions[0], label)]
        else:
            yield Refused(row, NOT_FOR_THIS_FORMAT)
            continue
        told = [(one, label) for one, label in labelled if one.text.strip()]
        if not told:
            yield Refused(row, "empty")
        for one, label in told:
            record = {"prompt": turns(row.prompt.messages), "completion": answer(one.text), "label": label}
            yield Made(record, (row,))


def unpaired_columns(options: ExportOptions) -> dict[str, Column]:
    """Of `trl-unpaired`."""
    return {"prompt": "turns", "completion": "turns", "label": "bool"}


def _form_label(row: JudgementRow, options: ExportOptions) -> bool | str:
    raised = {name for name, value in row.value.get("flags", {}).items() if value}
    if raised & set(options.bad_flags):
        return False
    rating = row.value.get("ratings", {}).get(options.rating)
    if rating is None:
        return NOT_FOR_THIS_FORMAT
    low, high = options.rating_range
    if not low <= rating <= high:
        return "out_of_range"
    if options.bad_to < rating < options.good_from:
        return "neutral"
    return rating >= options.good_from


def trl_stepwise(rows: Rows, options: ExportOptions) -> Iterator[Made | Refused]:
    """A prompt, steps and whether each is right, as text.

    Where the completions are siblings, each with one label, what they begin with belongs to the prompt.
    """
    for row in rows:
        if row.task_kind != "steps":
            yield Refused(row, NOT_FOR_THIS_FORMAT)
            continue
        judged = [one for one in zip(row.completions, row.value.get("labels", ()), strict=False) if one[1]]
        shared = _shared_text(row.completions)
        number = 0
        for completion, label in judged:
            if (record := _stepwise_record(row, completion, label, shared)) is not None:
                number += 1
                yield Made(record, (row,))
        if not number:
            yield Refused(row, "unsure" if judged else "empty")


def stepwise_columns(options: ExportOptions) -> dict[str, Column]:
    """Of `trl-stepwise`."""
    return {"prompt": "text", "completions": "texts", "labels": "bools"}


def _stepwise_record(
    row: JudgementRow, completion: RowCompletion, label: object, shared: str
) -> dict[str, Any] | None:
    prompt = plain_text(row.prompt.messages)
    if isinstance(label, str):
        steps, labels = [completion.text.removeprefix(shared)], [label]
        prompt += f"\n\n{shared}" if shared else ""
    else:
        steps, labels = list(completion.steps), list(label) if isinstance(label, list | tuple) else []
    sure = list(itertools.takewhile(lambda one: one in (CORRECT, INCORRECT), labels))
    if not sure or len(labels) != len(steps) or not all(step.strip() for step in steps):
        return None
    # what follows a step that nobody is sure of says nothing about its own steps
    return {
        "prompt": prompt,
        "completions": steps[: len(sure)],
        "labels": [one == CORRECT for one in sure],
    }


def _shared_text(completions: tuple[RowCompletion, ...]) -> str:
    """What all completions begin with, in whole lines or else whole words."""
    texts = [one.text for one in completions]
    if len(texts) < 2:
        return ""
    shared = os.path.commonprefix(texts)  # noqa: RUF071 (of characters is what is wanted)
    cut = shared.rfind("\n") + 1 or shared.rfind(" ") + 1
    return shared[:cut]


def plain_text(messages: tuple[Message, ...]) -> str:
    """A conversation as text: a single turn as it is, several with their roles."""
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"{one.role}: {one.content}" for one in messages)


# --- no verdict ------------------------------------------------------------------------------------------------------


def trl_prompt(rows: Rows, options: ExportOptions) -> Iterator[Made | Refused]:
    """Prompts: those that people wrote, and each that was judged, once."""
    asked: list[JudgementRow] = []
    for row in rows:
        if row.task_kind != "prompt":
            asked.append(row)
        elif (prompt := written(row.value, "user"))[-1]["content"].strip():
            yield Made({"prompt": prompt}, (row,))
        else:
            yield Refused(row, "empty")
    if asked:
        yield Made({"prompt": turns(asked[0].prompt.messages)}, asked)


def prompt_columns(options: ExportOptions) -> dict[str, Column]:
    """Of `trl-prompt`."""
    return {"prompt": "turns"}


def sft(rows: Rows, options: ExportOptions) -> Iterator[Made | Refused]:
    """Conversations to imitate: written, edited, or with the completion that was chosen."""
    for row in rows:
        text: list[dict[str, str]] | str
        if row.task_kind in ("demonstration", "edit") and row.task_kind not in options.sft_sources:
            text = NOT_FOR_THIS_FORMAT
        elif row.task_kind == "demonstration":
            text = _demonstrated(row)
        elif row.task_kind == "edit":
            text = answer(row.value.get("text", ""))
        else:
            text = _best(row, options)
        if isinstance(text, str):
            yield Refused(row, text)
        elif not text or not text[-1]["content"].strip():
            yield Refused(row, "empty")
        else:
            yield Made({"messages": turns(row.prompt.messages) + text}, (row,))


def sft_columns(options: ExportOptions) -> dict[str, Column]:
    """Of `sft`."""
    return {"messages": "turns"}


def _demonstrated(row: JudgementRow) -> list[dict[str, str]]:
    """The turns after the prompt; people's may repeat it."""
    said, prompt = written(row.value, "assistant"), turns(row.prompt.messages)
    return said[len(prompt) :] if said[: len(prompt)] == prompt else said


def _best(row: JudgementRow, options: ExportOptions) -> list[dict[str, str]] | str:
    if "chosen" not in options.sft_sources:
        return NOT_FOR_THIS_FORMAT
    found = pairs_of(row, options)
    if isinstance(found, str):
        return found
    beaten = {pair.rejected.id for pair in found}
    best = {pair.chosen.id: pair.chosen.text for pair in found if pair.chosen.id not in beaten}
    return answer(next(iter(best.values()))) if len(best) == 1 else TIE
