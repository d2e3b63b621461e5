"""Where a training job runs: in this process, or in several that share the work.

A job is a frozen dataclass of paths and options and a function of it, so that it can be sent to other processes. What they
raise and how far they are comes back to this one.
"""

import contextlib
import importlib.util
import json
import logging
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prefloop.config import RuntimeSection
from prefloop.interfaces import InputError, PrefloopError, Progress, Unavailable, Waiting, no_progress

if TYPE_CHECKING:
    from accelerate import PartialState

logger = logging.getLogger(__name__)

Job = TypeVar("Job")
STOPS: dict[str, type[PrefloopError]] = {
    one.__name__: one for one in (PrefloopError, InputError, Unavailable, Waiting)
}
"""Errors that keep their kind on the way from a training process."""


def processes(runtime: RuntimeSection) -> "PartialState":
    """The processes that share the work, as seen from this one."""
    from accelerate import PartialState

    return PartialState(cpu=runtime.device == "cpu")


def run_job(
    function: Callable[[Job, Progress], dict[str, Any]], job: Job, runtime: RuntimeSection, progress: Progress
) -> dict[str, Any]:
    """Runs `function(job, progress)` in `runtime.num_processes` processes and returns what the first one returned.

    Raises what the job raised, and PrefloopError when a process fails in another way.
    """
    if runtime.deepspeed is not None:
        zero_settings(runtime.deepspeed)  # wrong settings are told before anything starts
    elif runtime.num_processes == 1:
        return function(job, progress)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=runtime.num_processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        run_id=uuid.uuid4().hex,
    )
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong is told below
    with _listening(progress) as queue:
        try:
            return elastic_launch(config, _in_process)(function, job, runtime, queue)[0]
        except ChildFailedError as error:
            raise _as_raised(error.get_first_failure()[1].message) from None


def _in_process(
    function: Callable[[Job, Progress], dict[str, Any]], job: Job, runtime: RuntimeSection, queue: Any
) -> dict[str, Any]:
    """What each process runs."""
    import torch

    threads = runtime.threads or max(1, (os.cpu_count() or 1) // runtime.num_processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    def tell(done: int, total: int, note: str = "") -> None:
        queue.put((done, total, note))

    # the process's own device must be chosen before anything is put on one
    first = processes(runtime).is_main_process
    return function(job, tell if first else no_progress)


def _as_raised(report: str | dict[str, Any]) -> PrefloopError:
    """The error behind torch's report of a failed process: a line on a signal, or what was raised and where."""
    message = report if isinstance(report, str) else str(report["message"])
    found = re.match(rf"({'|'.join(STOPS)}): (.*)", message, re.DOTALL)
    if found:
        return STOPS[found[1]](found[2])
    if not isinstance(report, str):
        logger.error("a training process failed\n%s", report["extraInfo"]["py_callstack"])
    return PrefloopError(f"a training process failed: {message}")


@contextlib.contextmanager
def _listening(progress: Progress) -> Iterator[Any]:
    """A queue to another process; what is put into it is told to `progress`."""
    import multiprocessing

    queue = multiprocessing.get_context("spawn").SimpleQueue()

    def listen() -> None:
        while (news := queue.get()) is not None:
            progress(*news)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield queue
    finally:
        queue.put(None)
        thread.join()


# --- DeepSpeed -------------------------------------------------------------------------------------------------------


OUR_OWN = {
    "optimizer": "the stage's `optimizer`",
    "scheduler": "the stage's `schedule`",
    "gradient_clipping": "the stage's `max_grad_norm`",
    "train_batch_size": "the stage's `batch_size`",
    "train_micro_batch_size_per_gpu": "runtime.microbatch_tokens",
    "gradient_accumulation_steps": "runtime.microbatch_tokens",
    "fp16": "model.dtype",
    "bf16": "model.dtype",
    "amp": "model.dtype",
    "torch_autocast": "model.dtype",
}
"""What DeepSpeed's file could say although a key of ours says it, and which."""


def zero_settings(path: str) -> dict[str, Any]:
    """DeepSpeed's settings from a file, `auto` values left out. Raises InputError."""
    where = f"runtime.deepspeed = {path!r}"
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError(
            f"{where}: DeepSpeed is not installed; pip install 'prefloop[deepspeed]', or use sharding: fsdp"
        )
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{where}: not a readable JSON file: {error}") from error
    if not isinstance(given, dict) or not isinstance(given.get("zero_optimization"), dict):
        raise InputError(
            f"{where}: has no section `zero_optimization`; see DeepSpeed's documentation of ZeRO"
        )
    settings = _without_auto(given)
    for key in OUR_OWN.keys() & settings.keys():
        raise InputError(f"{where}: {key} is decided by {OUR_OWN[key]}; leave it out")
    return settings


def _without_auto(section: dict[str, Any]) -> dict[str, Any]:
    inner = {key: _without_auto(one) if isinstance(one, dict) else one for key, one in section.items()}
    return {key: one for key, one in inner.items() if one not in ("auto", {})}
