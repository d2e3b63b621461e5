"""Many at once on PostgreSQL: nothing is given out twice, nobody waits for ever, and no error reaches anybody."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from labels.small_store import PROJECT, SmallStore, check
from prefloop.labels import oversight
from prefloop.labels.errors import Conflict, Frozen, LabelError
from prefloop.labels.schema import judgement, lease, quality, round_, task

pytestmark = pytest.mark.postgresql
AT_ONCE = 8


def at_once(works):
    """Runs all at the same time; raises what any of them raises."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [one.result() for one in [pool.submit(work) for work in works]]


def test_two_tabs_of_one_person_get_the_same_task(postgres_store):
    store = postgres_store
    store.project(overlap=2)
    store.publish(20)
    a = store.person()
    for _ in range(5):
        held = at_once([lambda: store.claim(a)] * AT_ONCE)
        assert len(set(held)) == 1
        assert store.served(a) == len(store.rows(judgement)) + 1
        stored = at_once([lambda token=held[0].token: store.submit(a, token)] * AT_ONCE)
        assert len(set(stored)) == 1
    check(store)


def test_the_last_tasks_go_to_as_many_as_they_want(postgres_store):
    store = postgres_store
    store.project(overlap=2, budget_cents=5 * 40, cents={"pairwise": 5})
    store.publish(30)  # 60 are wanted, 40 can be paid
    people = [store.person() for _ in range(AT_ONCE)]

    def work(person):
        answered = 0
        while (held := store.claim(person)) is not None:
            store.submit(person, held.token)
            answered += 1
        return answered

    assert sum(at_once([lambda one=one: work(one) for one in people])) == 40
    row = store.round()
    assert (row.spent_cents, row.reserved_cents) == (200, 0)
    check(store)


def test_nobody_waits_for_ever_whatever_all_do(postgres_store):
    store = postgres_store
    store.project(overlap=2, budget_cents=5 * 300, cents={"pairwise": 5}, lease_minutes=0.01)
    store.publish(40, priority=1)
    store.publish(40)
    people = [store.person() for _ in range(AT_ONCE)]

    def work(person, seed):
        rng = random.Random(seed)
        said: list[int] = []
        for _ in range(40):
            store.clock[0] += 0.05  # leases run out under way
            try:
                held = store.claim(person)
                if held is not None and rng.random() < 0.2:
                    store.skip(person, held.token)
                elif held is not None and rng.random() < 0.8:
                    said.append(store.submit(person, held.token).id)
                if said and rng.random() < 0.2:
                    store.withdraw(person, said.pop())
                if said and rng.random() < 0.2:
                    said.append(store.revise(person, said.pop(), {"strength": 5}).id)
            except Conflict:
                continue
        return len(said)

    assert sum(at_once([lambda one=one, n=n: work(one, n) for n, one in enumerate(people)])) > 0
    check(store)


def test_a_freeze_in_mid_work_counts_all_up_to_its_watermark_and_nothing_after(postgres_store):
    store = postgres_store
    store.project(overlap=AT_ONCE)
    store.publish(200)
    people = [store.person() for _ in range(AT_ONCE)]

    def freeze(connection):
        connection.execute(sa.update(task).values(state="closed"))
        connection.execute(sa.select(round_.c.id).with_for_update())
        last = connection.execute(sa.select(sa.func.max(judgement.c.id))).scalar()
        connection.execute(sa.update(round_).values(state="frozen", watermark=last))

    def work(person):
        try:
            while (held := store.claim(person)) is not None:
                first = store.submit(person, held.token)
                store.revise(person, first.id, {"strength": 7})
        except Frozen:
            return

    def wait_and_freeze():
        while len(store.rows(judgement)) < 3 * AT_ONCE:
            pass
        store.database.write(freeze)

    at_once([*(lambda one=one: work(one) for one in people), wait_and_freeze])
    watermark = store.round().watermark
    for row in store.rows(judgement):
        assert (row.state == "late") == (row.id > watermark)
    check(store)


def test_a_refusal_is_a_refusal_on_postgresql_too(postgres_store):
    store: SmallStore = postgres_store
    store.project()
    store.publish()
    a = store.person()
    token = store.held(a).token
    with pytest.raises(LabelError):
        store.submit(a, token, {"strength": 99})
    assert len(store.rows(lease)) == 1


def test_workers_that_keep_figures_at_once_take_turns(postgres_store):
    store = postgres_store
    store.project()
    people = [store.person().id for _ in range(5)]
    figures = {id: {"judgements": 3} for id in people}

    def keep() -> None:
        store.database.write(lambda c: oversight.keep_quality(c, store.now, PROJECT, figures))

    for _ in range(5):
        at_once([keep] * AT_ONCE)
    assert {row.annotator_id for row in store.rows(quality)} == set(people)
    assert len(store.rows(quality)) == 5
