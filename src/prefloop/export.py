"""Data out: pairs and scored groups in the formats that other tools read.

`trl`, `hh` and `ultrafeedback` write pairs as JSON lines, `parquet` as a table that also says who judged and
who wrote; `online_rlhf` writes groups with their scores as JSON lines. A file is written whole or not at all.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from prefloop.interfaces import InputError
from prefloop.records import Group, Message, PreferencePair, Score, judgement_adapter
from prefloop.store import read_records, read_rows

if TYPE_CHECKING:
    import pyarrow

PairFormat = Literal["trl", "hh", "ultrafeedback", "parquet"]
LINES_SUFFIXES = (".jsonl", ".json")
TABLE_SUFFIX = ".parquet"
HH_SPEAKERS = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}


def export(folder: Path, format: str, out: Path, judgements: Path | None = None) -> int:
    """Writes the pairs or groups of an artefact to `out`; returns the number of rows.

    Groups get the scores found in `judgements`, a folder with judgements.jsonl. Raises InputError.
    """
    if format in get_args(PairFormat):
        return export_pairs(read_records(_part(folder, "pairs.jsonl"), PreferencePair), format, out)
    if format != "online_rlhf":
        raise _unknown(format)
    groups = read_records(_part(folder, "groups.jsonl"), Group)
    scores = {} if judgements is None else _scores(_part(judgements, "judgements.jsonl"))
    return export_groups(groups, scores, out)


def export_pairs(pairs: Iterable[PreferencePair], format: str, out: Path) -> int:
    """Writes pairs as `trl`, `hh`, `ultrafeedback` or `parquet`; returns their number. Raises InputError."""
    match format:
        case "trl":
            return _write_lines(map(_trl_row, pairs), out)
        case "hh":
            return _write_lines(map(_hh_row, pairs), out)
        case "ultrafeedback":
            return _write_lines(map(_ultrafeedback_row, pairs), out)
        case "parquet":
            return _write_parquet([_pair_row(pair) for pair in pairs], _pairs_schema(), out)
        case _:
            raise _unknown(format)


def export_samples(groups: Iterable[Group], out: Path) -> int:
    """Writes groups with all that they carry, as JSON lines or, by the file's name, Parquet; returns their number.

    Raises InputError.
    """
    rows = (group.model_dump(mode="json") for group in groups)
    if out.suffix == TABLE_SUFFIX:
        return _write_parquet(list(rows), _samples_schema(), out)
    return _write_lines(rows, out)


def check_samples_file(out: Path) -> None:
    """Raises InputError where samples could not be written to `out`: better before they are made."""
    if out.suffix not in (*LINES_SUFFIXES, TABLE_SUFFIX) or out.is_dir():
        raise InputError(f"{out}: samples are written to a .jsonl or .parquet file; choose such a name")


def export_groups(groups: Iterable[Group], scores: Mapping[str, float], out: Path) -> int:
    """Writes groups as Online-RLHF does: prompt, responses, rewards; returns their number. Raises InputError.

    A completion whose id is not among the scores gets null: it was not judged.
    """
    rows = (
        {
            "prompt": _turns(group.prompt.messages),
            "responses": [completion.text for completion in group.completions],
            "rewards": [scores.get(completion.id) for completion in group.completions],
        }
        for group in groups
    )
    return _write_lines(rows, out)


def _unknown(format: str) -> InputError:
    return InputError(
        f"no export format {format!r}; choose {', '.join(get_args(PairFormat))}, or online_rlhf for groups"
    )


def _part(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise InputError(f"{path}: missing; name an artefact folder that holds {name}")
    return path


def _scores(path: Path) -> dict[str, float]:
    rows = [judgement_adapter.validate_python(row) for row in read_rows(path)]
    scores = [row for row in rows if isinstance(row, Score)]
    annotators = sorted({score.annotator for score in scores})
    if len(annotators) > 1:
        raise InputError(
            f"{path}: scores of {len(annotators)} annotators ({', '.join(annotators)}); export those of one"
        )
    return {score.completion_id: score.value for score in scores}


# --- rows ---------------------------------------------------------------------------------------------------


def _turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _trl_row(pair: PreferencePair) -> dict[str, object]:
    return {
        "prompt": _turns(pair.prompt.messages),
        "chosen": _answer(pair.chosen.text),
        "rejected": _answer(pair.rejected.text),
    }


def _hh_row(pair: PreferencePair) -> dict[str, object]:
    before = _transcript(pair, pair.prompt.messages)
    return {
        name: before + _transcript(pair, (Message(role="assistant", content=text),))
        for name, text in (("chosen", pair.chosen.text), ("rejected", pair.rejected.text))
    }


def _transcript(pair: PreferencePair, messages: Iterable[Message]) -> str:
    """Turns as one text. Raises InputError for what a transcript cannot hold."""
    parts: list[str] = []
    for message in messages:
        if message.role == "system":
            raise InputError(f"pair {pair.id}: format hh has no system turns; use trl")
        if any(mark.rstrip() in message.content for mark in HH_SPEAKERS.values()):
            raise InputError(f"pair {pair.id}: the text holds a turn mark of format hh; use trl")
        parts.append(HH_SPEAKERS[message.role] + message.content)
    return "".join(parts)


def _ultrafeedback_row(pair: PreferencePair) -> dict[str, object]:
    """Pairs keep the difference of the scores only: the rejected score is written as 0."""
    before = _turns(pair.prompt.messages)
    chosen = before + _answer(pair.chosen.text)
    return {
        "prompt": pair.prompt.text,
        "prompt_id": pair.prompt.id,
        "chosen": chosen,
        "rejected": before + _answer(pair.rejected.text),
        "messages": chosen,
        "score_chosen": pair.margin,
        "score_rejected": 0.0,
    }


# --- files --------------------------------------------------------------------------------------------------


def _write_lines(rows: Iterable[Mapping[str, object]], out: Path) -> int:
    number = 0
    with whole_file(out, LINES_SUFFIXES) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            number += 1
        _check_number(number, out)
    return number


def _write_parquet(rows: Sequence[Mapping[str, object]], schema: "pyarrow.Schema", out: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    _check_number(len(rows), out)
    with whole_file(out, (TABLE_SUFFIX,)) as temporary:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), temporary)
    return len(rows)


def _pair_row(pair: PreferencePair) -> dict[str, object]:
    judged = {"margin": pair.margin, "annotator": pair.annotator, "policy": pair.chosen.policy}
    return {**_trl_row(pair), **judged}


def _pairs_schema() -> "pyarrow.Schema":
    import pyarrow

    turns = _turns_type()
    texts = {name: pyarrow.string() for name in ("annotator", "policy")}
    return pyarrow.schema(
        {"prompt": turns, "chosen": turns, "rejected": turns, "margin": pyarrow.float64(), **texts}
    )


def _samples_schema() -> "pyarrow.Schema":
    """The fields of `Group`."""
    import pyarrow

    text, number, whole = pyarrow.string(), pyarrow.float64(), pyarrow.int64()
    prompt = {"id": text, "messages": _turns_type(), "answer": text, "source": text}
    sampling = {"temperature": number, "top_p": number, "top_k": whole, "min_p": number}
    sampling |= {"repetition_penalty": number, "seed": whole}
    completion = {"id": text, "prompt_id": text, "text": text, "token_ids": pyarrow.list_(pyarrow.int32())}
    completion |= {"token_logps": pyarrow.list_(number), "sampled_logps": pyarrow.list_(number)}
    completion |= {"finish_reason": text, "sampling": pyarrow.struct(sampling), "policy": text}
    completion |= {"policy_version": whole}
    return pyarrow.schema(
        {"prompt": pyarrow.struct(prompt), "completions": pyarrow.list_(pyarrow.struct(completion))}
    )


def _turns_type() -> "pyarrow.DataType":
    import pyarrow

    return pyarrow.list_(pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.string()}))


def _check_number(number: int, out: Path) -> None:
    if not number:
        raise InputError(f"{out}: nothing to export; the artefact has no rows")


@contextlib.contextmanager
def whole_file(out: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """A temporary file that becomes `out` when the block ends well, and vanishes when it does not."""
    if out.suffix not in suffixes:
        raise InputError(
            f"{out}: this format is written to {' or '.join(suffixes)} files; choose such a name"
        )
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(out)
    except OSError as error:
        raise InputError(f"{out}: cannot write: {error.strerror}; choose another file") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
