"""Tests of the figures about labels, against hand calculation."""

import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from tests.web.overseeing import START_MS, Office, office, pair

from prefloop.labels import rounds
from prefloop.labels.browsing import Filter
from prefloop.labels.errors import LabelError
from prefloop.labels.oversight import projects_to_keep
from prefloop.labels.projects import ProjectConfig
from prefloop.labels.publish import add_project
from prefloop.labels.qualification import is_right
from prefloop.labels.schema import quality
from prefloop.web.calibrating import reward_report
from prefloop.web.keeping import LOOK_EVERY_S, keep_what_is_due, pause_s
from prefloop.web.kept import Kept
from prefloop.web.quality import Quality, kept_figures, quality_of


@pytest.fixture
def desk(any_place):
    with office(any_place) as made:
        yield made


def figures(desk: Office, **wanted) -> Quality:
    return desk.database.read(lambda c: quality_of(c, desk.database.now(), Filter("pairs", **wanted)))


def four_tasks(desk: Office) -> None:
    """Xu and Yi agree on three tasks of four: aa, bb, ab, aa."""
    desk.publish(*[pair(number) for number in range(1, 5)])
    for number, (first, second) in enumerate(("aa", "bb", "ab", "aa"), start=1):
        desk.says("Xu", f"t{number}", first, active_ms=4000)
        desk.says("Yi", f"t{number}", second, active_ms=1000)


def test_agreement_is_that_of_a_calculation_by_hand(desk):
    four_tasks(desk)
    (question,) = figures(desk).questions
    # five a and three b. alpha: 1 - (2 / 8) / (2 * 5 * 3 / (8 * 7)); kappa: chance (25 + 9) / 64; AC1: chance 30 / 64
    assert (question.kind, question.name) == ("pairwise", "choice")
    assert question.raw and question.raw.value == 0.75
    assert question.alpha and question.alpha.value == pytest.approx(0.533333, abs=1e-6)
    assert question.kappa and question.kappa.value == pytest.approx(0.466667, abs=1e-6)
    assert question.ac1 and question.ac1.value == pytest.approx(0.529412, abs=1e-6)
    assert (question.basis.units, question.basis.ratings) == (4, 8)


def test_agreement_of_unanimous_people_is_undefined(desk):
    desk.publish(pair(1), pair(2))
    for name in ("Xu", "Yi"):
        desk.says(name, "t1", "a")
        desk.says(name, "t2", "a")
    (question,) = figures(desk).questions
    assert question.alpha and question.alpha.value is None and question.alpha.reason


