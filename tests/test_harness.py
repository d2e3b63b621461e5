"""Tasks of lm-eval on a policy: its likelihoods, what the engine writes, names, intervals, and what cannot be asked."""

import json
import sys

import pytest
import yaml

from prefloop import config, pipeline
from prefloop.config import LmEvalSuite, RuntimeSection
from prefloop.interfaces import InputError
from prefloop.scoring import harness as scoring
from prefloop.store import Workspace, read_rows
from prefloop.suites import harness
from prefloop.suites.harness import Ending
from prefloop.watching import Watcher

QUESTIONS = [
    {"question": "Once there was a", "choices": ["fox.", "and."], "answer": 0},
    {"question": "The bear wanted a", "choices": ["the the", "kite."], "answer": 1},
    {"question": "At last she found the", "choices": ["river.", "of"], "answer": 0},
]
TASK = {
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "metadata": {"version": 2.0},
}


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with two tasks on three documents."""
    pytest.importorskip("lm_eval", reason="lm-eval is an extra")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    given = TASK | {"dataset_kwargs": {"data_files": {"test": str(data)}}}
    choose = given | {
        "task": "mini_choose",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }
    write = given | {
        "task": "mini_write",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    for one in (choose, write):
        (folder / f"{one['task']}.yaml").write_text(yaml.safe_dump(one))
    return folder


def evaluated(tmp_path, tiny_model, suite: dict) -> tuple[list, list]:
    """Scores and rows of a policy."""
    text = json.dumps({"evaluate": {"suites": {"mine": suite}}, "model": {"path": str(tiny_model)}})
    (tmp_path / "suites.yaml").write_text(text)
    x, workspace = config.load_suites(tmp_path / "suites.yaml"), Workspace(tmp_path / "w")
    (done,) = pipeline.evaluate(x, workspace, Watcher(), [pipeline.base(x, workspace, Watcher())])
    path = done.path / "verdicts.jsonl"
    return scoring.score(str(path), draws=200), list(read_rows(path))


def test_choices_are_those_of_the_weights_and_texts_those_of_a_plain_greedy_loop(tmp_path, tasks, tiny_model):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    suite = {"kind": "lm_eval", "tasks": ["mini_choose", "mini_write"], "path": str(tasks)}
    scores, rows = evaluated(tmp_path, tiny_model, suite)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)

    def logp(question: str, answer: str) -> float:
        before = len(tokenizer(question).input_ids)
        ids = torch.tensor([tokenizer(f"{question} {answer}").input_ids])  # a space is lm-eval's usual
        with torch.no_grad():
            logps = model(ids).logits[0, :-1].log_softmax(-1)
        return float(logps[torch.arange(len(ids[0]) - 1), ids[0, 1:]][before - 1 :].sum())

    def written(question: str) -> str:
        ids = tokenizer(question).input_ids
        start = len(ids)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id or "." in tokenizer.decode(ids[start:]):
                break
        return tokenizer.decode(ids[start:], skip_special_tokens=True).split(".")[0]

    wanted = [
        float(logp(one["question"], one["choices"][one["answer"]])
              > logp(one["question"], one["choices"][1 - one["answer"]]))
        for one in QUESTIONS
    ]  # fmt: skip
    documents = [one for one in rows if "values" in one]
    found = [one["values"]["acc"] for one in documents if one["task"] == "mini_choose"]
    assert found == wanted
    texts = [one["said"] for one in documents if one["task"] == "mini_write"]
    assert texts == [written(one["question"]) for one in QUESTIONS]
    by_task = {one.benchmark.split("[")[0]: one for one in scores}
    figure = by_task["lm_eval/mini_choose"].figures["acc"]
    assert figure.value == pytest.approx(sum(wanted) / 3) and figure.n == 3
    assert (
        "version=2.0, fewshot=0, chat=False, documents=3, lm-eval="
        in by_task["lm_eval/mini_choose"].benchmark
    )


def test_an_unknown_task_is_named_with_the_nearest(tmp_path, tasks, tiny_model):
    suite = LmEvalSuite(kind="lm_eval", tasks=["mini_chose"], path=str(tasks))
    with pytest.raises(InputError, match="no task 'mini_chose'.*did you mean mini_choose"):
        list(harness.rows(suite, tiny_model, "m", RuntimeSection(device="cpu"), lambda texts, ending: []))


def test_without_lm_eval_the_error_says_what_to_install(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    suite = LmEvalSuite(kind="lm_eval", tasks=["x"])
    with pytest.raises(InputError, match=r"pip install 'prefloop\[lm-eval\]'"):
        list(harness.rows(suite, tiny_model, "m", RuntimeSection(device="cpu"), lambda texts, ending: []))


@pytest.mark.parametrize(
    ("options", "ending"),
    [
        ({"until": "\n\n"}, Ending(("\n\n",), 256, 0.0)),
        (
            {"until": ["a", ""], "max_gen_toks": 5, "do_sample": False, "temperature": 0.7},
            Ending(("a",), 5, 0.0),
        ),
        ({"do_sample": True, "temperature": 0.7}, Ending((), 256, 0.7)),
    ],
)
def test_how_texts_end_is_what_the_task_says(options, ending):
    assert harness._ending(options) == ending


def test_a_metric_that_is_no_mean_over_documents_has_no_interval(tmp_path):
    rows = [
        {"model": "m", "task": "t", "doc_id": number, "filter": "none", "values": {"acc": value, "bleu": [1]}}
        for number, value in enumerate((1.0, 0.0, 1.0))
    ]
    rows.append(
        {
            "model": "m",
            "task": "t",
            "results": {"acc,none": 2 / 3, "bleu,none": 12.5},
            "about": {"version": 1},
        }
    )
    path = tmp_path / "verdicts.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    (found,) = scoring.score(str(path), draws=200)
    assert found.benchmark == "lm_eval/t[version=1]"
    assert found.figures["acc"].low is not None
    assert (found.figures["bleu"].value, found.figures["bleu"].low) == (12.5, None)
    assert scoring.units(rows) == {"0": 1.0, "1": 0.0, "2": 1.0}
