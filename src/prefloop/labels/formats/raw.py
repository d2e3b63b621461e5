"""Prefloop's own formats: judgements as they are, the loop's pairs and judgements; and pairs with Llama 2's margins."""

from collections.abc import Iterator
from typing import Any

from prefloop.labels.formats.options import DISTANCES, ExportOptions
from prefloop.labels.formats.shapes import (
    NOT_FOR_THIS_FORMAT,
    Column,
    Made,
    Refused,
    Rows,
    answer,
    turns,
)
from prefloop.labels.formats.verdicts import BOTH_BAD, COMPARED, JudgedPair, choice_of, from_pairs, p_first
from prefloop.labels.rows import JudgementRow, RowCompletion, RowPrompt, json_of
from prefloop.records import Comparison, Completion, PreferencePair, Prompt, Record, Refusal, Score

STRENGTHS = dict(
    zip(
        DISTANCES,
        ("significantly_better", "better", "slightly_better", "negligibly_better_or_unsure"),
        strict=True,
    )
)
"""The four classes of Llama 2's annotators (arXiv:2307.09288), by distance of our strength from its middle."""
NESTED = ("prompt", "completions", "value", "acquisition", "judge", "payload")
"""Fields of a judgement that a table holds as JSON."""


def judgements_raw(rows: Rows, options: ExportOptions) -> Iterator[Made | Refused]:
    """Every judgement with all that is known about it."""
    for row in rows:
        yield Made(json_of(row), (row,))


def raw_columns(options: ExportOptions) -> dict[str, Column]:
    """Of `judgements-raw`."""
    integers = (
        "judgement_id",
        "round",
        "guideline_version",
        "revision",
        "supersedes",
        "active_ms",
        "first_action_ms",
        "created_at",
    )
    texts = ("task_id", "task_kind", "annotator", "project", "annotator_kind", "state", "comment")
    return {
        **dict.fromkeys(integers, "integer"),
        **dict.fromkeys(texts, "text"),
        **dict.fromkeys(("is_gold", "is_repeat"), "bool"),
        "presented_order": "integers",
        "flags": "texts",
        **dict.fromkeys(NESTED, "json"),
    }


# --- records of the loop ---------------------------------------------------------------------------------------------


def pairs(rows: Rows, options: ExportOptions) -> Iterator[Made | Refused]:
    """`PreferencePair` records, as `select` writes them."""

    def record(row: JudgementRow, pair: JudgedPair, weight: float) -> dict[str, Any]:
        made = PreferencePair.of(
            _prompt(row.prompt),
            _completion(row, pair.chosen),
            _completion(row, pair.rejected),
            margin=pair.margin,
            p_chosen=pair.p_chosen,
            weight=weight,
            annotator=_annotator(row),
        )
        return made.model_dump(mode="json")

    return from_pairs(rows, options, record)


def judgements(rows: Rows, options: ExportOptions) -> Iterator[Made | Refused]:
    """`Comparison`, `Score` and `Refusal` records, as `annotate` writes them."""
    for row in rows:
        made = [one.model_dump(mode="json") for one in _judgements(row, options)]
        if not made:
            yield Refused(row, NOT_FOR_THIS_FORMAT)
        for record in made:
            yield Made(record, (row,))


def _judgements(row: JudgementRow, options: ExportOptions) -> Iterator[Record]:
    name = _annotator(row)
    if row.task_kind == "rank":
        yield from _comparisons(row, name)
    elif row.task_kind in COMPARED and choice_of(row) == BOTH_BAD:
        ids = tuple(one.id for one in row.completions)
        yield Refusal(prompt_id=row.prompt.id, completion_ids=ids, annotator=name, reason=BOTH_BAD)
    elif row.task_kind in COMPARED and len(row.completions) == 2:
        if (p_a := p_first(row, options)) is not None:
            yield Comparison(
                prompt_id=row.prompt.id,
                a=row.completions[0].id,
                b=row.completions[1].id,
                p_a=p_a,
                annotator=name,
                strength=row.value.get("strength"),
                reason=row.comment or None,
                presented="ba" if row.presented_order == (1, 0) else "ab",
            )
    elif row.task_kind == "form" and len(row.completions) == 1:
        ratings = row.value.get("ratings", {})
        if options.rating in ratings:
            yield Score(
                prompt_id=row.prompt.id,
                completion_id=row.completions[0].id,
                value=ratings[options.rating],
                annotator=name,
                parts={key: float(value) for key, value in ratings.items()},
            )


def _comparisons(row: JudgementRow, name: str) -> Iterator[Comparison]:
    """All comparisons of a ranking; the first one bears its cost."""
    places = [(number, place) for place, group in enumerate(row.value.get("groups", ())) for number in group]
    first = True
    for place, (a, place_a) in enumerate(places):
        for b, place_b in places[place + 1 :]:
            yield Comparison(
                prompt_id=row.prompt.id,
                a=row.completions[a].id,
                b=row.completions[b].id,
                p_a=0.5 if place_a == place_b else 1.0,
                annotator=name,
                labels=int(first),
            )
            first = False


def _annotator(row: JudgementRow) -> str:
    return f"{row.annotator_kind}/{row.annotator}"


def _prompt(prompt: RowPrompt) -> Prompt:
    return Prompt(id=prompt.id, messages=prompt.messages, answer=prompt.answer, source=prompt.source)


def _completion(row: JudgementRow, one: RowCompletion) -> Completion:
    return Completion(
        id=one.id, prompt_id=row.prompt.id, text=one.text, token_ids=one.token_ids, policy=one.policy
    )


# --- Llama 2 ---------------------------------------------------------------------------------------------------------


def llama2_margin(rows: Rows, options: ExportOptions) -> Iterator[Made | Refused]:
    """Pairs with the class of their strength and its margin."""

    def record(row: JudgementRow, pair: JudgedPair, weight: float) -> dict[str, Any] | str:
        if pair.distance is None:
            return NOT_FOR_THIS_FORMAT
        return {
            "prompt": turns(row.prompt.messages),
            "chosen": answer(pair.chosen.text),
            "rejected": answer(pair.rejected.text),
            "strength": STRENGTHS[pair.distance],
            "margin": pair.margin,
        }

    return from_pairs(rows, options, record)


def llama2_columns(options: ExportOptions) -> dict[str, Column]:
    """Of `llama2-margin`."""
    shape: dict[str, Column] = {"prompt": "turns", "chosen": "turns", "rejected": "turns"}
    return {**shape, "strength": "text", "margin": "number"}
