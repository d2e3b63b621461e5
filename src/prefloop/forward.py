"""What models compute on groups: log-probabilities of completion tokens, and scores of completions.

Each is a module around a stock transformers model, so that it can be replicated or sharded as one. Prompts are computed
once for all completions of a group where the model allows it; the vocabulary is only met at completion tokens, in chunks,
so that the whole matrix of logits never exists. Knows nothing about losses or where groups come from.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from prefloop.attention import SHARED, SHARED_FLEX
from prefloop.batches import Batch, TokenGroup, collate, microbatches, tokens_at_once
from prefloop.config import RuntimeSection
from prefloop.lean import make_lean
from prefloop.losses import entropy
from prefloop.modeling import reward_notes

logger = logging.getLogger(__name__)

LOGITS_AT_ONCE = 1 << 24
"""Logits that may exist at once; more completion tokens are taken in chunks and computed again in the backward pass."""
LOGITS_IN_CACHE = 1 << 18
"""Float32 logits that a CPU works on at once: a megabyte, which stays near the core between one pass and the next."""
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Largest difference of hidden states, relative to the largest hidden state, by the type of the weights."""
SHAREABLE_LAYERS = frozenset({"full_attention", "sliding_attention"})


Beside = Literal["collisions", "entropies"]
"""What else can be told of a next-token distribution: log Σ p², a constant, or its entropy, with a gradient."""


class LogpsModule(nn.Module):
    """A causal language model that gives the log-probability of every completion token."""

    def __init__(self, model: PreTrainedModel, *, pad_id: int, runtime: RuntimeSection) -> None:
        super().__init__()
        make_lean(model)
        self.pad_id = pad_id
        self.shares = share_prompts(model, pad_id, runtime)
        self.own_head = _head_is_plain(model, pad_id, shares=self.shares)
        self.model: Any = model

    def forward(self, batch: Batch, *, beside: "Beside | None" = None) -> Any:
        """Log-probabilities [t] of `batch.targets`, float32; with `beside` also another figure [t] of the same places."""
        logps, others = self._logps(batch, beside)
        return logps if beside is None else (logps, others)

    def _logps(self, batch: Batch, wanted: "Beside | None") -> tuple[Tensor, Tensor]:
        model = plain(self.model)
        if not self.own_head:
            return _picked(_own_logits(model, batch), batch.targets, wanted)
        head, softcap = model.get_output_embeddings(), _softcap(model)
        hidden = hidden_states(model, batch)[batch.predictors]  # [t, D]

        def logps(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            logits = head(states)
            if softcap is not None:
                logits = torch.tanh(logits / softcap) * softcap
            return _picked(logits, targets, wanted)

        at_once = max(1, LOGITS_AT_ONCE // model.config.get_text_config().vocab_size)
        if len(hidden) <= at_once:
            return logps(hidden, batch.targets)
        parts = [
            _recomputed(logps, states, targets)
            for states, targets in zip(hidden.split(at_once), batch.targets.split(at_once), strict=True)
        ]
        return torch.cat([one for one, _ in parts]), torch.cat([one for _, one in parts])


class ScoresModule(nn.Module):
    """A reward model that gives one score a completion, read at its last token."""

    def __init__(self, model: PreTrainedModel, *, pad_id: int, runtime: RuntimeSection) -> None:
        super().__init__()
        make_lean(model)
        self.pad_id = pad_id
        self.shares = share_prompts(model, pad_id, runtime)
        self.model: Any = model

    def forward(self, batch: Batch) -> Tensor:
        """Scores [C], float32."""
        model: Any = plain(self.model)
        return scaled(model.score(hidden_states(model, batch)[batch.ends])[:, 0].float(), model)


class ValuesModule(ScoresModule):
    """A critic: what a reward model says before every token of a completion."""

    def forward(self, batch: Batch) -> Tensor:
        """Values [t] of the states before `batch.targets`, float32."""
        model: Any = plain(self.model)
        return scaled(model.score(hidden_states(model, batch)[batch.predictors])[:, 0].float(), model)


def scaled(scores: Tensor, model: Any) -> Tensor:
    """What comes out of a reward model's head, shifted and scaled as the model says: the one place where that happens."""
    notes = reward_notes(model.config)
    return (scores - notes.get("shift", 0.0)) / notes.get("scale", 1.0)


def plain(model: Any) -> Any:
    """The transformers model inside adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def hidden_states(model: Any, batch: Batch) -> Tensor:
    """The trunk's last hidden states [rows * T, D]."""
    trunk = getattr(model, model.base_model_prefix)
    return trunk(**_inputs(batch), use_cache=False).last_hidden_state.flatten(0, 1)


def _inputs(batch: Batch) -> dict[str, Any]:
    if batch.layout is None:
        return {"input_ids": batch.input_ids}
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "layout": batch.layout,
        # a mask of four dimensions is passed on as it is, so that none is made; the layout is the mask
        "attention_mask": batch.input_ids.new_empty((1, 1, 0, 0)),
    }


def _own_logits(model: Any, batch: Batch) -> Tensor:
    """The model's own logits [t, V] before each target, for models that do more than multiply by the output embedding."""
    if batch.layout is None:
        return model(**_inputs(batch), use_cache=False).logits.flatten(0, 1)[batch.predictors]
    return model(**_inputs(batch), use_cache=False, logits_to_keep=batch.predictors).logits[0]


def _softcap(model: Any) -> float | None:
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)


