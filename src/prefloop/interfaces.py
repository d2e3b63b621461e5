"""The parts of the loop as the loop sees them, and the three ways it can stop.

A part is a Protocol whose main method yields rows, so that streaming, progress and resume live once, in the stage.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from prefloop.records import Comparison, Completion, Group, Prompt, Refusal, Score


class PrefloopError(Exception):
    """A stop with a message for the user and an exit code for the shell."""

    exit_code = 1


class InputError(PrefloopError):
    """Something the user gave is wrong; the message names the file, row or key and what to do next."""


class Unavailable(PrefloopError):
    """A server, disk or device that the run needs does not answer; the run can be resumed."""

    exit_code = 4


class Waiting(PrefloopError):
    """People have not judged enough yet; the next run goes on from here."""

    exit_code = 3

    def __init__(self, message: str, look: Callable[[], tuple[int, int]] | None = None) -> None:
        super().__init__(message)
        self.look = look
        """Tells, at little cost, how much is judged by now and how much is wanted; equal when a run can go on."""


class Progress(Protocol):
    """Told how far a stage is."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def no_progress(done: int, total: int, note: str = "") -> None:
    """Tells nobody."""


class PairTask(NamedTuple):
    """Two completions of one prompt that an annotator is asked to compare."""

    prompt: Prompt
    a: Completion
    b: Completion


class Generator(Protocol):
    """Draws completions from a policy."""

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[Group]:
        """Yields one group a prompt, in the order given. Prompts that cannot be sampled yield no completions."""
        ...


class Scorer(Protocol):
    """An annotator that scores every completion of a group."""

    name: str

    def score(self, groups: Iterable[Group]) -> Iterator[Score | Refusal]:
        """Yields one row a completion, in order."""
        ...


class Comparer(Protocol):
    """An annotator that compares two completions."""

    name: str

    def compare(self, tasks: Iterable[PairTask]) -> Iterator[Comparison | Refusal]:
        """Yields the rows of each task, in order; several votes on one task are several rows."""
        ...
