"""Verdicts from files."""

import json

import pytest

from prefloop.annotate.recorded import RecordedScorer
from prefloop.config import RecordedAnnotator
from prefloop.interfaces import InputError, PairTask
from prefloop.records import Comparison, Group, Message, Prompt, Refusal, Score, file_completion


def group_of(question: str, *texts: str) -> Group:
    prompt = Prompt.of((Message(role="user", content=question),))
    return Group(
        prompt=prompt,
        completions=tuple(file_completion(prompt, text, index) for index, text in enumerate(texts)),
    )


FIRST, SECOND = group_of("one?", "a", "b", "c"), group_of("two?", "d", "e")


@pytest.fixture
def recorded(tmp_path):
    def recorded(name: str, rows, **options) -> RecordedScorer:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return RecordedScorer(RecordedAnnotator(kind="recorded", path=str(path), **options))

    return recorded


@pytest.fixture
def scores(recorded) -> RecordedScorer:
    rows = [
        {"prompt": "one?", "responses": ["a", "b", "c"], "stars": [1, None, -0.5]},
        {"prompt": "two?", "responses": ["d", "e"], "stars": [2, 3]},
    ]
    return recorded("groups.jsonl", rows, score_field="stars")


def judgement(group: Group, *places: int, **fields):
    ids = [group.completions[place].id for place in places]
    if "value" in fields:
        return Score(prompt_id=group.prompt.id, completion_id=ids[0], annotator="x", **fields)
    if "p_a" in fields:
        return Comparison(prompt_id=group.prompt.id, a=ids[0], b=ids[1], annotator="x", **fields)
    return Refusal(prompt_id=group.prompt.id, completion_ids=tuple(ids), annotator="x", **fields)


def test_scores_belong_to_completions_by_position_in_any_order_of_groups(scores):
    rows = list(scores.score([SECOND, FIRST]))
    assert [row.value if isinstance(row, Score) else None for row in rows] == [2, 3, 1, None, -0.5]
    assert [row.annotator for row in rows] == ["recorded"] * 5


def test_a_null_score_is_a_refusal_that_cost_nothing(scores):
    refusal = list(scores.score([FIRST]))[1]
    assert refusal == Refusal(
        prompt_id=FIRST.prompt.id,
        completion_ids=(FIRST.completions[1].id,),
        annotator="recorded",
        reason="not_judged",
        labels=0,
    )


def test_a_completion_that_the_file_lacks_is_an_error_that_names_the_prompt(scores):
    stranger, longer = group_of("three?", "a"), group_of("two?", "d", "e", "f")
    for group in (stranger, longer):
        with pytest.raises(InputError, match=group.prompt.id):
            list(scores.score([group]))


def test_judgement_rows_come_back_as_they_were_written(recorded):
    rows = [
        judgement(FIRST, 2, value=0.5, labels=0),
        judgement(FIRST, 0, value=1.5),
        judgement(FIRST, 1, reason="declined"),
    ]
    scorer = recorded("judgements.jsonl", [row.model_dump() for row in rows])
    assert list(scorer.score([FIRST])) == [rows[1], rows[2], rows[0]]
    assert list(scorer.replay([FIRST])) == [rows[1], rows[2], rows[0]]


def test_comparisons_come_back_by_pair_with_all_votes_whichever_comes_first(recorded):
    rows = [
        judgement(SECOND, 0, 1, p_a=0.0),
        judgement(FIRST, 0, 2, p_a=1.0, labels=2),
        judgement(SECOND, 1, 0, p_a=0.25),
        judgement(SECOND, 0, 1, reason="declined"),
    ]
    comparer = recorded("judgements.jsonl", [row.model_dump() for row in rows])
    tasks = [
        PairTask(FIRST.prompt, FIRST.completions[2], FIRST.completions[0]),
        PairTask(SECOND.prompt, SECOND.completions[0], SECOND.completions[1]),
    ]
    assert list(comparer.compare(tasks)) == [rows[1], rows[0], rows[2], rows[3]]
    assert list(comparer.replay([SECOND])) == [rows[0], rows[2], rows[3]]


def test_a_missing_or_a_second_verdict_is_an_error_that_names_the_prompt(recorded):
    row = judgement(FIRST, 0, value=1.0).model_dump()
    scorer = recorded("judgements.jsonl", [row, row])
    with pytest.raises(InputError, match=f"2 scores of .* prompt {FIRST.prompt.id}"):
        list(scorer.score([FIRST]))
    with pytest.raises(InputError, match=f"no scores of .* prompt {SECOND.prompt.id}"):
        list(scorer.score([SECOND]))
    with pytest.raises(InputError, match=SECOND.prompt.id):
        list(scorer.compare([PairTask(SECOND.prompt, *SECOND.completions)]))


def test_a_broken_judgement_row_is_named_by_its_number(recorded):
    good = judgement(FIRST, 0, value=1.0).model_dump()
    with pytest.raises(InputError, match=r"judgements.jsonl row 2: not a judgement: score.value"):
        recorded("judgements.jsonl", [good, good | {"value": "high"}])
