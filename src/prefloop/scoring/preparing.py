"""What AlpacaEval 2 needs beside answers, made of the files that it publishes: they may not come with this package.

The length-controlled win rate is fitted together with judgements of two answers by the baseline that play with their length,
and with a difficulty of each instruction (arXiv:2404.04475). Both are in one published file.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from prefloop.interfaces import InputError, Unavailable
from prefloop.scoring.reading import need, number, rows_of
from prefloop.store import digest_path, disk_errors, write_text

REPOSITORY = "tatsu-lab/alpaca_eval"
GAMED, BASELINE = "df_gamed.csv", "alpaca_eval_gpt4_baseline.json"
LICENCE = "CC BY-NC 4.0: not for commercial use. Keep it out of what you publish under another licence."


class Prepared(NamedTuple):
    """What has been written."""

    folder: Path
    instructions: int
    gamed_rows: int


class Gamed(NamedTuple):
    """A judgement of an answer that plays with its length."""

    instruction: int
    model: str
    preference: float
    std_delta_len: float
    difficulty: float


def prepare_alpaca_eval(folder: Path, *, source: Path | None, revision: str = "main") -> Prepared:
    """Writes instruction_difficulty.csv, gamed_rows.csv and prompts_and_baseline.jsonl, with a note of where they are from.

    `source` is a folder with the published files; without one they are fetched from the model hub. Raises InputError and
    Unavailable.
    """
    gamed_file, baseline_file = (_file(name, source, revision) for name in (GAMED, BASELINE))
    gamed, prompts = _gamed(gamed_file), _prompts(baseline_file)
    difficulty = {one.instruction: one.difficulty for one in gamed}
    if lacking := [place for place in range(len(prompts)) if place not in difficulty]:
        raise InputError(
            f"{gamed_file}: no difficulty of instruction {lacking[0]}, nor of {len(lacking) - 1} others that "
            f"{baseline_file.name} has; the files are of different versions"
        )
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _write_csv(folder / "instruction_difficulty.csv", ("index", "difficulty"), sorted(difficulty.items()))
        _write_csv(
            folder / "gamed_rows.csv",
            ("index", "model", "preference", "std_delta_len", "instruction_difficulty"),
            gamed,
        )
        lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in prompts)
        write_text(folder / "prompts_and_baseline.jsonl", "".join(lines))
        digests = "\n".join(f"- {one.name}: {digest_path(one)}" for one in (gamed_file, baseline_file))
        origin = source or f"{REPOSITORY} at {revision}, a dataset of the model hub"
        write_text(
            folder / "SOURCE.md", f"Made of files of AlpacaEval, from {origin}. {LICENCE}\n\n{digests}\n"
        )
    return Prepared(folder, len(prompts), len(gamed))


def _file(name: str, source: Path | None, revision: str) -> Path:
    if source is not None:
        if not (source / name).is_file():
            raise InputError(
                f"{source}: no {name}; the folder must have {GAMED} and {BASELINE}, as {REPOSITORY} has them"
            )
        return source / name
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(REPOSITORY, name, repo_type="dataset", revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise Unavailable(
            f"{REPOSITORY}: {name} cannot be fetched ({type(error).__name__}: {str(error).splitlines()[0]}); where there is "
            "no network, copy it from another machine and name its folder with --from"
        ) from error


def _gamed(path: Path) -> list[Gamed]:
    found = []
    for place, row in rows_of(str(path)):
        preference = number(row, "preference", place)
        if not 0 <= preference <= 1:
            raise InputError(f"{place}: preference is {preference:g}; shares from 0 to 1 are known here")
        numbers = [number(row, name, place) for name in ("std_delta_len", "instruction_difficulty")]
        found.append(
            Gamed(round(number(row, "index", place)), str(need(row, "model", place)), preference, *numbers)
        )
    first = {one.instruction: one.difficulty for one in found[::-1]}
    if differing := next((one for one in found if one.difficulty != first[one.instruction]), None):
        raise InputError(f"{path}: two difficulties of instruction {differing.instruction}; each has one")
    return found


def _prompts(path: Path) -> list[dict[str, object]]:
    """The place of a row is the number of its instruction."""
    return [
        {
            "index": index,
            "dataset": row.get("dataset", ""),
            "instruction": need(row, "instruction", place),
            "baseline_output": need(row, "output", place),
            "generator": need(row, "generator", place),
        }
        for index, (place, row) in enumerate(rows_of(str(path)))
    ]


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
