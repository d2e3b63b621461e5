"""People as annotators: questions go into the label store, the loop waits, and what people said comes back.

Questions are published once, as a round whose id is a hash of what is asked; whoever asks the same again finds the round
as it is. When enough is judged the round is frozen, and what was said up to its watermark is read, the same for ever.
"""

import contextlib
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from prefloop.config import HumanAnnotator
from prefloop.interfaces import InputError, Waiting
from prefloop.labels import rounds, serving
from prefloop.labels.audit import SYSTEM
from prefloop.labels.database import Database, open_database
from prefloop.labels.errors import LabelError
from prefloop.labels.people import join_admins
from prefloop.labels.projects import ProjectConfig, parse_config
from prefloop.labels.publish import (
    NewTask,
    add_project,
    configure_project,
    project_config,
    publish_guidelines,
    publish_tasks,
)
from prefloop.labels.rounds import Round, Standing
from prefloop.labels.schema import project as project_table
from prefloop.labels.triggers import Trigger, fired
from prefloop.labels.values import p_a_of
from prefloop.records import Comparison, Completion, Judgement, Prompt, Refusal, Score, content_id

NOT_JUDGED = "not_judged"
BOTH_BAD = "both_bad"
UNRANKABLE = "cannot_be_ranked"
SKIPPED = "skipped"
OVERALL = "overall"
"""The rating of a form that is the score."""
ASKED_SETTINGS = frozenset({"ties", "both_bad", "axes", "form"})
"""Settings of a project that change what people are asked."""


@dataclass(frozen=True)
class Question:
    """What people are asked about: two completions, all of a prompt, or one; and how they were chosen."""

    prompt: Prompt
    completions: tuple[Completion, ...]
    strategy: str = ""
    score: float | None = None
    """By the strategy."""
    probability: float | None = None
    """Of having been chosen."""
    reward_p: float | None = None
    """P(the first is better) by the loop's reward model."""


@dataclass(frozen=True)
class Asked:
    """For whom the questions are: what a round keeps about the loop."""

    store: str
    project: str
    policy: str = ""
    reward: str = ""
    reward_accuracy: float | None = None
    """Of the reward model on its held-out pairs."""


