"""Label Studio: tasks with annotations, and the labelling configuration that shows them; out and in."""

import xml.parsers.expat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from prefloop.data import make_prompt
from prefloop.fields import BadRowError, DroppedRowError, Row, text_of
from prefloop.formats import parse
from prefloop.interfaces import InputError
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
from prefloop.labels.formats.trl import plain_text
from prefloop.labels.formats.verdicts import BOTH_BAD, TIE, choice_of, groups_of
from prefloop.labels.rows import JudgementRow, RowCompletion, TaskKind
from prefloop.records import Prompt

PREFERENCE, VERDICT, STRENGTH, RANKING, FLAGS, TEXT, COMMENT = (
    "preference", "verdict", "strength", "ranking", "flags", "text", "comment",
)  # fmt: skip
RATING = "rating_"
LEFT, RIGHT = "left", "right"
UNRANKABLE = "unrankable"
UNSORTED = "_"
"""Label Studio's own name for items that were not put into a bucket."""
LARGEST_CONFIG = 1 << 20
VALUE_KEYS = {"pairwise": "selected", "textarea": "text"}
"""Where the value of a result has another name than its type."""
MAX_RATING = {STRENGTH: 8}
RATED_TO = 7

# --- out -------------------------------------------------------------------------------------------------------------


def labelstudio(rows: Rows, options: ExportOptions) -> Iterator[Made | Refused]:
    """One task with everybody's annotations."""
    for task in by_task(rows):
        said, annotations = [], []
        for row in task:
            results = _results(row)
            if isinstance(results, str):
                yield Refused(row, results)
                continue
            said.append(row)
            annotations.append(_annotation(row, results))
        if said:
            yield Made({"data": _data(said), "annotations": annotations, "predictions": []}, said)


def _data(rows: list[JudgementRow]) -> dict[str, Any]:
    row = rows[0]
    names = letters(len(row.completions))
    told = list(zip(names, row.completions, strict=True))
    shown: dict[str, Any] = {
        "prompt": plain_text(row.prompt.messages),
        **{name: one.text for name, one in told},
    }
    if row.task_kind == "rank":
        shown["items"] = [{"id": name, "title": name, "body": one.text} for name, one in told]
    return {
        **shown,
        "messages": turns(row.prompt.messages),
        "task_id": row.task_id,
        "kind": row.task_kind,
        "source": row.prompt.source,
        "policies": [one.policy for one in row.completions],
        "annotators": [one.annotator for one in rows],
    }


def _annotation(row: JudgementRow, results: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "result": results,
        "was_cancelled": False,
        "ground_truth": row.is_gold,
        "lead_time": None if row.active_ms is None else row.active_ms / 1000,
    }


def _results(row: JudgementRow) -> list[dict[str, Any]] | str:
    """The regions of an annotation, or why there are none."""
    value = row.value
    match row.task_kind:
        case "pairwise":
            found = _pairwise_results(row)
        case "rank":
            groups = {
                str(place): [letters(len(row.completions))[number] for number in group]
                for place, group in enumerate(groups_of(row), 1)
            }
            left = [letters(len(row.completions))[number] for number in value.get("unrankable", ())]
            found = [
                _result(
                    RANKING, "answers", "ranker", {"ranker": groups | ({UNRANKABLE: left} if left else {})}
                )
            ]
        case "form" if len(row.completions) == 1:
            found = [
                _result(RATING + name, "a", "rating", {"rating": rating})
                for name, rating in value.get("ratings", {}).items()
            ]
            if raised := [name for name, flag in value.get("flags", {}).items() if flag]:
                found.append(_result(FLAGS, "a", "choices", {"choices": raised}))
        case "edit" | "demonstration" if "text" in value:
            found = [_result(TEXT, "prompt", "textarea", {"text": [value["text"]]})]
        case _:
            return NOT_FOR_THIS_FORMAT
    if row.comment:
        found.append(_result(COMMENT, "prompt", "textarea", {"text": [row.comment]}))
    return found or "empty"