# --- log-probabilities -----------------------------------------------------------------------------------------------


class _Picked(torch.autograd.Function):
    """Log-softmax at one token a row; keeps the logits and one number a row, instead of a second matrix."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        picked = torch.empty(len(targets), device=logits.device)
        normaliser = torch.empty_like(picked)
        for rows in _rows_in_cache(logits):
            wide, at = logits[rows].float(), targets[rows].unsqueeze(-1)
            picked[rows] = wide.log_softmax(-1).gather(-1, at).squeeze(-1)
            normaliser[rows] = wide.gather(-1, at).squeeze(-1) - picked[rows]
        ctx.save_for_backward(logits, targets)
        ctx.mark_non_differentiable(normaliser)
        return picked, normaliser

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        result = torch.empty_like(logits)
        for rows in _rows_in_cache(logits):
            gradient = gradients[0][rows].unsqueeze(-1)
            probabilities = logits[rows].float().softmax(-1)
            result[rows] = probabilities.mul_(-gradient).scatter_add_(
                -1, targets[rows].unsqueeze(-1), gradient
            )
        return result, None


def _rows_in_cache(logits: Tensor) -> Iterator[slice]:
    """Rows [t, V] to work on at once: all of them on an accelerator."""
    number = len(logits) if logits.device.type != "cpu" else max(1, LOGITS_IN_CACHE // logits.shape[1])
    for start in range(0, len(logits), max(number, 1)):
        yield slice(start, start + number)


def _picked(logits: Tensor, targets: Tensor, beside: Beside | None) -> tuple[Tensor, Tensor]:
    logps, normaliser = _Picked.apply(logits, targets)  # type: ignore[misc]
    if beside is None:
        return logps, torch.zeros_like(logps)
    if beside == "entropies":
        return logps, entropy(logits)
    with torch.no_grad():
        return logps, (2 * (logits.float() - normaliser.unsqueeze(-1))).logsumexp(-1)


def _recomputed(function: Callable[..., Any], *arguments: Tensor) -> Any:
    """The function's value; its intermediate results are computed again in the backward pass."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False)


# --- which models can share ------------------------------------------------------------------------------------------


def share_prompts(model: PreTrainedModel, pad_id: int, runtime: RuntimeSection) -> bool:
    """Switches the model to prompt-sharing attention if that gives what padded rows give; tells why if not."""
    if model.config._attn_implementation in (SHARED, SHARED_FLEX):
        return True
    if not runtime.share_prompts:
        return False
    reason = _why_not_shared(model, pad_id, runtime)
    if reason is None:
        model.set_attn_implementation(SHARED_FLEX if runtime.attention == "flex" else SHARED)
        return True
    logger.info("prompts are computed once per completion: %s %s", type(model).__name__, reason)
    return False


def _why_not_shared(model: Any, pad_id: int, runtime: RuntimeSection) -> str | None:
    config = model.config.get_text_config()
    if runtime.attention not in ("sdpa", "flex"):
        return f"runs on runtime.attention = {runtime.attention}"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - SHAREABLE_LAYERS:
        return f"has layers of {', '.join(sorted(kinds - SHAREABLE_LAYERS))}"
    before, training = model.config._attn_implementation, model.training
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it tells of what is found out here
    model.eval()
    try:
        with torch.no_grad():
            padded = _probe(model, pad_id, share=False)[0]
            model.set_attn_implementation(SHARED)
            shared, windows = _probe(model, pad_id, share=True)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        return f"cannot run on it: {type(error).__name__}: {error}"
    finally:
        model.set_attn_implementation(before)
        model.train(training)
        transformers_logging.set_verbosity(verbosity)
    if _has_windows(config, kinds) and windows == {None}:
        return "has sliding windows that its attention is not told of"
    difference = float((shared - padded).abs().max() / padded.abs().max())
    if not difference < PROBE_TOLERANCE[model.dtype]:
        return f"gives other results then (difference {difference:.2g})"
    return None


