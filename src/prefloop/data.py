"""Data in: prompts, demonstrations, text, pairs, groups and recorded scores from files, folders and the hub.

Every row that does not come out is counted under a short reason. Bad rows stop the reading or are dropped, as
`bad_rows` says. Pairs that are `identical`, rows seen before (`duplicate`) and pairs whose two prompts differ
(`unequal_prompts`) are in order in any large data set and are always dropped and counted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar, get_args

from prefloop import tale_rules, tales
from prefloop.config import DataFormat, SourceSection
from prefloop.containers import HUB, Broken, RawRow, content_digest, raw_rows
from prefloop.fields import BadRowError, DroppedRowError, Row, kind_of
from prefloop.formats import Example, Turns, check_turns, detect, parse
from prefloop.interfaces import InputError
from prefloop.records import (
    Demonstration,
    Group,
    Message,
    PreferencePair,
    Prompt,
    Text,
    content_id,
    file_completion,
)
from prefloop.store import tally

BUILTIN = "builtin:"
BUILTIN_NAMES = (
    "tales/prompts", "tales/demonstrations", "tales/texts", "tales/held_out_texts", "tales/dialogues", "tales/probes",
    "tales/talks", "tales/verdicts",
)  # fmt: skip
GROUP_FORMATS: tuple[DataFormat, ...] = ("ultrafeedback", "online_rlhf", "groups")
RECORDED_FORMATS: tuple[DataFormat, ...] = ("online_rlhf", "groups")
PAIR_FORMATS: tuple[DataFormat, ...] = ("preference", "hh", "llmbar", *GROUP_FORMATS)
DEMONSTRATION_FORMATS: tuple[DataFormat, ...] = (
    "messages", "sharegpt", "prompt_completion", "unpaired", "alpaca", "preference", "hh",
)  # fmt: skip
TEXT_FORMATS: tuple[DataFormat, ...] = ("text",)
PROMPT_FORMATS: tuple[DataFormat, ...] = tuple(
    format for format in get_args(DataFormat) if format not in ("auto", "text")
)

R = TypeVar("R", Prompt, Demonstration, Text, PreferencePair, Group)
T = TypeVar("T")


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """What was read: `rows_in` = rows + dropped, always."""

    rows: list[T]
    rows_in: int
    dropped: dict[str, int]
    """Rows that did not come out, by reason."""
    format: str
    """The format that was read; where the configuration says `auto`, the one that was found."""


def read_prompts(source: SourceSection) -> Loaded[Prompt]:
    """Prompts, each conversation once. Raises InputError and Unavailable, as all readers here do."""
    if source.path.startswith(BUILTIN):
        makers = {
            "tales/prompts": tales.prompts,
            "tales/dialogues": tale_rules.dialogues,
            "tales/probes": tale_rules.probes,
        }
        return _builtin(source, makers)
    return _read(source, "prompts", PROMPT_FORMATS, make_prompt)


def read_demonstrations(source: SourceSection) -> Loaded[Demonstration]:
    """Conversations to imitate; of preferences the chosen side, of labelled completions the good ones."""
    if source.path.startswith(BUILTIN):
        return _builtin(
            source, {"tales/demonstrations": tales.demonstrations, "tales/talks": tale_rules.talks}
        )
    return _read(source, "demonstrations", DEMONSTRATION_FORMATS, _make_demonstration)


def read_texts(source: SourceSection) -> Loaded[Text]:
    """Plain text for language modelling."""
    if source.path.startswith(BUILTIN):
        return _builtin(source, {"tales/texts": tales.texts, "tales/held_out_texts": tales.held_out_texts})
    return _read(source, "texts", TEXT_FORMATS, _make_text)


def read_pairs(source: SourceSection) -> Loaded[PreferencePair]:
    """Preference pairs; of a group with scores or ranks, best against worst."""
    return _read(source, "pairs", PAIR_FORMATS, _make_pair)


def read_groups(source: SourceSection) -> Loaded[Group]:
    """Prompts with their completions, in the order of the file."""
    return _read(source, "groups", GROUP_FORMATS, make_group)


def read_recorded_scores(path: str, score_field: str) -> dict[tuple[str, int], float | None]:
    """The scores in a file of groups, by prompt id and index of the completion; None is not judged.

    Of rows with the same prompt the first counts, as in `read_groups`.
    """
    source = SourceSection(path=path, fields={"rewards": score_field})
    name = source_name(source)
    scores: dict[tuple[str, int], float | None] = {}
    seen: set[str] = set()
    for raw in raw_rows(path, source.split):
        try:
            row = columns(raw, source)
            format = detect(row, RECORDED_FORMATS)
            if format not in RECORDED_FORMATS or row.get("rewards") is None:
                raise BadRowError(
                    "missing_field", f"a row needs prompt, responses and {score_field}, a list of numbers"
                )
            group = parse(row, format)
            prompt = make_prompt(group, name)
        except BadRowError as bad:
            raise InputError(complaint(raw, bad)) from bad
        if prompt.id not in seen:
            seen.add(prompt.id)
            scores |= {(prompt.id, index): score for index, score in enumerate(group.scores)}
    if not seen:
        raise InputError(f"{name}: no rows")
    return scores


def source_digest(source: SourceSection) -> str:
    """Digest of the content behind a source, for artefact keys. How it is read is not part of it."""
    if source.path.startswith(BUILTIN):
        return f"{source.path}@{tales.VERSION}"
    return content_digest(source.path)


# --- reading ------------------------------------------------------------------------------------------------


def _read(
    source: SourceSection, noun: str, formats: tuple[DataFormat, ...], make: Callable[[Example, str], R]
) -> Loaded[R]:
    return read_examples(source, noun, formats, make, _key)


def read_examples(
    source: SourceSection,
    noun: str,
    formats: tuple[DataFormat, ...],
    make: Callable[[Example, str], T],
    key: Callable[[T], str],
) -> Loaded[T]:
    """What `make` makes of each row in one of the formats; of rows with the same key the first counts."""
    name = source_name(source)
    if source.path.startswith(BUILTIN):
        raise InputError(f"{source.path}: no {noun} there; built in are {_builtin_names()}")
    if source.format != "auto" and source.format not in formats:
        raise InputError(_no_such(noun, formats, source.format, name))
    format = source.format
    rows_in = 0
    rows: dict[str, T] = {}
    reasons: list[str] = []
    for raw in islice(raw_rows(source.path, source.split), source.limit):
        rows_in += 1
        try:
            row = columns(raw, source)
            if format == "auto":
                format = _detected(raw, row, noun, formats)
            record = make(parse(row, format), name)
        except DroppedRowError as dropped:
            reasons.append(dropped.reason)
        except BadRowError as bad:
            if source.bad_rows == "stop":
                raise InputError(complaint(raw, bad)) from bad
            reasons.append(bad.reason)
        else:
            if rows.setdefault(key(record), record) is not record:
                reasons.append("duplicate")
    if not rows_in:
        raise InputError(f"{name}: no rows")
    return Loaded(list(rows.values()), rows_in, tally(reasons), format)


def _key(record: Prompt | Demonstration | Text | PreferencePair | Group) -> str:
    return record.prompt.id if isinstance(record, Group) else record.id


def _builtin(source: SourceSection, makers: Mapping[str, Callable[[int | None], list[R]]]) -> Loaded[R]:
    made = _maker(source, makers)(source.limit)
    rows = list({_key(row): row for row in reversed(made)}.values())[::-1]
    return Loaded(rows, len(made), tally(["duplicate"] * (len(made) - len(rows))), "builtin")


def built_in_rows(
    source: SourceSection, makers: Mapping[str, Callable[[int | None], list[Row]]]
) -> list[RawRow]:
    """Rows that prefloop makes itself, as if they were those of a file. Raises InputError for names that are not wanted."""
    rows = _maker(source, makers)(source.limit)
    return [RawRow(source.path, number, row) for number, row in enumerate(rows, 1)]


M = TypeVar("M")


def _maker(source: SourceSection, makers: Mapping[str, M]) -> M:
    name = source.path.removeprefix(BUILTIN)
    if name not in makers:
        wanted = " or ".join(BUILTIN + one for one in makers) or "a file"
        raise InputError(f"{source.path}: {wanted} is wanted here; built in are {_builtin_names()}")
    return makers[name]


def _builtin_names() -> str:
    return ", ".join(BUILTIN + name for name in BUILTIN_NAMES)


def columns(raw: RawRow, source: SourceSection) -> Row:
    """The row under prefloop's names. Raises InputError where the first row lacks a column to rename."""
    if isinstance(raw.value, Broken):
        raise BadRowError(*raw.value)
    if not isinstance(raw.value, dict):
        kind = kind_of(raw.value)
        raise BadRowError("wrong_type", f"a row is an object with named fields, not {kind}; fix the row")
    row: dict[str, object] = raw.value
    for ours, theirs in source.fields.items():
        if theirs not in row and raw.number == 1:
            raise InputError(f"{raw.file}: no column {theirs!r} to read as {ours}; it has {', '.join(row)}")
    renamed = {ours: row[theirs] for ours, theirs in source.fields.items() if theirs in row}
    used = {*source.fields.values(), *renamed}
    return {column: value for column, value in row.items() if column not in used} | renamed