def _pairwise_results(row: JudgementRow) -> list[dict[str, Any]]:
    choice, strength = choice_of(row), row.value.get("strength")
    if choice in (TIE, BOTH_BAD):
        found = [_result(VERDICT, "prompt", "choices", {"choices": [choice]})]
    else:
        found = [_result(PREFERENCE, "a,b", "pairwise", {"selected": LEFT if choice == "a" else RIGHT})]
    if strength is not None:
        found.append(_result(STRENGTH, "prompt", "rating", {"rating": strength}))
    return found


def _result(name: str, to: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": to, "type": kind, "value": value}


def _config(survey: Survey, options: ExportOptions) -> str:
    """The labelling interface of the kind of task that was exported."""
    (kind,) = survey.kinds
    names = letters(survey.num_completions)
    parts = [_tag("Header", value=options.guidelines)] if options.guidelines else []
    parts.append(_tag("Text", name="prompt", value="$prompt"))
    if kind == "rank":
        buckets = [*(str(place) for place in range(1, len(names) + 1)), UNRANKABLE]
        parts.append(_tag("List", name="answers", value="$items"))
        parts.append(
            _tag("Ranker", [_tag("Bucket", name=one) for one in buckets], name=RANKING, toName="answers")
        )
    else:
        parts += [_tag("Text", name=name, value=f"${name}") for name in names]
        parts += _controls(kind, survey)
    parts.append(_tag("TextArea", name=COMMENT, toName="prompt"))
    return _tag("View", parts) + "\n"


def _controls(kind: str, survey: Survey) -> list[str]:
    match kind:
        case "pairwise":
            verdicts = [_tag("Choice", value=one) for one in (TIE, BOTH_BAD)]
            return [
                _tag("Pairwise", name=PREFERENCE, toName="a,b"),
                _tag("Choices", verdicts, name=VERDICT, toName="prompt", choice="single"),
                _tag("Rating", name=STRENGTH, toName="prompt", maxRating=str(MAX_RATING[STRENGTH])),
            ]
        case "form":
            found = [
                _tag("Rating", name=RATING + name, toName="a", maxRating=str(RATED_TO))
                for name in sorted(survey.ratings)
            ]
            flags = [_tag("Choice", value=one) for one in sorted(survey.flags)]
            multiple = _tag("Choices", flags, name=FLAGS, toName="a", choice="multiple")
            return [*found, multiple] if flags else found
        case _:
            return [_tag("TextArea", name=TEXT, toName="prompt")]


def _tag(tag: str, children: list[str] | None = None, **attributes: str) -> str:
    told = "".join(f" {name}={quoteattr(value)}" for name, value in attributes.items())
    if not children:
        return f"<{escape(tag)}{told}/>"
    inner = "\n".join(f"  {line}" for child in children for line in child.split("\n"))
    return f"<{tag}{told}>\n{inner}\n</{tag}>"


CONFIG = Companion(".config.xml", _config)

# --- in --------------------------------------------------------------------------------------------------------------


@dataclass
class LabelConfig:
    """What a labelling interface shows and asks: data fields of texts and lists, and the targets of controls."""

    shown: dict[str, str] = field(default_factory=dict)
    """Data field by name of the tag that shows it, in their order."""
    controls: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    """Tag in small letters and targets, by name of the control."""

    def completions(self) -> list[str]:
        """Data fields of what is judged: the two sides of a comparison; the lists; or all texts but the first."""
        for tag, targets in self.controls.values():
            if tag == "pairwise" and len(targets) == 2:
                return [self.shown[one] for one in targets if one in self.shown]
        judged = [key for key in self.shown.values() if key not in PROMPTS]
        return judged if len(judged) < len(self.shown) else judged[1:]


PROMPTS = ("prompt", "instruction", "question")
OUR_CONFIG = LabelConfig(
    shown={"prompt": "prompt", "a": "a", "b": "b"}, controls={PREFERENCE: ("pairwise", ("a", "b"))}
)


def read_config(path: Path) -> LabelConfig:
    """A labelling configuration. Raises InputError, also for a document type, with which small files can grow huge."""
    if path.stat().st_size > LARGEST_CONFIG:
        raise InputError(f"{path.name}: larger than {LARGEST_CONFIG} bytes; is it a labelling configuration?")
    found = LabelConfig()
    parser = xml.parsers.expat.ParserCreate()
    parser.StartDoctypeDeclHandler = _refuse_doctype(path)
    parser.StartElementHandler = _tag_taker(found)
    try:
        parser.Parse(path.read_bytes(), True)
    except xml.parsers.expat.ExpatError as error:
        raise InputError(f"{path.name} line {error.lineno}: broken XML ({error}); fix the file") from error
    return found


def _refuse_doctype(path: Path) -> Callable[..., None]:
    def refuse(*about: object) -> None:
        raise InputError(f"{path.name}: has a document type (<!DOCTYPE ...>); take it out")

    return refuse


def _tag_taker(found: LabelConfig) -> Callable[[str, dict[str, str]], None]:
    def take(tag: str, attributes: dict[str, str]) -> None:
        name, value = attributes.get("name"), attributes.get("value", "")
        if name and value.startswith("$"):
            found.shown[name] = value[1:]
        elif name and "toName" in attributes:
            found.controls[name] = (tag.lower(), tuple(attributes["toName"].split(",")))

    return take


def read_labelstudio(row: Row, name: str, config: LabelConfig = OUR_CONFIG) -> ImportedTask:
    """A task with its annotations. Cancelled ones and predictions of models are left aside."""
    data = row.get("data")
    if not isinstance(data, Mapping):
        raise BadRowError("missing_field", "no data; a Label Studio task has data and annotations")
    asked = next((one for one in ("messages", *PROMPTS) if data.get(one)), None) or _first_shown(config, data)
    example = parse({"prompt": data[asked]}, "prompt")
    prompt = make_prompt(example, str(data.get("source") or name))
    texts = _answers(data, config, asked)
    completions = completions_of(prompt, list(texts.values()), data.get("policies"))
    annotations = row.get("annotations") or []
    if not isinstance(annotations, list):
        raise BadRowError("wrong_type", "annotations is no list; fix the row")
    people = data.get("annotators")
    said = []
    for place, one in enumerate(annotations):
        if not isinstance(one, Mapping):
            raise BadRowError("wrong_type", f"annotation {place} is no object; fix the row")
        if one.get("was_cancelled"):
            continue
        ours = people[place] if isinstance(people, list) and len(people) == len(annotations) else None
        who = str(ours if ours is not None else _completed_by(one))
        said.append(_said(prompt, completions, list(texts), one, who, str(data.get("kind") or "")))
    return ImportedTask(prompt, completions, tuple(said))


def _first_shown(config: LabelConfig, data: Mapping[str, Any]) -> str:
    judged = config.completions()
    found = next((key for key in config.shown.values() if key in data and key not in judged), None)
    if found is None:
        raise BadRowError("missing_field", f"no data field prompt; the task has {', '.join(map(str, data))}")
    return found


def _answers(data: Mapping[str, Any], config: LabelConfig, asked: str) -> dict[str, str]:
    """Completions by the names that annotations use."""
    items = next((one for one in data.values() if _is_list_of_items(one)), None)
    if items is not None:
        return {
            str(one["id"]): text_of(one.get("body") or one.get("title"), f"item {one['id']}") for one in items
        }
    ours = [name for name in letters(26) if name in data]
    keys = ours if "kind" in data else [key for key in config.completions() if key != asked]
    return {key: text_of(data.get(key), key) for key in keys if data.get(key) is not None}


def _is_list_of_items(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(one, Mapping) and "id" in one and ("body" in one or "title" in one) for one in value
        )
    )


