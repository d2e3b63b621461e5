"""The benchmarks count right, and run from end to end at a minute size; no test looks at a time."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks are a package beside src that nobody installs

from benchmarks import gpu  # noqa: E402
from benchmarks.cases import Case, Data, Measured  # noqa: E402
from benchmarks.common import different_work  # noqa: E402
from benchmarks.rows import Row, Spread, Target, compared  # noqa: E402
from benchmarks.shapes import Shape, forward_flops  # noqa: E402
from benchmarks.write_results import table  # noqa: E402

needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")


def measured(**changes) -> Measured:
    values = dict.fromkeys(Measured.__dataclass_fields__, 0.0)
    known = {"num_pairs": 4, "num_steps": 2, "loss_first": 0.69, "weights_dtype": "float32"}
    return Measured(**{**values, **known, "activations_dtype": "float32", **changes})


def dpo_case(**changes) -> Case:
    values = {"name": "a case", "task": "dpo", "model": "nano", "dtype": "float32", "prompts_per_step": 2}
    return Case(**{**values, "data": Data(4, 20, 10), **changes})


def of_a_minute(name: str, words: str, results: Path) -> dict[str, Any]:
    """What a benchmark writes that was run with these options."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *words.split(), "--results", results],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((results / f"{name}.json").read_text())


def test_operations_of_a_group_are_those_counted_by_hand():
    shape = Shape(hidden=2, layers=1, vocabulary=10, intermediate=3, heads=1, key_value_heads=1)
    assert shape.trunk_weights == 4 * 4 + 3 * 6
    matrices = 2 * 34 * (3 + 2 + 1)
    attention = 4 * 2 * (1 + 2 + 3 + (4 + 5) + 4)  # keys that each token sees
    head = 2 * 2 * 10 * 3
    assert forward_flops(shape, 3, [2, 1], with_head=True) == matrices + attention + head
    assert forward_flops(shape, 3, [2, 1], with_head=False) == matrices + attention


def test_training_costs_three_passes_and_the_reference_one():
    case = dpo_case()
    assert dpo_case(epochs=2).flops == pytest.approx(case.flops / 4 * 7)
    assert dpo_case(lora_rank=4).flops == pytest.approx(case.flops / 4 * 3)


def test_a_ranking_gives_all_its_pairs_to_a_reward_model():
    case = dpo_case(task="reward", data=Data(6, 20, 10, num_completions=4))
    assert (case.num_pairs, case.pairs_per_step, case.num_steps) == (36, 12, 3)
    assert case.tokens_that_count == 6 * (20 + 4 * 10)


@pytest.mark.parametrize("ragged", [False, True])
def test_texts_have_exactly_as_many_tokens_as_asked_for(ragged):
    from benchmarks.build import word_tokenizer
    from benchmarks.data import text_groups

    from prefloop.batches import Codec
    from prefloop.records import Message

    data = Data(5, 20, 10, num_completions=3, ragged=ragged)
    codec = Codec(word_tokenizer(256))
    for texts, lengths in zip(text_groups(data, 256), data.lengths(), strict=True):
        prompt = [Message(role="user", content=texts.prompt)]
        assert len(codec.prompt_ids(prompt)) == lengths.prompt
        assert [len(codec.answer_ids(prompt, one)) for one in texts.completions] == list(lengths.completions)
        assert codec.tokenizer.unk_token_id not in codec.answer_ids(prompt, texts.completions[0])
    assert (len({one.prompt for one in data.lengths()}) > 1) == ragged


def test_sides_that_did_not_do_the_same_work_are_named():
    case = dpo_case()
    assert not different_work(case, {"prefloop": [measured()], "peer": [measured(loss_first=0.6905)]})
    for changes, said in [
        ({"num_steps": 3}, "3 steps"),
        ({"loss_first": 0.7}, "first loss"),
        ({"loss_first": math.nan}, "first loss"),
        ({"activations_dtype": "bfloat16"}, "bfloat16 activations"),
    ]:
        (problem,) = different_work(case, {"prefloop": [measured()], "peer": [measured(**changes)]})
        assert "peer" in problem
        assert said in problem


def test_a_missed_target_says_by_how_much():
    runs = {
        "prefloop": [measured(seconds=2.0), measured(seconds=3.0)],
        "peer": [measured(seconds=1.0), measured(seconds=1.0)],
    }
    row = compared("work", "times", runs, "peer", lambda one: one.seconds, Target(5.0))
    assert row.ratio == Spread(2.5, 2.0, 3.0)
    assert row.missed_by == pytest.approx(0.5)
    assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row
    assert "| 2.5× (2–3) | ≥ 5× | missed by 50% |" in table([row])
    lower = Row("work", "MB", Spread.of([3.0]), target=Target(2.0, better="lower", of="value"))
    assert lower.missed_by == pytest.approx(0.5)
    assert Row("work", "MB", Spread.of([1.0]), target=lower.target).missed_by == 0


def test_without_a_gpu_the_gpu_benchmark_says_so_and_stops(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "gpu_name", lambda: None)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 1
    assert "no CUDA GPU here" in capsys.readouterr().out


@pytest.mark.slow
@needs_trl
def test_a_minute_benchmark_measures_both_sides(tmp_path):
    words = "--models nano --works fixed --dtypes float32 --repeats 1 --shrink 8 --peer-microbatch 2"
    result = of_a_minute("dpo", words, tmp_path)
    (case,) = result["cases"]
    assert case["problems"] == []
    assert set(case["runs"]) == {"prefloop", "TRL"}
    for (run,) in case["runs"].values():
        assert (run["num_pairs"], run["num_steps"]) == (4, 1)
        assert run["loss_first"] == pytest.approx(math.log(2), abs=1e-3)
        numbers = [value for value in run.values() if isinstance(value, float)]
        assert all(map(math.isfinite, numbers))
        assert run["seconds"] > 0
    assert all(math.isfinite(row["ratio"]["median"]) for row in result["rows"])


@pytest.mark.slow
def test_both_sides_of_sampling_write_as_many_tokens(tmp_path):
    words = "--models nano --works group --dtypes float32 --repeats 1 --shrink 16"
    result = of_a_minute("generation", words, tmp_path)
    (case,) = result["cases"]
    assert case["problems"] == []
    for (run,) in case["runs"].values():
        assert (run["num_pairs"], run["num_steps"]) == (2 * 8, 8)
        assert run["seconds"] > 0


@pytest.mark.slow
@needs_trl
def test_both_sides_of_reinforcement_take_as_many_steps(tmp_path):
    words = "--models nano --works grpo --dtypes float32 --repeats 1 --shrink 4"
    (case,) = of_a_minute("online", words, tmp_path)["cases"]
    assert case["problems"] == []
    for (run,) in case["runs"].values():
        assert (run["num_pairs"], run["num_steps"]) == (2, 1)
