"""What the benchmarks of the labelling app share: options, percentiles, the results file."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from benchmarks import machine
from benchmarks.common import RESULTS, console, show
from benchmarks.label.annotators import Answered
from benchmarks.rows import Row, Spread, Target

PACKAGES = ("prefloop", "sqlalchemy", "fastapi", "uvicorn", "pydantic", "psycopg")


def options(doc: str | None, *, works: Sequence[str]) -> argparse.Namespace:
    """Repeats, works, shrink, folder, results."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--works", nargs="+", default=list(works), choices=works, help="what to measure")
    parser.add_argument("--shrink", type=int, default=1, help="divide sizes by this, to try a benchmark out")
    parser.add_argument("--folder", type=Path, help="where stores are made; left out: a temporary folder")
    parser.add_argument("--beside", default="", help="what else ran on the machine, for the results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    return parser.parse_args()


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * share // 1) - 1).__int__())]


def latency_rows(work: str, runs: Sequence[Sequence[Answered]], targets: dict[float, float]) -> list[Row]:
    """Percentiles of claims, answers and both, over the repeats; `targets` are milliseconds for both."""
    rows = []
    for what, kinds in (("claim", ("claim",)), ("answer", ("submit",)), ("both", ("claim", "submit"))):
        for share in (0.5, 0.95, 0.99):
            values = [
                percentile([one.ms for one in run if one.kind in kinds and one.status == 200], share)
                for run in runs
            ]
            target = targets.get(share) if what == "both" else None
            rows.append(
                Row(
                    work,
                    f"{what} p{share * 100:.0f}, ms",
                    Spread.of(values),
                    target=None if target is None else Target(target, better="lower", of="value"),
                )
            )
    return rows


def finish(name: str, asked: argparse.Namespace, rows: Sequence[Row], *, part: str = "") -> None:
    """Prints the rows and writes the results file, whose name ends with the part of the benchmark, where it has parts."""
    whole = f"{name}_{part}" if part else name
    module = f"label.{name.removeprefix('label_')}"
    write(whole, rows, repeats=asked.repeats, beside=asked.beside, folder=asked.results, module=module)


def write(
    name: str, rows: Sequence[Row], *, repeats: int, beside: str, folder: Path, module: str = ""
) -> None:
    """Prints the rows and writes the results file; `module` is where the benchmark is, if not where its name says."""
    about = machine.description() | {"versions": {one: _version(one) for one in PACKAGES}}
    result = {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", f"benchmarks.{module or name}", *sys.argv[1:]]),
        "threads": 1,
        "repeats": repeats,
        "beside": beside,
        **about,
        "matmul_gflops": {},
        "rows": [row.to_json() for row in rows],
        "cases": [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.json"
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(name, list(rows))
    console.print(f"wrote {target}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"
