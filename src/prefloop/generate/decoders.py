"""Running a transformers model over prompts and the completions that grow behind them, with or without shared prompts.

Knows nothing about sampling: it reads tokens and gives logits.
"""

import inspect
import os
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from prefloop.attention import Layout
from prefloop.decoding import GroupCache
from prefloop.forward import plain

READ_ALL_BELOW = 0.75
"""A padded batch drops rows that have ended when less than this share of it still runs; until then it reads padding."""
WHILE_WAKING = 6_000_000
"""Multiplications that a core does while a sleeping thread wakes up, about 0.15 ms."""
ALL = 0
"""Of a row's logits, as transformers says it."""


class Decoder(Protocol):
    """Runs a model over prompts in slots and the K rows of each; row numbers are slot * K + copy."""

    def enter(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Reads prompts; returns the logits [n, V] of what follows each."""
        ...

    def step(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Reads one token of each row [A], in ascending order; returns the logits [A, V] of what follows."""
        ...

    def rearrange(self, rows: Tensor, sources: Tensor) -> None:
        """Lets each of these rows go on from another one [A] of its prompt, or from itself."""
        ...


@runtime_checkable
class RefillingDecoder(Decoder, Protocol):
    """One whose prompts may enter while others run."""

    def keep(self, slots: Sequence[int]) -> None:
        """Forgets all other slots and numbers these anew."""
        ...


class SharedDecoder:
    """Prompts are read as one flat row and their keys kept once; every step is one flat row of the newest tokens."""

    def __init__(self, model: PreTrainedModel, num_slots: int, num_copies: int) -> None:
        self._model: Any = model
        self._cache = GroupCache(num_slots, num_copies, model.device)
        # a mask of four dimensions is passed on as it is, so that none is made; the cache knows what is seen
        self._no_mask = torch.empty(1, 1, 0, 0, dtype=torch.long, device=model.device)
        self._alone = is_faster_alone(model, num_slots * num_copies)

    def enter(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        layout = self._cache.enter(slots, prompts)
        ids = [token for one in prompts for token in one]
        ends = torch.tensor([len(one) for one in prompts]).cumsum(0) - 1
        padded = torch.zeros(1, len(layout.positions), dtype=torch.long)
        padded[0, : len(ids)] = torch.tensor(ids)
        keep = ends.to(self._no_mask.device)
        return self._logits(padded.to(self._no_mask.device), layout.positions, keep=keep, layout=layout)

    def step(self, rows: Tensor, tokens: Tensor) -> Tensor:
        if not self._alone:
            return self._logits(tokens.unsqueeze(0), self._cache.advance(rows), keep=ALL)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._logits(tokens.unsqueeze(0), self._cache.advance(rows), keep=ALL)
        finally:
            torch.set_num_threads(threads)

    def rearrange(self, rows: Tensor, sources: Tensor) -> None:
        self._cache.rearrange(rows, sources)

    def keep(self, slots: Sequence[int]) -> None:
        self._cache.keep(slots)

    def _logits(
        self, ids: Tensor, positions: Tensor, *, keep: Tensor | int, layout: Layout | None = None
    ) -> Tensor:
        return (
            self._model(
                input_ids=ids,
                position_ids=positions.unsqueeze(0),
                attention_mask=self._no_mask,
                layout=layout,
                group_cache=self._cache,
                use_cache=False,
                logits_to_keep=keep,
            )
            .logits[0]
            .float()
        )


def is_faster_alone(model: PreTrainedModel, rows: int) -> bool:
    """Whether a step's products end on one thread before another has woken up, where threads sleep between them."""
    config = model.config.get_text_config()
    largest = config.hidden_size * getattr(config, "intermediate_size", 4 * config.hidden_size)
    return (
        os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
        and model.device.type == "cpu"
        and torch.get_num_threads() > 1
        and rows * largest <= WHILE_WAKING
    )


def lay_out_weights(model: PreTrainedModel) -> None:
    """Stores the float32 weights of a model on a CPU the other way round, in place; their values and shapes stay.

    Products with few rows wait for the weights. Read in this order they are up to a third faster; in bfloat16, where
    they are rearranged anyway, and for many rows it makes no difference.
    """
    tied = model.get_input_embeddings().weight
    for module in model.modules():
        if type(module) is nn.Linear and module.weight is not tied and module.weight.dtype == torch.float32:
            module.weight.data = module.weight.data.t().contiguous().t()


class PaddedDecoder:
    """For models that cannot share: prompts padded on the left, a copy of their cache for every completion, and all slots
    filled at once."""

    def __init__(self, model: PreTrainedModel, num_copies: int, pad_id: int) -> None:
        self._model: Any = model
        self._cache_name = _cache_name(model)
        self._copies = num_copies
        self._pad_id = pad_id
        self._rows = torch.empty(0, dtype=torch.long)
        self._cache: Any = None
        self._mask = self._positions = torch.empty(0, dtype=torch.long)

    def enter(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        width, device = max(map(len, prompts)), self._model.device
        ids = torch.full((len(prompts), width), self._pad_id, dtype=torch.long)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self._cache = DynamicCache(config=self._model.config)
        logits = self._read(ids.to(device), mask.to(device), positions.to(device))
        self._cache.batch_repeat_interleave(self._copies)
        self._mask = mask.to(device).repeat_interleave(self._copies, 0)
        self._positions = positions[:, -1].to(device).repeat_interleave(self._copies, 0)
        copies = torch.arange(self._copies)
        self._rows = (torch.tensor(slots).unsqueeze(1) * self._copies + copies).flatten().to(device)
        return logits

    def step(self, rows: Tensor, tokens: Tensor) -> Tensor:
        if len(rows) < READ_ALL_BELOW * len(self._rows):
            self._select(torch.isin(self._rows, rows).nonzero().squeeze(1))
        places = self._places(rows)
        everyone = tokens.new_full((len(self._rows),), self._pad_id).index_copy_(0, places, tokens)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(everyone), 1)], dim=1)
        self._positions = self._positions + 1
        return self._read(everyone.unsqueeze(1), self._mask, self._positions.unsqueeze(1))[places]

    def rearrange(self, rows: Tensor, sources: Tensor) -> None:
        if not torch.equal(rows, sources):
            order = torch.arange(len(self._rows), device=rows.device)
            order[self._places(rows)] = self._places(sources)
            self._cache.batch_select_indices(
                order
            )  # mask and positions are the same for all rows of a prompt

    def _places(self, rows: Tensor) -> Tensor:
        return torch.searchsorted(self._rows, rows)

    def _select(self, places: Tensor) -> None:
        self._cache.batch_select_indices(places)
        self._mask, self._positions = self._mask[places], self._positions[places]
        self._rows = self._rows[places]

    def _read(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return (
            self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **{self._cache_name: self._cache},
            )
            .logits[:, -1]
            .float()
        )


def _cache_name(model: PreTrainedModel) -> str:
    """What the model calls its keys and values: older ones, and transformers before 5.24, say past_key_values."""
    return "cache" if "cache" in inspect.signature(plain(model).forward).parameters else "past_key_values"
