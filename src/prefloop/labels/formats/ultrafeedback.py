"""UltraFeedback, as completions with ratings and as binarised pairs; out and in."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from prefloop.data import make_prompt
from prefloop.fields import BadRowError, Row, list_field, number_of, text_field, text_of
from prefloop.formats import parse
from prefloop.labels.formats.incoming import ImportedTask, completions_of, judgement, task_of
from prefloop.labels.formats.options import ExportOptions
from prefloop.labels.formats.shapes import (
    NOT_FOR_THIS_FORMAT,
    Column,
    Made,
    Refused,
    Rows,
    answer,
    turns,
)
from prefloop.labels.formats.trl import plain_text
from prefloop.labels.formats.verdicts import JudgedPair, from_pairs
from prefloop.labels.rows import JudgementRow
from prefloop.records import Message, Prompt

OVERALL = "overall"
NOT_RATED = "N/A"


def ultrafeedback(rows: Rows, options: ExportOptions) -> Iterator[Made | Refused]:
    """One record a prompt: its completions with the mean of each rating. Ratings outside their range are left out."""
    low, high = options.rating_range
    rated: dict[str, list[JudgementRow]] = defaultdict(list)
    for row in rows:
        if row.task_kind != "form" or len(row.completions) != 1 or not row.value.get("ratings"):
            yield Refused(row, NOT_FOR_THIS_FORMAT)
        elif any(not low <= one <= high for one in row.value["ratings"].values()):
            yield Refused(row, "out_of_range")
        elif not row.completions[0].text.strip():
            yield Refused(row, "empty")
        else:
            rated[row.completions[0].id].append(row)
    if not rated:
        return
    completions = [_rated_completion(of_one, options) for of_one in rated.values()]
    record = {
        "source": rows[0].prompt.source,
        "instruction": plain_text(rows[0].prompt.messages),
        "models": [one["model"] for one in completions],
        "completions": completions,
    }
    yield Made(record, [row for of_one in rated.values() for row in of_one])


def _rated_completion(rows: list[JudgementRow], options: ExportOptions) -> dict[str, Any]:
    given: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, rating in row.value["ratings"].items():
            given[name].append(rating)
    means = {name: sum(ratings) / len(ratings) for name, ratings in given.items()}
    overall = means.pop(options.rating, None)
    comments = " ".join(row.comment for row in rows if row.comment)
    return {
        "model": rows[0].completions[0].policy,
        "response": rows[0].completions[0].text,
        # the data set stores its ratings as text
        "annotations": {name: {"Rating": f"{mean:g}", "Rationale": ""} for name, mean in means.items()},
        "overall_score": overall,
        "critique": comments,
    }


def ultrafeedback_binarized(rows: Rows, options: ExportOptions) -> Iterator[Made | Refused]:
    """Pairs with whole conversations. Scores are steps of the strength, 5 to 8 over 4 to 1, or places of a ranking."""

    def record(row: JudgementRow, pair: JudgedPair, weight: float) -> dict[str, Any]:
        before = turns(row.prompt.messages)
        chosen = before + answer(pair.chosen.text)
        return {
            "prompt": row.prompt.messages[-1].content,
            "prompt_id": row.prompt.id,
            "chosen": chosen,
            "rejected": before + answer(pair.rejected.text),
            "messages": chosen,
            "score_chosen": pair.scores[0],
            "score_rejected": pair.scores[1],
        }

    return from_pairs(rows, options, record)


def binarized_columns(options: ExportOptions) -> dict[str, Column]:
    """Of `ultrafeedback-binarized`."""
    shape: dict[str, Column] = {"prompt": "text", "prompt_id": "text"}
    sides: dict[str, Column] = {"chosen": "turns", "rejected": "turns", "messages": "turns"}
    return {**shape, **sides, "score_chosen": "number", "score_rejected": "number"}


# --- in --------------------------------------------------------------------------------------------------------------


def read_ultrafeedback(row: Row, name: str) -> ImportedTask:
    """A row of completions with ratings: a form for each completion that has some."""
    prompt = Prompt.of(
        (Message(role="user", content=text_field(row, "instruction")),), source=str(row.get("source") or name)
    )
    answers = list_field(row, "completions")
    if not all(isinstance(one, Mapping) for one in answers):
        raise BadRowError("wrong_type", "completions must be objects with model and response; fix the row")
    told = [one for one in answers if isinstance(one, Mapping)]
    texts = [text_of(one.get("response"), f"completion {place}") for place, one in enumerate(told)]
    policies = [str(one.get("model") or "") for one in told]
    completions = completions_of(prompt, texts, policies)
    forms = [
        judgement(prompt, (completion,), "form", {"ratings": ratings, "flags": {}}, comment=comment)
        for place, (completion, one) in enumerate(zip(completions, told, strict=True))
        if (ratings := _ratings(one, place))
        for comment in (str(one.get("critique") or ""),)
    ]
    return ImportedTask(prompt, completions, tuple(forms))


def read_binarized(row: Row, name: str) -> ImportedTask:
    """A row of a chosen and a rejected conversation with their scores."""
    example = parse(row, "ultrafeedback")
    task = task_of(make_prompt(example, name), example)
    scores = [number_of(row.get(field), field) for field in ("score_chosen", "score_rejected")]
    said = tuple(replace(one, value={**one.value, "scores": scores}) for one in task.judgements)
    return replace(task, judgements=said)


def _ratings(answered: Mapping[str, object], place: int) -> dict[str, float]:
    found: dict[str, float] = {}
    aspects = answered.get("annotations")
    for aspect, said in (aspects if isinstance(aspects, Mapping) else {}).items():
        rating = said.get("Rating") if isinstance(said, Mapping) else None
        if rating not in (None, "", NOT_RATED):
            found[str(aspect)] = number_of(rating, f"{aspect} of completion {place}")
    if (overall := answered.get("overall_score")) not in (None, ""):
        found[OVERALL] = number_of(overall, f"the overall_score of completion {place}")
    return found
