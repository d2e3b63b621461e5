"""People as annotators, through two files in a folder.

`tasks.jsonl` is what is to be judged, written whole by the loop. `judgements.jsonl` is what people said, one row each,
only ever appended to: an undo is a new row that names the one it takes back. Whoever labels sees neither which policy
wrote a text nor a fixed order, and no text can reach the terminal's controls.
"""

import math
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from filelock import FileLock
from pydantic import Field, ValidationError

from prefloop.config import HumanAnnotator
from prefloop.interfaces import InputError, PairTask, Waiting
from prefloop.records import Comparison, Message, Record, Refusal, content_id
from prefloop.store import write_rows

TASKS = "tasks.jsonl"
JUDGEMENTS = "judgements.jsonl"
NOT_JUDGED = "not_judged"
SKIPPED = "skipped"
P_A = {"a": 1.0, "b": 0.0, "tie": 0.5}

R = TypeVar("R", bound=Record)
Verdict = Literal["a", "b", "tie", "skip", "withdrawn"]


class HumanTask(Record):
    """What one person is shown; it does not say who wrote the texts."""

    id: str
    prompt_id: str
    messages: tuple[Message, ...]
    a: str
    """Id of the completion `text_a`."""
    b: str
    text_a: str
    text_b: str
    overlap: int = Field(ge=1)
    """Judgements wanted."""


class HumanJudgement(Record):
    """What one person said about one task. The verdict names a completion, not a side of the screen."""

    id: str
    task_id: str
    annotator: str
    verdict: Verdict
    reason: str | None = None
    presented: Literal["ab", "ba"]
    supersedes: str | None = None
    """Id of the row of the same person that this one takes the place of."""


class HumanComparer:
    """Publishes tasks in a folder and takes up what people have judged there."""

    def __init__(self, options: HumanAnnotator, folder: Path) -> None:
        self.name = "human"
        self.options = options
        self.folder = folder

    def compare(self, tasks: Iterable[PairTask]) -> Iterator[Comparison | Refusal]:
        """Yields every valid judgement of each task, in order; unjudged tasks are refusals that cost nothing.

        All tasks of a batch come in one call: they take the place of what the folder asked before. Raises Waiting
        at once while fewer than `quorum` of them have `overlap` judgements.
        """
        published = [_published(task, self.options.overlap) for task in tasks]
        _publish(self.folder, published)
        valid = read_valid(self.folder)
        done = sum(len(valid.get(task.id, ())) >= task.overlap for task in published)
        # 0.07 * 100 is a little more than 7
        wanted = math.ceil(round(self.options.quorum * len(published), 9))
        if done < wanted:
            raise Waiting(
                f"{done} of {len(published)} tasks judged, {wanted} wanted; label with "
                f"`prefloop label {self.folder}`, then run again"
            )
        return self._rows(published, valid)

    def _rows(
        self, tasks: Sequence[HumanTask], valid: Mapping[str, Sequence[HumanJudgement]]
    ) -> Iterator[Comparison | Refusal]:
        for task in tasks:
            judgements = valid.get(task.id, ())
            if not judgements:
                yield _refusal(task, self.name, NOT_JUDGED, labels=0)
            for judgement in judgements:
                name = f"{self.name}/{judgement.annotator}"
                if judgement.verdict == "skip":
                    yield _refusal(task, name, judgement.reason or SKIPPED, labels=1)
                    continue
                yield Comparison(
                    prompt_id=task.prompt_id,
                    a=task.a,
                    b=task.b,
                    p_a=P_A[judgement.verdict],
                    annotator=name,
                    reason=judgement.reason,
                    presented=judgement.presented,
                )


def _refusal(task: HumanTask, annotator: str, reason: str, *, labels: int) -> Refusal:
    return Refusal(
        prompt_id=task.prompt_id,
        completion_ids=(task.a, task.b),
        annotator=annotator,
        reason=reason,
        labels=labels,
    )


def _published(task: PairTask, overlap: int) -> HumanTask:
    return HumanTask(
        id=content_id("task", task.prompt.id, task.a.id, task.b.id),
        prompt_id=task.prompt.id,
        messages=task.prompt.messages,
        a=task.a.id,
        b=task.b.id,
        text_a=task.a.text,
        text_b=task.b.text,
        overlap=overlap,
    )