def _detected(raw: RawRow, row: Row, noun: str, formats: tuple[DataFormat, ...]) -> DataFormat:
    format = detect(row, formats)
    if format is None:
        raise InputError(
            f"{raw.file} row {raw.number}: no known format has the fields {', '.join(row) or '(none)'}; "
            f"rename columns with fields:, for instance {FIELDS_EXAMPLES[noun]}"
        )
    if format not in formats:
        raise InputError(_no_such(noun, formats, format, raw.file))
    return format


FIELDS_EXAMPLES = {
    "prompts": "{prompt: your column}",
    "demonstrations": "{prompt: your column, completion: your other column}",
    "texts": "{text: your column}",
    "pairs": "{prompt: your column, chosen: the better answer, rejected: the worse}",
    "groups": "{prompt: your column, responses: the list of answers}",
}


def _no_such(noun: str, formats: tuple[DataFormat, ...], format: DataFormat, file: str) -> str:
    if noun == "pairs" and format == "unpaired":
        return (
            f"{file}: format unpaired labels single completions and has no pairs; write chosen and "
            "rejected of one prompt in one row, or use the rows as demonstrations"
        )
    return (
        f"{file}: format {format} has no {noun}; they are read from {', '.join(formats)}; "
        f"if columns have other names, use fields: {FIELDS_EXAMPLES[noun]}"
    )