def _completed_by(annotation: Mapping[str, Any]) -> object:
    who = annotation.get("completed_by")
    if isinstance(who, Mapping):
        who = who.get("email") or who.get("id")
    return "import" if who is None else who


def _said(
    prompt: Prompt,
    completions: tuple[RowCompletion, ...],
    names: list[str],
    annotation: Mapping[str, Any],
    who: str,
    kind: str,
) -> JudgementRow:
    by_type = _by_type(annotation)
    notes = dict(by_type.get("textarea", ()))
    comment = "\n".join(notes.pop(COMMENT, ()))
    ratings = dict(by_type.get("rating", ()))
    if "ranker" in by_type:
        ranked = _ranking(by_type["ranker"][0][1], names)
        return judgement(prompt, completions, "rank", ranked, annotator=who, comment=comment)
    choices = dict(by_type.get("choices", ()))
    verdict = next((one for value in choices.values() for one in value if one in (TIE, BOTH_BAD)), None)
    if "pairwise" in by_type or verdict:
        if len(completions) != 2:
            raise BadRowError("wrong_pair", f"a comparison of {len(completions)} texts; two are needed")
        side = by_type["pairwise"][0][1] if "pairwise" in by_type else None
        choice = verdict or {LEFT: "a", RIGHT: "b"}.get(str(side))
        if choice is None:
            raise BadRowError("bad_choice", f"selected is {side!r}; use left or right")
        said = {"choice": choice, "strength": ratings.get(STRENGTH)}
        return judgement(prompt, completions, "pairwise", said, annotator=who, comment=comment)
    if ratings or choices:
        flags = [one for value in choices.values() for one in value]
        told = {"ratings": {name.removeprefix(RATING): one for name, one in ratings.items()}}
        form = {**told, "flags": dict.fromkeys(flags, True)}
        return judgement(prompt, completions[:1], "form", form, annotator=who, comment=comment)
    if notes:
        text = "\n".join(next(iter(notes.values())))
        made: TaskKind = "demonstration" if kind == "demonstration" or not completions else "edit"
        return judgement(prompt, completions, made, {"text": text}, annotator=who, comment=comment)
    raise DroppedRowError("unknown_controls")