# --- the two files ---------------------------------------------------------------------------------------------------


def _publish(folder: Path, tasks: Sequence[HumanTask]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / TASKS
    if not path.is_file() or read_tasks(folder) != list(tasks):
        write_rows(path, tasks)


def read_tasks(folder: Path) -> list[HumanTask]:
    """The tasks of a folder. Raises InputError where it has none."""
    path = folder / TASKS
    if not path.is_file():
        raise InputError(f"{folder}: no {TASKS} here; name a folder that a waiting run has told you")
    return list(_read(path, HumanTask))


def read_valid(folder: Path) -> dict[str, list[HumanJudgement]]:
    """The judgements that count, by task: the last one of each person, unless it was withdrawn."""
    last: dict[str, dict[str, HumanJudgement]] = defaultdict(dict)
    path = folder / JUDGEMENTS
    for row in _read(path, HumanJudgement) if path.is_file() else ():
        last[row.task_id][row.annotator] = row
    return {
        task_id: valid
        for task_id, rows in last.items()
        if (valid := [one for one in rows.values() if one.verdict != "withdrawn"])
    }


def _read(path: Path, record: type[R]) -> Iterator[R]:
    """The rows of a file. A last line without its end is a row that is being written, or never was."""
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            yield record.model_validate_json(line)
        except ValidationError as error:
            raise InputError(
                f"{path} line {number}: {error.errors()[0]['msg']}; remove or restore the line"
            ) from error


def append_judgement(folder: Path, judgement: HumanJudgement) -> None:
    """Adds one row, on the disk when this returns. Safe for several people at once."""
    path = folder / JUDGEMENTS
    row = judgement.model_dump_json().encode("utf-8", "surrogatepass") + b"\n"
    with FileLock(folder / f"{JUDGEMENTS}.lock"), path.open("a+b") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)  # a row that a kill cut off was never confirmed to anybody
        file.write(row)
        file.flush()
        os.fsync(file.fileno())


# --- labelling in a terminal -----------------------------------------------------------------------------------------