class People:
    """Asks people through the label store."""

    def __init__(self, options: HumanAnnotator, asked: Asked) -> None:
        self.options = options
        self.asked = asked
        self._guidelines = read_file(options.guidelines, "guidelines") if options.guidelines else ""
        self._settings = read_settings(options)

    def judge(self, questions: Sequence[Question]) -> tuple[Round, Iterator[Judgement]]:
        """The frozen round and what people said, by question; unjudged ones are refusals that cost nothing.

        All questions of a label batch come in one call. Raises Waiting while fewer are judged than wanted.
        """
        round_id = self.round_id(questions)
        with contextlib.closing(open_database(self.asked.store)) as database:
            found = database.read(lambda connection: rounds.find_round(connection, round_id))
            if found is None:
                database.write(
                    lambda connection: self._publish(connection, database.now(), round_id, questions)
                )
            if found is None or found.state == "open":
                self._freeze_or_wait(database, round_id, len(questions))
            frozen, said = database.read(lambda connection: _frozen(connection, round_id))
        return frozen, self._rows(round_id, questions, said)

    def round_id(self, questions: Sequence[Question]) -> str:
        """A hash of what is asked: the same questions to the same people are the same round."""
        asked = [[one.prompt.id, *(text.id for text in one.completions)] for one in questions]
        words = [self.options.task, self.options.overlap, self._guidelines, asked_settings(self._settings)]
        return content_id("round", self.asked.project, words, asked)

    # --- asking ------------------------------------------------------------------------------------------------------

    def _publish(
        self, connection: sa.Connection, now: int, round_id: str, questions: Sequence[Question]
    ) -> None:
        self._ensure_project(connection, now)
        rounds.begin_round(
            connection,
            now,
            self.asked.project,
            round_id,
            policy_in=self.asked.policy,
            reward_in=self.asked.reward,
        )
        tasks = [self._task(round_id, one) for one in questions]
        publish_tasks(connection, now, self.asked.project, tasks, round_id=round_id)

    def _ensure_project(self, connection: sa.Connection, now: int) -> None:
        """The project, made where it is new; a settings file and guidelines that are named are what it has then."""
        name = self.asked.project
        known = sa.select(project_table.c.id).where(project_table.c.id == name)
        if connection.execute(known).first() is None:
            add_project(connection, now, name, self._settings)
            join_admins(connection, name)
        elif self.options.settings is not None:
            configure_project(connection, name, self._settings)
        if self.options.task == "form":
            _check_form(project_config(connection, name))
        if self._guidelines:
            publish_guidelines(connection, now, name, self._guidelines)

    def _task(self, round_id: str, one: Question) -> NewTask:
        return NewTask(
            prompt=one.prompt,
            completions=one.completions,
            kind=self.options.task,
            id=_task_id(round_id, one),
            overlap=self.options.overlap,
            strategy=one.strategy,
            score=one.score,
            probability=one.probability,
            reward_p=one.reward_p,
        )

    # --- waiting -----------------------------------------------------------------------------------------------------

    def _freeze_or_wait(self, database: Database, round_id: str, number: int) -> None:
        trigger = self._trigger(number)

        def freeze(connection: sa.Connection) -> bool:
            now = database.now()
            reason = fired(connection, now, round_id, trigger, expected_accuracy=self.asked.reward_accuracy)
            if reason is None:
                rounds.prefer(connection, self.asked.project, round_id)
            else:
                rounds.freeze(connection, now, round_id, actor=SYSTEM, reason=reason)
            return reason is not None

        if not database.write(freeze):
            raise self._waiting(database, round_id, trigger)

    def _trigger(self, number: int) -> Trigger:
        # 0.07 * 100 is a little more than 7
        wanted = math.ceil(round(self.options.quorum * number, 9))
        return Trigger(settled=wanted, **self.options.trigger.model_dump())

    def _waiting(self, database: Database, round_id: str, trigger: Trigger) -> Waiting:
        def look(connection: sa.Connection) -> tuple[Round, Standing, bool]:
            found = rounds.find_round(connection, round_id)
            assert found is not None, "it was published"
            return found, rounds.standing(connection, round_id), rounds.is_out_of_money(connection, found)

        found, stands, is_out_of_money = database.read(look)
        url = database.read(serving.announced)
        where = (
            f"open {url}"
            if url is not None and serving.answers(url)
            else f"label in a browser with `prefloop label serve --store {serving.shown_place(self.asked.store)}`, "
            "or here with `prefloop label terminal`"
        )
        if is_out_of_money:
            where = (
                f"its budget of {found.budget_cents} cents is spent: raise it with `prefloop label round budget`, "
                "or go on with what there is by `prefloop label round freeze`"
            )
        return Waiting(
            f"{stands.settled} of {stands.tasks} judged in round {found.number} of {found.project_id}, "
            f"{trigger.settled} wanted; {where}, then run again (`prefloop run --wait` stays and goes on by itself)",
            look=lambda: self._look(round_id, trigger),
        )

    def _look(self, round_id: str, trigger: Trigger) -> tuple[int, int]:
        def look(connection: sa.Connection) -> tuple[Standing, bool]:
            found = rounds.find_round(connection, round_id)
            is_closed = found is None or found.state != "open"
            reason = (
                None
                if is_closed
                else fired(
                    connection,
                    database.now(),
                    round_id,
                    trigger,
                    expected_accuracy=self.asked.reward_accuracy,
                )
            )
            return rounds.standing(connection, round_id), is_closed or reason is not None

        with contextlib.closing(open_database(self.asked.store)) as database:
            stands, goes_on = database.read(look)
        return (trigger.settled if goes_on else min(stands.settled, trigger.settled - 1)), trigger.settled

    # --- what people said --------------------------------------------------------------------------------------------

    def _rows(
        self, round_id: str, questions: Sequence[Question], said: dict[str, list[Any]]
    ) -> Iterator[Judgement]:
        flags = sorted(
            {name for rows in said.values() for row in rows for name in row.value.get("flags", ())}
        )
        for one in questions:
            answers = said.get(_task_id(round_id, one), [])
            if not answers:
                yield _refusal(one, "human", NOT_JUDGED, labels=0)
            for answer in answers:
                if answer.state == "skipped":
                    reason = answer.value.get("skip", SKIPPED)
                    yield _refusal(one, _name(answer), reason, labels=1)
                elif self.options.task == "pairwise":
                    yield _comparison(one, answer)
                elif self.options.task == "rank":
                    yield from _comparisons(one, answer)
                else:
                    yield _score(one, answer, flags)


def _frozen(connection: sa.Connection, round_id: str) -> tuple[Round, dict[str, list[Any]]]:
    found = rounds.find_round(connection, round_id)
    assert found is not None and found.watermark is not None, "it was frozen before"
    return found, rounds.said_in(connection, round_id, found.watermark)


