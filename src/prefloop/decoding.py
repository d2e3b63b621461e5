"""The keys and values of completions that grow token by token: a prompt's are kept once for all its completions.

A batch has slots for G prompts of K completions each, which are its rows. A prompt enters by one pass over its tokens; then
every step reads the newest token of each running row, all of them as one flat row, and attends to the prompt's keys, stored
once, and to the row's own. `attention.py` calls in from inside stock models. Knows nothing about sampling or text.

On small models a step is made of many small operations, so what layers and steps have in common is computed once, and
counted up while the same rows run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prefloop.attention import Layout, lay_out, rounded

WIDTH_STEP = 32
"""Least multiple to which room for tokens is rounded up."""
WIDTHS_PER_OCTAVE = 4


@dataclass
class _Layer:
    """What one attention layer keeps; room that is not used yet holds zeros."""

    prompt_keys: Tensor
    """[G, H', P, D]"""
    prompt_values: Tensor
    own_keys: Tensor
    """[G * K, H', T, D]"""
    own_values: Tensor


@dataclass
class _Growing:
    """The rows that grow, in ascending order: where their newest tokens are, counted up from step to step."""

    rows: Tensor
    """[A]"""
    places: Tensor
    """[A], among the row's own tokens."""
    positions: Tensor
    """[A], in the sequence that the model believes to read."""
    longest: int
    """Own tokens of the longest."""
    ones: Tensor
    """[A]"""
    _cells: dict[tuple[int, int], Tensor]

    @classmethod
    def of(cls, rows: Tensor, owns: Tensor, lengths: Tensor) -> "_Growing":
        """Rows that have so many own tokens [A], and tokens in all [A]."""
        return cls(
            rows, owns - 1, lengths - 1, int(owns.max()) if len(owns) else 0, torch.ones_like(rows), {}
        )

    @classmethod
    def nothing(cls, device: torch.device) -> "_Growing":
        """No rows."""
        return cls.of(*(torch.empty(0, dtype=torch.long, device=device) for _ in range(3)))

    def count_up(self) -> None:
        """One more token for each."""
        self.places = self.places + 1
        self.positions = self.positions + 1
        self.longest += 1
        for one in self._cells.values():
            one += 1

    def cells(self, heads: int, width: int) -> Tensor:
        """Where the newest tokens are [A * H'] in rooms [R, H', T] for so many heads and tokens, laid out flat."""
        if (heads, width) not in self._cells:
            rooms = self.rows.unsqueeze(1) * heads + torch.arange(heads, device=self.rows.device)
            self._cells[heads, width] = (rooms * width + self.places.unsqueeze(1)).flatten()
        return self._cells[heads, width]


class GroupCache:
    """Keys and values of G prompts and their K completions; changed in place. Where K is 1 a prompt is the beginning of its
    completion and kept with it."""

    def __init__(self, num_groups: int, num_copies: int, device: torch.device) -> None:
        self.num_copies = num_copies
        self.device = device
        self.prompt_lengths = torch.zeros(num_groups, dtype=torch.long, device=device)
        self.own_lengths = torch.zeros(num_groups * num_copies, dtype=torch.long, device=device)
        self._prompt_width = self._own_width = 0
        self._layers: dict[nn.Module, _Layer] = {}
        self._entering: list[tuple[int, int, int]] = []  # slot, and where the prompt is in the flat row
        self._growing = _Growing.nothing(device)
        self._biases: dict[tuple[int | None, torch.dtype], Tensor] = {}

    # --- what the sampler does ---

    def enter(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> Layout:
        """Makes room for prompts in free slots; returns the layout of the flat row that must be read next."""
        lengths = [len(one) for one in prompts]
        layout = lay_out(lengths, [[] for _ in lengths], self.device)
        self._entering, start = [], 0
        for slot, length in zip(slots, lengths, strict=True):
            self._entering.append((slot, start, length))
            start += length
            alone = self.num_copies == 1
            self.prompt_lengths[slot] = 0 if alone else length
            self.own_lengths[slot * self.num_copies : (slot + 1) * self.num_copies] = length if alone else 0
        self._growing, self._biases = _Growing.nothing(self.device), {}
        self._widen(int(self.prompt_lengths.max()), int(self.own_lengths.max()))
        return layout

    def advance(self, rows: Tensor) -> Tensor:
        """Makes room for one more token of each of these rows [A], in ascending order; returns its positions [A]. Calls are
        cheaper while `rows` is the same tensor."""
        if rows is not self._growing.rows:
            owns = self.own_lengths[rows]
            self._growing = _Growing.of(rows, owns, self.prompt_lengths[rows // self.num_copies] + owns)
        growing = self._growing
        growing.count_up()
        self._widen(self._prompt_width, growing.longest)
        self.own_lengths.index_add_(0, rows, growing.ones)
        self._biases = {
            (window, dtype): one for (window, dtype), one in self._biases.items() if window is None
        }
        for bias in self._biases.values():
            bias[rows, :, :, growing.places + self._prompt_width] = 0
        return growing.positions

    def rearrange(self, rows: Tensor, sources: Tensor) -> None:
        """Lets rows go on from others [A] of the same prompt, which are as long."""
        moved = rows != sources
        to, source, longest = rows[moved], sources[moved], self._growing.longest
        for one in self._layers.values() if len(to) else ():
            for kept in (one.own_keys, one.own_values):
                kept[to, :, :longest] = kept[source, :, :longest]

    def keep(self, slots: Sequence[int]) -> None:
        """Forgets all other slots; those that stay are numbered anew in this order."""
        groups = torch.tensor(list(slots), device=self.device)
        copies = torch.arange(self.num_copies, device=self.device)
        rows = (groups.unsqueeze(1) * self.num_copies + copies).flatten()
        self.prompt_lengths, self.own_lengths = self.prompt_lengths[groups], self.own_lengths[rows]
        self._growing, self._biases = _Growing.nothing(self.device), {}
        for module, one in self._layers.items():
            self._layers[module] = _Layer(
                one.prompt_keys[groups], one.prompt_values[groups], one.own_keys[rows], one.own_values[rows]
            )

    # --- what attention does ---

    def store_prompts(self, module: nn.Module, key: Tensor, value: Tensor) -> None:
        """Keeps keys and values [1, H', N, D] of the prompts that enter."""
        layer = self._layer(module, key)
        keys, values = layer.prompt_keys, layer.prompt_values
        if self.num_copies == 1:
            keys, values = layer.own_keys, layer.own_values
        for slot, start, length in self._entering:
            keys[slot, :, :length] = key[0, :, start : start + length]
            values[slot, :, :length] = value[0, :, start : start + length]

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        """Attention of the newest tokens: query [1, H, A, D], key and value [1, H', A, D] to [1, A, H, D]."""
        layer, growing = self._layer(module, key), self._growing
        width = query.shape[3]
        cells = growing.cells(key.shape[1], self._own_width)
        layer.own_keys.view(-1, width).index_copy_(0, cells, key[0].transpose(0, 1).reshape(-1, width))
        layer.own_values.view(-1, width).index_copy_(0, cells, value[0].transpose(0, 1).reshape(-1, width))
        queries = query[0].transpose(0, 1) * (width**-0.5 if scaling is None else scaling)  # [A, H, D]
        number, rows = len(self.own_lengths), growing.rows
        partly = len(rows) < number
        if partly:  # rows that have ended hold their place
            queries = queries.new_zeros(number, *queries.shape[1:]).index_copy_(0, rows, queries)
        output = self._attended(layer, queries, self._bias(window, query.dtype))
        return (output[rows] if partly else output).unsqueeze(0)

    def _attended(self, layer: _Layer, queries: Tensor, bias: Tensor) -> Tensor:
        """Outputs [R, H, D] of scaled queries [R, H, D]: one product with the prompt for all its rows, one with each own."""
        copies, key_heads = self.num_copies, layer.own_keys.shape[1]
        number, heads, width = queries.shape
        repeats, prompt = heads // key_heads, layer.prompt_keys.shape[2]
        rows = queries.view(number, key_heads, repeats, width)
        if not prompt:
            weights = (rows @ layer.own_keys.transpose(-1, -2)).add_(bias).softmax(-1)
            return (weights @ layer.own_values).reshape(number, heads, width)

        def by_prompt(rows: Tensor) -> Tensor:  # [R, H', r, X] to [G, H', K * r, X]
            split = rows.view(-1, copies, key_heads, repeats, rows.shape[-1])
            return split.transpose(1, 2).reshape(-1, key_heads, copies * repeats, rows.shape[-1])

        def by_row(groups: Tensor) -> Tensor:  # and back
            split = groups.view(-1, key_heads, copies, repeats, groups.shape[-1])
            return split.transpose(1, 2).reshape(number, key_heads, repeats, groups.shape[-1])

        with_prompt = by_row(by_prompt(rows) @ layer.prompt_keys.transpose(-1, -2))
        with_own = rows @ layer.own_keys.transpose(-1, -2)
        weights = torch.cat([with_prompt, with_own], -1).add_(bias).softmax(-1)
        output = by_row(by_prompt(weights[..., :prompt]) @ layer.prompt_values)
        output = output + weights[..., prompt:] @ layer.own_values
        return output.reshape(number, heads, width)

    def _bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What rows do not see, [R, 1, 1, P + T], the same in all layers with this window."""
        if (window, dtype) not in self._biases:
            prompts = self.prompt_lengths.repeat_interleave(self.num_copies).unsqueeze(1)  # [R, 1]
            owns = self.own_lengths.unsqueeze(1)
            prompt_places = torch.arange(self._prompt_width, device=self.device)
            own_places = torch.arange(self._own_width, device=self.device)
            seen = torch.cat([prompt_places < prompts, own_places < owns], 1)  # [R, P + T]
            if window is not None:
                places = torch.cat([prompt_places.expand(len(owns), -1), prompts + own_places], 1)
                seen &= places > prompts + owns - 1 - window
            # slots that are free see something, or their softmax has no value
            seen[:, 0] |= ~seen.any(1)
            bias = torch.zeros(seen.shape, dtype=dtype, device=self.device).masked_fill_(~seen, -torch.inf)
            self._biases[window, dtype] = bias[:, None, None]
        return self._biases[window, dtype]

    # --- room ---

    def _layer(self, module: nn.Module, key: Tensor) -> _Layer:
        if module not in self._layers:
            heads, width = key.shape[1], key.shape[3]
            groups, rows = len(self.prompt_lengths), len(self.own_lengths)
            prompt = key.new_zeros(2, groups, heads, self._prompt_width, width)
            own = key.new_zeros(2, rows, heads, self._own_width, width)
            self._layers[module] = _Layer(prompt[0], prompt[1], own[0], own[1])
        return self._layers[module]

    def _widen(self, prompt: int, own: int) -> None:
        """Makes the room for tokens at least so wide."""
        more_prompt = max(0, room(prompt) - self._prompt_width)
        more_own = max(0, room(own) - self._own_width)
        self._prompt_width += more_prompt
        self._own_width += more_own
        if more_prompt or more_own:
            self._biases = {}
        for one in self._layers.values() if more_prompt or more_own else ():
            one.prompt_keys, one.prompt_values = (
                _wider(room, more_prompt) for room in (one.prompt_keys, one.prompt_values)
            )
            one.own_keys, one.own_values = (_wider(room, more_own) for room in (one.own_keys, one.own_values))


def room(length: int) -> int:
    """Tokens that room is made for where there are so many."""
    return rounded(length, WIDTH_STEP, WIDTHS_PER_OCTAVE) if length else 0


def tokens_held(prompt: int, completion: int, num_copies: int) -> int:
    """Tokens that room is made for in a slot, where prompt and completion are at most so long."""
    if num_copies == 1:
        return room(prompt + completion)
    return room(prompt) + num_copies * room(completion)


def _wider(room: Tensor, more: int) -> Tensor:
    return nn.functional.pad(room, (0, 0, 0, more)) if more else room
