"""Runs every benchmark for a CPU, one after the other, and writes RESULTS.md: `python -m benchmarks`.

Options are handed to each benchmark: --repeats, --threads, --shrink, --peer-env, --peer-microbatch, --models, --results.
"""

import subprocess
import sys

from benchmarks.common import ROOT, parse
from benchmarks.write_results import write

CPU_SET = (
    "dpo", "reward", "memory", "iteration", "scaling", "generation", "generation_scaling", "online", "pool",
)  # fmt: skip


def main() -> None:
    """Stops at the first that fails."""
    options = parse(__doc__, works=())
    for name in CPU_SET:
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], cwd=ROOT, check=True)
    print(f"wrote {write(options.results)}")


if __name__ == "__main__":
    main()
