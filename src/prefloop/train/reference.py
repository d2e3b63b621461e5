"""Log-probabilities under the reference, computed once for each (weights, group) and kept.

Files of one folder belong to one reference. What is there is read, what is missing is computed and appended, so that a
killed stage goes on and later stages with the same reference find what earlier ones computed.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from prefloop.batches import TokenGroup
from prefloop.config import RuntimeSection
from prefloop.forward import LogpsModule, all_token_logps
from prefloop.interfaces import Progress
from prefloop.store import write_bytes
from prefloop.train.groups import PairGroup

GROUPS_AT_ONCE = 256
"""Groups after which what was computed is written."""


def with_reference(
    groups: Sequence[PairGroup],
    load: Callable[[], LogpsModule],
    *,
    folder: Path,
    dtype: str,
    runtime: RuntimeSection,
    state: PartialState,
    progress: Progress,
) -> list[PairGroup]:
    """The groups with their completions' token log-probabilities; `load` is called only if some are missing."""
    known = _read(folder)
    keys = [_key(one.tokens) for one in groups]
    missing = {key: one.tokens for key, one in zip(keys, groups, strict=True) if key not in known}
    # parts are written whole, so a resumed stage cuts the rest into the same parts and computes the same last digits
    parts = list(_parts(list(missing.items())))[state.process_index :: state.num_processes]
    if parts:
        module = load()
        device = next(module.parameters()).device
        for number, part in enumerate(parts):
            progress(number, len(parts), "reference")
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
                values = all_token_logps(module, [tokens for _, tokens in part], runtime)
            _write(folder, {key: torch.cat(one) for (key, _), one in zip(part, values, strict=True)})
    state.wait_for_everyone()
    known = _read(folder) if missing else known
    return [
        replace(one, reference=_split(known[key], one.tokens)) for key, one in zip(keys, groups, strict=True)
    ]


def _parts(items: list[tuple[int, TokenGroup]]) -> Iterator[list[tuple[int, TokenGroup]]]:
    for start in range(0, len(items), GROUPS_AT_ONCE):
        yield items[start : start + GROUPS_AT_ONCE]


def _split(values: torch.Tensor, tokens: TokenGroup) -> tuple[torch.Tensor, ...]:
    lengths = [len(one) for one in tokens.completions]
    if not tokens.prompt_ids:  # nothing precedes the first token, so it has no log-probability
        lengths = [one - 1 for one in lengths]
    return values.split(lengths)


def _key(tokens: TokenGroup) -> int:
    text = repr((tokens.prompt_ids, tokens.completions)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _read(folder: Path) -> dict[int, torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            values = torch.from_numpy(file["values"]).split(file["lengths"].tolist())
            found.update(zip(file["keys"].tolist(), values, strict=True))
    return found


def _write(folder: Path, values: dict[int, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    keys = np.array(list(values), dtype=np.uint64)
    name = hashlib.blake2b(keys.tobytes(), digest_size=8).hexdigest()
    content = io.BytesIO()
    np.savez(
        content,
        keys=keys,
        lengths=np.array([len(one) for one in values.values()]),
        values=torch.cat(list(values.values())).numpy(),
    )
    write_bytes(folder / f"{name}.npz", content.getvalue())
