"""Gold tasks on leads' pages: made of what people agreed on, listed with how often they are failed, retired."""

import re

import pytest
import sqlalchemy as sa
from tests.web.overseeing import PROJECT, Office, office, pair
from tests.web.payloads import PAYLOADS

from prefloop.labels import queue
from prefloop.labels.answers import Submission
from prefloop.labels.browsing import Filter
from prefloop.labels.gold import candidate
from prefloop.labels.schema import gold, task
from prefloop.labels.streaming import judgement_rows
from prefloop.web.quality import quality_of

CONFIG = """
kind: pairwise
overlap: 2
gold_share: 0.5
repeat_share: 0
qualification: {tasks: 0}
dwell: {least_s: 0, per_character_ms: 0, most_s: 0}
"""
BETTER_A = '{"choice": "a"}'


@pytest.fixture
def desk(tmp_path):
    with office(tmp_path, CONFIG) as made:
        yield made


def judged(desk: Office, number: int, *choices: str, **about) -> str:
    """A task with these judgements by Xu, Yi and so on; it wants no more."""
    desk.publish(pair(number, **about))
    for name, choice in zip(("Xu", "Yi", "Zoe"), choices, strict=False):
        desk.says(name, f"t{number}", choice, comment=f"{name} says so")
    desk.database.write(lambda c: c.execute(sa.update(task).values(valid=task.c.overlap)))
    return f"t{number}"


def make(desk: Office, of: str, **fields: str):
    said = {"answer": BETTER_A, "use": "gold", "why": "It says more."} | fields
    return desk.visit("Lea").post(f"/lead/{PROJECT}/tasks/{of}/gold", **said)


def gold_rows(desk: Office):
    return desk.rows(sa.select(task, gold).join(gold, gold.c.task_id == task.c.id).order_by(task.c.ordinal))


def answers(desk: Office, name: str) -> list[str]:
    """The tasks that somebody gets until nothing is left; they find the first text better."""
    person, now, found = desk.person(name), desk.database.now(), []
    while (held := desk.database.write(lambda c: queue.claim(c, now, PROJECT, person))) is not None:
        found.append(held.task_id)
        said = Submission(value={"strength": 2 if held.presented[0] == 0 else 7})
        desk.database.write(lambda c, held=held, said=said: queue.submit(c, now, held.token, person, said))
    return found


def test_a_task_of_one_mind_becomes_a_gold_task_and_stays_what_it_is(desk: Office):
    of = judged(desk, 1, "a", "a", tags=("x",))
    everything = Filter(PROJECT)
    before = desk.database.read(lambda c: list(judgement_rows(c, everything)))
    page = desk.visit("Lea").get(f"/lead/{PROJECT}/tasks/{of}").text
    assert "said by 2 of 2" in page and "checked> <span>A is better" in page
    assert make(desk, of).is_redirect
    (made,) = gold_rows(desk)
    assert (made.repeat_of, made.expected, made.why) == (of, {"choice": "a"}, "It says more.")
    assert (made.strategy, made.round_id, made.is_gold) == ("gold", None, True)
    original = desk.rows(sa.select(task).where(task.c.id == of))[0]
    assert made.completion_ids == original.completion_ids and not original.is_gold
    assert desk.database.read(lambda c: list(judgement_rows(c, everything))) == before
    page = desk.visit("Lea").get(f"/lead/{PROJECT}/tasks/{of}").text
    assert made.id in page and 'name="answer"' not in page


def test_who_judged_a_task_does_not_get_the_gold_task_made_of_it(desk: Office):
    of = judged(desk, 1, "a", "a")
    make(desk, of)
    (made,) = gold_rows(desk)
    desk.publish(*[pair(number, overlap=9) for number in range(10, 40)])
    assert made.id not in answers(desk, "Xu")
    assert made.id in answers(desk, "New")  # half of their tasks may be gold: missed once in a billion


def test_people_who_are_to_judge_a_task_do_not_read_its_solution_first(desk: Office):
    of = judged(desk, 1, "a", "a")
    desk.database.write(lambda c: c.execute(sa.update(task).values(valid=1)))
    assert make(desk, of).status_code == 409
    assert "People are still to judge it" in desk.visit("Lea").get(f"/lead/{PROJECT}/tasks/{of}").text


def test_what_a_reviewer_said_comes_first_with_their_reason(desk: Office):
    of = judged(desk, 1, "a", "b", reward_p=0.2)
    visit = desk.visit("Rev", "reviewer")
    page = visit.get(f"/lead/{PROJECT}/review?against=human").text
    letter = "1" if page.index("a longer answer") < page.index("short") else "8"
    visit.post(f"/lead/{PROJECT}/review/{of}", strength=letter, reason="B is empty", against="human")
    found = desk.database.read(lambda c: candidate(c, PROJECT, of))
    assert found is not None and found.agreed
    assert [(one.expected, one.people, one.reviewed) for one in found.proposals] == [
        ({"choice": "a"}, 1, True),
        ({"choice": "b"}, 1, False),
    ]
    assert "B is empty</textarea>" in desk.visit("Lea").get(f"/lead/{PROJECT}/tasks/{of}").text


