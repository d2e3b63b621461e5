"""What every benchmark shares: options, fresh alternating processes, checks that sides did the same work, results.

The script's own process stays light; models are built and runs are made in processes of `benchmarks.worker`.
"""

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.cases import Case, Data, Dtype, Measured, Side
from benchmarks.rows import HEADER, PREFLOOP, Row, Runs

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
"""What spares a process on Linux a page fault per 4 KiB of every large tensor; prefloop sets it for itself."""
QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
MICROBATCHES = (1, 2, 4, 8)
"""Microbatches that are tried to find the peer's best."""
LOSS_TOLERANCE = 1e-3
SHORTEST_LENGTH = 8
MINE = Side(PREFLOOP, "prefloop")
TRL_MICROBATCH = 8
"""What its `per_device_train_batch_size` is when nothing is set."""
WIDTH = 140
"""Columns of what is printed to a file."""
console = Console(soft_wrap=True) if sys.stdout.isatty() else Console(soft_wrap=True, width=WIDTH)


@dataclass(frozen=True)
class Options:
    """What a benchmark's command line asks for."""

    repeats: int
    threads: int
    shrink: int
    models: list[str]
    dtypes: list[Dtype]
    microbatch_tokens: int
    peer_microbatch: int
    peer_env: bool
    works: list[str]
    results: Path

    def environment(self) -> dict[str, str]:
        """Variables of the peer's processes."""
        return MALLOC if self.peer_env else {}

    def data(self, num_prompts: int, prompt_length: int, completion_length: int, **more: Any) -> Data:
        """Data of the sizes asked for, all divided by `shrink`."""

        def shrunk(size: int, least: int) -> int:
            return max(min(size, least), size // self.shrink)

        return Data(
            shrunk(num_prompts, 2),
            shrunk(prompt_length, SHORTEST_LENGTH),
            shrunk(completion_length, SHORTEST_LENGTH),
            **more,
        )


def parse(
    doc: str | None,
    *,
    works: Sequence[str],
    models: Sequence[str] = ("tiny",),
    dtypes: Sequence[Dtype] = ("float32", "bfloat16"),
) -> Options:
    """The options on the command line; `works` are the names of what the benchmark can measure."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side, alternating")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each side")
    parser.add_argument(
        "--models",
        nargs="+",
        default=list(models),
        help="shapes of benchmarks/shapes.py; left out: the benchmark's own",
    )
    parser.add_argument("--dtypes", nargs="+", default=list(dtypes), choices=["float32", "bfloat16"])
    parser.add_argument("--works", nargs="+", default=list(works), choices=works, help="what to measure")
    parser.add_argument(
        "--shrink", type=int, default=1, help="divide all sizes by this, to try a benchmark out"
    )
    parser.add_argument(
        "--microbatch-tokens",
        type=int,
        default=0,
        help="prefloop's runtime.microbatch_tokens; 0: its default",
    )
    parser.add_argument(
        "--peer-microbatch", type=int, default=0, help="pairs; 0 tries several, takes the fastest"
    )
    parser.add_argument("--peer-env", action="store_true", help="always give TRL its best malloc settings")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files and plots")
    return Options(**vars(parser.parse_args()))


class Bench:
    """One benchmark under way: its models, made once in a temporary folder, and the results so far."""

    def __init__(self, name: str, options: Options, *, device: str = "cpu") -> None:
        self.name = name
        self.options = options
        self.device = device
        self.rows: list[Row] = []
        self._cases: list[dict[str, Any]] = []
        self._temporary = tempfile.TemporaryDirectory(prefix="prefloop-benchmark-")
        self._folder = Path(self._temporary.name)
        self._number = 0
        self._description = machine.description()
        trials = max(1, machine.RATE_TRIALS // options.shrink)
        self.rates = self._job("rates", device=device, dtypes=options.dtypes, trials=trials)

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

    def compare(self, case: Case, peers: Sequence[Side]) -> Runs:
        """Runs prefloop and its peers in turn, `repeats` times; notes where they did not do the same work."""
        console.print(f"[bold]{self.name}: {case.name}[/bold]")
        sides = [
            replace(MINE, microbatch=self.options.microbatch_tokens),
            *(self._with_best_microbatch(case, side) for side in peers),
        ]
        runs: Runs = {side.label: [] for side in sides}
        for _ in range(self.options.repeats):
            for side in sides:
                run = self._run(case, side)
                runs[side.label].append(run)
                console.print(_line(side, run))
        problems = different_work(case, runs)
        for problem in problems:
            console.print(f"  [red]not the same work: {problem}[/red]")
        self._cases.append(
            {
                "case": asdict(case),
                "sides": [asdict(side) for side in sides],
                "runs": {label: [asdict(one) for one in repeats] for label, repeats in runs.items()},
                "problems": problems,
            }
        )
        return runs

    def finish(self, **more: Any) -> None:
        """Prints the rows and writes the results file."""
        result = {
            "benchmark": self.name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", "-m", f"benchmarks.{self.name}", *sys.argv[1:]]),
            "threads": self.options.threads,
            "repeats": self.options.repeats,
            **self._description,
            "matmul_gflops": self.rates,
            "rows": [row.to_json() for row in self.rows],
            "cases": self._cases,
            **more,
        }
        self.options.results.mkdir(parents=True, exist_ok=True)
        target = self.options.results / f"{self.name}.json"
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        show(f"{self.name}: {self._description['cpu']}, {self.options.threads} threads", self.rows)
        console.print(f"wrote {target}")

    def _with_best_microbatch(self, case: Case, side: Side) -> Side:
        """The peer with the microbatch asked for, or the one that is fastest over one optimiser step."""
        if side.microbatch:
            return side
        if self.options.peer_microbatch:
            return replace(side, microbatch=self.options.peer_microbatch)
        one_step = replace(case, epochs=1, data=replace(case.data, num_prompts=case.prompts_per_step))
        fits = [size for size in MICROBATCHES if case.pairs_per_step % size == 0]
        seconds: dict[int, float] = {}
        for size in fits:
            try:
                seconds[size] = self._run(one_step, replace(side, microbatch=size)).seconds
            except subprocess.CalledProcessError:
                console.print(f"  {side.label}: microbatch {size} fails")
        tried = ", ".join(f"{size}: {taken:.2f} s" for size, taken in seconds.items())
        console.print(f"  {side.label}: one step by microbatch: {tried}")
        return replace(side, microbatch=min(seconds, key=seconds.__getitem__))

    def _run(self, case: Case, side: Side) -> Measured:
        with tempfile.TemporaryDirectory(dir=self._folder) as out:
            judged = case.task == "iteration" or case.scored_by_model
            kinds = ("policy", "reward_model") if judged else ("policy",)
            folders = {
                "models": self.models(case.model, kinds),
                "warm_up": self.models("nano", kinds),
                "out": out,
            }
            return Measured(
                **self._job(
                    "measure",
                    environment=side.environment,
                    case=asdict(case),
                    side=asdict(side),
                    folders={name: str(path) for name, path in folders.items()},
                )
            )

    def models(self, name: str, kinds: Sequence[str]) -> Path:
        """The folder with the models of a shape, made at the first need."""
        folder = self._folder / "models" / name
        for kind in kinds:
            if not (folder / kind).exists():
                self._job("build", model=name, kind=kind, folder=str(folder / kind))
        return folder

    def _job(self, job: str, *, environment: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
        """A job in a fresh process; its output goes to a log that is shown when it fails."""
        self._number += 1
        spec, result, log = (self._folder / f"{self._number}.{end}" for end in ("spec", "result", "log"))
        threads = str(self.options.threads)
        spec.write_text(json.dumps({"job": job, "threads": self.options.threads, **options}))
        variables = os.environ | QUIET | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        command = [sys.executable, "-m", "benchmarks.worker", str(spec), str(result)]
        with log.open("w") as output:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=variables | (environment or {}),
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            console.print(log.read_text()[-4000:], markup=False)
            raise subprocess.CalledProcessError(done.returncode, command)
        return json.loads(result.read_text())


def trl_defaults(case: Case, options: Options) -> Side:
    """TRL as it is when nothing is set, but for the size of a step."""
    return Side(
        "TRL, defaults",
        "trl",
        microbatch=min(TRL_MICROBATCH, case.pairs_per_step),
        gradient_checkpointing=True,
        precomputed_reference=False,
        environment=options.environment(),
    )


def different_work(case: Case, runs: Runs) -> list[str]:
    """Where a side did not do what the case says, or what the other side did."""
    expected = runs[PREFLOOP][0]
    problems = []
    for label, repeats in runs.items():
        run = repeats[0]
        if (run.num_pairs, run.num_steps) != (case.num_pairs, case.num_steps):
            problems.append(
                f"{label}: {run.num_pairs} pairs in {run.num_steps} steps, not {case.num_pairs} in {case.num_steps}"
            )
        if case.task == "generate":
            continue
        if not abs(run.loss_first - expected.loss_first) <= LOSS_TOLERANCE:
            problems.append(
                f"{label}: first loss {run.loss_first:.4f}, {PREFLOOP} has {expected.loss_first:.4f}"
            )
        if (run.weights_dtype, run.activations_dtype) != ("float32", case.dtype):
            problems.append(f"{label}: {run.weights_dtype} weights, {run.activations_dtype} activations")
    return problems


def show(title: str, rows: Sequence[Row]) -> None:
    """Prints rows as a table, the name of each work once."""
    table = Table(*HEADER[1:], title=title)
    for work, of_work in itertools.groupby(rows, key=lambda row: row.work):
        table.add_section()
        table.add_row(f"[bold]{work}[/bold]")
        for row in of_work:
            table.add_row(*row.cells[1:])
    console.print(table)


def _line(side: Side, run: Measured) -> str:
    return (
        f"  {side.label}: steps {run.steps_s:.2f} s (CPU {run.steps_cpu_s:.2f}), whole {run.whole_s:.2f} s, "
        f"loss {run.loss_first:.4f} → {run.loss_last:.4f}, +{run.peak_growth_mb:.0f} MB, "
        f"{run.activations_dtype} on {run.weights_dtype} weights"
    )
