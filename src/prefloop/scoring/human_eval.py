"""HumanEval (arXiv:2107.03374): whether completions of functions pass the benchmark's tests.

Completions run in the sandbox; the tests run here, with the function in the sandbox as their candidate. A completion is a
whole program, a function's body, or either in a fenced block.
"""

import functools
import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from prefloop.interfaces import InputError, Progress, Unavailable, no_progress
from prefloop.sandbox.session import SECONDS, Fencing, Session, Stopped, Unfenced, why_unfenced
from prefloop.scoring.figures import Figure, Scored, counted, mean_figure, text_of
from prefloop.scoring.pass_fail import FLAGS
from prefloop.scoring.reading import Row, absent, has, need, rows_of, unknown_format

NAME = "human_eval"
PLUS = "human_eval_plus"
OFFICIAL = "2f024bce"
"""Digest of the 164 problems as they were published (openai/human-eval); only they go by the bare name."""
KS = (1, 10, 100)
"""The authors' choices of k."""
PROBLEM = ("task_id", "prompt", "entry_point")
TEXTS = ("completion", "solution", "canonical_solution")
"""What a sample's text is called: by HumanEval, by HumanEval+, and in a file of problems."""
FORMATS = {
    "samples": ("task_id", "completion or solution", "perhaps passed, to compare with"),
    "HumanEval's problems": (*PROBLEM, "test", "canonical_solution"),
    "HumanEval+'s problems": (*PROBLEM, "base_input", "plus_input", "atol", "canonical_solution"),
}
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-7, 1e-6
REFERENCE_SHARE = 4
"""HumanEval+ allows this many times of what the canonical solution takes; here beside the seconds of every problem."""
Candidate = Callable[..., Any]
FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
UNFENCED = (
    "generated code runs in namespaces, and this machine does not allow them ({}). In a container allow them "
    "(docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined), on Ubuntu set "
    "kernel.apparmor_restrict_unprivileged_userns=0, or go on with --without-namespaces: the code is then held by limits, a "
    "filter of system calls and, from Linux 5.13, Landlock"
)
UNSTARTED = "the sandbox for generated code does not start on this machine: {}; it needs Linux"


@dataclass(frozen=True)
class Problem:
    """One function to write, and how it is tested. What a file of problems holds is trusted: it runs in our own process."""

    task_id: str
    prompt: str
    entry_point: str
    test: str
    """Text with a function `check`; empty where answers are compared with those of a solution."""
    inputs: str = ""
    """Lists of arguments, as JSON."""
    solution: str = ""
    tolerance: float = 0.0

    @property
    def before(self) -> str:
        """The prompt up to the function: imports, and helpers that the test may use."""
        found = re.search(_definition(self.entry_point), self.prompt)
        return self.prompt[: found.start()] if found else ""

    def program(self, completion: str) -> str:
        """What is run for a completion."""
        blocks = FENCE.findall(completion)
        whole = [one for one in blocks or [completion] if re.search(_definition(self.entry_point), one)]
        if whole:
            return self.before + whole[0]
        return self.prompt + (blocks[0] if blocks else completion)


@dataclass(frozen=True)
class Outcome:
    """What became of a sample."""

    task_id: str
    passed: bool
    reason: str
    """passed, wrong answer, timed out, ended, raised or refused with what, as far as it is known."""


@dataclass(frozen=True)
class _Sample:
    problem: Problem
    completion: str
    stored: bool | None


def score(
    path: str,
    *,
    problems: str | None = None,
    ks: Sequence[int] = KS,
    draws: int,
    seconds: float = SECONDS,
    fencing: Fencing = "namespaces",
    workers: int | None = None,
    progress: Progress = no_progress,
) -> tuple[Scored, list[Outcome]]:
    """A file of samples, or the problems themselves with their canonical solutions. Raises InputError.

    `ks` beyond the number of samples of any problem are left out.
    """
    known = read_problems(problems or path)
    samples = list(_samples(path, known, problems or path))
    outcomes = list(
        run_samples(
            [(one.problem, one.completion) for one in samples],
            seconds=seconds,
            fencing=fencing,
            workers=workers,
            progress=progress,
        )
    )
    found = scored(outcomes, known, Path(path).name, ks=ks, draws=draws, seconds=seconds)
    pairs = zip(samples, outcomes, strict=True)
    equal = [one.stored == outcome.passed for one, outcome in pairs if one.stored is not None]
    if equal:
        found.figures["share_equal_to_stored"] = Figure(sum(equal) / len(equal), len(equal))
    if fencing != "namespaces":
        found.notes.insert(0, "generated code ran without namespaces")
    return found, outcomes


