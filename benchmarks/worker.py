"""The fresh process of one run: reads what to do from a JSON file, does it, and writes what came out to another.

Before the work is measured, the same stage runs on a model of a few weights, so that no import is part of the figures.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from benchmarks import build, machine
from benchmarks.cases import Case, Data, Measured, Side
from benchmarks.settings import Folders
from benchmarks.shapes import SHAPES

WARM_UP = "nano"


def main() -> None:
    """`python -m benchmarks.worker SPEC RESULT`."""
    spec, result = (Path(one) for one in sys.argv[1:3])
    result.write_text(json.dumps(perform(**json.loads(spec.read_text()))))


def perform(job: str, **options: Any) -> dict[str, Any]:
    """One job of the three."""
    torch.set_num_threads(options.pop("threads"))
    match job:
        case "build":
            build.build(options["model"], options["kind"], Path(options["folder"]))
            return {}
        case "rates":
            return machine.matmul_rates(options["device"], options["dtypes"], options["trials"])
        case _:
            case = options["case"]
            case = Case(**case | {"data": Data(**case["data"])})
            folders = {name: Path(one) for name, one in options["folders"].items()}
            return asdict(measure(case, Side(**options["side"]), folders, torch.get_num_threads()))


def measure(case: Case, side: Side, folders: dict[str, Path], threads: int) -> Measured:
    """Time, memory, losses and dtypes of a case; `folders` has the models of the case, of the warm-up, and the output."""
    match side.framework:
        case "prefloop":
            from benchmarks.prefloop_side import run
        case "trl":
            from benchmarks.trl_side import run
        case "transformers":
            from benchmarks.transformers_side import run
        case "continuous_batching":
            from benchmarks.transformers_side import run_batched as run
        case "vllm":
            from benchmarks.vllm_side import run
    small = replace(
        case,
        model=WARM_UP,
        rl={key: value for key, value in case.rl.items() if key != "frozen_layers"},  # it has but one layer
        data=replace(case.data, num_prompts=case.prompts_per_step, prompt_length=8, completion_length=8),
    )
    with dtypes_of_first_linear() as dtypes:
        if side.framework != "vllm":  # which warms itself up, and has no kernels for so small a model
            run(small, side, _folders(folders["warm_up"], folders["out"] / "warm_up"), threads)
    before = machine.reset_peak()
    done = run(case, side, _folders(folders["models"], folders["out"] / "run"), threads)
    growth = machine.peak_mb() - before - SHAPES[case.model].weights * torch.float32.itemsize / 1e6
    steps = machine.total(*done.parts.values())
    clock = "cpu" if case.device == "cpu" and threads == 1 else "wall"
    return Measured(
        whole_s=done.whole.wall,
        steps_s=steps.wall,
        steps_cpu_s=steps.cpu,
        seconds=getattr(steps, clock),
        parts={name: getattr(part, clock) for name, part in done.parts.items()},
        train_s=done.train_s,
        num_pairs=done.num_pairs,
        num_steps=done.num_steps,
        loss_first=done.loss_first,
        loss_last=done.loss_last,
        picks=done.picks,
        peak_growth_mb=growth,
        weights_dtype=dtypes.get("weights", "unknown"),
        activations_dtype=dtypes.get("activations", "unknown"),
    )


def _folders(models: Path, out: Path) -> Folders:
    out.mkdir(parents=True)
    return Folders(models / "policy", models / "reward_model", out)


@contextmanager
def dtypes_of_first_linear() -> Iterator[dict[str, str]]:
    """Notes the dtypes of the weights and outputs of the first linear layer that trains."""
    seen: dict[str, str] = {}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Linear) and torch.is_grad_enabled() and not seen:
            seen["weights"] = str(module.weight.dtype).removeprefix("torch.")
            seen["activations"] = str(output.dtype).removeprefix("torch.")

    hook = register_module_forward_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


if __name__ == "__main__":
    main()