QUESTION = "Better: a or b? t tie, s skip, u undo, q quit > "
NOTHING_LEFT = "Nothing is left for you here. u undo, Enter to leave > "
WHY_SKIPPED = "Why is it skipped? (Enter for no reason) > "
KEYS = {
    "a": "first",
    "1": "first",
    "b": "second",
    "2": "second",
    "t": "tie",
    "s": "skip",
    "u": "undo",
    "q": "quit",
}
MARGIN = "  | "
"""Stands before every line of a judged text, so that no text can pass for one of our own lines."""
ESCAPE_SEQUENCE = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles, links, clipboard
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\)?"  # device control strings
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # colours, cursor
    r"|\x1b[ -/]*[0-~]?"
)
CONTROL_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode: controls, directions of writing, halves of characters, line and paragraph separators."""
KEPT_CONTROLS = frozenset("\n\t\u200c\u200d")
"""Line feed, tab, and the joiners that Persian, Hindi and emoji are written with."""


def label_in_terminal(
    folder: Path,
    annotator: str,
    ask: Callable[[str], str] = input,
    show: Callable[[str], object] = print,
) -> int:
    """Puts the open tasks of a folder to one person; returns how many judgements are theirs now.

    Whoever comes back goes on where they stopped. Raises InputError for a folder without tasks or a name that cannot
    be shown.
    """
    if not annotator.strip() or printable(annotator) != annotator or "\n" in annotator:
        raise InputError(f"annotator {annotator!r}: give a name of visible characters on one line")
    tasks = read_tasks(folder)
    try:
        while (key := _step(folder, tasks, annotator, ask, show)) != "quit":
            if key == "undo":
                _withdraw_last(folder, annotator, show)
    except (EOFError, KeyboardInterrupt):
        show("")  # every answered task is stored already
    mine = sum(one.annotator == annotator for rows in read_valid(folder).values() for one in rows)
    show(f"{mine} of {len(tasks)} tasks judged by {annotator}.")
    return mine


def _step(
    folder: Path,
    tasks: Sequence[HumanTask],
    annotator: str,
    ask: Callable[[str], str],
    show: Callable[[str], object],
) -> str:
    """Asks about the next open task and stores the verdict; returns the key."""
    task = _open_task(tasks, read_valid(folder), annotator)
    if task is None:
        return "undo" if ask(NOTHING_LEFT).strip().lower() == "u" else "quit"
    _show_task(task, annotator, show)
    key = _key(ask, show)
    if key not in ("undo", "quit"):
        reason = printable(ask(WHY_SKIPPED)).strip() if key == "skip" else ""
        append_judgement(folder, _judgement(folder, task, annotator, key, reason or None))
    return key


def printable(text: str) -> str:
    """The text without terminal escapes, control characters and marks that turn the direction of writing."""
    return "".join(
        sign
        for sign in ESCAPE_SEQUENCE.sub("", text)
        if sign in KEPT_CONTROLS or unicodedata.category(sign) not in CONTROL_CATEGORIES
    )


def shown_order(task_id: str, annotator: str) -> Literal["ab", "ba"]:
    """Which completion this person sees first: random, but the same whenever the task is shown."""
    return "ab" if int(content_id("sides", task_id, annotator), 16) % 2 else "ba"


def _open_task(
    tasks: Sequence[HumanTask], valid: Mapping[str, Sequence[HumanJudgement]], annotator: str
) -> HumanTask | None:
    """The first task that still wants a judgement and has none of this person."""
    for task in tasks:
        judgements = valid.get(task.id, ())
        if len(judgements) < task.overlap and all(one.annotator != annotator for one in judgements):
            return task
    return None


def _show_task(task: HumanTask, annotator: str, show: Callable[[str], object]) -> None:
    first, second = task.text_a, task.text_b
    if shown_order(task.id, annotator) == "ba":
        first, second = second, first
    show("=" * 80)
    for message in task.messages:
        show(f"{message.role.upper()}\n{_framed(message.content)}")
    show(f"ANSWER A\n{_framed(first)}")
    show(f"ANSWER B\n{_framed(second)}")


def _framed(text: str) -> str:
    return "\n".join(MARGIN + line for line in printable(text).split("\n"))


def _key(ask: Callable[[str], str], show: Callable[[str], object]) -> str:
    while (key := KEYS.get(ask(QUESTION).strip().lower())) is None:
        show(f"Press one of {', '.join(KEYS)}, then Enter.")
    return key


def _judgement(folder: Path, task: HumanTask, annotator: str, key: str, reason: str | None) -> HumanJudgement:
    order = shown_order(task.id, annotator)
    sides: dict[str, Verdict] = (
        {"first": "a", "second": "b"} if order == "ab" else {"first": "b", "second": "a"}
    )
    others: dict[str, Verdict] = {"tie": "tie", "skip": "skip"}
    before = [one.id for one in _rows_of(folder, annotator) if one.task_id == task.id]
    return _row(task.id, annotator, (sides | others)[key], order, reason, before[-1] if before else None)


def _withdraw_last(folder: Path, annotator: str, show: Callable[[str], object]) -> None:
    """Takes back the newest valid judgement of this person; the task is open again."""
    valid = {one.id for rows in read_valid(folder).values() for one in rows}
    mine = [one for one in _rows_of(folder, annotator) if one.id in valid]
    if not mine:
        show("There is nothing to undo.")
        return
    last = mine[-1]
    append_judgement(folder, _row(last.task_id, annotator, "withdrawn", last.presented, None, last.id))


def _rows_of(folder: Path, annotator: str) -> list[HumanJudgement]:
    path = folder / JUDGEMENTS
    rows = _read(path, HumanJudgement) if path.is_file() else ()
    return [one for one in rows if one.annotator == annotator]


def _row(
    task_id: str,
    annotator: str,
    verdict: Verdict,
    presented: Literal["ab", "ba"],
    reason: str | None,
    supersedes: str | None,
) -> HumanJudgement:
    return HumanJudgement(
        id=content_id("judgement", task_id, annotator, verdict, supersedes),
        task_id=task_id,
        annotator=annotator,
        verdict=verdict,
        reason=reason,
        presented=presented,
        supersedes=supersedes,
    )
