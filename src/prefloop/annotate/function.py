"""Scores from a function in a file of the user's own."""

import hashlib
import importlib.util
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from numbers import Real
from pathlib import Path

from prefloop.config import FunctionAnnotator
from prefloop.interfaces import InputError
from prefloop.records import Completion, Group, Prompt, Score, content_id
from prefloop.store import digest_file

Function = Callable[[str, str, str | None], object]
"""`f(prompt, completion, answer)` of the last user turn, the completion and the reference answer, if there is one."""


class FunctionScorer:
    """Scores every completion with the user's function; each call is one label."""

    def __init__(self, options: FunctionAnnotator) -> None:
        self.target = options.target
        self.name = f"function/{_split(options.target)[1]}"
        self._function = load_function(options.target)

    def score(self, groups: Iterable[Group]) -> Iterator[Score]:
        """Yields one score a completion, in order. Raises InputError where the function fails or gives no number."""
        for group in groups:
            for completion in group.completions:
                yield Score(
                    prompt_id=group.prompt.id,
                    completion_id=completion.id,
                    value=self._value(group.prompt, completion),
                    annotator=self.name,
                )

    def _value(self, prompt: Prompt, completion: Completion) -> float:
        where = f"{self.target}: prompt {prompt.id}, completion {completion.id}"
        try:
            value = self._function(prompt.text, completion.text, prompt.answer)
        except Exception as error:
            raise InputError(f"{where}: {_told(error)}; make it return a number for any text") from error
        if not isinstance(value, Real):
            raise InputError(f"{where}: returned {value!r}, a {type(value).__name__}; return a float")
        if not math.isfinite(value):
            raise InputError(f"{where}: returned {value}; a score must be finite")
        return float(value)


def load_function(target: str) -> Function:
    """The function at `path/to/file.py:name`, with its file run once. Raises InputError."""
    path, name = _split(target)
    module_name = f"prefloop_function_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{target}: {path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look the module of a class up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{target}: {path} cannot be run: {_told(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        here = sorted(
            key for key, value in vars(module).items() if callable(value) and not key.startswith("_")
        )
        raise InputError(f"{target}: no function {name!r} in {path}; there is {', '.join(here) or 'none'}")
    return function


def function_digest(target: str) -> str:
    """What the scores depend on: the content of the file and the name of the function. Raises InputError."""
    path, name = _split(target)
    return content_id(digest_file(path), name)


def _split(target: str) -> tuple[Path, str]:
    path, colon, name = target.rpartition(":")
    if not colon or not path or not name.isidentifier():
        raise InputError(f"function target {target!r}: write path/to/file.py:name")
    if not Path(path).is_file():
        raise InputError(f"function target {target!r}: no file {path}")
    return Path(path), name


def _told(error: Exception) -> str:
    """The error with the line of the innermost code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
