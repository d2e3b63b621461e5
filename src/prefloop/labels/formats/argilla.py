"""Argilla 2: records with fields, questions and responses, and the settings of their dataset; out and in.

Records are those of `rg.Dataset.records.to_json`, settings those of `rg.Settings.to_json`. Argilla names people by
UUIDs: an annotator becomes a UUID that is a function of its id, and the ids stay in the record's metadata.
"""

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefloop.data import make_prompt
from prefloop.fields import BadRowError, DroppedRowError, Row, text_of
from prefloop.formats import Example, parse
from prefloop.labels.formats.incoming import ImportedTask, completions_of, judgement
from prefloop.labels.formats.options import ExportOptions
from prefloop.labels.formats.shapes import (
    NOT_FOR_THIS_FORMAT,
    Companion,
    Made,
    Refused,
    Rows,
    Survey,
    by_task,
    letters,
    turns,
)
from prefloop.labels.formats.verdicts import TIE, choice_of
from prefloop.labels.rows import JudgementRow, RowCompletion, TaskKind
from prefloop.records import Prompt

KINDS: tuple[TaskKind, ...] = ("pairwise", "rank", "form", "edit", "demonstration")
"""Tasks that Argilla can ask."""
PEOPLE = uuid.UUID("6f0c1d5e-4a40-5d61-9c59-0f7c6a1f6f11")
"""Namespace of the UUIDs of annotators."""
PREFERENCE, STRENGTH, RANKING, FLAGS, TEXT, COMMENT = (
    "preference", "strength", "ranking", "flags", "text", "comment",
)  # fmt: skip
VERDICTS = ("a", "b", "tie", "both_bad")
RATING = "rating_"
RATED_TO = 7
"""Ratings are from 1 to this."""
FINAL = ("submitted", None)
"""States of a response that counts; exports of Argilla itself leave the state out."""

# --- out -------------------------------------------------------------------------------------------------------------


def argilla(rows: Rows, options: ExportOptions) -> Iterator[Made | Refused]:
    """One record a task with everybody's responses. A ranking with ties or gaps is refused: Argilla keeps an order only."""
    for task in by_task(rows):
        responses: dict[str, list[dict[str, Any]]] = {}
        said = []
        for row in task:
            answers = _answers(row)
            if isinstance(answers, str):
                yield Refused(row, answers)
                continue
            said.append(row)
            for question, value in answers.items():
                response = {"value": value, "user_id": str(uuid.uuid5(PEOPLE, row.annotator))}
                responses.setdefault(question, []).append(response)
        if said:
            yield Made(_record(said, responses), said)


