"""Virtual annotators, in a process of their own: `python -m benchmarks.label.annotators` reads a `Plan` as JSON from its
input and writes one line of JSON for each request that was answered, as soon as it was.

Each has one connection and claims, answers, claims; who thinks in between connects again. Bytes are written and read by
hand: a client of a library would take as much of the machine as the server.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TextIO

MOST_EMPTY = 5
"""Times in a row that nothing was left before somebody goes home: a task may come back."""
EMPTY_PAUSE_S = 0.05


@dataclass(frozen=True)
class Plan:
    """Who asks whom."""

    port: int
    project: str
    tokens: Sequence[str]
    """API tokens, one for each annotator."""
    seconds: float | None = None
    """When to stop; None: when nothing is left."""
    think_s: tuple[float, float] = (0.0, 0.0)
    """Shortest and longest time over a task."""
    arrive_s: float = 0.0
    """From one annotator to the next; of those who come at once, one worker would take all."""
    seed: int = 0

    def to_json(self) -> str:
        """For the input of the process."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Answered:
    """One request that came back."""

    annotator: int
    kind: str
    """claim or submit"""
    status: int
    ms: float
    at: float
    """Seconds since 1970 when it was answered."""
    token: str = ""
    judgement: int = 0
    state: str = ""


class Connection:
    """HTTP/1.1 over one socket that is kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> None:
        self._reader, self._writer = reader, writer
        self._head = f"Host: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"

    @classmethod
    async def to(cls, port: int, token: str) -> "Connection":
        """A new one."""
        return cls(*await asyncio.open_connection("127.0.0.1", port), token)

    def close(self) -> None:
        """Gives the socket back."""
        self._writer.close()

    async def post(self, path: str, body: str) -> tuple[int, Any]:
        """Status and JSON."""
        data = body.encode()
        self._writer.write(
            f"POST {path} HTTP/1.1\r\n{self._head}Content-Length: {len(data)}\r\n\r\n".encode() + data
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        place = head.lower().find(b"content-length:")
        length = int(head[place + 15 : head.index(b"\r\n", place)]) if place >= 0 else 0
        text = await self._reader.readexactly(length)
        return status, json.loads(text) if text.startswith(b"{") else None


async def work(number: int, plan: Plan, deadline: float, out: TextIO) -> None:
    """One annotator, until nothing is left, the time is over or the server is gone."""
    rng = random.Random(f"{plan.seed}/{number}")
    claim = json.dumps({"project": plan.project})
    empty = 0
    await asyncio.sleep(number * plan.arrive_s)
    try:
        there = await Connection.to(plan.port, plan.tokens[number])
        while empty < MOST_EMPTY and time.monotonic() < deadline:
            begun = time.monotonic()
            status, given = await there.post("/api/v1/tasks/claim", claim)
            _note(out, Answered(number, "claim", status, 1000 * (time.monotonic() - begun), time.time()))
            if given is None or status != 200:
                empty += 1
                await asyncio.sleep(EMPTY_PAUSE_S)
                continue
            empty = 0
            if plan.think_s[1]:
                there.close()  # the server would not wait for so long, nor would a browser's connection last
                await asyncio.sleep(rng.uniform(*plan.think_s))
                there = await Connection.to(plan.port, plan.tokens[number])
            token = given["lease"]["token"]
            answer = json.dumps(
                {"value": {"strength": rng.randint(1, 8)}, "active_ms": rng.randint(3000, 60000)}
            )
            begun = time.monotonic()
            status, stored = await there.post(f"/api/v1/leases/{token}/submit", answer)
            took = 1000 * (time.monotonic() - begun)
            stored = stored if status == 200 else {"judgement_id": 0, "state": str(stored)}
            _note(
                out,
                Answered(
                    number,
                    "submit",
                    status,
                    took,
                    time.time(),
                    token,
                    stored["judgement_id"],
                    stored["state"],
                ),
            )
        there.close()
    except (OSError, asyncio.IncompleteReadError):
        return  # the server was killed


def _note(out: TextIO, answered: Answered) -> None:
    out.write(json.dumps(list(asdict(answered).values())) + "\n")


async def _all(plan: Plan, out: TextIO) -> None:
    deadline = float("inf") if plan.seconds is None else time.monotonic() + plan.seconds
    await asyncio.gather(*(work(number, plan, deadline, out) for number in range(len(plan.tokens))))


def main() -> None:
    """Runs all annotators at once."""
    import uvloop

    plan = Plan(**json.load(sys.stdin))
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    uvloop.run(_all(plan, sys.stdout))


if __name__ == "__main__":
    main()
