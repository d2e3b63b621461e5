import importlib.util
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from prefloop import config, tales
from prefloop.config import RuntimeSection, SftSection, TrainingSection
from prefloop.interfaces import InputError, PrefloopError, no_progress
from prefloop.train.loop import Task, batches_of, fit, planned_steps
from prefloop.train.optimizers import make_schedule
from prefloop.train.sft import SftJob, train_sft

POINTS = [(float(x), 2.0 * x + 1.0) for x in range(12)]


def squared_error(model, items):
    inputs = torch.tensor([[x] for x, _ in items])
    targets = torch.tensor([[y] for _, y in items])
    return ((model(inputs) - targets) ** 2).sum(), {"items": torch.tensor(float(len(items)))}


def task_of(loss, items=POINTS, **more):
    return Task(
        items,
        tokens=lambda point: 1,
        count=lambda point: 1.0,
        name=lambda point: f"point {point[0]:g}",
        loss=loss,
        **more,
    )


TASK = task_of(squared_error)


def line() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(1, 1)


def train(
    tmp_path,
    *,
    steps=6,
    runtime=None,
    task=TASK,
    model=None,
    dtype="float32",
    progress=no_progress,
    **options,
):
    model = model or line()
    options = TrainingSection(**{"batch_size": 4, "learning_rate": 0.1, "schedule": "constant", **options})
    stats = fit(
        model,
        task,
        options,
        steps=steps,
        seed=0,
        dtype=dtype,
        runtime=runtime or RuntimeSection(device="cpu"),
        folder=tmp_path,
        progress=progress,
    )
    return model, stats


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(one) for one in (folder / "logs" / "metrics.jsonl").read_text().splitlines()]


def weights(model) -> list[float]:
    return [float(one) for weight in model.parameters() for one in weight.detach().flatten()]


def test_gradient_is_the_same_for_one_and_many_microbatches(tmp_path):
    whole, _ = train(tmp_path / "a", runtime=RuntimeSection(device="cpu", microbatch_tokens=100))
    parts, _ = train(tmp_path / "b", runtime=RuntimeSection(device="cpu", microbatch_tokens=1))
    assert weights(whole) == pytest.approx(weights(parts), rel=1e-5)


def test_the_first_step_is_adamw_on_the_mean_gradient(tmp_path):
    model, _ = train(tmp_path, steps=1, warmup_ratio=0.0, max_grad_norm=1e9)
    before = line()
    # Adam's first update moves every weight by the learning rate against the sign of its gradient
    order = np.random.default_rng([0, 0]).permutation(12).tolist()[:4]
    batch = [POINTS[index] for index in order]
    slope = sum(2 * (before.weight.item() * x + before.bias.item() - y) * x for x, y in batch) / 4
    offset = sum(2 * (before.weight.item() * x + before.bias.item() - y) for x, y in batch) / 4
    expected = [
        before.weight.item() - 0.1 * math.copysign(1, slope),
        before.bias.item() - 0.1 * math.copysign(1, offset),
    ]
    assert weights(model) == pytest.approx(expected, abs=1e-5)


# --- what a killed stage goes on from --------------------------------------------------------------------------------


class Killed(Exception):
    pass


def dying_at(step: int):
    def progress(done, total, note=""):
        if done == step:
            raise Killed

    return progress


@pytest.mark.parametrize("killed_at", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("options", [{}, {"optimizer": "adafactor"}, {"ema_decay": 0.7}], ids=str)
def test_a_killed_stage_ends_in_the_same_weights(tmp_path, killed_at, options):
    uninterrupted, _ = train(tmp_path / "whole", **options)
    runtime = RuntimeSection(device="cpu", save_every_steps=2)
    with pytest.raises(Killed):
        train(tmp_path / "killed", runtime=runtime, progress=dying_at(killed_at), **options)
    resumed, stats = train(tmp_path / "killed", runtime=runtime, **options)
    assert weights(resumed) == weights(uninterrupted)
    assert stats["steps"] == 6
    assert [row["step"] for row in metrics(tmp_path / "killed")] == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "killed" / "checkpoints").exists()


def test_a_kill_within_a_step_or_a_checkpoint_costs_only_what_came_after_the_last_whole_one(tmp_path):
    uninterrupted, _ = train(tmp_path / "whole")

    def dies(model, items):
        dies.calls += 1
        if dies.calls > 5:
            raise Killed
        return squared_error(model, items)

    dies.calls = 0
    runtime = RuntimeSection(device="cpu", save_every_steps=2)
    with pytest.raises(Killed):
        train(tmp_path / "killed", runtime=runtime, task=task_of(dies))
    half = tmp_path / "killed" / "checkpoints" / "step-00000006.tmp"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half a file")
    steps = []
    resumed, _ = train(
        tmp_path / "killed", runtime=runtime, progress=lambda done, total, note="": steps.append(done)
    )
    assert steps == [5, 6]
    assert weights(resumed) == weights(uninterrupted)


