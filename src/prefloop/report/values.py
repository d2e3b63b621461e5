"""Values from JSON that may be missing, infinite or of another type."""

import math
from collections.abc import Iterable
from typing import Any

from prefloop.report.types import Estimate, StageRow


def without_infinities(value: Any) -> Any:
    """JSON values whose text is valid Unicode; numbers that are not finite become None."""
    if isinstance(value, dict):
        return {without_infinities(key): without_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_infinities(item) for item in value]
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def as_estimate(value: Any) -> Estimate | None:
    if isinstance(value, dict):
        mean = as_number(value.get("mean"))
        return (
            None
            if mean is None
            else Estimate(mean, as_number(value.get("low")), as_number(value.get("high")))
        )
    mean = as_number(value)
    return None if mean is None else Estimate(mean)


def dig(data: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        data = data.get(name) if isinstance(data, dict) else None
    return data


def each_once(stages: Iterable[StageRow]) -> list[StageRow]:
    """Each artefact the first time it is mentioned."""
    first: dict[tuple[str, str], StageRow] = {}
    for one in stages:
        first.setdefault((one.kind, one.key), one)
    return list(first.values())


def total_of(stages: Iterable[StageRow], kind: str, field: str) -> int:
    return sum(int(one.stats.get(field) or 0) for one in stages if one.kind == kind)


def weighted_mean(stages: Iterable[StageRow], kind: str, field: str, *, weight: str) -> float | None:
    """Mean of a figure over stages, weighted by a count of theirs."""
    found = [
        (value, float(one.stats.get(weight) or 0))
        for one in stages
        if one.kind == kind and (value := as_number(one.stats.get(field))) is not None
    ]
    total = sum(count for _, count in found)
    return sum(value * count for value, count in found) / total if total else None