def run_samples(
    samples: Sequence[tuple[Problem, str]],
    *,
    seconds: float = SECONDS,
    fencing: Fencing = "namespaces",
    workers: int | None = None,
    progress: Progress = no_progress,
) -> Iterator[Outcome]:
    """What becomes of completions, in order. Raises InputError where this machine cannot fence them in."""
    if reason := why_unfenced(fencing):
        raise InputError((UNFENCED if fencing == "namespaces" else UNSTARTED).format(reason))
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        outcomes = pool.map(lambda one: run_sample(one[0], one[1], seconds, fencing), samples)
        try:
            for number, outcome in enumerate(outcomes, 1):
                yield outcome
                progress(number, len(samples))
        except Unfenced as error:
            raise Unavailable(
                f"the sandbox no longer starts: {error}; run again later, or with fewer --workers"
            ) from error


def scored(
    outcomes: Sequence[Outcome],
    known: Mapping[str, Problem],
    subject: str,
    *,
    ks: Sequence[int] = KS,
    draws: int,
    seconds: float = SECONDS,
) -> Scored:
    """The figures of outcomes that are there already."""
    tried = Counter(one.task_id for one in outcomes)
    passed = Counter(one.task_id for one in outcomes if one.passed)
    figures = {
        "num_problems": counted(len(known), len(known)),
        "num_passed": counted(passed.total(), len(outcomes)),
    }
    for k in ks:
        if k <= min(tried.values()):
            each = [pass_at_k(number, passed[task_id], k) for task_id, number in tried.items()]
            figures[f"pass_at_{k}"] = mean_figure(each, draws=draws, times=100)
    reasons = Counter(one.reason for one in outcomes if not one.passed)
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    notes = [f"not passed: {told}"] if told else []
    fewest = min(tried.values())
    if ks is not KS and (beyond := [str(k) for k in ks if k > fewest]):
        notes.append(f"no pass@{', pass@'.join(beyond)}: a problem has {fewest} samples only")
    return Scored(_name(known, seconds), subject, figures, len(outcomes), notes=notes)


def read_problems(path: str) -> dict[str, Problem]:
    """Problems by their task_id. Raises InputError."""
    found: dict[str, Problem] = {}
    for place, row in rows_of(path):
        if not has(row, PROBLEM) or not (
            has(row, ("test",)) or has(row, ("base_input", "canonical_solution"))
        ):
            raise InputError(
                f"{place}: no problem of HumanEval ({', '.join(PROBLEM)}, test); for a file of samples name the problems "
                "by --problems HumanEval.jsonl.gz or HUMANEVAL_OVERRIDE_PATH"
            )
        one = _problem(row, place)
        if one.task_id in found:
            raise InputError(f"{place}: {one.task_id} has been there before; a problem is one row")
        found[one.task_id] = one
    return found


def _problem(row: Row, place: str) -> Problem:
    task_id, prompt, entry_point = (str(need(row, name, place)) for name in PROBLEM)
    if row.get("test"):
        return Problem(task_id, prompt, entry_point, str(row["test"]))
    inputs = [*need(row, "base_input", place), *(row.get("plus_input") or ())]
    solution = str(need(row, "canonical_solution", place))
    return Problem(
        task_id, prompt, entry_point, "", json.dumps(inputs), solution, float(row.get("atol") or 0)
    )


def _samples(path: str, known: Mapping[str, Problem], problems: str) -> list[_Sample]:
    found = []
    for place, row in rows_of(path):
        name = next((one for one in TEXTS if one in row), None)
        if name is None or "task_id" not in row:
            raise unknown_format(path, row, FORMATS)
        task_id = str(need(row, "task_id", place))
        if task_id not in known:
            raise InputError(
                f"{place}: {task_id} is no problem of {problems}; name the right one by --problems"
            )
        if not isinstance(row[name], str):
            raise InputError(f"{place}: {name} is {row[name]!r}, not text")
        found.append(_Sample(known[task_id], row[name], _stored(row, place)))
    if missing := known.keys() - {one.problem.task_id for one in found}:
        first = next(one for one in known if one in missing)
        raise InputError(
            f"{path}: no sample of {first}, and of {len(missing)} of {len(known)} problems in all; sample them, or name a "
            "file with fewer problems by --problems"
        )
    return found


