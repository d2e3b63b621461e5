"""Functions in files of the user's own, named `path/to/file.py:name`."""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefloop.interfaces import InputError
from prefloop.records import content_id
from prefloop.store import digest_file


def load_function(target: str) -> Callable[..., Any]:
    """The function at `path/to/file.py:name`, with its file run once. Raises InputError."""
    path, name = split_target(target)
    module_name = f"prefloop_function_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{target}: {path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look the module of a class up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{target}: {path} cannot be run: {told(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        here = sorted(
            key for key, value in vars(module).items() if callable(value) and not key.startswith("_")
        )
        raise InputError(f"{target}: no function {name!r} in {path}; there is {', '.join(here) or 'none'}")
    return function


def function_digest(target: str) -> str:
    """What the results depend on: the content of the file and the name of the function. Raises InputError."""
    path, name = split_target(target)
    return content_id(digest_file(path), name)


def split_target(target: str) -> tuple[Path, str]:
    """The file, which exists, and the name. Raises InputError."""
    path, colon, name = target.rpartition(":")
    if not colon or not path or not name.isidentifier():
        raise InputError(f"function target {target!r}: write path/to/file.py:name")
    if not Path(path).is_file():
        raise InputError(f"function target {target!r}: no file {path}")
    return Path(path), name


def told(error: Exception) -> str:
    """The error with the line of the innermost code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