def _record(rows: list[JudgementRow], responses: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    row = rows[0]
    names = letters(len(row.completions))
    texts = {name: one.text for name, one in zip(names, row.completions, strict=True)}
    return {
        "id": row.task_id,
        "fields": {"prompt": turns(row.prompt.messages), **texts},
        "metadata": {
            "kind": row.task_kind,
            "project": row.project,
            "round": row.round,
            "source": row.prompt.source,
            "policies": [one.policy for one in row.completions],
            "annotators": sorted({one.annotator for one in rows}),
            "is_gold": str(row.is_gold).lower(),
        },
        "suggestions": {},
        "responses": responses,
        "vectors": {},
        "_server_id": None,
    }


def _answers(row: JudgementRow) -> dict[str, Any] | str:
    """Values by question, or why Argilla cannot hold them."""
    value = row.value
    match row.task_kind:
        case "pairwise":
            answers: dict[str, Any] = {PREFERENCE: choice_of(row)}
            if value.get("strength") is not None:
                answers[STRENGTH] = value["strength"]
        case "rank":
            groups = value.get("groups", [])
            if value.get("unrankable") or any(len(group) > 1 for group in groups):
                return TIE
            answers = {RANKING: [letters(len(row.completions))[number] for (number,) in groups]}
        case "form" if len(row.completions) == 1:
            answers = {RATING + name: rating for name, rating in value.get("ratings", {}).items()}
            if raised := [name for name, flag in value.get("flags", {}).items() if flag]:
                answers[FLAGS] = raised
        case "edit" | "demonstration" if "text" in value:
            answers = {TEXT: value["text"]}
        case _:
            return NOT_FOR_THIS_FORMAT
    if row.comment:
        answers[COMMENT] = row.comment
    return answers or "empty"


def _settings(survey: Survey, options: ExportOptions) -> str:
    """Settings of a dataset that holds the records. Optional questions stay empty where nobody answered them."""
    (kind,) = survey.kinds
    names = letters(survey.num_completions)
    fields = [_field("prompt", {"type": "chat", "use_markdown": False}, required=True)]
    fields += [_field(name, {"type": "text", "use_markdown": False}, required=name == "a") for name in names]
    settings = {
        "guidelines": options.guidelines or None,
        "questions": [*_questions(kind, survey), _question(COMMENT, {"type": "text"}, required=False)],
        "fields": fields,
        "vectors": [],
        "metadata": [],
        "allow_extra_metadata": True,
        "distribution": {"strategy": "overlap", "min_submitted": 1},
    }
    return json.dumps(settings, ensure_ascii=False, indent=2) + "\n"


def _questions(kind: str, survey: Survey) -> list[dict[str, Any]]:
    match kind:
        case "pairwise":
            return [
                _question(PREFERENCE, {"type": "label_selection", "options": _options(VERDICTS)}),
                _question(STRENGTH, {"type": "rating", "options": _numbers(8)}, required=False),
            ]
        case "rank":
            names = letters(survey.num_completions)
            return [_question(RANKING, {"type": "ranking", "options": _options(names)})]
        case "form":
            scale = {"type": "rating", "options": _numbers(RATED_TO)}
            found = [_question(RATING + name, scale, required=False) for name in sorted(survey.ratings)]
            if found:
                found[0]["required"] = True
            flags = {"type": "multi_label_selection", "options": _options(sorted(survey.flags))}
            return [*found, _question(FLAGS, flags, required=not found)] if survey.flags else found
        case _:
            return [_question(TEXT, {"type": "text", "use_markdown": False})]


def _field(name: str, settings: dict[str, Any], *, required: bool) -> dict[str, Any]:
    return {"name": name, "title": name, "required": required, "settings": settings}


def _question(name: str, settings: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    return {"name": name, "title": name, "description": None, "required": required, "settings": settings}


def _options(values: Sequence[str]) -> list[dict[str, Any]]:
    return [{"value": value, "text": value, "description": None} for value in values]


def _numbers(last: int) -> list[dict[str, Any]]:
    return [{"value": number} for number in range(1, last + 1)]


SETTINGS = Companion(".settings.json", _settings)

# --- in --------------------------------------------------------------------------------------------------------------


def read_argilla(row: Row, name: str) -> ImportedTask:
    """A record with a field `prompt` (or `instruction`) and the completions in all others, in their order.

    Questions are recognised by what they hold: rankings of the fields' names, the name of a field or a verdict,
    whole numbers, lists of flags, text. Suggestions are not people's and are left aside.
    """
    fields = row.get("fields")
    if not isinstance(fields, Mapping):
        raise BadRowError("missing_field", "no fields; an Argilla record has fields and responses")
    asked = next((one for one in ("prompt", "instruction", "question") if fields.get(one)), None)
    if asked is None:
        raise BadRowError("missing_field", f"no field prompt; the record has {', '.join(map(str, fields))}")
    example: Example = parse({"prompt": fields[asked]}, "prompt")
    meta = row.get("metadata")
    metadata = meta if isinstance(meta, Mapping) else {}
    prompt = make_prompt(example, str(metadata.get("source") or name))
    answers = {
        str(key): text_of(value, str(key))
        for key, value in fields.items()
        if key != asked and value is not None
    }
    policies = metadata.get("policies")
    completions = completions_of(prompt, list(answers.values()), policies)
    if row.get("responses") is None:
        return ImportedTask(prompt, completions)
    kind = str(metadata.get("kind") or "")
    said = [
        _said(prompt, completions, list(answers), given, who, kind)
        for who, given in _by_person(row["responses"], metadata).items()
    ]
    return ImportedTask(prompt, completions, tuple(said))


def _by_person(responses: object, metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Submitted values by question, for each annotator."""
    if not isinstance(responses, Mapping):
        raise BadRowError("wrong_type", "responses is no object of lists by question; fix the row")
    people = metadata.get("annotators")
    ours = {
        str(uuid.uuid5(PEOPLE, str(one))): str(one) for one in (people if isinstance(people, list) else ())
    }
    found: dict[str, dict[str, Any]] = {}
    for question, given in responses.items():
        for one in given if isinstance(given, list) else ():
            if not isinstance(one, Mapping) or "value" not in one:
                raise BadRowError("wrong_type", f"a response to {question} has no value; fix the row")
            if one.get("status") in FINAL:
                who = str(one.get("user_id") or "import")
                found.setdefault(ours.get(who, who), {})[str(question)] = one["value"]
    return found


def _said(
    prompt: Prompt,
    completions: tuple[RowCompletion, ...],
    names: list[str],
    given: dict[str, Any],
    who: str,
    kind: str,
) -> JudgementRow:
    comment = text_of(given.pop(COMMENT, ""), COMMENT)
    lists = {key: value for key, value in given.items() if isinstance(value, list)}
    numbers = {key: value for key, value in given.items() if type(value) in (int, float)}
    texts = {key: value for key, value in given.items() if isinstance(value, str)}
    for value in lists.values():
        order = _ranking(value, names)
        if order is not None and len(names) > 1:
            said = {"groups": order, "unrankable": []}
            return judgement(prompt, completions, "rank", said, annotator=who, comment=comment)
    for value in texts.values():
        choice = _choice(value, names)
        if choice is not None and len(names) == 2:
            said = {"choice": choice, "strength": numbers.get(STRENGTH)}
            return judgement(prompt, completions, "pairwise", said, annotator=who, comment=comment)
    if (len(names) == 1 and numbers) or FLAGS in lists:
        said = {"ratings": {key.removeprefix(RATING): value for key, value in numbers.items()}}
        said["flags"] = dict.fromkeys(map(str, lists.get(FLAGS, ())), True)
        return judgement(prompt, completions[:1], "form", said, annotator=who, comment=comment)
    if len(texts) == 1 and len(names) < 2:
        (text,) = texts.values()
        made: TaskKind = "demonstration" if kind == "demonstration" or not names else "edit"
        return judgement(prompt, completions, made, {"text": text}, annotator=who, comment=comment)
    raise DroppedRowError("unknown_questions")


def _ranking(value: list[Any], names: list[str]) -> list[list[int]] | None:
    """Groups of numbers from an ordered list of names, or from objects with value and rank; None for other lists."""
    ranks: dict[str, float] = {}
    for place, one in enumerate(value, 1):
        rank = one.get("rank", place) if isinstance(one, Mapping) else place
        named = one.get("value") if isinstance(one, Mapping) else one
        if isinstance(rank, bool) or not isinstance(rank, int | float):
            raise BadRowError(
                "bad_ranking", f"the rank of {named!r} is {rank!r}; use whole numbers, 1 for the best"
            )
        ranks[str(named)] = rank
    if sorted(ranks) != sorted(names):
        return None
    levels = sorted(set(ranks.values()))
    return [[number for number, one in enumerate(names) if ranks[one] == level] for level in levels]


def _choice(value: str, names: list[str]) -> str | None:
    if value in names:
        return "ab"[names.index(value)] if len(names) == 2 else None
    return value if value in VERDICTS else None
