"""The load tests of the benchmarks at a small size: what they look for is right at any speed."""

from pathlib import Path

import pytest
from benchmarks.label import kill, load, report
from benchmarks.label.annotators import Answered


@pytest.mark.slow
def test_pressed_by_all_at_once_every_task_gets_its_judgements_once(tmp_path):
    told, after, *_ = load.pressed(str(tmp_path / "labels.sqlite"), 40, workers=1, annotators=20)
    assert (after.valid, after.problems) == (40 * load.OVERLAP, 0)
    assert {one.status for one in told} == {200, 204}


@pytest.mark.slow
def test_acknowledged_judgements_outlive_a_kill(tmp_path):
    found = kill.survive(
        Path(tmp_path) / "labels.sqlite", kills=2, tasks=60, annotators=8, before_kill=(5, 40)
    )
    assert found.acknowledged > 0
    assert (found.lost, found.broken_files, found.problems, found.unfinished) == (0, 0, 0, 0)


@pytest.mark.slow
@pytest.mark.postgresql
def test_several_workers_on_postgresql_give_nothing_out_twice(postgres_url):
    told, after, _, cpu_s = load.pressed(postgres_url, 40, workers=2, annotators=20)
    assert len(cpu_s) == 2
    assert (after.valid, after.problems) == (40 * load.OVERLAP, 0)
    assert {one.status for one in told} == {200, 204}


def test_percentiles_are_values_that_were_measured():
    values = [float(one) for one in range(1, 101)]
    assert [report.percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50.0, 95.0, 99.0, 100.0]
    assert report.percentile([3.0], 0.95) == 3.0


def test_what_was_acknowledged_and_is_not_there_is_lost(store):
    from benchmarks.label.stores import outcome

    store.project()
    store.publish()
    a = store.person()
    held = store.held(a)
    stored = store.submit(a, held.token)
    there = Answered(0, "submit", 200, 1.0, 0.0, held.token, stored.id, "valid")
    gone = Answered(0, "submit", 200, 1.0, 0.0, "never", 99, "valid")
    assert outcome(store.database, [there]).problems == 0
    assert outcome(store.database, [there, gone]).lost == 1
