"""Gold tasks out of files: which answer is the known one, what is refused, and where the error says it is."""

import json
from collections import Counter

import pytest
import sqlalchemy as sa

from prefloop.interfaces import InputError
from prefloop.labels.database import open_database
from prefloop.labels.errors import Invalid
from prefloop.labels.formats.reading import ImportOptions
from prefloop.labels.gold import check_expected, gold_tasks, set_gold_state
from prefloop.labels.gold_files import bring_gold_in
from prefloop.labels.projects import ProjectConfig, Rule
from prefloop.labels.publish import add_project
from prefloop.labels.schema import completion, gold, judgement, task

PROJECT = "tales"
CONFIG = ProjectConfig(rules=(Rule(id="kind", text="Be kind."),))


@pytest.fixture
def store(tmp_path):
    database = open_database(str(tmp_path / "labels.sqlite"))
    database.write(lambda c: add_project(c, database.now(), PROJECT, CONFIG))
    yield database
    database.close()


def bring(store, tmp_path, *rows: dict, strategy: str = "gold", tolerance: int = 0, **options):
    file = tmp_path / "known.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    about = ImportOptions(path=str(file), **options)
    return bring_gold_in(store, PROJECT, about, strategy=strategy, tolerance=tolerance)


def known(store):
    """Kind, texts in their order, the answer, tolerance, why."""
    rows = store.read(
        lambda c: c.execute(
            sa.select(task, gold).join(gold, gold.c.task_id == task.c.id).order_by(task.c.ordinal)
        ).all()
    )
    texts = dict(store.read(lambda c: c.execute(sa.select(completion.c.id, completion.c.text)).all()))
    return [
        (one.kind, [texts[id] for id in one.completion_ids], one.expected, one.tolerance, one.why)
        for one in rows
    ]


PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "No.", "why": "It answers."}


def test_the_chosen_side_of_a_preference_row_is_the_known_answer(store, tmp_path):
    made = bring(store, tmp_path, PAIR)
    assert (made.rows, made.tasks, made.there) == (1, 1, 0)
    assert known(store) == [("pairwise", ["Because.", "No."], {"choice": "a"}, 0, "It answers.")]
    row = store.read(lambda c: c.execute(sa.select(task)).one())
    assert (row.is_gold, row.strategy, row.round_id, row.state) == (True, "gold", None, "open")
    assert store.read(lambda c: c.execute(sa.select(judgement)).all()) == []


def test_rankings_forms_and_rules_have_their_known_values(store, tmp_path):
    bring(store, tmp_path, {"prompt": "How?", "ranked_responses": ["well", "so", "ill"]})
    row = {"prompt": "Rate", "responses": ["text"], "why": "It errs.", "tolerance": 1}
    bring(
        store,
        tmp_path,
        row | {"expected": {"ratings": {"overall": 2}, "flags": {"hallucination": True}}},
        row | {"expected": {"levels": {"kind": "definitely_break"}}},
    )
    assert known(store) == [
        ("rank", ["well", "so", "ill"], {"groups": [[0], [1], [2]]}, 0, ""),
        ("form", ["text"], {"ratings": {"overall": 2}, "flags": {"hallucination": True}}, 1, "It errs."),
        ("rules", ["text"], {"levels": {"kind": "definitely_break"}}, 1, "It errs."),
    ]
    payloads = store.read(
        lambda c: c.execute(sa.select(task.c.payload).order_by(task.c.ordinal)).scalars().all()
    )
    assert payloads == [None, None, {"rules": ["kind"]}]


def test_the_same_file_twice_is_the_same_tasks_whichever_text_comes_first(store, tmp_path):
    assert bring(store, tmp_path, PAIR, PAIR).tasks == 1
    turned = {"prompt": "Why?", "responses": ["No.", "Because."], "expected": {"choice": "b"}}
    made = bring(store, tmp_path, turned)
    assert (made.tasks, made.there) == (0, 1)