def test_each_person_has_their_own_figures(desk):
    four_tasks(desk)
    xu, yi = sorted(figures(desk).people, key=lambda one: one.name)
    # Wilson for 3 of 4 at 95 %: 0.3006 to 0.9544
    assert xu.consensus and (xu.consensus.count, xu.consensus.of) == (3, 4)
    assert (xu.consensus.low, xu.consensus.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    # the first answer is longer and was on the left: Xu took it three times of four, Yi twice
    assert xu.side and (xu.side.n, xu.side.share_left) == (4, 0.75)
    assert yi.length and (yi.length.n, yi.length.longer_won) == (4, 0.5)
    # nothing is read in less than three seconds
    assert xu.speed and (xu.speed.median_ms, xu.speed.too_fast) == (4000, 0.0)
    assert yi.speed and (yi.speed.median_ms, yi.speed.too_fast) == (1000, 1.0)


def test_the_last_word_counts_and_surplus_does_not(desk):
    desk.publish(pair(1))
    before = desk.says("Xu", "t1", "a")
    desk.says("Xu", "t1", "b", supersedes=before, revision=1)
    desk.says("Yi", "t1", "b")
    desk.says("Zoe", "t1", "a", state="surplus")
    found = figures(desk)
    assert found.judgements == 2
    assert [one.name for one in found.people if one.consensus and one.consensus.value == 1.0] == ["Xu", "Yi"]


def test_gold_and_repeats_are_shares_of_their_own(desk):
    desk.publish(
        pair(1, expected={"choice": "a"}),
        pair(2, expected={"choice": "b"}),
        pair(3),
    )
    desk.says("Xu", "t1", "a")
    desk.says("Xu", "t2", "a")
    desk.says("Xu", "t3", "b")
    desk.publish(pair(4, strategy="repeat"))
    desk.database.write(lambda c: c.exec_driver_sql("UPDATE task SET repeat_of = 't3' WHERE id = 't4'"))
    desk.says("Xu", "t4", "b")
    (xu,) = figures(desk).people
    assert xu.gold and (xu.gold.count, xu.gold.of) == (1, 2)
    assert xu.repeats and (xu.repeats.count, xu.repeats.of) == (1, 1)
    assert figures(desk).questions[0].basis.ratings == 0  # neither is a second opinion on a task


def test_filters_narrow_to_a_round_and_to_a_person(desk):
    four_tasks(desk)
    assert figures(desk, rounds=(2,)).judgements == 0
    assert [one.name for one in figures(desk, annotator_id=desk.person("Yi").id).people] == ["Yi"]


def test_strengths_levels_and_orders_are_compared_on_their_scales(desk):
    desk.publish(pair(1), pair(2))
    for name, strengths in (("Xu", (1, 8)), ("Yi", (1, 8))):
        for number, strength in enumerate(strengths, start=1):
            desk.says(name, f"t{number}", "a" if strength == 1 else "b", strength)
    desk.publish(pair(3, kind="rank"), pair(4, kind="rules", texts=("Hi.",), payload={"rules": ["polite"]}))
    for name in ("Xu", "Yi"):
        desk.says(name, "t3", "", value={"choice": None, "groups": [[1], [0]], "unrankable": []})
        desk.says(name, "t4", "", value={"choice": None, "levels": {"polite": "unsure"}})
    by_name = {one.name: one for one in figures(desk).questions}
    strength, levels = by_name["strength"].alpha, by_name["levels"].alpha
    assert strength and strength.value == 1.0
    assert by_name["order"].tau and by_name["order"].tau.value == 1.0
    assert levels and levels.value is None


def test_figures_that_are_kept_hold_what_people_are_shown_of_themselves(desk):
    four_tasks(desk)
    kept = kept_figures(figures(desk))[desk.person("Xu").id]
    assert kept["agreement"] == 0.75
    assert kept["agreement_interval"] == pytest.approx([0.3006, 0.9544], abs=1e-4)


# --- versions of the guidelines ---------------------------------------------------------------------------------------


def test_each_version_of_the_guidelines_has_its_own_agreement_and_gold(desk):
    desk.publish(*[pair(number) for number in range(1, 9)])
    desk.publish(*[pair(number, expected={"choice": "a"}) for number in (11, 12)], round_id=None)
    for version, votes in ((1, ("aa", "bb", "ab", "aa")), (2, ("aa", "bb", "bb", "aa"))):
        for number, (first, second) in enumerate(votes, start=4 * version - 3):
            desk.says("Xu", f"t{number}", first, guideline_version=version)
            desk.says("Yi", f"t{number}", second, guideline_version=version)
    desk.says("Xu", "t11", "b", guideline_version=1)
    desk.says("Xu", "t12", "a", guideline_version=2)
    before, after = figures(desk).versions
    assert [(one.number, one.judgements) for one in (before, after)] == [(1, 9), (2, 9)]
    assert before.agreed[0].raw and before.agreed[0].raw.value == 0.75
    assert after.agreed[0].raw and after.agreed[0].raw.value == 1.0
    # alpha of aa, bb, ab, aa by hand, as above; of unanimous people on two answers it is 1
    assert before.agreed[0].figure.value == pytest.approx(0.533333, abs=1e-6)
    assert after.agreed[0].figure.value == 1.0
    assert before.gold and (before.gold.count, before.gold.of) == (0, 1)
    assert after.gold and (after.gold.count, after.gold.of) == (1, 1)
    # Wilson of 0 of 1 reaches up to 0.79, of 1 of 1 down to 0.21: they touch, so nothing is claimed
    assert after.gold_change is None and before.gold_change is None


def test_a_change_is_told_where_intervals_do_not_touch(desk):
    desk.publish(*[pair(number, expected={"choice": "a"}) for number in range(1, 41)], round_id=None)
    # Wilson: 18 of 20 from 0.699 to 0.972, 8 of 20 from 0.219 to 0.613
    for number in range(1, 21):
        desk.says("Xu", f"t{number}", "a" if number <= 18 else "b", guideline_version=1)
    for number in range(21, 41):
        desk.says("Xu", f"t{number}", "a" if number <= 28 else "b", guideline_version=2)
    before, after = figures(desk).versions
    assert (before.gold_change, after.gold_change) == (None, "lower")
    page = desk.visit("Lea").get("/lead/pairs/quality").text
    assert "By version of the guidelines" in page and "lower</span>" in page


def test_one_version_of_the_guidelines_is_compared_with_nothing(desk):
    four_tasks(desk)
    assert figures(desk).versions == ()


# --- figures that nobody asked for -------------------------------------------------------------------------------------


def kept_rows(desk: Office) -> dict[str, dict]:
    names = {person.id: name for name, person in desk.people.items()}
    return {names[row.annotator_id]: row.figures for row in desk.rows(sa.select(quality))}


def test_figures_are_kept_without_a_visit_and_again_when_an_hour_or_a_freeze_has_passed(tmp_path):
    with office(tmp_path) as desk:
        kept: Kept[Quality] = Kept()
        now = START_MS
        desk.database.now = lambda: now
        keep_what_is_due(desk.database, kept)
        assert kept_rows(desk) == {}
        four_tasks(desk)
        assert keep_what_is_due(desk.database, kept) >= LOOK_EVERY_S
        assert kept_rows(desk)["Xu"]["agreement"] == 0.75
        assert kept_rows(desk)["Xu"]["watermark"] == 8

        desk.publish(pair(5))
        desk.says("Xu", "t5", "a")
        now += 59 * 60 * 1000
        keep_what_is_due(desk.database, kept)
        assert kept_rows(desk)["Xu"]["watermark"] == 8
        now += 60 * 1000
        keep_what_is_due(desk.database, kept)
        assert kept_rows(desk)["Xu"]["watermark"] == 9

        desk.says("Yi", "t5", "a")
        desk.database.write(lambda c: rounds.freeze(c, now + 1, "round-1", actor="lead", reason="enough"))
        keep_what_is_due(desk.database, kept)
        assert kept_rows(desk)["Yi"]["watermark"] == 10


def test_a_project_without_judgements_is_not_due_and_figures_take_a_twentieth_of_the_time(desk):
    four_tasks(desk)
    desk.database.write(lambda c: add_project(c, START_MS, "another", ProjectConfig()))
    assert desk.database.read(lambda c: projects_to_keep(c, START_MS, after_ms=1)) == ["pairs"]
    assert pause_s(4.0, waiting=0) == pause_s(4.0, waiting=3) == 80.0
    assert (pause_s(0.01, waiting=0), pause_s(0.01, waiting=3)) == (LOOK_EVERY_S, 1.0)


# --- the reward model ------------------------------------------------------------------------------------------------


def verdict(number: int, reward_p: float, choice: str, strategy: str = "active") -> SimpleNamespace:
    return SimpleNamespace(
        task_id=f"t{number}", prompt_id=f"p{number}", reward_p=reward_p, choice=choice, strategy=strategy
    )


def test_the_reward_model_is_compared_with_people_as_by_hand():
    report = reward_report(
        [verdict(1, 0.9, "a", "random"), verdict(2, 0.9, "b"), verdict(3, 0.2, "b"), verdict(4, 0.6, "tie")]
    )
    assert report.accuracy and (report.accuracy.value, report.accuracy.n) == (
        pytest.approx(2 / 3, abs=1e-6),
        3,
    )
    assert report.at_random and (report.at_random.value, report.at_random.n) == (1.0, 1)
    # bins: 0.2 -> 0, 0.6 -> 1/2, 0.9 -> 1/2 (twice); (0.2 + 0.1 + 2 * 0.4) / 4 and (0.01 + 0.81 + 0.04 + 0.01) / 4
    assert [(one.stated, one.said, one.n) for one in report.bins] == [
        (0.2, 0.0, 1),
        (0.6, 0.5, 1),
        (0.9, 0.5, 2),
    ]
    assert report.calibration_error == pytest.approx(0.275)
    assert report.brier == pytest.approx(0.2175)


def test_a_reward_model_that_said_nothing_has_no_figures():
    assert reward_report([]).accuracy is None
    assert reward_report([verdict(1, 0.5, "both_bad")]).n == 0


# --- known answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected", "tolerance", "right"),
    [
        ({"choice": "a", "strength": 2}, {"choice": "a"}, 0, True),
        ({"choice": "b", "strength": 7}, {"choice": "a"}, 3, False),
        ({"choice": "a", "strength": 3}, {"choice": "a", "strength": 1}, 2, True),
        ({"choice": "a", "strength": 4}, {"choice": "a", "strength": 1}, 2, False),
        ({"choice": "tie", "strength": None}, {"choice": "a", "strength": 1}, 2, False),
        ({"ratings": {"overall": 5}}, {"ratings": {"overall": 6}}, 1, True),
        ({"ratings": {}}, {"ratings": {"overall": 6}}, 1, False),
        ({}, {"flags": {"violent": False}}, 0, True),
        ({"flags": {"violent": True}}, {"flags": {"violent": False}}, 0, False),
        ({"levels": {"r": "probably_break"}}, {"levels": {"r": "definitely_break"}}, 1, True),
        ({"groups": [[0], [1]]}, {"groups": [[1], [0]]}, 0, False),
        ({"skip": "unclear"}, {"choice": "a"}, 0, False),
    ],
)
def test_an_answer_is_right_up_to_the_tolerance(value, expected, tolerance, right):
    assert is_right(value, expected, tolerance) is right


