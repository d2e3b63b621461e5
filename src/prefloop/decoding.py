"""The keys and values of completions that grow token by token: a prompt's are kept once for all its completions.

A batch has slots for G prompts of K completions each, which are its rows. A prompt enters by one pass over its tokens; then
every step reads the newest token of each running row, all of them as one flat row, and attends to the prompt's keys, stored
once, and to the row's own. `attention.py` calls in from inside stock models. Knows nothing about sampling or text.
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


class GroupCache:
    """Keys and values of G prompts and their K completions; changed in place."""

    def __init__(self, num_groups: int, num_copies: int, device: torch.device) -> None:
        self.num_copies = num_copies
        self.device = device
        self.prompt_lengths = torch.zeros(num_groups, dtype=torch.long, device=device)
        self.own_lengths = torch.zeros(num_groups * num_copies, dtype=torch.long, device=device)
        self._prompt_width = self._own_width = 0
        self._layers: dict[nn.Module, _Layer] = {}
        self._entering: list[tuple[int, int, int]] = []  # slot, and where the prompt is in the flat row
        self._rows = torch.arange(0, device=device)
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
            self.prompt_lengths[slot] = length
            self.own_lengths[slot * self.num_copies : (slot + 1) * self.num_copies] = 0
        self._widen(int(self.prompt_lengths.max()), self._own_width)
        return layout

    def advance(self, rows: Tensor) -> Tensor:
        """Makes room for one more token of each of these rows [A], in ascending order; returns its positions [A]."""
        self._rows = rows
        self._widen(self._prompt_width, int(self.own_lengths.max()) + 1)
        self._biases = {}
        own = self.own_lengths[rows]
        self.own_lengths[rows] += 1
        return self.prompt_lengths[rows // self.num_copies] + own

    def keep(self, slots: Sequence[int]) -> None:
        """Forgets all other slots; those that stay are numbered anew in this order."""
        groups = torch.tensor(list(slots), device=self.device)
        copies = torch.arange(self.num_copies, device=self.device)
        rows = (groups.unsqueeze(1) * self.num_copies + copies).flatten()
        self.prompt_lengths, self.own_lengths = self.prompt_lengths[groups], self.own_lengths[rows]
        for module, one in self._layers.items():
            self._layers[module] = _Layer(
                one.prompt_keys[groups], one.prompt_values[groups], one.own_keys[rows], one.own_values[rows]
            )

    # --- what attention does ---

    def store_prompts(self, module: nn.Module, key: Tensor, value: Tensor) -> None:
        """Keeps keys and values [1, H', N, D] of the prompts that enter."""
        layer = self._layer(module, key)
        for slot, start, length in self._entering:
            layer.prompt_keys[slot, :, :length] = key[0, :, start : start + length]
            layer.prompt_values[slot, :, :length] = value[0, :, start : start + length]

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
        layer = self._layer(module, key)
        rows, places = self._rows, self.own_lengths[self._rows] - 1
        layer.own_keys[rows, :, places] = key[0].transpose(0, 1)
        layer.own_values[rows, :, places] = value[0].transpose(0, 1)
        queries = query[0].transpose(0, 1)  # [A, H, D]
        number, heads, width = len(self.own_lengths), query.shape[1], query.shape[3]
        partly = len(rows) < number
        if partly:  # rows that have ended hold their place
            queries = queries.new_zeros(number, heads, width).index_copy_(0, rows, queries)
        scale = width**-0.5 if scaling is None else scaling
        output = self._attended(layer, queries * scale, self._bias(window, query.dtype))
        return (output[rows] if partly else output).unsqueeze(0)

    def _attended(self, layer: _Layer, queries: Tensor, bias: Tensor) -> Tensor:
        """Outputs [R, H, D] of scaled queries [R, H, D]: one product with the prompt for all its rows, one with each own."""
        copies, key_heads = self.num_copies, layer.own_keys.shape[1]
        number, heads, width = queries.shape
        repeats, prompt = heads // key_heads, layer.prompt_keys.shape[2]

        def by_prompt(rows: Tensor) -> Tensor:  # [R, H', r, X] to [G, H', K * r, X]
            split = rows.view(-1, copies, key_heads, repeats, rows.shape[-1])
            return split.transpose(1, 2).reshape(-1, key_heads, copies * repeats, rows.shape[-1])

        def by_row(groups: Tensor) -> Tensor:  # and back
            split = groups.view(-1, key_heads, copies, repeats, groups.shape[-1])
            return split.transpose(1, 2).reshape(number, key_heads, repeats, groups.shape[-1])

        rows = queries.view(number, key_heads, repeats, width)
        with_prompt = by_row(by_prompt(rows) @ layer.prompt_keys.transpose(-1, -2))
        with_own = rows @ layer.own_keys.transpose(-1, -2)
        weights = torch.cat([with_prompt, with_own], -1).add_(bias).softmax(-1)  # [R, H', r, P + T]
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
        for one in self._layers.values() if more_prompt or more_own else ():
            one.prompt_keys, one.prompt_values = (
                _wider(room, more_prompt) for room in (one.prompt_keys, one.prompt_values)
            )
            one.own_keys, one.own_values = (_wider(room, more_own) for room in (one.own_keys, one.own_values))


def room(length: int) -> int:
    """Tokens that room is made for where there are so many."""
    return rounded(length, WIDTH_STEP, WIDTHS_PER_OCTAVE) if length else 0


def _wider(room: Tensor, more: int) -> Tensor:
    return nn.functional.pad(room, (0, 0, 0, more)) if more else room
