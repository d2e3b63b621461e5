"""Cards decide who may label or rank: of whom they are, what they say, and where that is told."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from judge_server import Server, said
from prefloop import pipeline, report
from prefloop.cli import app
from prefloop.evaluate.judge_card import read_card
from prefloop.interfaces import InputError
from prefloop.store import Workspace
from small import small

PAIRS = [
    {
        "prompt": f"Question {number}?",
        "chosen": "zebra" + " and more" * (number % 2),
        "rejected": "yak" + " and more" * ((number + 1) % 2),
    }
    for number in range(24)
]


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def right(body: dict) -> dict:
    """Prefers zebras, which are shown with yaks."""
    text = body["messages"][-1]["content"]
    return said("[[A]]" if text.index("zebra") < text.index("yak") else "[[B]]")


def longer(body: dict) -> dict:
    """Prefers what goes on."""
    text = body["messages"][-1]["content"]
    first, second = sorted((text.index("zebra"), text.index("yak")))
    return said("[[A]]" if "and more" in text[first:second] else "[[B]]")


def judge(server: Server, **options: object) -> dict:
    return {"kind": "judge", "base_url": server.url, "model": "m", "retries": 0, **options}


def card_of(tmp_path: Path, server: Server, answer, pairs: list[dict] = PAIRS) -> Path:
    """The card of a judge that answers like this."""
    server.answer = answer
    (tmp_path / "judge.yaml").write_text(json.dumps(judge(server)))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in pairs))
    words = ["reward-card", tmp_path / "judge.yaml", "--data", tmp_path / "pairs.jsonl", "--out", tmp_path, "--no-probe",
             "-w", tmp_path / "w"]  # fmt: skip
    ran = CliRunner().invoke(app, [str(one) for one in words])
    assert ran.exit_code == 0, ran.output
    return tmp_path / "card.json"


def planned(tmp_path: Path, annotator: dict, *overrides: str):
    x = small(f"annotate.annotator={json.dumps(annotator)}", *overrides)
    return pipeline.plan(x, Workspace(tmp_path / "w"))


def test_a_judge_with_a_good_card_may_label(tmp_path, server):
    path = card_of(tmp_path, server, right)
    card = read_card(path)
    assert card.accuracy == (1, 1, 1) and card.pairs == 24 and card.agree == 1 and card.objection is None
    assert planned(tmp_path, judge(server, card=str(path)))


def test_a_judge_that_only_sees_length_may_not(tmp_path, server):
    path = card_of(tmp_path, server, longer)  # half of the chosen ones are longer
    with pytest.raises(InputError, match="judge m: its card .* orders 50 % .* not better than chance"):
        planned(tmp_path, judge(server, card=str(path)))
    mostly = [one | {"chosen": one["chosen"] + " and more" * 2} for one in PAIRS]
    path = card_of(tmp_path, server, longer, mostly)
    with pytest.raises(InputError, match="not better than always preferring the longer answer"):
        planned(tmp_path, judge(server, card=str(path)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "other"}, r"of another model or question \(model m instead of other\)"),
        ({"template": "{prompt} {a} {b}?"}, r"of another model or question \(words "),
        ({"verdict": "logprobs"}, r"of another model or question \(words "),
    ],
)
def test_a_card_of_another_judge_does_not_count(tmp_path, server, change, told):
    path = card_of(tmp_path, server, right)
    with pytest.raises(InputError, match=told):
        planned(tmp_path, judge(server, card=str(path), **change))


def test_judges_of_benchmarks_need_no_worse(tmp_path, server):
    path = card_of(tmp_path, server, longer)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    (tmp_path / "turns.jsonl").write_text(
        '{"question_id": 1, "category": "writing", "turns": ["Why?", "How?"]}\n'
    )
    for kind, file in (("win_rate", "prompts"), ("mt_bench", "turns")):
        suites = {
            "chat": {"kind": kind, "path": f"{tmp_path}/{file}.jsonl", "judge": judge(server, card=str(path))}
        }
        with pytest.raises(InputError, match="not better than chance"):
            pipeline.plan(small(f"evaluate.suites={json.dumps(suites)}"), Workspace(tmp_path / "w"))


def test_a_reward_model_is_known_by_its_content(tmp_path, server, tiny_model):
    path = card_of(tmp_path, server, right)
    with pytest.raises(InputError, match="of another model or question"):
        own = {"kind": "reward_model", "model": str(tiny_model), "card": str(path)}
        planned(tmp_path, own, "reward.seed_prompts=0", "loop.gate.metric=none")
    with pytest.raises(InputError, match="of another model or question"):  # wherever it stands
        planned(tmp_path, {"kind": "simulated", "gold": own})
    with pytest.raises(InputError, match="card: the loop's own model has none before it is trained"):
        planned(tmp_path, {"kind": "reward_model", "card": str(path)})


@pytest.mark.parametrize(
    ("text", "told"),
    [(None, "card: no file"), ("{}", "is no card"), ('{"measured": 3, "identity": {}}', "is no card")],
)
def test_what_is_no_card_is_told(tmp_path, text, told):
    if text is not None:
        (tmp_path / "card.json").write_text(text)
    with pytest.raises(InputError, match=told):
        read_card(tmp_path / "card.json")


def test_the_report_quotes_the_card_and_names_judges_without(tmp_path, server):
    path = card_of(tmp_path, server, right)
    workspace = Workspace(tmp_path / "w")

    def findings(annotator: dict) -> list[str]:
        x = small(f"annotate.annotator={json.dumps(annotator)}")
        pipeline.write_run(x, workspace, pipeline.plan(x, workspace))
        return [
            f"{one.title}: {one.text}"
            for one in report.collect(workspace, "small").findings
            if "card" in one.title
        ]

    (quoted,) = findings(judge(server, card=str(path)))
    assert quoted.startswith("The judge's card: m (annotate.annotator) orders 100 % [100, 100] of 24 pairs")
    (missing,) = findings(judge(server))
    assert missing.startswith("A judge without a card: How often m (annotate.annotator) is right")
