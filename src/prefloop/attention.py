"""Prompt-sharing attention: the completions of a group see the prompt and themselves, and the prompt is computed once.

All groups of a microbatch lie flat in one row. `Layout` says which tokens belong together; `shared_attention` is registered
with transformers, so that stock models run on it unmodified. On a CPU it gathers segments of similar length and calls
SDPA on them; FlexAttention and the dense mask are the same pattern written as a predicate. Knows nothing about text,
losses or which model calls it.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SHARED = "prefloop_shared"
"""Name of the SDPA form among transformers' attention implementations."""
SHARED_FLEX = "prefloop_shared_flex"
"""Name of the FlexAttention form."""
FLAT_STEP = 64
"""Least multiple to which the length of a flat row is rounded up."""
SEGMENT_STEP = 16
"""Least multiple to which segments are padded inside one attention call."""
EAGER_KEYS = 1024
"""Longest keys for which bfloat16 scores are written out on a CPU; longer ones would take too much memory."""
STEPS_PER_OCTAVE = 16, 8
"""Sizes distinguished between one power of two and the next: of flat rows, of segments."""
NO_BRANCH = -1
"""Branch of the padding at the end of a flat row; the prompt is branch 0."""


def rounded(number: int, step: int, per_octave: int) -> int:
    """`number` rounded up to one of few sizes, so that shapes repeat and memory is reused."""
    coarse = 1 << max(number.bit_length() - 1, 0)
    step = max(step, coarse // per_octave)
    return -(-number // step) * step


@dataclass(frozen=True)
class Call:
    """Segments of similar length that share one call of SDPA; indices are positions in the flat row."""

    queries: Tensor
    """[B, Q], padded with the last position of the flat row, which is always padding."""
    keys: Tensor
    """[B, L]: the prompt, then the own tokens; the queries where these attend causally to themselves."""
    causal: bool


@dataclass(frozen=True)
class Layout:
    """Which tokens of a flat row see which: tensors of one entry a token, and the calls that compute it."""

    groups: Tensor
    """[N], number of the group."""
    branches: Tensor
    """[N], 0 for prompt tokens, 1 … K for the completions, -1 for padding."""
    positions: Tensor
    """[N], position in the sequence that the model believes to read."""
    calls: tuple[Call, ...]
    queries: Tensor
    """The queries of all calls, one after another."""
    keys: Tensor
    """The keys of all calls, one after another."""
    restore: Tensor
    """[N], where each token's output is among the outputs of all calls."""
    _masks: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """Masks made once and used by all layers."""

    @property
    def windows_seen(self) -> set[int | None]:
        """The sliding windows for which masks of shared calls were made."""
        return {name[2] for name in self._masks if isinstance(name, tuple)}

    def allowed(self, window: int | None = None) -> Tensor:
        """The whole pattern as a dense mask [N, N], True where the row's token sees the column's: the test oracle."""
        index = torch.arange(len(self.groups), device=self.groups.device)
        return self.predicate(window)(None, None, index[:, None], index[None, :])

    def predicate(self, window: int | None) -> Callable[[Any, Any, Tensor, Tensor], Tensor]:
        """The pattern as FlexAttention's `mask_mod(batch, head, query, key)`."""
        groups, branches, positions = self.groups, self.branches, self.positions

        def sees(_batch: Any, _head: Any, query: Tensor, key: Tensor) -> Tensor:
            same = (groups[query] == groups[key]) & (query >= key)
            branch = (branches[key] == 0) | (branches[key] == branches[query])
            near = True if window is None else positions[query] - positions[key] < window
            return same & branch & near

        return sees

    def mask(
        self, number: int, dtype: torch.dtype, window: int | None, *, needed: bool = False
    ) -> Tensor | None:
        """Additive mask [B, 1, Q, L] of a call; None where it is plainly causal, unless `needed`."""
        call, keys = self.calls[number], self.calls[number].keys
        if call.causal and (window is None or keys.shape[1] <= window) and not needed:
            return None
        name = (number, dtype, window)
        if name not in self._masks:
            sees = self.predicate(window)(None, None, call.queries[:, :, None], keys[:, None, :])
            real = self.branches[keys] != NO_BRANCH
            # a padding query must see something, or its softmax has no value
            sees = (sees & real[:, None, :]) | (self.branches[call.queries] == NO_BRANCH)[:, :, None]
            bias = torch.zeros(sees.shape, dtype=dtype, device=keys.device).masked_fill_(~sees, -math.inf)
            self._masks[name] = bias.unsqueeze(1)
        return self._masks[name]

    def block_mask(self, window: int | None) -> Any:
        """The pattern as FlexAttention's block mask."""
        if window not in self._masks:
            from torch.nn.attention.flex_attention import create_block_mask

            length, device = len(self.groups), self.groups.device
            self._masks[window] = create_block_mask(
                self.predicate(window), B=None, H=None, Q_LEN=length, KV_LEN=length, device=device.type
            )
        return self._masks[window]


def lay_out(prompts: Sequence[int], completions: Sequence[Sequence[int]], device: torch.device) -> Layout:
    """The layout of groups that lie one after another, each its prompt and then its completions; lengths in tokens."""
    spans: list[_Span] = []
    causal: list[_Span] = []
    shared: list[tuple[_Span, _Span]] = []
    start = 0
    for group, (prompt, lengths) in enumerate(zip(prompts, completions, strict=True)):
        prefix = _Span(start, prompt, group, 0, 0)
        own = []
        start += prompt
        for branch, length in enumerate(lengths, 1):
            own.append(_Span(start, length, group, branch, prompt))
            start += length
        spans += [prefix, *own]
        if len(own) == 1:  # nothing to share: one causal segment
            causal.append(_Span(prefix.start, prompt + own[0].length, group, 0, 0))
        else:
            causal += [prefix] if prompt else []
            shared += [(prefix, one) for one in own]
    length = rounded(start + 1, FLAT_STEP, STEPS_PER_OCTAVE[0])
    spans.append(_Span(start, length - start, NO_BRANCH, NO_BRANCH, 0))
    calls = [*_causal_calls(causal, length - 1), *_shared_calls(shared, length - 1)]
    sizes = torch.tensor([one.length for one in spans])
    index = torch.arange(length)

    def each(values: list[int]) -> Tensor:
        return torch.tensor(values).repeat_interleave(sizes)

    queries = torch.cat([call.queries.flatten() for call in calls])
    restore = torch.zeros(length, dtype=torch.long)
    restore[queries] = torch.arange(len(queries))
    branches = each([one.branch for one in spans])
    positions = (index - each([one.start - one.offset for one in spans])) * (branches != NO_BRANCH)
    return Layout(
        each([one.group for one in spans]).to(device),
        branches.to(device),
        positions.to(device),
        tuple(Call(one.queries.to(device), one.keys.to(device), one.causal) for one in calls),
        queries.to(device),
        torch.cat([call.keys.flatten() for call in calls]).to(device),
        restore.to(device),
    )


class _Span(NamedTuple):
    """Tokens that lie side by side in the flat row and belong to one prompt or one completion."""

    start: int
    length: int
    group: int
    branch: int
    offset: int
    """Position of the first token in its sequence."""


def _segment_size(span: _Span) -> int:
    return rounded(span.length, SEGMENT_STEP, STEPS_PER_OCTAVE[1])


def _rows(spans: Sequence[_Span], filler: int) -> Tensor:
    """Index rows [B, L] of spans of one size, padded at the end."""
    starts = torch.tensor([one.start for one in spans]).unsqueeze(1)
    lengths = torch.tensor([one.length for one in spans]).unsqueeze(1)
    columns = torch.arange(_segment_size(spans[0]))
    return torch.where(columns < lengths, starts + columns, filler)


def _causal_calls(spans: Sequence[_Span], filler: int) -> list[Call]:
    by_size: dict[int, list[_Span]] = defaultdict(list)
    for one in spans:
        by_size[_segment_size(one)].append(one)
    rows = [_rows(same, filler) for _, same in sorted(by_size.items())]
    return [Call(one, one, causal=True) for one in rows]


def _shared_calls(spans: Sequence[tuple[_Span, _Span]], filler: int) -> list[Call]:
    by_size: dict[tuple[int, int], list[tuple[_Span, _Span]]] = defaultdict(list)
    for prefix, own in spans:
        by_size[_segment_size(prefix), _segment_size(own)].append((prefix, own))
    calls = []
    for _, same in sorted(by_size.items()):
        queries = _rows([own for _, own in same], filler)
        keys = torch.cat([_rows([prefix for prefix, _ in same], filler), queries], dim=1)
        calls.append(Call(queries, keys, causal=False))
    return calls


# --- the attention functions -----------------------------------------------------------------------------------------


class KeysAndValues(Protocol):
    """What keeps keys and values from token to token while completions grow (`decoding.py`)."""

    def store_prompts(self, module: nn.Module, key: Tensor, value: Tensor) -> None:
        """Keeps those of the prompts in a flat row."""
        ...

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
        """Attention of the newest tokens over all that is kept."""
        ...


def shared_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    group_cache: KeysAndValues | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention over a flat row: query [1, H, N, D], key and value [1, H', N, D] to [1, N, H, D].

    With a cache and a layout, prompts are read and kept; with a cache alone, completions grow by a token each. Raises
    NotImplementedError for models whose attention scores are changed in ways that SDPA cannot express.
    """
    if layout is None and group_cache is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    _refuse_unknown(options)
    if layout is None:
        assert group_cache is not None
        return group_cache.attend(module, query, key, value, scaling=scaling, window=sliding_window), None
    if group_cache is not None:
        group_cache.store_prompts(module, key, value)
    dtype = _compute_dtype(query)
    queries = _taken(query, layout.queries, [one.queries for one in layout.calls], dtype)  # [B, H, Q, D] each
    keys = _taken(key, layout.keys, [one.keys for one in layout.calls], dtype)  # [B, H', L, D] each
    values = _taken(value, layout.keys, [one.keys for one in layout.calls], dtype)
    outputs = []
    for number, states in enumerate(zip(queries, keys, values, strict=True)):
        drop = dropout if module.training else 0.0
        if _small_in_bfloat16(*states) and not drop:
            bias = layout.mask(number, dtype, sliding_window, needed=True)
            assert bias is not None, "it was needed"
            output = _eager(*states, bias, scaling)
        else:
            bias = layout.mask(number, dtype, sliding_window)
            output = functional.scaled_dot_product_attention(
                *states,
                attn_mask=bias,
                dropout_p=drop,
                is_causal=bias is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        outputs.append(output.transpose(1, 2).flatten(0, 1))  # [B * Q, H, D]
    return torch.cat(outputs).index_select(0, layout.restore).unsqueeze(0), None


def _compute_dtype(query: Tensor) -> torch.dtype:
    """What attention is computed in: rotary embeddings may have widened what autocast will narrow again."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def _small_in_bfloat16(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether writing the scores out is faster: SDPA's CPU kernel takes twice the time of two matrix products then."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[2] <= EAGER_KEYS


def _eager(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float | None) -> Tensor:
    """Attention [B, H, Q, D] by plain matrix products; query heads that share a key head are rows of one product."""
    batch, heads, length, width = query.shape
    key_heads = key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    rows = (query * scale).reshape(batch, key_heads, -1, width)  # [B, H', H / H' * Q, D]
    scores = (rows @ key.transpose(-1, -2)).view(batch, heads, length, -1)  # [B, H, Q, L]
    weights = (scores + bias).softmax(-1).view(batch, key_heads, -1, key.shape[2])
    return (weights @ value).view(batch, heads, length, -1)


def _taken(states: Tensor, index: Tensor, calls: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """States [1, H, N, D] at the places of each call [B, L], as [B, H, L, D]; one pass for all, and one back."""
    rows = states[0].transpose(0, 1).to(dtype).index_select(0, index)  # [all B * L, H, D]
    parts = rows.split([one.numel() for one in calls])
    return [
        part.view(*one.shape, *part.shape[1:]).transpose(1, 2) for part, one in zip(parts, calls, strict=True)
    ]


def shared_flex_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    group_cache: KeysAndValues | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The same as `shared_attention` by FlexAttention: for CUDA, where it is compiled; on a CPU it has no backward."""
    if layout is None or group_cache is not None:
        return shared_attention(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            dropout=dropout,
            sliding_window=sliding_window,
            layout=layout,
            group_cache=group_cache,
            **options,
        )
    _refuse_unknown(options)
    if dropout and module.training:
        raise NotImplementedError("FlexAttention has no dropout")
    output = _flex(query.device.type)(
        query,
        key,
        value,
        block_mask=layout.block_mask(sliding_window),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2), None


_COMPILED: dict[str, Any] = {}


def _flex(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    if device not in _COMPILED:
        _COMPILED[device] = torch.compile(flex_attention) if device == "cuda" else flex_attention
    return _COMPILED[device]


UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""What some models add to their attention scores."""


def _refuse_unknown(options: dict[str, Any]) -> None:
    found = [name for name in UNSUPPORTED if options.get(name) is not None]
    if found:
        raise NotImplementedError(f"prompt-sharing attention has no {', '.join(found)}")


for name, function in ((SHARED, shared_attention), (SHARED_FLEX, shared_flex_attention)):
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)  # for calls without a layout
