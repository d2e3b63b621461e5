"""The hf engine in several processes of this machine, which share the requests.

Requests go out in pieces that one process would sample together, so who samples a piece changes nothing in it.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import Queue
from pathlib import Path

from prefloop.batches import Codec
from prefloop.config import GenerateSection, RuntimeSection
from prefloop.generate.hf import HfSampler, requests_per_chunk
from prefloop.generate.sampling import Request, Sampled
from prefloop.interfaces import PrefloopError
from prefloop.modeling import context_of, in_dtype, load_codec, load_policy, settle

_own: HfSampler | None = None
"""A worker's sampler."""


class WorkerSampler:
    """Several processes that hold the policy each; made by `workers`."""

    def __init__(
        self, pool: ProcessPoolExecutor, context: int, options: GenerateSection, runtime: RuntimeSection
    ) -> None:
        self.context = context
        self._pool = pool
        self._per_process = requests_per_chunk(options, runtime)
        self._processes = runtime.num_processes

    @property
    def requests_per_chunk(self) -> int:
        """A piece for each process."""
        return self._per_process * self._processes

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[Sampled, ...]]:
        """Yields the completions of each request, in order. Raises PrefloopError when a process dies."""
        # by places, so that prompts that are too long do not move others into another piece
        pieces = [
            list(piece)
            for _, piece in itertools.groupby(requests, lambda one: one.place // self._per_process)
        ]
        try:
            for piece in self._pool.map(_sample, pieces):
                yield from piece
        except BrokenProcessPool:
            raise PrefloopError(
                "a sampling process was killed, perhaps because memory ran out: runtime.num_processes or "
                "runtime.generation_rows may be too large. What was sampled is kept; run again to go on"
            ) from None


@contextlib.contextmanager
def workers(
    folder: Path, codec: Codec, options: GenerateSection, *, seed: int, runtime: RuntimeSection, dtype: str
) -> Iterator[WorkerSampler]:
    """Starts `runtime.num_processes` processes with the policy of a folder, and ends them."""
    spawn = multiprocessing.get_context("spawn")
    numbers = spawn.Queue()
    for number in range(runtime.num_processes):
        numbers.put(number)
    with ProcessPoolExecutor(
        runtime.num_processes,
        spawn,
        initializer=_begin,
        initargs=(numbers, folder, options, seed, runtime, dtype),
    ) as pool:
        yield WorkerSampler(pool, context_of(folder), options, runtime)
        pool.shutdown(cancel_futures=True)


def _begin(
    numbers: "Queue[int]",
    folder: Path,
    options: GenerateSection,
    seed: int,
    runtime: RuntimeSection,
    dtype: str,
) -> None:
    """What a process does first."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    number = numbers.get()
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    cores = max(1, (os.cpu_count() or 1) // runtime.num_processes)
    settle(runtime.model_copy(update={"threads": runtime.threads or cores}))
    global _own
    _own = HfSampler(
        in_dtype(load_policy(folder, runtime), dtype), load_codec(folder), options, seed=seed, runtime=runtime
    )


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this process was started by another"
    parent.join()
    os._exit(1)


def _sample(requests: Sequence[Request]) -> list[tuple[Sampled, ...]]:
    assert _own is not None, "`_begin` made it"
    return list(_own.sample(requests))