def _stored(row: Row, place: str) -> bool | None:
    stored = row.get("passed")
    if absent(stored):
        return None
    if (flag := FLAGS.get(str(stored).lower())) is None:
        raise InputError(f"{place}: passed is {stored!r}, not true or false")
    return flag


def run_sample(problem: Problem, completion: str, seconds: float, fencing: Fencing) -> Outcome:
    """Runs a completion in the sandbox and its test here."""
    if problem.inputs:
        seconds += REFERENCE_SHARE * _reference(problem)[1]
    session = Session(seconds=seconds, fencing=fencing)
    check = _comparison(problem) if problem.inputs else _check(problem, session.call)
    with session:
        try:
            session.define(problem.program(completion), problem.entry_point)
            check(session.call)
            reason = session.failure or "passed"
        except Stopped as stop:
            reason = str(stop)
        except Exception as error:  # noqa: BLE001  a test may fail in any way on answers that can be anything
            name = session.raised(error)
            reason = f"raised {name}" if name else "wrong answer"
    return Outcome(problem.task_id, reason == "passed", reason)


def _check(problem: Problem, candidate: Candidate) -> Callable[[Candidate], None]:
    """The test of a problem; it may call helpers of the prompt, and the function by its name."""
    names: dict[str, Any] = {}
    try:
        exec(problem.before, names)
        names[problem.entry_point] = candidate
        exec(problem.test, names)
        return names["check"]
    except Exception as error:
        raise InputError(
            f"{problem.task_id}: its test cannot be run: {type(error).__name__}: {error}"
        ) from error


def _comparison(problem: Problem) -> Callable[[Candidate], None]:
    """HumanEval+'s test: the answers of the canonical solution, or where it is a zero that is searched for, a zero."""
    answers, _, names = _reference(problem)

    def check(candidate: Candidate) -> None:
        for arguments, answer in zip(json.loads(problem.inputs), answers, strict=True):
            found = candidate(*arguments)
            if problem.entry_point == "find_zero":
                assert abs(names["poly"](*arguments, found)) <= problem.tolerance
            else:
                assert _agree(found, answer, problem.tolerance)

    return check


@functools.lru_cache(maxsize=1000)
def _reference(problem: Problem) -> tuple[list[Any], float, dict[str, Any]]:
    """What the canonical solution answers, in how many seconds, and the names it was defined with."""
    names: dict[str, Any] = {}
    began = time.thread_time()
    try:
        exec(problem.program(problem.solution), names)
        answers = [names[problem.entry_point](*arguments) for arguments in json.loads(problem.inputs)]
    except Exception as error:
        raise InputError(
            f"{problem.task_id}: its solution cannot be run: {type(error).__name__}: {error}"
        ) from error
    return answers, time.thread_time() - began, names


def _agree(found: object, answer: object, tolerance: float) -> bool:
    if found == answer:
        return True
    numbers = answer if isinstance(answer, list | tuple) else [answer]
    if not tolerance and numbers and all(isinstance(one, float) for one in numbers):
        tolerance = ABSOLUTE_TOLERANCE
    if not tolerance or type(found) is not type(answer):
        return False
    if isinstance(found, list | tuple) and len(found) != len(numbers):
        return False
    return bool(np.allclose(cast("Any", found), cast("Any", answer), rtol=RELATIVE_TOLERANCE, atol=tolerance))


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """The unbiased estimate of the chance that one of k samples passes: 1 - C(n - c, k) / C(n, k), as a product."""
    if num_samples - num_passed < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(num_samples - num_passed + 1, num_samples + 1)))


def _name(problems: Mapping[str, Problem], seconds: float) -> str:
    """Another set of problems or another limit is part of the name."""
    rows = [list(asdict(one).values()) for _, one in sorted(problems.items())]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:8]
    about: dict[str, object] = {}
    if digest != OFFICIAL:
        about["problems"] = f"{len(problems)}/{digest}"
    if seconds != SECONDS:
        about["seconds"] = seconds
    name = PLUS if any(one.inputs for one in problems.values()) else NAME
    return f"{name}[{text_of(about)}]" if about else name


def _definition(name: str) -> str:
    return rf"(?m)^[ \t]*def\s+{re.escape(name)}\s*\("