def _task_id(round_id: str, one: Question) -> str:
    return content_id("task", round_id, one.prompt.id, [text.id for text in one.completions])


def _name(answer: Any) -> str:
    """Who said it, by an id that stays when they change their name or leave."""
    return f"human/{answer.annotator_id}"


def _refusal(one: Question, annotator: str, reason: str, *, labels: int) -> Refusal:
    return Refusal(
        prompt_id=one.prompt.id,
        completion_ids=tuple(text.id for text in one.completions),
        annotator=annotator,
        reason=reason,
        labels=labels,
    )


def _comparison(one: Question, answer: Any) -> Judgement:
    p_a = p_a_of(answer.value)
    if p_a is None:
        return _refusal(one, _name(answer), BOTH_BAD, labels=1)
    return Comparison(
        prompt_id=one.prompt.id,
        a=one.completions[0].id,
        b=one.completions[1].id,
        p_a=p_a,
        annotator=_name(answer),
        strength=answer.value.get("strength"),
        reason=answer.comment or None,
        presented="ab" if answer.presented[0] == 0 else "ba",
    )


def _comparisons(one: Question, answer: Any) -> Iterator[Judgement]:
    """A ranking as a comparison of every two that were ranked; the person was asked once, so it is one label."""
    place = {number: rank for rank, group in enumerate(answer.value["groups"]) for number in group}
    pairs = list(itertools.combinations(sorted(place), 2))
    if not pairs:
        yield _refusal(one, _name(answer), UNRANKABLE, labels=1)
    for number, (a, b) in enumerate(pairs):
        is_first = answer.presented.index(a) < answer.presented.index(b)
        yield Comparison(
            prompt_id=one.prompt.id,
            a=one.completions[a].id,
            b=one.completions[b].id,
            p_a=0.5 if place[a] == place[b] else float(place[a] < place[b]),
            annotator=_name(answer),
            reason=answer.comment or None,
            presented="ab" if is_first else "ba",
            labels=int(number == 0),
        )


def _score(one: Question, answer: Any, flags: Sequence[str]) -> Judgement:
    """The overall rating; other ratings and the flags, 1 where raised, are its parts."""
    ratings = answer.value.get("ratings", {})
    overall = OVERALL if OVERALL in ratings or len(ratings) != 1 else next(iter(ratings))
    if overall not in ratings:
        return _refusal(one, _name(answer), "no_overall_rating", labels=1)
    raised = answer.value.get("flags", {})
    parts = {name: float(value) for name, value in sorted(ratings.items()) if name != overall}
    parts |= {name: float(raised.get(name, False)) for name in flags}
    return Score(
        prompt_id=one.prompt.id,
        completion_id=one.completions[0].id,
        value=ratings[overall],
        annotator=_name(answer),
        parts=parts or None,
    )


# --- files that an experiment names --------------------------------------------------------------------------------------


def read_file(path: str, key: str) -> str:
    """A text file that a key of the annotator names. Raises InputError."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a UTF-8 text file"
        raise InputError(f"annotate.annotator.{key}: {path}: {reason}") from error


def read_settings(options: HumanAnnotator) -> ProjectConfig:
    """The project as the experiment wants it: its settings file, and what the annotator itself says."""
    config = ProjectConfig()
    if options.settings is not None:
        text = read_file(options.settings, "settings")
        try:
            config = parse_config(text)
        except LabelError as error:
            raise InputError(f"annotate.annotator.settings: {options.settings}: {error}") from error
    return config.model_copy(update={"kind": options.task, "overlap": options.overlap})


def asked_settings(config: ProjectConfig) -> str:
    """What of a project's settings changes the questions, as text for a key."""
    return json.dumps(config.model_dump(mode="json", include=set(ASKED_SETTINGS)), sort_keys=True)


def outside_digests(options: HumanAnnotator) -> dict[str, str]:
    """Digests of the files that an experiment names, for keys: of guidelines the text, of settings what is asked."""
    texts = {}
    if options.guidelines is not None:
        texts["guidelines"] = read_file(options.guidelines, "guidelines")
    if options.settings is not None:
        texts["settings"] = asked_settings(read_settings(options))
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def _check_form(config: ProjectConfig) -> None:
    names = [one.name for one in config.form if one.type == "likert"]
    if OVERALL not in names and len(names) != 1:
        raise InputError(
            f"annotate.annotator.settings: the form has the ratings {', '.join(names) or 'none'}; "
            f"call the one that is the score {OVERALL}"
        )
