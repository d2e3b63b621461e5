"""Gold and qualification tasks out of files: the formats of imports, with the known answer of every row.

The answer is what a row says of its completions: which is chosen, how they are ranked or rated. Where it has a column
`expected`, that is the answer, in the words of `JudgementRow.value`; `why` says what people are told, `tolerance` by how
many steps they may be off.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from prefloop.config.annotate import MOST_RANKED
from prefloop.fields import BadRowError, DroppedRowError, Row
from prefloop.labels.audit import SYSTEM, audit
from prefloop.labels.database import Database
from prefloop.labels.errors import Invalid
from prefloop.labels.formats.incoming import ImportedTask
from prefloop.labels.formats.reading import ImportOptions, TaskReader
from prefloop.labels.gold import LONGEST_WHY, MOST_TOLERANCE, check_expected, expected_of
from prefloop.labels.projects import COMPLETIONS, Kind, ProjectConfig
from prefloop.labels.publish import NewTask, project_config, publish_tasks
from prefloop.labels.rows import JudgementRow
from prefloop.labels.schema import completion, gold, task
from prefloop.records import Completion, content_id

KIND_OF: dict[str, Kind] = {
    "choice": "pairwise",
    "strength": "pairwise",
    "groups": "rank",
    "unrankable": "rank",
    "ratings": "form",
    "flags": "form",
    "choices": "form",
    "levels": "rules",
    "labels": "steps",
}
"""The kind of task that an expected answer is about, by any of its fields."""


@dataclass(frozen=True)
class Made:
    """What came of a file."""

    rows: int
    tasks: int
    there: int
    """Tasks that were there already, or twice in the file."""
    dropped: Mapping[str, int]


def bring_gold_in(
    database: Database, project_id: str, options: ImportOptions, *, strategy: str, tolerance: int
) -> Made:
    """Publishes the rows of a file as gold tasks, all of them or, where one cannot be used, none.

    Raises InputError, which names file and row.
    """
    config, known = database.read(
        lambda connection: (project_config(connection, project_id), _known(connection, project_id))
    )
    made = _Making(project_id, config, known, strategy, tolerance)
    reader = TaskReader(options, made.look)
    for _ in reader:
        pass

    def work(connection: sa.Connection) -> int:
        now = database.now()
        counted = sa.select(sa.func.count()).where(task.c.project_id == project_id, task.c.is_gold)
        before = connection.execute(counted).scalar_one()
        publish_tasks(connection, now, project_id, made.tasks)
        new = connection.execute(counted).scalar_one() - before
        if new:
            audit(connection, now, SYSTEM, "gold.import", project_id, {"tasks": new, "use": strategy})
        return new

    new = database.write(work)
    return Made(reader.rows_in, new, made.seen - new, dict(reader.dropped))


Question = tuple[str, str, tuple[str, ...]]
"""Kind, prompt, and the texts in alphabetical order: a file may have them the other way round."""
Known = dict[Question, tuple[str, Mapping[str, Any]]]
"""The gold tasks in use by what they ask, each with its id and its answer about texts."""


def _known(connection: sa.Connection, project_id: str) -> Known:
    rows = connection.execute(
        sa.select(task.c.id, task.c.kind, task.c.prompt_id, task.c.completion_ids, gold.c.expected)
        .join(gold, gold.c.task_id == task.c.id)
        .where(task.c.project_id == project_id, task.c.state != "retired")
    ).all()
    text_of: dict[str, str] = {}
    for row in rows:
        wanted = sa.select(completion.c.id, completion.c.text).where(completion.c.id.in_(row.completion_ids))
        text_of |= {one.id: one.text for one in connection.execute(wanted)}
    found: Known = {}
    for row in rows:
        texts = [text_of[one] for one in row.completion_ids]
        question = row.kind, row.prompt_id, tuple(sorted(texts))
        found[question] = row.id, _about_texts(row.expected, texts)
    return found


def _about_texts(expected: Mapping[str, Any], shown: Sequence[str]) -> dict[str, Any]:
    """An answer in which texts stand for their places."""
    found, texts = dict(expected), list(shown)
    if expected.get("choice") in ("a", "b"):
        found["choice"] = [texts["ab".index(expected["choice"])]]
    if expected.get("strength") is not None and texts != sorted(texts):
        found["strength"] = 9 - expected["strength"]
    if "groups" in expected:
        found["groups"] = [sorted(texts[place] for place in group) for group in expected["groups"]]
    if "unrankable" in expected:
        found["unrankable"] = sorted(texts[place] for place in expected["unrankable"])
    if "labels" in expected:
        found["labels"] = sorted(zip(texts, expected["labels"], strict=True))
    return found


class _Making:
    """The gold tasks of a file, as its rows go by."""

    def __init__(
        self,
        project_id: str,
        config: ProjectConfig,
        known: Known,
        strategy: str,
        tolerance: int,
    ) -> None:
        self._project_id, self._config, self._known = project_id, config, known
        self._strategy, self._tolerance = strategy, tolerance
        self.tasks: list[NewTask] = []
        self.seen = 0

    def look(self, read: ImportedTask, row: Row) -> None:
        """Makes the tasks of a row. Raises BadRowError, DroppedRowError."""
        found = list(self._of_row(read, row))
        for one in found:
            self._check(one)
        self.seen += len(found)
        for one in found:
            if (question := _question(one)) not in self._known:
                self.tasks.append(one)
                self._known[question] = one.id, _answer(one)

    def _of_row(self, read: ImportedTask, row: Row) -> Iterator[NewTask]:
        why, tolerance = self._about(row)
        if row.get("expected") is not None:
            yield self._told(read, row["expected"], why, tolerance)
            return
        if not read.judgements:
            raise BadRowError(
                "no_answer",
                "no answer is known: give chosen and rejected, ranks, scores, or a column `expected`",
            )
        for said in read.judgements:
            if said.state != "valid":
                raise DroppedRowError(said.state)
            yield self._said(read, said, why or said.comment, tolerance)

    def _about(self, row: Row) -> tuple[str, int]:
        why, tolerance = row.get("why"), row.get("tolerance")
        if why is not None and (not isinstance(why, str) or len(why) > LONGEST_WHY):
            raise BadRowError("wrong_type", f"why: a text of at most {LONGEST_WHY} characters; fix the row")
        if tolerance is None:
            return why or "", self._tolerance
        if (
            isinstance(tolerance, bool)
            or not isinstance(tolerance, int)
            or not 0 <= tolerance <= MOST_TOLERANCE
        ):
            raise BadRowError(
                "wrong_type", f"tolerance: {tolerance!r} is not 0 to {MOST_TOLERANCE}; fix the row"
            )
        return why or "", tolerance

    def _told(self, read: ImportedTask, expected: object, why: str, tolerance: int) -> NewTask:
        """With the answer of the column `expected`, about the completions in the order of the row."""
        if not isinstance(expected, Mapping) or not expected:
            raise BadRowError(
                "wrong_type", f"expected: names with their values, not {expected!r}; fix the row"
            )
        value: dict[str, Any] = {str(name): one for name, one in expected.items()}
        kind = _kind_of(value)
        rules = [rule.id for rule in self._config.rules if rule.id in value.get("levels", ())]
        payload = {"rules": rules} if kind == "rules" else None
        return self._task(read, kind, read.loop_completions, value, payload, why, tolerance)

    def _said(self, read: ImportedTask, said: JudgementRow, why: str, tolerance: int) -> NewTask:
        """With the answer that the row says somebody gave."""
        asked = said.task_kind
        kind: Kind = "pairwise" if asked == "chat" else asked
        by_id = {one.id: one for one in read.loop_completions}
        completions = tuple(by_id[one.id] for one in said.completions)
        return self._task(
            read, kind, completions, expected_of(kind, said.value), said.payload, why, tolerance
        )

    def _task(
        self,
        read: ImportedTask,
        kind: Kind,
        completions: tuple[Completion, ...],
        expected: Mapping[str, Any],
        payload: Mapping[str, Any] | None,
        why: str,
        tolerance: int,
    ) -> NewTask:
        number, can = len(completions), COMPLETIONS[kind]
        if number not in can:
            most = f"; people rank {MOST_RANKED} at most" if number > MOST_RANKED else ""
            raise BadRowError(
                "wrong_number", f"a {kind} task cannot show {number} completions{most}; fix the row"
            )
        ids = [one.id for one in completions]
        return NewTask(
            read.prompt,
            completions,
            kind=kind,
            id=content_id(self._strategy, self._project_id, kind, read.prompt.id, ids, expected),
            payload=payload,
            strategy=self._strategy,
            expected=expected,
            tolerance=tolerance,
            why=why,
        )

    def _check(self, one: NewTask) -> None:
        assert one.kind is not None and one.expected is not None, "they were made with both"
        rules = (one.payload or {}).get("rules", ())
        try:
            check_expected(one.kind, one.expected, len(one.completions), self._config, rules)
        except Invalid as error:
            raise BadRowError("bad_expected", f"{error}; fix the row") from error
        known = self._known.get(_question(one))
        if known is not None and known[1] != _answer(one):
            raise BadRowError(
                "contradicts",
                f"gold task {known[0]} asks the same and has another answer; retire that one, or drop the row",
            )


def _kind_of(value: Mapping[str, Any]) -> Kind:
    """The one kind of task that has all these fields in its answers. Raises BadRowError."""
    kinds: list[Kind] = [KIND_OF[name] for name in value if name in KIND_OF]
    if "labels" in value:  # of steps, which may be chosen between as well
        kinds = ["steps" if one == "pairwise" else one for one in kinds]
    if len(kinds) < len(value) or len(set(kinds)) != 1:
        fields = ", ".join(value)
        raise BadRowError("bad_expected", f"expected: {fields} belong to no one kind of task; fix the row")
    return kinds[0]


def _question(one: NewTask) -> Question:
    return one.kind or "", one.prompt.id, tuple(sorted(text.text for text in one.completions))


def _answer(one: NewTask) -> dict[str, Any]:
    return _about_texts(one.expected or {}, [text.text for text in one.completions])
