"""People as annotators, through the label store."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import sqlalchemy as sa

from people import always, judge, likes, opened, tasks
from prefloop import selection
from prefloop.annotate.human import Asked, People, Question
from prefloop.config import HumanAnnotator, SelectSection
from prefloop.interfaces import InputError, Waiting
from prefloop.labels import queue, rounds, schema
from prefloop.labels.errors import Frozen
from prefloop.labels.serving import shown_place
from prefloop.records import Comparison, Group, Message, Prompt, Refusal, Score, file_completion

PROJECT = "tales"


def question(index: int, *texts: str, **about) -> Question:
    prompt = Prompt.of((Message(role="user", content=f"question {index}"),))
    answers = tuple(
        file_completion(prompt, text, place) for place, text in enumerate(texts or ("left", "right"))
    )
    return Question(prompt, answers, **about)


def questions(number: int) -> list[Question]:
    return [question(index) for index in range(number)]


@pytest.fixture
def store(any_place) -> str:
    return any_place


def ask(store: str, asked: list[Question], **options):
    """What people said, as rows; Waiting where it is too little."""
    found, rows = People(HumanAnnotator(kind="human", **options), Asked(str(store), PROJECT)).judge(asked)
    return found, list(rows)


def publish(store: str, asked: list[Question], **options) -> None:
    with pytest.raises(Waiting):
        ask(store, asked, **options)


def test_a_round_waits_until_its_quorum_is_judged_and_says_how_to_go_on(store):
    publish(store, questions(3))
    judge(store, PROJECT, likes("left"), most=1)
    with pytest.raises(
        Waiting, match=r"1 of 3 judged in round 1 of tales, 3 wanted; label in a browser with"
    ) as caught:
        ask(store, questions(3))
    assert f"--store {shown_place(store)}" in str(caught.value)
    assert caught.value.look is not None
    assert caught.value.look() == (1, 3)
    judge(store, PROJECT, likes("left"))
    assert caught.value.look() == (3, 3)
    found, rows = ask(store, questions(3))
    assert (found.state, [row.p_a for row in rows]) == ("frozen", [1.0] * 3)


def test_verdicts_name_completions_whichever_side_they_were_shown_on(store):
    asked = questions(20)
    publish(store, asked)
    judge(store, PROJECT, likes("left", strength=2))
    _, rows = ask(store, asked)
    assert {(row.p_a, row.strength, row.labels) for row in rows} == {(1.0, 2, 1)}
    assert {row.presented for row in rows} == {"ab", "ba"}
    assert [(row.a, row.b) for row in rows] == [tuple(text.id for text in one.completions) for one in asked]


def test_tasks_are_published_once_with_how_they_were_chosen(store):
    asked = [question(0, strategy="max_min", score=1.5, probability=0.8, reward_p=0.82)]
    publish(store, asked)
    publish(store, asked)
    (published,) = tasks(store)
    assert (published.strategy, published.score, published.probability, published.reward_p) == (
        "max_min",
        1.5,
        0.8,
        0.82,
    )


def test_a_change_of_the_quorum_keeps_the_round_and_what_was_judged(store):
    publish(store, questions(4))
    judge(store, PROJECT, likes("right"), most=2)
    _, rows = ask(store, questions(4), quorum=0.5)
    assert [type(row) for row in rows] == [Comparison, Comparison, Refusal, Refusal]
    assert {(row.reason, row.labels) for row in rows[2:]} == {("not_judged", 0)}
    assert len(tasks(store)) == 4


def test_other_guidelines_are_another_round(store, tmp_path):
    guide = tmp_path / "guide.md"
    guide.write_text("Be kind.")
    publish(store, questions(1), guidelines=str(guide))
    guide.write_text("Be brief.")
    publish(store, questions(1), guidelines=str(guide))
    assert [one.guideline_version for one in tasks(store)] == [1, 2]
    with opened(store) as database:
        assert [one.number for one in database.read(lambda c: rounds.rounds_of(c, PROJECT))] == [1, 2]


def test_a_frozen_round_says_the_same_for_ever(store):
    publish(store, questions(3))
    judge(store, PROJECT, likes("left"), most=2)
    with opened(store) as database:
        somebody = database.write(lambda c: queue.claim(c, database.now(), PROJECT, person_named(c, "ann")))
        before = ask(store, questions(3), quorum=0.6)
        # who still had the page open sends it: paid work is kept, and counts for nothing
        late = database.write(
            lambda c: queue.submit(
                c,
                database.now(),
                somebody.token,
                person_named(c, "ann"),
                queue.Submission(value={"strength": 8}),
            )
        )
        with pytest.raises(Frozen):
            database.write(lambda c: revise_first(c, database.now()))
    assert late.state == "late"
    assert judge(store, PROJECT, likes("right"), name="bob") == 0
    assert ask(store, questions(3), quorum=0.6) == before
    assert ask(store, questions(3)) == before


def person_named(connection, name):
    from prefloop.labels.people import find_person

    return find_person(connection, name=name)


def revise_first(connection, now):
    first = connection.execute(sa.select(sa.func.min(schema.judgement.c.id))).scalar_one()
    said = queue.Submission(value={"strength": 8})
    return queue.revise(connection, now, first, person_named(connection, "ann"), said, "another-key")


def test_the_last_word_before_the_freeze_counts(store):
    publish(store, questions(2))
    judge(store, PROJECT, likes("left"), most=1)
    with opened(store) as database:
        database.write(lambda c: revise_first(c, database.now()))
        shown = database.read(lambda c: c.execute(sa.select(schema.judgement.c.presented)).scalars().all())
    judge(store, PROJECT, likes("left"))
    _, rows = ask(store, questions(2))
    # 8 says that the second text on the screen is better
    assert [row.p_a for row in rows] == [0.0 if shown[0] == [0, 1] else 1.0, 1.0]


def test_overlap_wants_several_people_and_offers_no_task_twice(store):
    publish(store, questions(1), overlap=2)
    assert judge(store, PROJECT, likes("left")) == 1
    with pytest.raises(Waiting, match="0 of 1"):
        ask(store, questions(1), overlap=2)
    assert judge(store, PROJECT, likes("right"), name="bob") == 1
    assert judge(store, PROJECT, likes("left"), name="eve") == 0
    _, rows = ask(store, questions(1), overlap=2)
    assert [row.p_a for row in rows] == [1.0, 0.0]
    assert len({row.annotator for row in rows}) == 2


def test_skips_and_both_bad_are_refusals_and_ties_are_comparisons(store):
    publish(store, questions(3))
    judge(store, PROJECT, always(skip="too_long"), most=1)
    judge(store, PROJECT, always(verdict="both_bad"), most=1)
    judge(store, PROJECT, always(verdict="tie"), most=1)
    _, rows = ask(store, questions(3))
    assert [(type(row), getattr(row, "reason", None), row.labels) for row in rows] == [
        (Refusal, "too_long", 1),
        (Refusal, "both_bad", 1),
        (Comparison, None, 1),
    ]
    assert rows[2].p_a == 0.5


def test_a_ranking_of_four_with_a_tie_gives_five_pairs_that_weigh_one_together(store):
    asked = [question(0, "a", "b", "c", "d")]
    publish(store, asked, task="rank")

    def rank(shown):
        place = {text: number for number, text in enumerate(shown["texts"])}
        return {"groups": [[place["b"]], [place["a"], place["d"]], [place["c"]]]}

    judge(store, PROJECT, rank)
    _, rows = ask(store, asked, task="rank")
    texts = {one.id: one.text for one in asked[0].completions}
    assert [(texts[row.a], texts[row.b], row.p_a) for row in rows] == [
        ("a", "b", 0.0),
        ("a", "c", 1.0),
        ("a", "d", 0.5),
        ("b", "c", 1.0),
        ("b", "d", 1.0),
        ("c", "d", 0.0),
    ]
    assert sum(row.labels for row in rows) == 1
    group = Group(prompt=asked[0].prompt, completions=asked[0].completions)
    pairs, _ = selection.pairs_of(group, rows, SelectSection(pairs_per_prompt="all"), seed=0)
    assert {(one.chosen.text, one.rejected.text, one.weight) for one in pairs} == {
        ("b", "a", 0.2),
        ("b", "d", 0.2),
        ("b", "c", 0.2),
        ("a", "c", 0.2),
        ("d", "c", 0.2),
    }


def test_what_nobody_can_rank_is_a_refusal(store):
    asked = [question(0, "a", "b", "c")]
    publish(store, asked, task="rank")
    judge(store, PROJECT, always(unrankable=[0, 1, 2]))
    _, rows = ask(store, asked, task="rank")
    assert [(type(row), row.reason) for row in rows] == [(Refusal, "cannot_be_ranked")]


def test_a_form_gives_the_overall_rating_as_score_and_flags_as_parts(store):
    asked = [question(0, "a"), question(1, "b")]
    publish(store, asked, task="form")
    judge(store, PROJECT, always(ratings={"overall": 6}, flags={"hallucination": True}), most=1)
    judge(store, PROJECT, always(ratings={"overall": 2}), most=1)
    _, rows = ask(store, asked, task="form")
    assert [(type(row), row.value, row.parts) for row in rows] == [
        (Score, 6.0, {"hallucination": 1.0}),
        (Score, 2.0, {"hallucination": 0.0}),
    ]


def test_scores_of_several_people_are_averaged():
    asked = question(0, "a", "b")
    group = Group(prompt=asked.prompt, completions=asked.completions)
    scores = [
        Score(
            prompt_id=asked.prompt.id,
            completion_id=group.completions[place].id,
            value=value,
            annotator="human/x",
        )
        for place, value in ((0, 7), (0, 2), (1, 5), (1, 6))
    ]
    (pair,), _ = selection.pairs_of(group, scores, SelectSection(), seed=0)
    assert (pair.chosen.text, pair.margin) == ("b", 1.0)  # 5.5 against 4.5


def test_labels_trigger_a_round_once(store):
    trigger = {"labels": 2}
    publish(store, questions(5), trigger=trigger)
    judge(store, PROJECT, always(verdict="tie"), most=2)
    publish(store, questions(5), trigger=trigger)  # ties do not say which is better
    judge(store, PROJECT, likes("left"), most=2)
    found, _ = ask(store, questions(5), trigger=trigger)
    again, _ = ask(store, questions(5), trigger={"labels": 1})
    assert found == again
    with opened(store) as database:
        freezes = sa.select(schema.audit.c.detail).where(schema.audit.c.action == "round.freeze")
        assert [one["reason"] for one in database.read(lambda c: c.execute(freezes).scalars().all())] == [
            "2 verdicts that say which is better"
        ]


def test_a_reward_model_that_people_contradict_closes_the_round(store):
    asked = [question(index, strategy="random", reward_p=0.9) for index in range(60)]
    publish(store, asked, trigger={"disagreement": 0.4})
    judge(store, PROJECT, likes("left"), most=15)
    judge(store, PROJECT, likes("right"), most=14)
    publish(store, asked, trigger={"disagreement": 0.4})  # 29 choices are too few to say
    judge(store, PROJECT, likes("right"), most=1)
    found, _ = ask(store, asked, trigger={"disagreement": 0.4})  # 15 of 30
    assert found.state == "frozen"


def test_a_spent_budget_is_named(store, tmp_path):
    settings = tmp_path / "project.yaml"
    settings.write_text("cents: {pairwise: 5}\nbudget_cents: 10\n")
    publish(store, questions(3), settings=str(settings))
    assert judge(store, PROJECT, likes("left")) == 2
    with pytest.raises(Waiting, match="its budget of 10 cents is spent"):
        ask(store, questions(3), settings=str(settings))
    with opened(store) as database:
        found = database.read(lambda c: rounds.numbered_round(c, PROJECT, None))
        assert database.read(lambda c: rounds.spent_cents(c, found.id)) == found.spent_cents == 10


def test_a_round_without_questions_needs_nobody(store):
    assert People(HumanAnnotator(kind="human"), Asked(str(store), PROJECT)).round_id([])


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("guidelines", None, "annotate.annotator.guidelines: .*: No such file"),
        ("settings", "overlap: -1", "annotate.annotator.settings: .*: overlap: "),
        (
            "settings",
            "form: [{name: a, label: A, type: likert}, {name: b, label: B, type: likert}]",
            "call the one",
        ),
    ],
)
def test_files_that_cannot_be_used_are_input_errors(store, tmp_path, key, text, message):
    path = tmp_path / "file"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        ask(store, [question(0, "a")], task="form", **{key: str(path)})


def test_a_kill_while_tasks_are_published_leaves_all_or_none(store, tmp_path):
    script = tmp_path / "publish.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, signal, sys
            sys.path[:0] = {[str(Path(__file__).parents[1])]!r}
            from annotate import test_human
            from prefloop.annotate import human
            publish = human.publish_tasks
            def killed(*args, **options):
                publish(*args, **options)
                os.kill(os.getpid(), signal.SIGKILL)
            human.publish_tasks = killed
            test_human.ask({str(store)!r}, test_human.questions(5))
            """
        )
    )
    died = subprocess.run([sys.executable, script], env=os.environ, check=False)
    assert died.returncode == -signal.SIGKILL
    assert tasks(store) == []
    publish(store, questions(5))
    assert len(tasks(store)) == 5
