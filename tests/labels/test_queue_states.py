"""Whatever people do in whatever order, the counters, the places and the money are right, and the next task is the next."""

import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from labels.small_store import QUICK, SmallStore, check
from prefloop.labels.errors import Conflict, Frozen
from prefloop.labels.schema import judgement, lease, round_, task

PRICE = 5
WORDS = st.sampled_from([1, 4, 8])
WHO = st.integers(0, 3)
BUDGETS = st.sampled_from([None, 12, 40])


class Work(RuleBasedStateMachine):
    """Three people and an AI judge at one project."""

    empty: Path

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=QUICK)
        path = Path(self.folder.name) / "labels.sqlite"
        shutil.copy(self.empty, path)
        self.opened = SmallStore.at(str(path))
        self.store = self.opened.__enter__()
        self.tokens: list[tuple[int, str]] = []
        self.paid_late = 0

    @initialize(budget=BUDGETS)
    def begin(self, budget):
        self.budget = budget
        self.store.project(budget_cents=budget, overlap=2, ai_overlap=1, cents={"pairwise": PRICE})
        self.people = [self.store.person(skills=["law"] if place == 0 else []) for place in range(3)]
        self.people.append(self.store.person(role="judge"))

    @rule(
        number=st.integers(1, 3), priority=st.sampled_from([0, 0, 1]), skill=st.sampled_from(["", "", "law"])
    )
    def publish(self, number, priority, skill):
        self.store.publish(number, priority=priority, skill=skill)

    @rule(minutes=st.sampled_from([0, 0.5, 4, 16]))
    def wait(self, minutes):
        self.store.wait(minutes=minutes)

    @rule(who=WHO)
    def claim(self, who):
        held_before = self._holds(who)
        expected = held_before or self._next(who)
        held = self.store.claim(self.people[who])
        assert (None if held is None else held.task_id) == expected
        if held is not None:
            self.tokens.append((who, held.token))

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), word=WORDS)
    def submit(self, data, word):
        who, token = data.draw(st.sampled_from(self.tokens))
        was_over = not self.store.rows(lease, lease.c.token == token, lease.c.state == "open")
        try:
            stored = self.store.submit(self.people[who], token, self._value(who, word))
        except Conflict:
            return
        if was_over:
            self.paid_late += self.store.judgement(stored.id).cents

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def skip(self, data):
        who, token = data.draw(st.sampled_from(self.tokens))
        try:
            self.store.skip(self.people[who], token)
        except Conflict:
            return

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def keep(self, data):
        who, token = data.draw(st.sampled_from(self.tokens))
        is_there = self.store.rows(lease, lease.c.token == token)
        if is_there:
            try:
                self.store.heartbeat(self.people[who], token)
            except Conflict:
                assert is_there[0].state == "expired" or is_there[0].expires_at <= self.store.now

    @rule(data=st.data(), word=WORDS)
    def revise(self, data, word):
        row = self._some_judgement(data)
        if row is not None:
            who = self._index(row.annotator_id)
            try:
                self.store.revise(
                    self.people[who], row.id, self._value(who, word), key=f"key-{row.id}-{word}"
                )
            except (Conflict, Frozen):
                return

    @rule(data=st.data())
    def withdraw(self, data):
        row = self._some_judgement(data)
        if row is not None:
            try:
                self.store.withdraw(self.people[self._index(row.annotator_id)], row.id)
            except (Conflict, Frozen):
                return

    @rule()
    def freeze(self):
        self.store.freeze()
        self.store.next_round(len(self.store.rows(round_)))
        self.store.change(
            sa.update(round_).where(round_.c.id == self.store.round_id).values(budget_cents=self.budget)
        )
        self.paid_late = 0

    @invariant()
    def all_is_right(self):
        check(self.store)
        if self.store.round_id is None or self.budget is None:
            return
        row = self.store.round()
        assert row.spent_cents + row.reserved_cents <= self.budget + self.paid_late

    def teardown(self):
        self.opened.__exit__(None, None, None)
        self.folder.cleanup()

    # --- the same by looking at everything ---

    def _value(self, who, word):
        return {"p_first": word / 10} if who == 3 else {"strength": word}

    def _index(self, annotator_id):
        return next(place for place, one in enumerate(self.people) if one.id == annotator_id)

    def _some_judgement(self, data):
        rows = self.store.rows(judgement)
        return data.draw(st.sampled_from(rows)) if rows else None

    def _holds(self, who):
        held = self.store.rows(
            lease,
            lease.c.annotator_id == self.people[who].id,
            lease.c.state == "open",
            lease.c.expires_at > self.store.now,
        )
        return held[0].task_id if held else None

    def _next(self, who):
        """The task that comes next by priority and publication, found by walking through all."""
        person = self.people[who]
        rounds = {row.id: SimpleNamespace(**row._mapping) for row in self.store.rows(round_)}
        tasks = {row.id: SimpleNamespace(**row._mapping) for row in self.store.rows(task)}
        for row in self.store.rows(lease, lease.c.state == "open", lease.c.expires_at <= self.store.now):
            if row.kind == "human":
                tasks[row.task_id].leased -= 1
            else:
                tasks[row.task_id].ai_leased -= 1
            rounds[tasks[row.task_id].round_id].reserved_cents -= row.cents
        judged = {row.task_id for row in self.store.rows(judgement, judgement.c.annotator_id == person.id)}
        for row in sorted(tasks.values(), key=lambda one: (-one.priority, one.ordinal)):
            about, cost = rounds[row.round_id], PRICE if person.kind == "human" else 0
            used = about.spent_cents + about.reserved_cents
            has_room = (
                row.overlap > row.valid + row.leased
                if person.kind == "human"
                else row.ai_overlap > row.ai_valid + row.ai_leased
            )
            can_pay = not cost or about.budget_cents is None or used + cost <= about.budget_cents
            if (
                row.state == "open"
                and row.id not in judged
                and row.skill in ("", *person.skills)
                and has_room
                and can_pay
            ):
                return row.id
        return None


@pytest.mark.timeout(900)
def test_all_is_right_after_every_step(migrated_file):
    Work.empty = migrated_file
    run_state_machine_as_test(
        Work,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