def complaint(raw: RawRow, bad: BadRowError) -> str:
    """A bad row in words, with its file and number."""
    return f"{raw.file} row {raw.number}: {bad}"


def source_name(source: SourceSection) -> str:
    """The name under which rows remember their source."""
    return source.path.removeprefix(HUB) if source.path.startswith(HUB) else Path(source.path).name


# --- records ------------------------------------------------------------------------------------------------


def make_prompt(example: Example, name: str) -> Prompt:
    _check_prompt(example.turns)
    return Prompt.of(example.turns, answer=example.answer, source=name)


def _check_prompt(turns: Turns) -> None:
    if turns and turns[-1].role == "assistant":
        raise BadRowError(
            "assistant_final", "the last turn is the assistant's; a prompt must end with a user turn"
        )
    check_turns(turns)
    if not turns[-1].content.strip():
        raise BadRowError("empty_prompt", "the last user turn is empty; a prompt needs text")


def _make_demonstration(example: Example, name: str) -> Demonstration:
    if not example.desirable:
        raise DroppedRowError("label_false")
    turns = example.turns
    if example.completions:
        turns = (*turns, Message(role="assistant", content=example.completions[0]))
    if not turns or turns[-1].role != "assistant":
        raise BadRowError(
            "no_answer",
            "no answer; end with the assistant's turn, or name the column: fields: {output: your column}",
        )
    _check_prompt(turns[:-1])
    _check_completion(turns[-1].content, "the answer")
    return Demonstration.of(turns, source=name)


def _check_completion(text: str, what: str) -> None:
    if not text.strip():
        raise BadRowError(
            "empty_completion", f"{what} is empty; fix the row, or skip such rows with bad_rows: drop"
        )


def _make_text(example: Example, name: str) -> Text:
    (text,) = example.completions
    if not text.strip():
        raise BadRowError("empty_text", "the text is empty; fix the row")
    return Text(id=content_id(text), text=text, source=name)


def _make_pair(example: Example, name: str) -> PreferencePair:
    prompt = make_prompt(example, name)
    chosen, rejected, margin = _best_and_worst(example)
    if chosen == rejected:
        raise DroppedRowError("identical")
    _check_completion(chosen, "chosen")
    _check_completion(rejected, "rejected")
    return PreferencePair.of(
        prompt,
        file_completion(prompt, chosen, 0),
        file_completion(prompt, rejected, 1),
        margin=margin,
        annotator=f"file:{name}",
    )


def _best_and_worst(example: Example) -> tuple[str, str, float]:
    """The two completions of a pair and their margin. Raises DroppedRowError for ties and groups of one."""
    places = judged(example)
    if len(places) < 2:
        raise DroppedRowError("short")
    best = max(places, key=lambda place: places[place])
    worst = min(places, key=lambda place: places[place])
    if places[best] == places[worst]:
        raise DroppedRowError("tie")
    return example.completions[best], example.completions[worst], example.lead(best, worst)


def judged(example: Example) -> dict[int, float]:
    """What the row says about each completion that it judges, larger for the better, by place."""
    if example.all_bad:
        raise DroppedRowError("all_bad")
    if not example.values and not example.ranked:
        raise BadRowError(
            "no_scores",
            "the completions have no scores; add rewards or ranks, or let an annotator judge them",
        )
    return {place: value for place, value in enumerate(example.values) if value is not None}


def make_group(example: Example, name: str) -> Group:
    prompt = make_prompt(example, name)
    if not example.completions:
        raise BadRowError("no_completions", "no completions; a group needs at least one")
    for index, text in enumerate(example.completions):
        _check_completion(text, f"completion {index}")
    return Group(
        prompt=prompt,
        completions=tuple(
            file_completion(prompt, text, index) for index, text in enumerate(example.completions)
        ),
    )