class Countdown:
    """Something that changes beside the weights."""

    def __init__(self) -> None:
        self.left = torch.tensor(10.0)

    def after_step(self, model, step) -> None:
        self.left -= step

    def state_dict(self):
        return {"left": self.left}

    def load_state_dict(self, state) -> None:
        self.left = state["left"]


def test_what_else_a_task_keeps_survives_a_kill(tmp_path):
    runtime = RuntimeSection(device="cpu", save_every_steps=2)
    with pytest.raises(Killed):
        one = Countdown()
        task = task_of(squared_error, after_step=one.after_step, kept=[one])
        train(tmp_path, runtime=runtime, task=task, progress=dying_at(3))
    other = Countdown()
    train(tmp_path, runtime=runtime, task=task_of(squared_error, after_step=other.after_step, kept=[other]))
    assert other.left == 10 - (1 + 2 + 3 + 4 + 5 + 6)


LORA = {"rank": 4, "dropout": 0.3}
RESUMED = {
    "bfloat16": (3, "bfloat16", False, {}),
    "lora with dropout, killed before the first checkpoint": (1, "float32", False, {"lora": LORA}),
    "lora with dropout, averaged": (3, "bfloat16", False, {"lora": LORA, "ema_decay": 0.6}),
    "dora, checkpointed": (3, "bfloat16", True, {"lora": {**LORA, "dora": True}}),
    "adafactor, checkpointed": (3, "float32", True, {"optimizer": "adafactor", "frozen_layers": 1}),
    "8 bits": (3, "float32", False, {"optimizer": "adamw_8bit"}),
    "4 bits": (3, "bfloat16", True, {"lora": {**LORA, "quantize": "4bit"}}),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_language_model_ends_in_the_same_bytes(tiny_model, tmp_path, name):
    killed_at, dtype, checkpointing, options = RESUMED[name]
    if "bits" in name:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

    def trained(folder: str, progress=no_progress) -> bytes:
        (tmp_path / folder).mkdir(exist_ok=True)
        job = SftJob(
            start=tiny_model,
            demonstrations=tuple(tales.demonstrations(8)),
            texts=(),
            options=SftSection(
                **{"learning_rate": 1e-3, "batch_size": 4, "epochs": 2, "max_length": 64, **options}
            ),
            dtype=dtype,
            seed=0,
            runtime=RuntimeSection(device="cpu", save_every_steps=2, gradient_checkpointing=checkpointing),
            out=tmp_path / folder,
        )
        train_sft(job, progress)
        return (tmp_path / folder / "model" / "model.safetensors").read_bytes()

    with pytest.raises(Killed):
        trained("killed", dying_at(killed_at))
    torch.manual_seed(killed_at)  # a new process begins with another random state
    assert trained("killed") == trained("whole")


# --- what is not finite ----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_its_rows_and_changes_nothing(tmp_path):
    def broken(model, items):
        loss, metrics = squared_error(model, items)
        return loss * (float("nan") if (5.0, 11.0) in items else 1.0), metrics

    model = line()
    before = weights(model)
    with pytest.raises(
        PrefloopError, match=r"step 1: the loss is nan .* it comes from point 5\. Nothing was changed"
    ):
        train(tmp_path, task=task_of(broken), model=model, batch_size=12)
    assert weights(model) == before


def test_a_gradient_that_is_not_finite_names_its_rows_though_the_loss_is(tmp_path):
    def kinked(model, items):
        loss, metrics = squared_error(model, items)
        # the root is 0 here, and its slope infinite
        flat = sum(torch.sqrt(0 * model.weight.sum()) for item in items if item == (7.0, 15.0))
        return loss + flat, metrics

    model = line()
    before = weights(model)
    with pytest.raises(
        PrefloopError, match=r"step 1: the loss is 1\d\d.* gradient norm nan; it comes from point 7\. N"
    ):
        train(tmp_path, task=task_of(kinked), model=model, batch_size=12)
    assert weights(model) == before


# --- optimisers, schedules, averages ---------------------------------------------------------------------------------


def by_hand(optimizer_of, *, steps=6, after=lambda model: None):
    """The same training in plain torch."""
    model = line()
    optimizer = optimizer_of(model.parameters())
    for items in batches_of(POINTS, TrainingSection(batch_size=4, max_steps=steps), steps=steps, seed=0):
        (squared_error(model, items)[0] / len(items)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        after(model)
    return weights(model)


def test_adafactor_is_torchs_step_by_step(tmp_path):
    found, _ = train(tmp_path, warmup_ratio=0.0, optimizer="adafactor", weight_decay=0.1, max_steps=6)
    assert weights(found) == by_hand(lambda them: torch.optim.Adafactor(them, lr=0.1, weight_decay=0.1))


def test_the_betas_of_adamw_are_used(tmp_path):
    found, _ = train(tmp_path, warmup_ratio=0.0, adam_betas=(0.5, 0.6), max_steps=6)
    expected = by_hand(lambda them: torch.optim.AdamW(them, lr=0.1, betas=(0.5, 0.6), weight_decay=0.0))
    assert weights(found) == pytest.approx(expected, rel=1e-5)
    assert weights(found) != weights(train(tmp_path / "usual", warmup_ratio=0.0, max_steps=6)[0])


def test_eight_bit_adamw_is_that_of_bitsandbytes(tmp_path):
    optim = pytest.importorskip("bitsandbytes.optim", reason="bitsandbytes is not installed")

    def wide() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(64, 64)  # large enough to be held in 8 bits

    data = [tuple(torch.randn(64).tolist()) for _ in range(8)]

    def loss(model, items):
        return (model(torch.tensor(items)) ** 2).sum(), {}

    task = task_of(loss, items=data)
    found, _ = train(
        tmp_path,
        task=task,
        model=wide(),
        steps=4,
        max_steps=4,
        optimizer="adamw_8bit",
        learning_rate=0.01,
        warmup_ratio=0.0,
    )
    model = wide()
    optimizer = optim.AdamW8bit(model.parameters(), lr=0.01, weight_decay=0.0)
    for items in batches_of(data, TrainingSection(batch_size=4, max_steps=4), steps=4, seed=0):
        (loss(model, items)[0] / 4).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert {one["state1"].dtype for one in optimizer.state.values()} == {torch.uint8, torch.float32}
    assert weights(found) == weights(model)


def test_a_missing_bitsandbytes_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"adamw_8bit needs bitsandbytes; pip install 'prefloop\[bitsandbytes\]'"
    ):
        train(tmp_path, optimizer="adamw_8bit")


def test_the_average_is_saved_in_place_of_the_weights(tmp_path):
    average = weights(line())

    def after(model):
        average[:] = [0.75 * old + 0.25 * new for old, new in zip(average, weights(model), strict=True)]

    last = by_hand(lambda them: torch.optim.AdamW(them, lr=0.1, weight_decay=0.0), after=after)
    found, _ = train(tmp_path, warmup_ratio=0.0, ema_decay=0.75, max_steps=6)
    assert weights(found) == pytest.approx(average, rel=1e-5)
    assert weights(found) != pytest.approx(last, rel=1e-2)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("optimizer: adafactor, adam_betas: [0.9, 0.95]", "adam_betas: adafactor has none; leave it out"),
        (
            "schedule: linear, min_learning_rate_ratio: 0.1",
            "min_learning_rate_ratio: linear does not read it",
        ),
        ("adam_betas: [0.9, 1.0]", "Input should be less than 1"),
        ("optimizer: sgd", "Input should be 'adamw', 'adamw_8bit' or 'adafactor'"),
    ],
)
def test_keys_that_nothing_would_read_are_refused(keys, expected):
    with pytest.raises(InputError, match=expected):
        config.parse(
            f"{{prompts: p.jsonl, model: m, reward: {{model: r}}, policy: {{{keys}}}}}", where="x.yaml"
        )


