"""Who is let in: qualification tasks, what people are told about their answers, and appeals against it."""

import re

import pytest
import sqlalchemy as sa
from tests.web.overseeing import PROJECT, Office, Visit, office, pair

from prefloop.labels import queue
from prefloop.labels.browsing import Filter
from prefloop.labels.errors import Forbidden
from prefloop.labels.gold import gold_tasks
from prefloop.labels.queue import Submission
from prefloop.labels.schema import flag, member, task
from prefloop.web.quality import quality_of

QUALIFYING = """
kind: pairwise
gold_share: 0
repeat_share: 0
dwell: {least_s: 0, per_character_ms: 0, most_s: 0}
qualification: {tasks: 4, pass_mark: 0.75}
"""


def answer_next(desk: Office, name: str, choice: str) -> str | None:
    """The task that somebody gets and answers; None when nothing is left."""
    person, now = desk.person(name), desk.database.now()
    held = desk.database.write(lambda c: queue.claim(c, now, PROJECT, person))
    if held is None:
        return None
    strength = 2 if (choice == "a") == (held.presented[0] == 0) else 7
    submission = Submission(value={"strength": strength})
    desk.database.write(lambda c: queue.submit(c, now, held.token, person, submission))
    return held.task_id


@pytest.fixture
def school(any_place):
    with office(any_place, QUALIFYING) as made:
        made.publish(pair(9))
        made.publish(
            *[
                pair(number, strategy="qualification", expected={"choice": "a"}, why="It says **more**.")
                for number in range(1, 6)
            ],
            round_id=None,
        )
        yield made


def standing(desk: Office, name: str) -> str:
    wanted = sa.select(member.c.qualification).where(member.c.annotator_id == desk.people[name].id)
    return desk.rows(wanted)[0].qualification


def test_three_of_four_right_pass_and_then_comes_real_work(school: Office):
    given = [answer_next(school, "New", choice) for choice in "aaba"]
    assert given == ["t1", "t2", "t3", "t4"]
    assert standing(school, "New") == "passed"
    assert answer_next(school, "New", "a") == "t9"


def test_two_of_four_right_fail_until_a_lead_lets_them_try_again(school: Office):
    for choice in "abab":
        answer_next(school, "New", choice)
    assert standing(school, "New") == "failed"
    with pytest.raises(Forbidden):
        answer_next(school, "New", "a")
    visit = school.visit("Lea")
    assert "2 of 4 right" in visit.get(f"/lead/{PROJECT}/people").text
    person = school.people["New"].id
    assert visit.post(f"/lead/{PROJECT}/people/{person}", state="none").is_redirect
    assert standing(school, "New") == "none"
    assert answer_next(school, "New", "a") == "t5"  # one that they have not seen
    assert answer_next(school, "New", "a") is None
    assert visit.post(f"/lead/{PROJECT}/people/{person}", state="passed").is_redirect
    assert answer_next(school, "New", "a") == "t9"
    assert visit.post(f"/lead/{PROJECT}/people/nobody", state="none").status_code == 404


def test_a_changed_answer_does_not_change_the_qualification(school: Office):
    for choice in "abab":
        answer_next(school, "New", choice)
    person, now = school.people["New"], school.database.now()
    wrong = Submission(value={"strength": 1})
    school.database.write(lambda c: queue.revise(c, now, 2, person, wrong, "again"))
    assert standing(school, "New") == "failed"


def test_after_each_answer_people_are_told_what_the_reference_says(school: Office):
    visit = school.visit("New", "annotator")
    answer_next(school, "New", "b")
    csrf = re.search(r'name="csrf" content="([^"]*)"', visit.get("/account").text)
    headers = {"X-CSRF-Token": csrf[1] if csrf else "", "Accept": "text/html"}
    told = visit.client.post(f"/judge/{PROJECT}/next", headers=headers).text
    assert "The reference says otherwise" in told and "<strong>more</strong>" in told
    assert "1 of 4 answered, 0 right" in told
    number = re.search(r'data-judgement="(\d+)"', told)
    assert number is not None
    seen = visit.client.post(
        f"/judge/{PROJECT}/feedback", json={"judgement": int(number[1])}, headers=headers
    )
    assert seen.status_code == 204
    after = visit.client.post(f"/judge/{PROJECT}/next", headers=headers).text
    assert "reference" not in after and 'id="task"' in after


# --- appeals ---------------------------------------------------------------------------------------------------------


def told(visit: Visit) -> str:
    """What somebody is shown when they ask for the next task."""
    csrf = re.search(r'name="csrf" content="([^"]*)"', visit.get("/account").text)
    headers = {"X-CSRF-Token": csrf[1] if csrf else "", "Accept": "text/html"}
    return visit.client.post(f"/judge/{PROJECT}/next", headers=headers).text


def appeal(visit: Visit, answer: str, reason: str):
    return visit.post(f"/judge/{PROJECT}/appeal", judgement=answer, reason=reason)


def decide(desk: Office, number: int, resolution: str) -> int:
    path = f"/lead/{PROJECT}/appeals/{number}"
    return desk.visit("Lea").post(path, resolution=resolution).status_code