def test_split_people_propose_two_answers_and_none_is_chosen_for_the_lead(desk: Office):
    of = judged(desk, 1, "b", "a", "b")
    found = desk.database.read(lambda c: candidate(c, PROJECT, of))
    assert found is not None and not found.agreed
    assert [(one.expected["choice"], one.people) for one in found.proposals] == [("b", 2), ("a", 1)]
    page = desk.visit("Lea").get(f"/lead/{PROJECT}/tasks/{of}").text
    assert (
        page.count('name="answer"') == 2
        and 'name="answer" value="{&#34;choice&#34;: &#34;b&#34;}" required>' in page
    )


def test_an_answer_that_nobody_gave_and_a_second_gold_task_are_refused(desk: Office):
    of = judged(desk, 1, "a", "a")
    assert make(desk, of, answer='{"choice": "b"}').status_code == 422
    assert make(desk, of, use="everything").status_code == 422
    assert make(desk, of, tolerance="9").status_code == 422
    assert make(desk, of).is_redirect
    assert make(desk, of).status_code == 409
    (made,) = gold_rows(desk)
    assert make(desk, made.id).status_code == 422
    desk.visit("Lea").post(f"/lead/{PROJECT}/gold/{made.id}", state="retired")
    assert make(desk, of).is_redirect


def test_the_list_tells_how_often_each_is_failed_and_the_worst_comes_first(desk: Office):
    for number in (1, 2, 3):
        desk.publish(pair(number, expected={"choice": "a"}, asked=f"Known {number}"), round_id=None)
    for name, first, second in (("Xu", "a", "b"), ("Yi", "a", "b"), ("Zoe", "b", "b")):
        desk.says(name, "t1", first)
        desk.says(name, "t2", second)
    page = desk.visit("Lea").get(f"/lead/{PROJECT}/gold").text
    assert "1 of 3 wrong" in page and "3 of 3 wrong" in page and "nobody was asked yet" in page
    assert page.index("Known 2") < page.index("Known 1") < page.index("Known 3")


def test_a_retired_task_is_given_to_nobody_and_its_answers_count_for_nobody(desk: Office):
    desk.publish(pair(1, expected={"choice": "a"}), pair(2, expected={"choice": "a"}), round_id=None)
    for id, choice in (("t1", "b"), ("t2", "a")):
        desk.says("Xu", id, choice)

    def gold_share():
        found = desk.database.read(lambda c: quality_of(c, desk.database.now(), Filter(PROJECT)))
        share = next(one.gold for one in found.people if one.name == "Xu")
        return None if share is None else (share.count, share.of)

    assert gold_share() == (1, 2)
    visit = desk.visit("Lea")
    assert visit.post(f"/lead/{PROJECT}/gold/t1", state="retired").is_redirect
    assert gold_share() == (1, 1)
    desk.publish(*[pair(number, overlap=9) for number in range(10, 40)])
    got = answers(desk, "New")
    assert "t1" not in got and "t2" in got
    assert "Use again" in visit.get(f"/lead/{PROJECT}/gold").text
    assert visit.post(f"/lead/{PROJECT}/gold/t1", state="open").is_redirect
    assert gold_share() == (1, 2)
    assert visit.post(f"/lead/{PROJECT}/gold/t10", state="retired").status_code == 404
    assert visit.post(f"/lead/{PROJECT}/gold/t1", state="closed").status_code == 422


def test_a_newcomer_is_asked_a_qualification_task_made_of_a_judged_one(tmp_path):
    with office(tmp_path, CONFIG.replace("tasks: 0", "tasks: 1")) as desk:
        of = judged(desk, 1, "a", "a")
        visit = desk.visit("Lea")
        assert (
            "There are 0 qualification tasks, and 1 are asked for"
            in visit.get(f"/lead/{PROJECT}/people").text
        )
        make(desk, of, use="qualification")
        assert "qualification tasks, and" not in visit.get(f"/lead/{PROJECT}/people").text
        (made,) = gold_rows(desk)
        assert answers(desk, "New")[0] == made.id
        assert "0 of 1 wrong" in visit.get(f"/lead/{PROJECT}/tasks/{made.id}").text


def test_hostile_reasons_are_text(desk: Office):
    for number, payload in enumerate(list(PAYLOADS.values())[:20], start=1):
        of = judged(desk, number, "a", "a", asked=f"{number} {payload}")
        assert make(desk, of, why=payload).is_redirect
    visit = desk.visit("Lea")
    pages = [visit.get(f"/lead/{PROJECT}/gold").text]
    pages += [visit.get(f"/lead/{PROJECT}/tasks/{one.id}").text for one in gold_rows(desk)]
    for page in pages:
        scripts = re.findall(r"<script\b[^>]*>", page, flags=re.IGNORECASE)
        assert all("/static/" in one for one in scripts), scripts
        assert not re.search(r"<[^>]+\son\w+\s*=", re.sub(r"<[^>]*=\"[^\"]*\"[^>]*>", "", page))