def _by_type(annotation: Mapping[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """Names and values of the results, by their type. Raises BadRowError."""
    results = annotation.get("result")
    if not isinstance(results, list):
        raise BadRowError("wrong_type", "an annotation has no list of results; fix the row")
    found: dict[str, list[tuple[str, Any]]] = {}
    for one in results:
        value = one.get("value") if isinstance(one, Mapping) else None
        if not isinstance(value, Mapping):
            raise BadRowError("wrong_type", "a result has no value; fix the row")
        type_, name = str(one.get("type")), str(one.get("from_name"))
        said = value.get(VALUE_KEYS.get(type_, type_))
        if type_ in ("choices", "textarea"):
            said = [text_of(text, name) for text in (said if isinstance(said, list) else [said])]
        found.setdefault(type_, []).append((name, said))
    return found


def _ranking(value: object, names: list[str]) -> dict[str, Any]:
    """Groups of numbers from an ordered list of ids, or from buckets named by their places, 1 for the best."""
    buckets: dict[str, object] = {}
    if isinstance(value, list):
        buckets = {str(place): [one] for place, one in enumerate(value, 1)}
    elif isinstance(value, Mapping):
        buckets = {str(key): ids for key, ids in value.items()}
    numbers = {key: _numbers(ids, names) for key, ids in buckets.items()}
    left = [number for key in (UNRANKABLE, UNSORTED) for number in numbers.pop(key, ())]
    if not all(key.isdecimal() for key in numbers):
        raise DroppedRowError("unordered_buckets")
    ordered = [numbers[key] for key in sorted(numbers, key=int)]
    return {"groups": [group for group in ordered if group], "unrankable": left}


def _numbers(ids: object, names: list[str]) -> list[int]:
    found = []
    for one in ids if isinstance(ids, list) else [ids]:
        if str(one) not in names:
            raise BadRowError("bad_ranking", f"the ranking names {one!r}; items are {', '.join(names)}")
        found.append(names.index(str(one)))
    return found
