"""Where a training job runs: in this process, or in several that share the work.

A job is a frozen dataclass of paths and options and a function of it, so that it can be sent to other processes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from prefloop.config import RuntimeSection
from prefloop.interfaces import PrefloopError, Progress, no_progress

if TYPE_CHECKING:
    from accelerate import PartialState

Job = TypeVar("Job")


def processes(runtime: RuntimeSection) -> "PartialState":
    """The processes that share the work, as seen from this one."""
    from accelerate import PartialState

    return PartialState(cpu=runtime.device == "cpu")


def run_job(
    function: Callable[[Job, Progress], dict[str, Any]], job: Job, runtime: RuntimeSection, progress: Progress
) -> dict[str, Any]:
    """Runs `function(job, progress)` in `runtime.num_processes` processes and returns what the first one returned.

    Raises PrefloopError when a process fails.
    """
    if runtime.num_processes == 1:
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
    )
    try:
        results = elastic_launch(config, _quietly)(function, job)
    except ChildFailedError as error:
        raise PrefloopError(f"a training process failed: {error}") from error
    return results[0]


def _quietly(function: Callable[[Job, Progress], dict[str, Any]], job: Job) -> dict[str, Any]:
    return function(job, no_progress)
