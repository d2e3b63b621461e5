"""Writes RESULTS.md from the JSON files of the results folder; nothing in it is typed by hand."""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.rows import HEADER, Row

INTRODUCTION = """# Benchmark results

Written by `python -m benchmarks.write_results` from `results/*.json`; [README](README.md) says how to read it.
"""


def main() -> None:
    """`python -m benchmarks.write_results [RESULTS_FOLDER]`; the page goes beside the folder."""
    folder = Path(sys.argv[1]) if sys.argv[1:] else RESULTS
    write(folder)


def write(folder: Path) -> Path:
    """Writes the page and returns where it is."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    target = folder.parent / "RESULTS.md"
    target.write_text(
        page(results, plots=sorted(folder.glob("*.png")), beside=folder.parent), encoding="utf-8"
    )
    return target


def page(results: list[dict[str, Any]], *, plots: list[Path], beside: Path) -> str:
    """The page: targets first, then every benchmark."""
    rows = [Row.from_json(row) for result in results for row in result["rows"]]
    aimed = [row for row in rows if row.missed_by is not None]
    missed = [row for row in aimed if row.missed_by]
    summary = f"{len(aimed) - len(missed)} of {len(aimed)} targets reached.\n"
    images = "".join(f"\n![{plot.stem}]({plot.relative_to(beside).as_posix()})\n" for plot in plots)
    parts = [INTRODUCTION, summary, *(table(missed) for _ in missed[:1]), *map(section, results)]
    return "\n".join(parts) + images


def section(result: dict[str, Any]) -> str:
    """One benchmark: where and when, then its rows."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    rates = ", ".join(f"{dtype} {rate:.0f}" for dtype, rate in result["matmul_gflops"].items())
    where = result.get("gpu") or result["cpu"]
    lines = [
        f"## {result['benchmark']}\n",
        f"- {result['date']}, commit {result['commit']}: `{result['command']}`",
        f"- {where}, {result['cores']} cores, {result['threads']} threads, {result['repeats']} repeats; {result['system']}; "
        f"load {result['load_average']:.1f} at the start",
        f"- Python {result['python']}, {versions}",
        *([f"- matmul rate, GFLOP/s: {rates}"] if rates else []),
        *([f"- beside it ran: {result['beside']}"] if result.get("beside") else []),
        *(
            f"- not the same work, {one['case']['name']}: {'; '.join(one['problems'])}"
            for one in result["cases"]
            if one["problems"]
        ),
        "",
    ]
    return (
        "\n".join(lines)
        + "\n"
        + table([Row.from_json(row) for row in result["rows"]])
        + "\n"
        + losses(result)
    )


def table(rows: list[Row]) -> str:
    """Rows as Markdown."""
    lines = [HEADER, ["---"] * len(HEADER), *(row.cells for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def losses(result: dict[str, Any]) -> str:
    """The losses of the first and last step of every side, and what peers were given."""
    lines = []
    for one in result["cases"]:
        if one["case"]["task"] == "generate":
            continue
        for side in one["sides"]:
            run = one["runs"][side["label"]][0]
            given = f", microbatch {side['microbatch']}" if side["microbatch"] else ""
            lines.append(
                f"- {one['case']['name']}, {side['label']}{given}: {run['num_pairs']} pairs, {run['num_steps']} steps, "
                f"loss {run['loss_first']:.4f} → {run['loss_last']:.4f}, "
                f"{run['activations_dtype']} on {run['weights_dtype']} weights\n"
            )
    if not lines:
        return ""
    return f"<details><summary>Losses and settings</summary>\n\n{''.join(lines)}\n</details>\n"


if __name__ == "__main__":
    main()
