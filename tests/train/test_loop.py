import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from prefloop.config import RuntimeSection, TrainingSection
from prefloop.interfaces import PrefloopError, no_progress
from prefloop.train.loop import Task, batches_of, fit, planned_steps

POINTS = [(float(x), 2.0 * x + 1.0) for x in range(12)]


def squared_error(model, items):
    inputs = torch.tensor([[x] for x, _ in items])
    targets = torch.tensor([[y] for _, y in items])
    return ((model(inputs) - targets) ** 2).sum(), {"items": torch.tensor(float(len(items)))}


def task_of(loss, items=POINTS):
    return Task(
        items,
        tokens=lambda point: 1,
        count=lambda point: 1.0,
        name=lambda point: f"point {point[0]:g}",
        loss=loss,
    )


TASK = task_of(squared_error)


def line() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(1, 1)


def train(tmp_path, *, steps=6, runtime=None, task=TASK, model=None, **options):
    model = model or line()
    options = TrainingSection(**{"batch_size": 4, "learning_rate": 0.1, "schedule": "constant", **options})
    stats = fit(
        model,
        task,
        options,
        steps=steps,
        seed=0,
        dtype="float32",
        runtime=runtime or RuntimeSection(device="cpu"),
        folder=tmp_path,
        progress=no_progress,
    )
    return model, stats


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


@pytest.mark.parametrize("killed_after", [1, 2, 3, 5])
def test_a_killed_stage_ends_in_the_same_weights(tmp_path, killed_after):
    uninterrupted, _ = train(tmp_path / "whole")

    class Killed(Exception):
        pass

    def dies(model, items):
        dies.calls += 1
        if dies.calls > killed_after:
            raise Killed
        return squared_error(model, items)

    dies.calls = 0
    runtime = RuntimeSection(device="cpu", save_every_steps=2)
    with pytest.raises(Killed):
        train(
            tmp_path / "killed",
            runtime=runtime,
            task=task_of(dies),
        )
    resumed, stats = train(tmp_path / "killed", runtime=runtime)
    assert weights(resumed) == weights(uninterrupted)
    assert stats["steps"] == 6
    rows = [
        json.loads(line) for line in (tmp_path / "killed" / "logs" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


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
    rows = [
        json.loads(one)["train/learning_rate"]
        for one in (tmp_path / "logs" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows[:3] == pytest.approx([0.0, 0.05, 0.1])
    # half a cosine over the eight steps that are left
    assert rows[6] == pytest.approx(0.05, abs=1e-6)
    assert all(later < earlier for earlier, later in itertools.pairwise(rows[2:]))
