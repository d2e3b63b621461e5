"""The remote engine over one and three servers, and over three of which none, one or two are killed in mid-run.

The servers are the tests' fake ones: every request takes them the same time, so what is measured is the pool, not a model.
Targets are shares of what so many living servers would come to if nothing but their own time counted.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.common import ROOT, Bench, console, parse
from benchmarks.rows import Row, Spread, Target
from prefloop import tales
from prefloop.config import GenerateSection, RemoteEngine, RuntimeSection
from prefloop.generate.choose import policy_generator
from prefloop.generate.serve import free_ports
from prefloop.records import Group

SERVERS = 3
SERVICE_S = 0.2
CONCURRENCY = 4
PROMPTS, COMPLETIONS, NEW_TOKENS = 240, 4, 64
KILLED_AFTER = 0.25
"""Share of the groups that have come when servers are killed."""
SHARE_OF_IDEAL = 0.8
WORKS = ("1 server", *(f"{SERVERS} servers, {number} killed" for number in range(SERVERS)))


@dataclass(frozen=True)
class Point:
    """One run."""

    work: str
    tokens_per_s: float
    seconds: float
    lost: int
    different: int


def main() -> None:
    """Measures every work in turn, `repeats` times."""
    options = parse(__doc__, works=WORKS, models=("nano",))
    points: list[Point] = []
    with Bench("pool", options) as bench:
        folder = bench.models(options.models[0], ("policy",)) / "policy"
        number = max(SERVERS * CONCURRENCY * 4, PROMPTS // options.shrink)
        expected = None
        for _ in range(options.repeats):
            for work in options.works:
                point, groups = measured(work, folder, number, expected)
                expected = expected or groups
                points.append(point)
                console.print(
                    f"  {work}: {point.tokens_per_s:.0f} tokens/s in {point.seconds:.1f} s, {point.lost} lost"
                )
        bench.rows += [row_of(work, points) for work in options.works]
        bench.rows.append(kept(points, number))
        bench.finish(points=[vars(one) for one in points])


def measured(work: str, folder: Path, number: int, expected: list[Group] | None) -> tuple[Point, list[Group]]:
    """One run, and what it sampled. The first groups are sampled before, so that the connections are there."""
    servers, killed = (1, 0) if work == WORKS[0] else (SERVERS, WORKS.index(work) - 1)
    prompts = tales.prompts()[:number]
    shape = GenerateSection(num_completions=COMPLETIONS, max_new_tokens=NEW_TOKENS)
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(fake_server()) for _ in range(servers)]
        engine = RemoteEngine(
            kind="remote", urls=[url for url, _ in running], concurrency=CONCURRENCY, retries=10
        )
        generator = stack.enter_context(
            policy_generator(
                folder,
                engine,
                shape,
                seed=0,
                version=0,
                runtime=RuntimeSection(device="cpu"),
                dtype="float32",
            )
        )
        list(generator.generate(prompts[: 2 * servers * CONCURRENCY]))
        found: list[Group] = []
        started = time.monotonic()
        for group in generator.generate(prompts):
            found.append(group)
            if len(found) == int(KILLED_AFTER * number):
                for _, process in running[:killed]:
                    process.kill()
        seconds = time.monotonic() - started
    tokens = sum(len(one.token_ids or ()) for group in found for one in group.completions)
    different = sum(a != b for a, b in zip(found, expected or found, strict=False))
    return Point(work, tokens / seconds, seconds, number - len(found), different), found


@contextlib.contextmanager
def fake_server() -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A server that takes the same time for every request."""
    (port,) = free_ports(1)
    script = ROOT / "tests" / "generate" / "fake_server.py"
    process = subprocess.Popen(
        [sys.executable, script, f"--port={port}", f"--service-s={SERVICE_S}"], stderr=subprocess.DEVNULL
    )
    try:
        while not _answers(port):
            process.poll()
            if process.returncode is not None:
                raise RuntimeError("the fake server ended")
        yield f"http://127.0.0.1:{port}/v1", process
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.TransportError:
        return False


def row_of(work: str, points: list[Point]) -> Row:
    """Tokens a second, beside one server and its ideal multiple."""
    mine = [one.tokens_per_s for one in points if one.work == work]
    alone = [one.tokens_per_s for one in points if one.work == WORKS[0]]
    if work == WORKS[0] or not alone:
        return Row(work, "tokens/s", Spread.of(mine))
    ratios = [a / b for a, b in zip(mine, alone, strict=True)]
    target = Target(round(SHARE_OF_IDEAL * ideal(WORKS.index(work) - 1), 2))
    return Row(work, "tokens/s", Spread.of(mine), WORKS[0], Spread.of(alone), Spread.of(ratios), target)


def ideal(killed: int) -> float:
    """How many times as fast as one server, if nothing but the servers' time counted."""
    return 1 / (KILLED_AFTER / SERVERS + (1 - KILLED_AFTER) / (SERVERS - killed))


def kept(points: list[Point], number: int) -> Row:
    """The share of groups that came, and came as in the first run."""
    shares = [1 - (one.lost + one.different) / number for one in points]
    return Row("all", "groups that came unchanged", Spread.of(shares), target=Target(1, of="value"))


if __name__ == "__main__":
    main()