# --- kept in memory --------------------------------------------------------------------------------------------------


def test_a_result_is_computed_once_for_a_watermark_and_anew_when_asked():
    kept, calls = Kept[int](), []

    def compute() -> int:
        calls.append(1)
        return len(calls)

    assert [kept.get("key", 1, compute, anew=False) for _ in range(3)] == [1, 1, 1]
    assert kept.get("key", 2, compute, anew=False) == 1  # a minute old at most
    assert kept.get("key", 2, compute, anew=True) == 2
    assert kept.get("other", 2, compute, anew=False) == 3


@dataclass
class Slow(Kept[str]):
    """Computes when it is told to."""

    go: threading.Event = field(default_factory=threading.Event)

    def get(self, key, watermark, compute, *, anew) -> str:
        self.go.wait(20)
        return super().get(key, watermark, compute, anew=anew)


def test_what_takes_long_is_computed_beside_and_the_result_of_before_is_shown_meanwhile():
    kept, calls = Slow(fresh_s=0, patience_s=0.01), []

    def compute() -> str:
        calls.append(1)
        return f"result {len(calls)}"

    assert kept.soon("key", 1, compute, anew=False) is None
    assert kept.soon("key", 1, compute, anew=False) is None
    kept.go.set()
    kept.patience_s = 10
    assert kept.soon("key", 1, compute, anew=False) == "result 1"  # all of them waited for the same
    kept.go.clear()
    kept.patience_s = 0.01
    assert kept.soon("key", 1, compute, anew=False) == "result 1"
    time.sleep(0.01)  # it is not of this moment any more
    assert kept.soon("key", 2, compute, anew=False) == "result 1"  # of before
    kept.go.set()
    kept.patience_s = 10
    assert kept.soon("key", 2, compute, anew=False) == "result 2"