def _has_windows(config: Any, kinds: set[str]) -> bool:
    if getattr(config, "layer_types", None):
        return "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)


def _probe_batch(model: Any, pad_id: int, *, share: bool) -> Batch:
    """Two groups on which ways of reading are compared, of tokens that every vocabulary has."""
    size = model.config.get_text_config().vocab_size

    def ids(*numbers: int) -> tuple[int, ...]:
        return tuple(number % size for number in numbers)

    groups = (
        TokenGroup(ids(5, 6, 7, 8, 9), (ids(10, 11, 12), ids(13, 14))),
        TokenGroup(ids(9, 8), (ids(7, 6, 5),)),
    )
    return collate(groups, share=share, pad_id=pad_id, device=model.device)


def _probe(model: Any, pad_id: int, *, share: bool) -> tuple[Tensor, set[int | None]]:
    """Hidden states before each completion token, and the windows that the attention was told of."""
    batch = _probe_batch(model, pad_id, share=share)
    states = hidden_states(model, batch)[batch.predictors].float()
    return states, batch.layout.windows_seen if batch.layout else set()


def _head_is_plain(model: Any, pad_id: int, *, shares: bool) -> bool:
    """Whether the logits are the output embedding of the last hidden state, so that they can be made in chunks."""
    head = model.get_output_embeddings()
    if head is None or not hasattr(model, model.base_model_prefix):
        return False
    batch = _probe_batch(model, pad_id, share=shares)
    training = model.training
    model.eval()
    with torch.no_grad():
        expected = _own_logits(model, batch)
        found = head(hidden_states(model, batch)[batch.predictors])
        softcap = _softcap(model)
        if softcap is not None:
            found = torch.tanh(found / softcap) * softcap
    model.train(training)
    return bool(torch.allclose(expected.float(), found.float(), rtol=1e-3, atol=1e-4))


# --- everything at once ----------------------------------------------------------------------------------------------


def all_token_logps(
    module: nn.Module, groups: Sequence[TokenGroup], runtime: RuntimeSection
) -> list[list[Tensor]]:
    """Log-probabilities of every completion's tokens, float32 on the CPU: a tensor for each completion of each group."""
    return of_each(module, groups, lambda batch: _by_completion(module(batch), batch), runtime)


def all_values(
    module: ValuesModule, groups: Sequence[TokenGroup], runtime: RuntimeSection
) -> list[list[Tensor]]:
    """A critic's values before every completion's tokens, float32 on the CPU: a tensor for each completion."""
    return of_each(module, groups, lambda batch: _by_completion(module(batch), batch), runtime)


def _by_completion(values: Tensor, batch: Batch) -> list[Tensor]:
    counts = torch.bincount(batch.completion_of, minlength=len(batch.lengths))
    return list(values.cpu().split(counts.tolist()))


def all_sequence_logps(
    module: LogpsModule, groups: Sequence[TokenGroup], runtime: RuntimeSection
) -> list[list[float]]:
    """Summed log-probabilities of every completion of each group."""
    return of_each(module, groups, lambda batch: batch.summed(module(batch)).tolist(), runtime)


def all_scores(
    module: ScoresModule, groups: Sequence[TokenGroup], runtime: RuntimeSection
) -> list[list[float]]:
    """The score of every completion of each group."""
    return of_each(module, groups, lambda batch: module(batch).tolist(), runtime)


@torch.inference_mode()
def of_each(
    module: Any,
    groups: Sequence[TokenGroup],
    measure: Callable[[Batch], list[Any]],
    runtime: RuntimeSection,
) -> list[list[Any]]:
    """One value a completion, computed in batches of similar length."""
    results: list[list[Any]] = [[] for _ in groups]
    device = next(module.parameters()).device
    for indices in microbatches(
        range(len(groups)), lambda i: cost(groups[i], module), max_tokens=tokens_at_once(runtime, device)
    ):
        batch = collate(
            [groups[index] for index in indices], share=module.shares, pad_id=module.pad_id, device=device
        )
        values = iter(measure(batch))
        for index in indices:
            results[index] = [next(values) for _ in groups[index].completions]
    return results


def cost(group: TokenGroup, module: Any) -> int:
    """Tokens that a module computes for a group."""
    return group.num_tokens if module.shares else group.num_padded_tokens
