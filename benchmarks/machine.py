"""What the machine is and can do: its names and versions, its matmul rates, and a process's clock and peak memory."""

import contextlib
import os
import platform
import resource
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("prefloop", "torch", "transformers", "trl", "accelerate", "datasets")
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Written to clear_refs, sets the peak to what is resident now."""
RATE_TOKENS = 2048
RATE_SHAPES = ((256, 768), (512, 512), (512, 1536), (1536, 512), (512, 8192), (2048, 2048))
RATE_SHAPES_CUDA = ((4096, 4096), (4096, 14336), (8192, 8192))
RATE_TOKENS_CUDA = 8192
RATE_TRIALS = 20


class Moment(NamedTuple):
    """A point in time: wall clock and CPU seconds of the process."""

    wall: float
    cpu: float

    def since(self, other: "Moment") -> "Moment":
        """The time that went by."""
        return Moment(self.wall - other.wall, self.cpu - other.cpu)


def now() -> Moment:
    """This moment."""
    return Moment(time.perf_counter(), time.process_time())


def total(*parts: Moment) -> Moment:
    """Times one after the other."""
    return Moment(sum(one.wall for one in parts), sum(one.cpu for one in parts))


# --- memory ----------------------------------------------------------------------------------------------------------


def reset_peak() -> float:
    """Starts a new peak and returns what is resident now, in MB."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 1e6
    with contextlib.suppress(OSError):  # another system: the peak is then of the whole life of the process
        CLEAR_REFS.write_text(RESET_PEAK)
    return _status_mb("VmRSS") or peak_mb()


def peak_mb() -> float:
    """The peak since `reset_peak`, in MB."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if platform.system() == "Darwin" else 1024
    return _status_mb("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _status_mb(field: str) -> float:
    if not STATUS.is_file():
        return 0.0
    line = next(one for one in STATUS.read_text().splitlines() if one.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024 / 1e6


# --- speed -----------------------------------------------------------------------------------------------------------


def matmul_rates(device: str, dtypes: Sequence[str], trials: int) -> dict[str, float]:
    """GFLOP/s of torch's matrix product at shapes of training, the best of several, for each dtype asked for: one that the
    processor has to emulate takes minutes."""
    import torch

    tokens, shapes = (RATE_TOKENS, RATE_SHAPES) if device == "cpu" else (RATE_TOKENS_CUDA, RATE_SHAPES_CUDA)
    return {
        dtype: max(_rate(tokens, *shape, getattr(torch, dtype), device, trials) for shape in shapes)
        for dtype in dtypes
    }


def _rate(tokens: int, inner: int, outer: int, dtype, device: str, trials: int) -> float:
    import torch

    a = torch.randn(tokens, inner, device=device).to(dtype)
    weight = torch.randn(outer, inner, device=device).to(dtype)
    best = float("inf")
    for _ in range(trials):
        started = time.perf_counter()
        torch.nn.functional.linear(a, weight)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * tokens * inner * outer / best / 1e9


# --- names -----------------------------------------------------------------------------------------------------------


def description() -> dict[str, object]:
    """The machine and the software."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": _commit(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [
            line.partition(":")[2].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        if info.is_file()
        else []
    )
    return names[0] if names else platform.processor()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _commit() -> str:
    """The commit that is checked out, with a mark where files differ from it."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
