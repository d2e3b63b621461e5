"""Exports in the hands of those who read them: `datasets` loads them, TRL trains on them, no column is edited."""

import json
from pathlib import Path
from typing import Any

import pytest

from labels.making import form, pair, prompt, ranking, row
from prefloop.labels.formats.options import ExportOptions
from prefloop.labels.formats.writing import write_export
from prefloop.labels.rows import in_order

pytestmark = pytest.mark.slow
TELL = "Tell me a story about a fox and a bear"
LOSSES = {1.0: 1.3132616875, 2 / 3: 1.0810367535, 1 / 3: 0.8736389080, 0.0: 0.6931471806}
"""log(1 + exp(margin)): what a reward model that knows nothing pays for a pair."""


def judged() -> list:
    """Four comparisons with all margins, and enough of every other kind for two steps."""
    rows = [
        pair(strength, prompt=f"{TELL} {strength}", texts=("A fox ran.", "A bear sat still."))
        for strength in (1, 7, 3, 5)
    ]
    rows.append(
        pair(None, choice="both_bad", prompt=prompt("Hello", "Hi.", "More?"), texts=("No.", "Never."))
    )
    rows += [
        form(f"Story {place}.", {"overall": 1 + 6 * (place % 2)}, prompt=f"Rate {place}")
        for place in range(4)
    ]
    rows += [row("demonstration", {"text": f"So {place}."}, prompt=f"Show {place}") for place in range(3)]
    rows.append(ranking([[1], [0, 2]], "x y", "z", "w", prompt="Rank"))
    value = {"labels": ["correct", "incorrect"], "choice": "a", "strength": 1}
    rows.append(row("steps", value, "One.\nTwo.", "One.\nThree.", prompt="Count"))
    return in_order(rows)


def loaded(format: str, folder: Path, suffix: str = ".jsonl", rows: list | None = None, **options: Any):
    """The export, as `datasets` opens it."""
    import datasets

    out = folder / f"out{suffix}"
    write_export(judged() if rows is None else rows, format, out, ExportOptions(**options))
    kind = "parquet" if suffix == ".parquet" else "json"
    return datasets.load_dataset(kind, data_files=str(out), split="train", cache_dir=str(folder / "cache"))


def arguments(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "run"),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "max_length": 128,
        "use_cpu": True,
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    } | more  # fmt: skip


def policy(folder: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def losses(trainer: Any) -> list[float]:
    """Of both steps."""
    trainer.train()
    told = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(told) == 2
    return told


def reward_losses(data: Any, tiny: Path, folder: Path, **more: Any) -> list[float]:
    """Of two steps from a head that scores everything 0."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    model = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1, dtype=torch.float32)
    torch.nn.init.zeros_(model.score.weight)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model.config.pad_token_id = tokenizer.pad_token_id
    options = RewardConfig(**arguments(folder, **more))
    return losses(RewardTrainer(model=model, args=options, train_dataset=data, processing_class=tokenizer))


PAIRS = ("trl-preference", "trl-preference-implicit", "soft-pref", "hh-rlhf", "llama2-margin")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("format", PAIRS)
def test_trl_trains_a_reward_model_on_pairs(tmp_path: Path, tiny_model: Path, format: str, suffix: str):
    data = loaded(format, tmp_path, suffix)
    assert all(loss > 0 for loss in reward_losses(data, tiny_model, tmp_path))


@pytest.mark.parametrize("format", PAIRS)
def test_trl_trains_a_policy_on_pairs(tmp_path: Path, tiny_model: Path, format: str):
    from trl import DPOConfig, DPOTrainer

    data = loaded(format, tmp_path)
    model, tokenizer = policy(tiny_model)
    options = DPOConfig(**arguments(tmp_path))
    first, _ = losses(DPOTrainer(model=model, args=options, train_dataset=data, processing_class=tokenizer))
    # before the first step the policy is its reference
    assert first == pytest.approx(0.6931, abs=2e-4)


def test_trl_trains_a_policy_on_labelled_completions(tmp_path: Path, tiny_model: Path):
    from trl import KTOConfig, KTOTrainer

    data = loaded("trl-unpaired", tmp_path)
    assert sorted(data["label"]) == [False] * 4 + [True] * 2
    model, tokenizer = policy(tiny_model)
    options = KTOConfig(**arguments(tmp_path))
    first, _ = losses(KTOTrainer(model=model, args=options, train_dataset=data, processing_class=tokenizer))
    # 1 - sigmoid(0), before the first step
    assert first == pytest.approx(0.5, abs=2e-4)


def test_trl_trains_a_policy_on_demonstrations(tmp_path: Path, tiny_model: Path):
    from trl import SFTConfig, SFTTrainer

    data = loaded("sft", tmp_path)
    model, tokenizer = policy(tiny_model)
    options = SFTConfig(**arguments(tmp_path))
    trainer = SFTTrainer(model=model, args=options, train_dataset=data, processing_class=tokenizer)
    assert all(loss > 0 for loss in losses(trainer))


def test_steps_and_prompts_have_the_columns_that_trl_documents(tmp_path: Path):
    steps = loaded("trl-stepwise", tmp_path)
    assert steps.column_names == ["prompt", "completions", "labels"]
    assert [list(one["labels"]) for one in steps] == [[True], [False]]
    prompts = loaded("trl-prompt", tmp_path)
    assert prompts.column_names == ["prompt"]
    assert prompts[0]["prompt"][-1]["role"] == "user"


@pytest.mark.parametrize("format", ["trl-preference", "trl-preference-implicit", "llama2-margin"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_trl_uses_the_margin(tmp_path: Path, tiny_model: Path, format: str, suffix: str):
    rows = [one for one in judged() if one.task_kind == "pairwise" and one.value["strength"]]
    data = loaded(format, tmp_path, suffix, rows)
    assert sorted(data["margin"]) == pytest.approx(sorted(LOSSES))
    first, _ = reward_losses(data, tiny_model, tmp_path, per_device_train_batch_size=4)
    assert first == pytest.approx(sum(LOSSES.values()) / 4, abs=2e-4)


def test_trl_without_a_margin_pays_log_two(tmp_path: Path, tiny_model: Path):
    data = loaded("trl-preference", tmp_path, margins=None)
    first, _ = reward_losses(data, tiny_model, tmp_path)
    assert first == pytest.approx(0.6931, abs=2e-4)


@pytest.mark.parametrize(
    "format",
    [
        "ultrafeedback",
        "ultrafeedback-binarized",
        "hh-redteam",
        "judgements-raw",
        "pairs",
        "judgements",
        "argilla",
        "labelstudio",
    ],
)
def test_datasets_opens_what_is_not_for_trl(tmp_path: Path, format: str):
    rows = judged()
    attack = {"levels": {"rule": "unsure"}, "attack": {"success": 2, "harm": 1, "actionability": 1}}
    if format == "hh-redteam":
        rows = [row("rules", attack, "No.")]
    elif format in ("argilla", "labelstudio"):
        rows = [one for one in rows if one.task_kind == "pairwise"]
    data = loaded(format, tmp_path, rows=rows)
    manifest = json.loads((tmp_path / "out.manifest.json").read_text())
    assert len(data) == manifest["records"] > 0
