"""Training spread over processes: the same steps, the same checkpoints, and a whole model at the end."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from transformers import AutoModelForCausalLM

from prefloop import tales
from prefloop.config import PolicySection, RuntimeSection, SftSection, TrainingSection
from prefloop.forward import LogpsModule
from prefloop.interfaces import InputError, PrefloopError, no_progress
from prefloop.launch import processes, run_job, zero_settings
from prefloop.modeling import load_policy
from prefloop.records import Message, PreferencePair, Prompt, file_completion
from prefloop.train.loop import Task, fit
from prefloop.train.preference import PolicyJob, train_policy
from prefloop.train.sft import SftJob, train_sft
from prefloop.train.sharding import spread

STEPS, KILLED_AT, SAVED_AT = 6, 3, 2
ONE = RuntimeSection(device="cpu", threads=1, save_every_steps=SAVED_AT)
DDP = ONE.model_copy(update={"num_processes": 2, "microbatch_tokens": 256})
FSDP = DDP.model_copy(update={"sharding": "fsdp"})


class Killed(Exception):
    pass


@dataclass(frozen=True)
class Cases:
    """Several training jobs for the same processes; those with a step stop there, before it is saved."""

    jobs: tuple[tuple[SftJob | PolicyJob, int | None], ...]


def run_cases(cases: Cases, progress) -> dict[str, int]:
    for number, (job, last_step) in enumerate(cases.jobs, 1):

        def stop(done, total, note="", last_step=last_step):
            if done == last_step:
                raise Killed

        try:
            train_sft(job, stop) if isinstance(job, SftJob) else train_policy(job, stop)
        except Killed:
            assert last_step is not None
        progress(number, len(cases.jobs), "jobs")
    return {"threads": torch.get_num_threads(), "processes": processes(ONE).num_processes}


def sft_job(tiny_model: Path, out: Path, runtime: RuntimeSection, **options) -> SftJob:
    out.mkdir(exist_ok=True)
    usual = {"learning_rate": 1e-3, "batch_size": 5, "epochs": 2.5, "max_length": 128, "ema_decay": 0.8}
    return SftJob(
        start=tiny_model,
        demonstrations=tuple(tales.demonstrations(12)),
        texts=(),
        options=SftSection(**{**usual, **options}),
        dtype="float32",
        seed=0,
        runtime=runtime,
        out=out,
    )


def policy_job(tiny_model: Path, out: Path, runtime: RuntimeSection, **options) -> PolicyJob:
    """Seven pairs in steps of three: one of two processes has nothing to do in the last step."""
    out.mkdir(exist_ok=True)
    prompts = [Prompt.of((Message(role="user", content=f"A tale of map {number}."),)) for number in range(7)]
    pairs = [
        PreferencePair.of(
            prompt,
            file_completion(prompt, "Ada the fox smiled.", 0),
            file_completion(prompt, "It rained all day in the mud.", 1),
            margin=1.0,
            annotator="test",
        )
        for prompt in prompts
    ]
    return PolicyJob(
        start=tiny_model,
        reference=tiny_model,
        pairs=tuple(pairs),
        validation=(),
        options=PolicySection(**{"learning_rate": 1e-3, "batch_size": 3, "epochs": 1, **options}),
        steps=None,
        dtype="float32",
        seed=0,
        runtime=runtime,
        out=out,
    )


def losses(folder: Path) -> list[float]:
    rows = [json.loads(one) for one in (folder / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["train/loss"] for row in rows]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory) -> Path:
    """Folders of runs in one and two processes: whole, killed and continued, and continued elsewhere."""
    root = tmp_path_factory.mktemp("runs")

    def case(name: str, runtime: RuntimeSection, last_step: int | None = None) -> tuple[SftJob, int | None]:
        return sft_job(tiny_model, root / name, runtime), last_step

    def others(runtime: RuntimeSection) -> list[tuple[SftJob | PolicyJob, int | None]]:
        name = "one" if runtime is ONE else "ddp" if runtime is DDP else "fsdp"
        one_by_one = runtime.model_copy(update={"microbatch_tokens": 1})
        lora = {"lora": {"rank": 4}, "frozen_layers": 1}
        checkpointed = runtime.model_copy(update={"gradient_checkpointing": True})
        return [
            (sft_job(tiny_model, root / f"lora-{name}", checkpointed, **lora), None),
            (policy_job(tiny_model, root / f"kto-{name}", one_by_one, objective={"kind": "kto"}), None),
            (policy_job(tiny_model, root / f"sync-{name}", one_by_one, reference_sync={"weight": 0.3}), None),
        ]

    first = (case("one", ONE), case("one-then-ddp", ONE, KILLED_AT), *others(ONE))
    run_cases(Cases(first), no_progress)
    shutil.copytree(root / "one-then-ddp", root / "one-then-fsdp")
    several = [*others(DDP), *others(FSDP)]
    for name, runtime in (("ddp", DDP), ("fsdp", FSDP)):
        several += [
            case(name, runtime),
            case(f"{name}-again", runtime, KILLED_AT),
            case(f"{name}-again", runtime),
        ]
        several += [case(f"{name}-then-one", runtime, KILLED_AT), case(f"one-then-{name}", runtime)]
    told = []
    found = run_job(run_cases, Cases(tuple(several)), DDP, lambda *news: told.append(news))
    assert found == {"threads": 1, "processes": 2}
    assert told == [(number, 16, "jobs") for number in range(1, 17)]
    run_cases(Cases((case("ddp-then-one", ONE), case("fsdp-then-one", ONE))), no_progress)
    return root


ALL = ["ddp", "fsdp", "one-then-ddp", "one-then-fsdp", "ddp-then-one", "fsdp-then-one"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_losses_are_those_of_one_process(runs, name):
    assert len(losses(runs / name)) == STEPS
    assert losses(runs / name) == pytest.approx(losses(runs / "one"), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_the_average_that_is_saved_is_that_of_one_process(runs, name):
    one, other = weights(runs / "one"), weights(runs / name)
    assert one.keys() == other.keys()
    for key, weight in one.items():
        torch.testing.assert_close(other[key], weight, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_a_killed_run_in_two_processes_ends_in_the_same_bytes(runs, name):
    whole, again = (runs / one / "model" / "model.safetensors" for one in (name, f"{name}-again"))
    assert whole.read_bytes() == again.read_bytes()


@pytest.mark.slow
def test_a_sharded_model_is_saved_whole_with_tied_embeddings(runs):
    model, whole = (AutoModelForCausalLM.from_pretrained(runs / name / "model") for name in ("fsdp", "one"))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert [one.shape for one in model.parameters()] == [one.shape for one in whole.parameters()]
    files = {one.name for one in (runs / "fsdp" / "model").iterdir()}
    assert files == {one.name for one in (runs / "one" / "model").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("spread", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", ["lora", "kto", "sync"])
def test_adapters_whole_steps_and_moving_references_are_those_of_one_process(runs, kind, spread):
    assert losses(runs / f"{kind}-{spread}") == pytest.approx(losses(runs / f"{kind}-one"), abs=1e-5)
    assert weights(runs / f"{kind}-{spread}").keys() == weights(runs / f"{kind}-one").keys()


# --- errors and uneven steps -----------------------------------------------------------------------------------------

POINTS = tuple((float(x), 2.0 * x + 1.0) for x in range(7))


@dataclass(frozen=True)
class LineJob:
    """A straight line through points; those in `broken` have no loss."""

    out: Path
    broken: tuple[float, ...] = ()
    flat: tuple[float, ...] = ()
    """Points whose loss is finite and whose gradient is not."""


def train_line(job: LineJob, progress) -> dict[str, float]:
    def loss(model, items):
        inputs, targets = (torch.tensor([[point[column]] for point in items]) for column in (0, 1))
        found = ((model(inputs) - targets) ** 2).sum()
        if any(x in job.broken for x, _ in items):
            found = found * float("nan")
        if any(x in job.flat for x, _ in items):
            found = found + torch.sqrt(0 * model(inputs).sum())
        return found, {"points": torch.tensor(float(len(items)))}

    def before_step(model, parts, accelerator):
        with torch.no_grad():
            mine = [loss(model, part)[0].item() for part in parts]
        assert sum(len(part) for part in parts) <= 2
        seen.append(sum(gather_object(mine)))

    seen: list[float] = []
    torch.manual_seed(0)
    task = Task(
        POINTS,
        tokens=lambda point: 1,
        count=lambda point: 1.0,
        name=lambda point: f"point {point[0]:g}",
        loss=loss,
        before_step=before_step if processes(ONE).num_processes > 1 else None,
    )
    options = TrainingSection(batch_size=3, learning_rate=0.1, epochs=1)
    runtime = RuntimeSection(device="cpu", microbatch_tokens=1)
    stats = fit(
        nn.Linear(1, 1),
        task,
        options,
        steps=3,
        seed=0,
        dtype="float32",
        runtime=runtime,
        folder=job.out,
        progress=progress,
    )
    return stats | {"seen": seen}


def shares(folder: Path) -> tuple[float, float]:
    """Which part of the weights each process holds when they are sharded: for training, and in the model given."""
    module = LogpsModule(load_policy(folder, ONE), pad_id=0, runtime=ONE)
    number = sum(weight.numel() for weight in module.parameters())
    held = spread(module, SftSection(), Accelerator(cpu=True), FSDP).weights.values()
    left = sum(weight.numel() for weight in module.parameters())
    return sum(weight.to_local().numel() for weight in held) / number, left / number


def run_lines(job: LineJob, progress) -> dict[str, float]:
    """First two runs that are caught here, in every process; then one whose error is for the caller."""
    stats = train_line(LineJob(job.out / "fine"), progress)
    assert [3 * one for one in losses(job.out / "fine")][:2] == pytest.approx(stats["seen"][:2], rel=1e-5)
    with pytest.raises(
        PrefloopError, match=r"gradient norm nan; it comes from point 4\. Nothing was changed"
    ):
        train_line(LineJob(job.out / "flat", flat=(4.0,)), progress)
    assert shares(job.out / "model") == pytest.approx((0.5, 0.0), abs=0.01)
    for options in ({"optimizer": "adafactor"}, {"lora": {"rank": 2, "quantize": "4bit"}}):
        with pytest.raises(InputError, match="runtime.sharding: fsdp: .*, or do not shard"):
            train_sft(sft_job(job.out / "model", job.out / "refused", FSDP, **options), progress)
    return train_line(LineJob(job.out / "broken", broken=(2.0, 5.0)), progress)


@pytest.mark.slow
def test_steps_with_fewer_rows_than_processes_shards_and_errors_of_all_processes(tiny_model, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    shutil.copytree(tiny_model, tmp_path / "model")
    with pytest.raises(PrefloopError, match=r"step \d: the loss is nan .* it comes from point \d") as error:
        run_job(run_lines, LineJob(tmp_path), DDP, no_progress)
    assert not isinstance(error.value, InputError)
    train_line(LineJob(tmp_path / "one"), no_progress)
    # seven points in steps of three: one process has nothing to do in the last
    assert losses(tmp_path / "fine") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


def stopped(job: LineJob, progress) -> dict[str, float]:
    raise {0: InputError, 1: ValueError}[len(job.broken)]("pairs.jsonl line 17")


@pytest.mark.slow
def test_an_error_of_the_job_keeps_its_kind_and_any_other_is_named(tmp_path):
    alone = DDP.model_copy(update={"num_processes": 2})
    with pytest.raises(InputError, match=r"^pairs\.jsonl line 17$"):
        run_job(stopped, LineJob(tmp_path), alone, no_progress)
    with pytest.raises(PrefloopError, match=r"^a training process failed: ValueError: pairs\.jsonl line 17$"):
        run_job(stopped, LineJob(tmp_path, broken=(1.0,)), alone, no_progress)


# --- DeepSpeed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "not a readable JSON file"),
        ("{", "not a readable JSON file"),
        ('{"zero_optimization": 2}', "has no section `zero_optimization`"),
        (
            '{"zero_optimization": {"stage": 2}, "optimizer": {"type": "Adam"}}',
            "optimizer is decided by the stage's `optimizer`; leave it out",
        ),
        ('{"zero_optimization": {}, "bf16": {"enabled": true}}', "bf16 is decided by model.dtype"),
    ],
)
def test_settings_of_deepspeed_that_cannot_be_followed_are_refused(tmp_path, monkeypatch, content, expected):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    path = tmp_path / "zero.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=expected):
        zero_settings(str(path))


def test_settings_of_deepspeed_lose_what_is_left_to_others(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    path = tmp_path / "zero.json"
    path.write_text(
        '{"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}, "bf16": {"enabled": "auto"}}'
    )
    assert zero_settings(str(path)) == {"zero_optimization": {"stage": 3}}


def test_a_missing_deepspeed_is_named_before_anything_starts(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'prefloop\[deepspeed\]', or use sharding: fsdp"):
        run_job(stopped, LineJob(tmp_path), ONE.model_copy(update={"deepspeed": "zero.json"}), no_progress)


def test_deepspeed_and_sharding_exclude_each_other():
    with pytest.raises(ValueError, match="deepspeed: takes the place of sharding; keep one of the two"):
        RuntimeSection(deepspeed="zero.json", sharding="fsdp")


@pytest.mark.slow
@pytest.mark.deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_takes_the_steps_of_one_process_and_its_checkpoints_serve_one(tiny_model, tmp_path, stage):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    zero = DDP.model_copy(update={"deepspeed": str(path)})

    def case(name: str, runtime: RuntimeSection, last_step: int | None = None) -> tuple[SftJob, int | None]:
        return sft_job(tiny_model, tmp_path / name, runtime, ema_decay=None), last_step

    run_cases(Cases((case("one", ONE), case("one-then-zero", ONE, KILLED_AT))), no_progress)
    several = (case("zero", zero), case("zero-then-one", zero, KILLED_AT), case("one-then-zero", zero))
    run_job(run_cases, Cases(several), zero, no_progress)
    run_cases(Cases((case("zero-then-one", ONE),)), no_progress)
    for name in ("zero", "zero-then-one", "one-then-zero"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    one, other = weights(tmp_path / "one"), weights(tmp_path / "zero")
    assert one.keys() == other.keys()
    for key, weight in one.items():
        torch.testing.assert_close(other[key], weight, rtol=0, atol=1e-4)
