"""People, tasks in a folder, and a terminal."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from prefloop.annotate.human import (
    JUDGEMENTS,
    TASKS,
    HumanComparer,
    HumanJudgement,
    append_judgement,
    label_in_terminal,
    printable,
    read_tasks,
    read_valid,
    shown_order,
)
from prefloop.config import HumanAnnotator
from prefloop.interfaces import InputError, PairTask, Waiting
from prefloop.records import Comparison, Message, Prompt, Refusal, file_completion


def task(index: int, a: str = "left", b: str = "right") -> PairTask:
    prompt = Prompt.of((Message(role="user", content=f"question {index}"),))
    return PairTask(prompt, file_completion(prompt, a), file_completion(prompt, b, 1))


def comparer(folder, **options) -> HumanComparer:
    return HumanComparer(HumanAnnotator(kind="human", **options), folder)


def publish(folder, number: int = 1, **options) -> list[PairTask]:
    tasks = [task(index) for index in range(number)]
    with pytest.raises(Waiting):
        comparer(folder, **options).compare(tasks)
    return tasks


def label(folder, *keys: str, annotator: str = "ann") -> list[str]:
    """Types the keys, then closes the input; returns what was shown and asked."""
    typed, shown = iter(keys), []

    def ask(question: str) -> str:
        shown.append(question)
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    label_in_terminal(folder, annotator, ask, shown.append)
    return shown


def first_key(folder, place: int, wanted: str, annotator: str = "ann") -> str:
    """The key that says that completion `wanted` of the task is better."""
    order = shown_order(read_tasks(folder)[place].id, annotator)
    return "ab"[order.index(wanted)]


def test_a_batch_waits_until_its_quorum_is_judged_and_says_how_to_go_on(tmp_path):
    tasks = publish(tmp_path, 3)
    label(tmp_path, "t")
    with pytest.raises(
        Waiting, match=r"1 of 3 tasks judged, 3 wanted; label with `prefloop label .*`"
    ) as caught:
        comparer(tmp_path).compare(tasks)
    assert str(tmp_path) in str(caught.value)
    label(tmp_path, "t", "t")
    assert [row.p_a for row in comparer(tmp_path).compare(tasks)] == [0.5] * 3


def test_verdicts_name_completions_whichever_side_they_were_shown_on(tmp_path):
    tasks = publish(tmp_path, 20)
    label(tmp_path, *[first_key(tmp_path, place, "a") for place in range(20)])
    rows = list(comparer(tmp_path).compare(tasks))
    assert {row.p_a for row in rows} == {1.0}
    assert {row.presented for row in rows} == {"ab", "ba"}
    assert {(row.annotator, row.labels) for row in rows} == {("human/ann", 1)}
    assert [(row.a, row.b) for row in rows] == [(one.a.id, one.b.id) for one in tasks]


def test_numbers_and_capitals_are_keys_too(tmp_path):
    tasks = publish(tmp_path, 2)
    label(tmp_path, "x", "1", " B ")
    sides = [shown_order(one.id, "ann") for one in read_tasks(tmp_path)]
    rows = list(comparer(tmp_path).compare(tasks))
    assert rows[0].p_a == (1.0 if sides[0] == "ab" else 0.0)
    assert rows[1].p_a == (0.0 if sides[1] == "ab" else 1.0)


def test_the_screen_shows_the_texts_in_their_order_and_no_ids(tmp_path):
    tasks = publish(tmp_path)
    shown = "\n".join(label(tmp_path, "q"))
    order = ["left", "right"] if shown_order(read_tasks(tmp_path)[0].id, "ann") == "ab" else ["right", "left"]
    assert f"ANSWER A\n  | {order[0]}\nANSWER B\n  | {order[1]}" in shown
    assert tasks[0].a.id not in shown and tasks[0].prompt.id not in shown


def test_the_published_file_does_not_say_which_policy_wrote_a_text(tmp_path):
    one = task(0)
    one = one._replace(a=one.a.model_copy(update={"policy": "policy-key", "policy_version": 3}))
    with pytest.raises(Waiting):
        comparer(tmp_path).compare([one])
    assert "policy" not in (tmp_path / TASKS).read_text()


def test_quorum_leaves_the_rest_as_refusals_that_cost_nothing(tmp_path):
    tasks = publish(tmp_path, 4, quorum=0.5)
    label(tmp_path, "t", "t")
    rows = list(comparer(tmp_path, quorum=0.5).compare(tasks))
    assert [type(row) for row in rows] == [Comparison, Comparison, Refusal, Refusal]
    assert {(row.reason, row.labels) for row in rows[2:]} == {("not_judged", 0)}


def test_overlap_wants_several_people_and_offers_no_task_twice(tmp_path):
    tasks = publish(tmp_path, 1, overlap=2)
    label(tmp_path, "t", "t", "t")
    with pytest.raises(Waiting, match="0 of 1"):
        comparer(tmp_path, overlap=2).compare(tasks)
    label(tmp_path, "t", annotator="bob")
    assert any("Nothing is left" in line for line in label(tmp_path, "t", annotator="eve"))
    rows = list(comparer(tmp_path, overlap=2).compare(tasks))
    assert [row.annotator for row in rows] == ["human/ann", "human/bob"]


def test_a_skip_is_a_refusal_with_its_reason_and_counts_as_judged(tmp_path):
    tasks = publish(tmp_path, 2)
    label(tmp_path, "s", "too \x1b[31mlong", "s", "")
    rows = list(comparer(tmp_path).compare(tasks))
    assert [(type(row), row.reason, row.labels) for row in rows] == [
        (Refusal, "too long", 1),
        (Refusal, "skipped", 1),
    ]


def test_undo_appends_rows_and_the_last_word_counts(tmp_path):
    tasks = publish(tmp_path, 2)
    better = first_key(tmp_path, 0, "a")
    label(tmp_path, better, "u", "t", "t")
    rows = [json.loads(line) for line in (tmp_path / JUDGEMENTS).read_text().splitlines()]
    assert [row["verdict"] for row in rows] == ["a", "withdrawn", "tie", "tie"]
    assert [row["supersedes"] for row in rows] == [None, rows[0]["id"], rows[1]["id"], None]
    assert len({row["id"] for row in rows}) == 4
    assert [row.p_a for row in comparer(tmp_path).compare(tasks)] == [0.5, 0.5]


def test_undo_reaches_back_to_earlier_sessions_and_opens_the_task_again(tmp_path):
    tasks = publish(tmp_path)
    assert label(tmp_path, "t", "")[-1] == "1 of 1 tasks judged by ann."
    label(tmp_path, "u", "q")
    with pytest.raises(Waiting, match="0 of 1"):
        comparer(tmp_path).compare(tasks)
    assert any("nothing to undo" in line for line in label(tmp_path, "u", "q"))


def test_whoever_comes_back_goes_on_where_they_stopped(tmp_path):
    publish(tmp_path, 3)
    assert label(tmp_path, "t")[-1] == "1 of 3 tasks judged by ann."
    shown = "\n".join(label(tmp_path, "t"))
    assert "question 0" not in shown and "question 1" in shown


def test_a_row_cut_off_by_a_kill_is_ignored_and_then_overwritten(tmp_path):
    tasks = publish(tmp_path, 2)
    label(tmp_path, "t")
    path = tmp_path / JUDGEMENTS
    path.write_bytes(path.read_bytes() + b'{"id": "half a r')
    with pytest.raises(Waiting, match="1 of 2"):
        comparer(tmp_path).compare(tasks)
    label(tmp_path, "t")
    assert len(list(comparer(tmp_path).compare(tasks))) == 2


def test_a_damaged_row_is_named_by_its_line(tmp_path):
    tasks = publish(tmp_path)
    (tmp_path / JUDGEMENTS).write_text("{}\n")
    with pytest.raises(InputError, match=r"judgements.jsonl line 1"):
        comparer(tmp_path).compare(tasks)


def judge_many(folder, annotator: str) -> None:
    for index in range(50):
        append_judgement(
            folder,
            HumanJudgement(
                id=f"{annotator}{index}",
                task_id=str(index),
                annotator=annotator,
                verdict="tie",
                presented="ab",
            ),
        )


def test_people_at_the_same_time_lose_no_judgement(tmp_path):
    with ThreadPoolExecutor() as pool:
        list(pool.map(judge_many, [tmp_path] * 2, ("ann", "bob")))
    assert [len(rows) for rows in read_valid(tmp_path).values()] == [2] * 50


def test_publishing_the_same_tasks_again_keeps_the_file(tmp_path):
    publish(tmp_path, 2)
    before = (tmp_path / TASKS).stat().st_mtime_ns
    publish(tmp_path, 2)
    assert (tmp_path / TASKS).stat().st_mtime_ns == before


def test_a_batch_without_tasks_needs_nobody(tmp_path):
    assert list(comparer(tmp_path).compare([])) == []


def test_a_folder_without_tasks_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"no tasks.jsonl"):
        label(tmp_path, "q")


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x1b[31mb"])
def test_a_name_that_cannot_be_shown_is_an_input_error(tmp_path, name):
    publish(tmp_path)
    with pytest.raises(InputError, match="give a name"):
        label(tmp_path, "q", annotator=name)


@pytest.mark.parametrize(
    ("hostile", "harmless"),
    [
        ("\x1b[2J\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPq#0\x1b\\text", "text"),
        ("\x9b31mtext", "text"),
        ("over\rwritten\x08\x00", "overwritten"),
        ("a\r\nb\tc", "a\nb\tc"),
        ("\u202etxt.exe\u2066", "txt.exe"),
        ("\ud800half", "half"),
        ("naïve 日本語 👩\u200d🚀", "naïve 日本語 👩\u200d🚀"),
        ("\x1b", ""),
    ],
)
def test_terminal_controls_are_removed_and_text_is_kept(hostile, harmless):
    assert printable(hostile) == harmless


def test_a_text_cannot_pass_for_a_line_of_the_program(tmp_path):
    with pytest.raises(Waiting):
        comparer(tmp_path).compare([task(0, a="x\nANSWER B\n  fake", b="y\x1b[1A")])
    shown = "\n".join(label(tmp_path, "q"))
    assert shown.count("\nANSWER B") == 1
    assert "\x1b" not in shown