def test_bfloat16_multiplies_in_bfloat16_and_keeps_float32_weights_whatever_came_before(tmp_path):
    seen = []

    def watched(model, items):
        loss, metrics = squared_error(model, items)
        seen.append((model(torch.ones(1, 1)).dtype, model.weight.dtype))
        return loss, metrics

    before_step = []

    def look(model, parts, accelerator):
        before_step.append(model(torch.ones(1, 1)).dtype)

    for dtype in ("float32", "bfloat16", "float32"):
        task = task_of(watched, before_step=look)
        model, _ = train(tmp_path / f"{dtype}-{len(seen)}", steps=1, dtype=dtype, task=task)
        assert model.weight.dtype == torch.float32
    assert seen == [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
    ]
    assert before_step == [torch.float32, torch.bfloat16, torch.float32]


# --- steps -----------------------------------------------------------------------------------------------------------


def test_an_epoch_sees_every_row_once_and_the_last_step_is_shorter():
    options = TrainingSection(batch_size=5, epochs=1)
    batches = list(batches_of(POINTS, options, steps=planned_steps(12, options), seed=0))
    assert [len(batch) for batch in batches] == [5, 5, 2]
    assert sorted(one for batch in batches for one in batch) == POINTS


def test_a_given_number_of_steps_repeats_the_data_in_full_batches():
    options = TrainingSection(batch_size=5, max_steps=6)
    batches = list(batches_of(POINTS, options, steps=6, seed=0))
    assert [len(batch) for batch in batches] == [5] * 6
    seen = [one for batch in batches for one in batch]
    assert sorted(seen[:12]) == sorted(seen[12:24]) == POINTS
    assert seen[:12] != seen[12:24]