def test_a_file_with_an_error_brings_nothing_and_the_error_names_its_row(store, tmp_path):
    other = {"prompt": "Why?", "chosen": "No.", "rejected": "Because."}
    with pytest.raises(InputError, match=r"known\.jsonl row 2: gold task .* has another answer"):
        bring(store, tmp_path, PAIR, other)
    assert known(store) == []
    made = bring(store, tmp_path, PAIR, other, bad_rows="drop")
    assert (made.tasks, made.dropped) == (1, {"contradicts": 1})


def test_the_answer_of_a_retired_task_can_be_another_one(store, tmp_path):
    bring(store, tmp_path, PAIR)
    id = store.read(lambda c: gold_tasks(c, PROJECT))[0].id
    store.write(lambda c: set_gold_state(c, store.now(), PROJECT, id, "retired", actor="lead"))
    assert bring(store, tmp_path, {"prompt": "Why?", "chosen": "No.", "rejected": "Because."}).tasks == 1
    states = store.read(lambda c: [one.state for one in gold_tasks(c, PROJECT)])
    assert Counter(states) == {"retired": 1, "open": 1}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Why?"}, "row 1: no answer is known"),
        ({"prompt": "Why?", "responses": ["a", "b"]}, "row 1: no answer is known"),
        (PAIR | {"why": 3}, "row 1: why: a text"),
        (PAIR | {"tolerance": 9}, "row 1: tolerance: 9 is not 0 to 3"),
        ({"prompt": "Why?", "responses": ["a"], "expected": {"choice": "a"}}, "cannot show 1 completions"),
        ({"prompt": "Why?", "responses": ["a"], "expected": {"good": 1}}, "good belong to no one kind"),
        ({"prompt": "Why?", "responses": ["a"], "expected": {}}, "expected: names with their values"),
        ({"prompt": "Why?", "responses": ["a"], "expected": {"levels": {"x": "unsure"}}}, "levels.x: the project has no"),
    ],
)  # fmt: skip
def test_a_row_without_a_usable_answer_is_named(store, tmp_path, row, said):
    with pytest.raises(InputError, match=said):
        bring(store, tmp_path, row)


@pytest.mark.parametrize(
    ("kind", "expected", "number", "said"),
    [
        ("pairwise", {"choice": "c"}, 2, "expected.choice: 'c' is not one of a, b, tie, both_bad"),
        ("pairwise", {"choice": "a", "strength": 9}, 2, "expected.strength: 9 is not a whole number from 1 to 8"),
        ("pairwise", {"ratings": {"overall": 1}}, 2, "expected.ratings: a pairwise task expects choice"),
        ("rank", {"groups": [[0], [1]]}, 3, r"expected.groups: name each of 0 to 2 once"),
        ("rank", {"groups": 3}, 3, "expected.groups: lists of numbers"),
        ("form", {"ratings": {"overall": 6.5}}, 1, "expected.ratings.overall: 6.5 is not a whole number"),
        ("form", {"ratings": {"overall": True}}, 1, "expected.ratings.overall: True is not a whole number"),
        ("form", {"ratings": {"opinion": 3}}, 1, "expected.ratings.opinion: the project's form has no such field"),
        ("form", {"flags": {"opinion": 1}}, 1, "expected.flags.opinion: true or false"),
        ("steps", {"labels": ["correct"]}, 2, "expected.labels: give one for each of the 2 steps"),
        ("rules", {"levels": {"kind": "never"}}, 1, "expected.levels.kind: 'never' is not one of"),
        ("edit", {"text": "better"}, 1, "tasks of kind edit have no answer that is right or wrong"),
        ("pairwise", {}, 2, "expected: say what is right"),
    ],
)  # fmt: skip
def test_an_answer_that_nobody_can_give_is_refused(kind, expected, number, said):
    with pytest.raises(Invalid, match=said):
        check_expected(kind, expected, number, CONFIG, ["kind"])