def test_a_failure_beside_is_told_to_the_next_visit_and_tried_again_after_that():
    kept = Slow(patience_s=0.01)

    def fails() -> str:
        raise LabelError("the store is away")

    assert kept.soon("key", 1, fails, anew=False) is None
    kept.go.set()
    kept.patience_s = 10
    with pytest.raises(LabelError, match="away"):
        kept.soon("key", 1, fails, anew=False)
    assert kept.soon("key", 1, lambda: "there", anew=False) == "there"


def test_pages_say_that_figures_are_being_computed(desk):
    four_tasks(desk)
    remembered = desk.app.state.remembered
    remembered.quality, remembered.rounds, remembered.standings = [Slow(patience_s=0.01) for _ in range(3)]
    lead = desk.visit("Lea")
    page = lead.get("/lead/pairs/quality?kind=pairwise").text
    assert "being computed" in page
    assert 'hx-get="/lead/pairs/quality?round=&amp;kind=pairwise&amp;annotator="' in page
    page = lead.get("/lead/pairs/rounds/1").text
    assert "being computed" in page and 'hx-get="/lead/pairs/rounds/1"' in page
    page = lead.get("/lead/pairs/rounds").text
    assert "being computed" in page and "every 2s" in page
    for one in (remembered.quality, remembered.rounds, remembered.standings):
        one.go.set()
        one.patience_s = 10
    assert "bootstrap over prompts" in lead.get("/lead/pairs/quality?kind=pairwise").text
    page = lead.get("/lead/pairs/rounds/1").text
    assert "every 15s" in lead.get("/lead/pairs/rounds").text
    assert "It has said nothing about these tasks" in page and "being computed" not in page