def figures(desk: Office, name: str):
    """Right answers to gold tasks, of how many."""
    found = desk.database.read(lambda c: quality_of(c, desk.database.now(), Filter(PROJECT)))
    (one,) = [one.gold for one in found.people if one.name == name]
    return (one.count, one.of)


def test_an_appeal_that_is_upheld_counts_as_right_for_that_person_and_lets_them_in(school: Office):
    """Two of four are right, three are needed; somebody else's wrong answer to the same task stays wrong."""
    for name in ("Old", "New"):
        for choice in "abab":
            answer_next(school, name, choice)
    assert standing(school, "New") == "failed"
    visit = school.visit("New", "annotator")
    page = told(visit)
    (answer,) = re.findall(r'name="judgement" value="(\d+)"', page)
    assert "I think the reference is wrong" in page
    assert (
        appeal(visit, answer, " B answers the <b>question</b>. ").headers["location"] == f"/judge/{PROJECT}"
    )
    page = told(visit)
    assert "Your appeal is with the lead" in page and 'name="reason"' not in page

    (waiting,) = school.rows(sa.select(flag))
    assert (waiting.task_id, waiting.reason, waiting.comment) == (
        "t4",
        "appeal",
        "B answers the <b>question</b>.",
    )
    desk = school.visit("Lea")
    page = desk.get(f"/lead/{PROJECT}/gold").text
    assert "B answers the &lt;b&gt;question&lt;/b&gt;." in page and ">New<" in page
    assert "B answers" not in desk.get(f"/lead/{PROJECT}/flags").text
    assert figures(school, "New") == (2, 4)

    assert decide(school, waiting.id, "upheld") == 303
    assert standing(school, "New") == "passed" and standing(school, "Old") == "failed"
    assert figures(school, "New") == (2, 3) and figures(school, "Old") == (2, 4)
    wrong = {one.id: one.wrong for one in school.database.read(lambda c: gold_tasks(c, PROJECT))}
    assert wrong == {"t1": 0, "t2": 2, "t3": 0, "t4": 1, "t5": 0}
    assert {one.state for one in school.rows(sa.select(task))} == {"open"}
    assert "The lead agrees with you" in told(visit)
    assert "B answers" not in desk.get(f"/lead/{PROJECT}/gold").text
    assert decide(school, waiting.id, "dismissed") == 409


def test_an_appeal_that_is_dismissed_changes_nothing_and_comes_once(school: Office):
    for choice in "abab":
        answer_next(school, "New", choice)
    visit = school.visit("New", "annotator")
    (answer,) = re.findall(r'name="judgement" value="(\d+)"', told(visit))
    assert appeal(visit, answer, "I like B").is_redirect
    assert decide(school, school.rows(sa.select(flag))[0].id, "dismissed") == 303
    assert standing(school, "New") == "failed" and figures(school, "New") == (2, 4)
    assert "stays with the reference" in told(visit)
    assert appeal(visit, answer, "But I like B").status_code == 409


def test_one_appeal_of_two_that_are_needed_does_not_let_in(school: Office):
    """One of four is right, and three are needed."""
    for choice in "abbb":
        answer_next(school, "New", choice)
    visit = school.visit("New", "annotator")
    (answer,) = re.findall(r'name="judgement" value="(\d+)"', told(visit))
    for judgement, expected in ((int(answer), "failed"), (int(answer) - 1, "passed")):
        appeal(visit, str(judgement), "so it is")
        number = max(one.id for one in school.rows(sa.select(flag)))
        assert decide(school, number, "upheld") == 303
        assert standing(school, "New") == expected


def test_only_own_wrong_answers_can_be_appealed_against_and_only_with_a_reason(school: Office):
    for choice in "ab":
        answer_next(school, "New", choice)
    answer_next(school, "Old", "b")
    visit = school.visit("New", "annotator")
    (answer,) = re.findall(r'name="judgement" value="(\d+)"', told(visit))
    right, others = str(int(answer) - 1), str(int(answer) + 1)
    codes = [appeal(visit, *said).status_code for said in ((right, "x"), (others, "x"), (answer, " "))]
    assert codes == [409, 404, 422]
    assert school.rows(sa.select(flag)) == []
    other = school.visit("Other", "lead", member=False)
    appeal(visit, answer, "so it is")
    path = f"/lead/{PROJECT}/appeals/1"
    assert other.post(path, resolution="upheld").status_code == 404
    assert visit.post(path, resolution="upheld").status_code == 403
    assert school.visit("Lea").post(path, resolution="perhaps").status_code == 422
    assert school.visit("Lea").post(f"/lead/{PROJECT}/flags/1", resolution="upheld").status_code == 404


def test_an_open_appeal_keeps_no_judgement_out_of_an_export(school: Office):
    """It says nothing about the texts, unlike a flag."""
    school.publish(pair(20))
    school.says("Xu", "t20", "a", 1)
    row = {"task_id": "t20", "annotator_id": school.person("Xu").id, "reason": "appeal", "comment": "x"}
    for later in (0, 1):
        school.database.write(
            lambda c, later=later: c.execute(sa.insert(flag).values(row | {"created_at": later}))
        )
    counts = school.visit("Lea").post(f"/lead/{PROJECT}/export/count", format="trl-preference").text
    assert "1 records from 1 of 1 judgements" in counts