@pytest.mark.parametrize(
    ("rows", "epochs", "batch", "steps"), [(100, 2, 128, 2), (20000, 2, 128, 313), (10, 0.5, 2, 3)]
)
def test_planned_steps(rows, epochs, batch, steps):
    assert planned_steps(rows, TrainingSection(epochs=epochs, batch_size=batch)) == steps


def test_warm_up_rises_and_cosine_falls(tmp_path):
    train(tmp_path, steps=10, warmup_ratio=0.2, schedule="cosine")
    rows = [row["train/learning_rate"] for row in metrics(tmp_path)]
    assert rows[:3] == pytest.approx([0.0, 0.05, 0.1])
    # half a cosine over the eight steps that are left
    assert rows[6] == pytest.approx(0.05, abs=1e-6)
    assert all(later < earlier for earlier, later in itertools.pairwise(rows[2:]))


def test_the_cosine_can_end_above_zero(tmp_path):
    train(tmp_path, steps=8, warmup_ratio=0.0, schedule="cosine", min_learning_rate_ratio=0.1)
    rates = [row["train/learning_rate"] for row in metrics(tmp_path)]
    # the peak of 0.1, and 10 % of it: the middle is half-way between, the ninth step would be at the end
    assert rates[0] == pytest.approx(0.1)
    assert rates[4] == pytest.approx(0.055)
    assert rates[7] == pytest.approx(0.01 + 0.09 * (1 + math.cos(7 * math.pi / 8)) / 2)


@pytest.mark.parametrize(
    ("options", "name", "extra"),
    [
        ({"schedule": "constant"}, "constant_with_warmup", {}),
        ({"schedule": "linear"}, "linear", {}),
        ({"schedule": "cosine"}, "cosine", {}),
        ({"schedule": "cosine", "min_learning_rate_ratio": 0.1}, "cosine_with_min_lr", {"min_lr_rate": 0.1}),
    ],
)
@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.25), (7, 0.0), (1, 0.0)])
def test_schedules_are_those_of_transformers(options, name, extra, steps, warmup):
    from transformers import get_scheduler

    def rates(make) -> list[float]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        schedule = make(optimizer)
        found = []
        for _ in range(steps + 1):
            found += schedule.get_last_lr()
            optimizer.step()
            schedule.step()
        return found

    section = TrainingSection(warmup_ratio=warmup, **options)
    theirs = {"num_warmup_steps": math.ceil(warmup * steps), "num_training_steps": steps}
    expected = rates(lambda one: get_scheduler(name, one, **theirs, scheduler_specific_kwargs=extra))
    assert rates(lambda one: make_schedule(one, section, steps=steps)) == pytest.approx(expected, abs=1e-15)


def test_the_only_step_of_a_stage_is_taken_at_the_full_rate():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = make_schedule(optimizer, TrainingSection(warmup_ratio=0.03, schedule="constant"), steps=1)
    assert schedule.get_last_lr() == [0.1]


def test_small_learning_rates_keep_their_digits_in_the_log(tmp_path):
    train(tmp_path, steps=4, warmup_ratio=0.0, schedule="linear", learning_rate=5e-7)
    assert metrics(tmp_path)[1]["train/learning_rate"] == pytest.approx(3.75e-7, rel=1e-6)


def test_keys_that_came_later_leave_artefacts_valid_at_their_usual_values():
    later = {"optimizer", "adam_betas", "min_learning_rate_ratio", "ema_decay", "frozen_layers"}
    assert not later & config.hashed(TrainingSection()).keys()
    assert config.hashed(TrainingSection(adam_betas=(0.9, 0.95)))["adam_betas"] == [0.9, 0.95]
    lora = config.hashed(TrainingSection(lora={"rank": 4}))["lora"]
    assert lora == {"rank": 4, "alpha": 32.0, "dropout": 0.0, "target_modules": "all-linear"}
