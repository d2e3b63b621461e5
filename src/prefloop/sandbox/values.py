"""Built-in values as lines of JSON: what passes between trusted and untrusted code, and nothing else.

`int float str bool bytes None list tuple set dict`, exactly: of a subclass only the built-in value under it passes, read by
the built-in's own methods, and a frozenset passes as a set. Reading makes nothing of any other type, whatever a line holds.
"""

import json

LARGE = 1 << 10_000
"""Integers from here on are written in hexadecimal: Python reads no decimal of more than 4,300 digits."""
MAX_KEYS = 10_000
"""Members of sets and keys of dictionaries in one line: chosen to collide, more of them would take minutes to read."""
OUT_OF_TIME = 124
"""Exit status of a session whose program used up its time on the processor, as `timeout` has it."""


def dumps(value: object) -> bytes:
    """A value as a line; raises TypeError for one that does not pass, RecursionError for one that is too deep."""
    return json.dumps(_encoded(value)).encode() + b"\n"


def loads(line: bytes) -> object:
    """A value from a line of anybody; raises ValueError for what `dumps` would not have written."""
    keys = 0

    def decoded(value: object) -> object:
        nonlocal keys
        if isinstance(value, list):
            return [decoded(one) for one in value]
        if not isinstance(value, dict):
            return value
        ((kind, inner),) = value.items()
        if kind == "tuple":
            return tuple(map(decoded, inner))
        if kind == "int":
            return int(inner, 16)
        if kind == "bytes":
            return bytes.fromhex(inner)
        keys += len(inner)
        if keys > MAX_KEYS:
            raise ValueError(f"more than {MAX_KEYS} members of sets and keys")
        if kind == "set":
            return set(map(decoded, inner))
        if kind == "dict":
            return {decoded(key): decoded(one) for key, one in inner}
        raise ValueError(f"no value is a {kind!r}")

    try:
        return decoded(json.loads(line))
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _encoded(value: object) -> object:
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return value if -LARGE < int.__int__(value) < LARGE else {"int": hex(value)}
    if isinstance(value, list):
        return [_encoded(one) for one in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"tuple": [_encoded(one) for one in tuple.__iter__(value)]}
    if isinstance(value, set):
        return {"set": [_encoded(one) for one in set.__iter__(value)]}
    if isinstance(value, frozenset):
        return {"set": [_encoded(one) for one in frozenset.__iter__(value)]}
    if isinstance(value, dict):
        return {"dict": [[_encoded(key), _encoded(one)] for key, one in dict.items(value)]}
    if isinstance(value, bytes):
        return {"bytes": bytes.hex(value)}
    raise TypeError(f"no {type(value).__name__} passes, only built-in values")
