"""Training a policy on preferences: pairs or rankings among the completions of a prompt.

Builds log-probabilities of pairs from those of tokens and hands them to the objective. Knows nothing about where the
preferences come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from prefloop.batches import Batch, Codec, collate, cut
from prefloop.config import PolicySection, ReferenceSyncSection, RuntimeSection, objectives_in
from prefloop.forward import LogpsModule, cost
from prefloop.interfaces import InputError, Progress
from prefloop.launch import processes
from prefloop.losses import PairLogps, ld_weights, nll, plackett_luce_loss, shaped_logratios, wpo_weights
from prefloop.modeling import Dtype, load_codec, load_policy, save_model, settle
from prefloop.records import PreferencePair
from prefloop.train.adapters import merged, trainable, without_dropout
from prefloop.train.groups import PairGroup, PairIndex, grouped, index_pairs, ranks, with_foreign
from prefloop.train.loop import CHECKPOINTS, Metrics, Task, fit, planned_steps
from prefloop.train.reference import with_reference
from prefloop.train.sharding import whole
from prefloop.train.throughput import training_cost
from prefloop.train.whole_step import PairTerms, WholeStep, weighted_losses


@dataclass(frozen=True)
class PolicyJob:
    """Everything a training process needs; paths are model folders."""

    start: Path
    reference: Path
    pairs: tuple[PreferencePair, ...]
    validation: tuple[PreferencePair, ...]
    options: PolicySection
    steps: int | None
    """Optimiser steps, or None to follow `options.epochs`."""
    dtype: Dtype
    seed: int
    runtime: RuntimeSection
    out: Path
    reference_logps: Path | None = None
    """Folder that keeps the reference's log-probabilities for other stages too; left out, they go with the checkpoints."""


def train_policy(job: PolicyJob, progress: Progress) -> dict[str, Any]:
    """Trains and saves the policy to `job.out / "model"`; returns its statistics."""
    settle(job.runtime)
    codec = load_codec(job.start)
    encoded, cut_rows = encode_pairs(job.pairs, codec, job.options, seed=job.seed)
    held_out, cut_held_out = encode_pairs(job.validation, codec, job.options, seed=job.seed)
    groups = _with_reference([*encoded, *held_out], job, codec, progress)
    training, validation = groups[: len(encoded)], groups[len(encoded) :]
    model = load_policy(job.start, job.runtime)
    module = LogpsModule(model, pad_id=codec.pad_id, runtime=job.runtime)
    without_dropout(model)
    module.model = trainable(
        model, job.options, task="CAUSAL_LM", dtype=job.dtype, seed=job.seed, runtime=job.runtime
    )
    objective = Preferences(module, job.options, moving=_moving_reference(job, codec))
    stats: dict[str, Any] = fit(
        module,
        objective.task(training),
        job.options,
        steps=job.steps or planned_steps(len(training), job.options),
        seed=job.seed,
        dtype=job.dtype,
        runtime=job.runtime,
        folder=job.out,
        progress=progress,
    )
    module.model = merged(module.model)
    stats["validation"] = objective.validate(validation) if validation else None
    stats |= {
        "pairs": len(job.pairs),
        "prompts": len(training),
        "truncated": cut_rows + cut_held_out,
        "objective": job.options.objective.kind,
        "shares_prompts": module.shares,
    }
    if processes(job.runtime).is_main_process:
        save_model(module.model, codec.tokenizer, job.out / "model", dtype=job.dtype)
    return stats


def encode_pairs(
    pairs: Sequence[PreferencePair], codec: Codec, options: PolicySection, *, seed: int
) -> tuple[list[PairGroup], int]:
    """Token groups of pairs, and how many completions had to be cut to fit."""
    groups = grouped(pairs, codec, options.grouping, per_prompt=False)
    if any(one.kind == "kto" for one in objectives_in(options.objective)):
        groups = with_foreign(groups, seed=seed)
    fitted, cut_rows = [], 0
    for group in groups:
        tokens, number = cut(
            group.tokens,
            max_length=options.max_length,
            max_prompt_length=options.max_prompt_length,
            truncation=options.truncation,
        )
        if not all(tokens.completions):
            raise InputError(
                f"pair {group.name}: nothing of the completion fits; policy.max_prompt_length "
                f"({options.max_prompt_length}) must be smaller than policy.max_length ({options.max_length})"
            )
        cut_rows += number
        fitted.append(replace(group, tokens=tokens))
    return fitted, cut_rows


def _with_reference(
    groups: list[PairGroup], job: PolicyJob, codec: Codec, progress: Progress
) -> list[PairGroup]:
    """The groups with log-probabilities under a reference that stays as it is, where the objective reads them."""
    if not job.options.uses_reference or job.options.reference_sync is not None:
        return groups
    return with_reference(
        groups,
        lambda: _reference(job, codec),
        folder=job.reference_logps or job.out / CHECKPOINTS / "reference",
        dtype=job.dtype,
        runtime=job.runtime,
        state=processes(job.runtime),
        progress=progress,
    )


def _reference(job: PolicyJob, codec: Codec) -> LogpsModule:
    return LogpsModule(load_policy(job.reference, job.runtime), pad_id=codec.pad_id, runtime=job.runtime)


def _moving_reference(job: PolicyJob, codec: Codec) -> "MovingReference | None":
    if job.options.reference_sync is None:
        return None
    return MovingReference(_reference(job, codec), job.options.reference_sync)


class MovingReference:
    """A reference whose weights follow the policy's (TR-DPO, arXiv:2404.09656)."""

    def __init__(self, module: LogpsModule, options: ReferenceSyncSection) -> None:
        self.module = module
        self.options = options

    @torch.no_grad()
    def after_step(self, trained: nn.Module, step: int) -> None:
        """Moves the reference towards the policy when it is time: reference + weight (policy - reference)."""
        if step % self.options.every_steps == 0:
            for reference, policy in zip(self.module.parameters(), trained.parameters(), strict=True):
                reference.lerp_(whole(policy).to(reference), self.options.weight)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a checkpoint."""
        self.module.load_state_dict(state)


class Preferences:
    """The configured objective on groups of pairs, as the optimiser loop needs it."""

    def __init__(
        self, module: LogpsModule, options: PolicySection, *, moving: MovingReference | None = None
    ) -> None:
        self.module = module
        self.options = options
        self.moving = moving
        self.whole_step = WholeStep(options, self._detached) if options.objective.whole_step else None

    def task(self, groups: Sequence[PairGroup]) -> Task[PairGroup]:
        """Training on the groups."""
        work = training_cost(self.module)
        return Task(
            groups,
            tokens=lambda group: cost(group.tokens, self.module),
            count=lambda group: group.weight,
            name=lambda group: group.name,
            loss=self.loss,
            before_step=self.whole_step.before_step if self.whole_step else None,
            after_step=self.moving.after_step if self.moving else None,
            kept=[
                *([self.moving] if self.moving else []),
                *([self.whole_step.mean] if self.whole_step else []),
            ],
            work=lambda group: work.of(group.tokens),
        )

    def loss(self, trained: Any, groups: Sequence[PairGroup]) -> tuple[Tensor, Metrics]:
        """Summed weighted loss and summed metrics. `trained` is the module, or what replicates it."""
        batch, logps, collisions = self._logps(trained, groups)
        index = index_pairs(groups, logps.device)
        reference = self._reference_logps(batch, groups, logps)
        if self.options.objective.kind == "plackett_luce":
            return _ranking_loss(logps, reference, batch, groups, self.options)
        terms = _terms(logps, collisions, reference, batch, index, self.options)
        if self.whole_step is None:
            loss = weighted_losses(terms.pair, terms.weights, self.options).sum()
        elif torch.is_grad_enabled():
            loss = self.whole_step.loss(terms.pair, groups)
        else:
            loss = self.whole_step.losses(terms).sum()
        return loss, self._metrics(terms.pair, index.weights)

    def _detached(self, trained: Any, groups: Sequence[PairGroup]) -> PairTerms:
        batch, logps, collisions = self._logps(trained, groups)
        reference = self._reference_logps(batch, groups, logps)
        return _terms(logps, collisions, reference, batch, index_pairs(groups, logps.device), self.options)

    def _logps(self, trained: Any, groups: Sequence[PairGroup]) -> tuple[Batch, Tensor, Tensor | None]:
        device = next(trained.parameters()).device
        batch = collate(
            [one.tokens for one in groups],
            share=self.module.shares,
            pad_id=self.module.pad_id,
            device=device,
        )
        if self.options.weighting == "wpo":
            logps, collisions = trained(batch, beside="collisions")
            return batch, logps, collisions
        return batch, trained(batch), None

    def _reference_logps(self, batch: Batch, groups: Sequence[PairGroup], logps: Tensor) -> Tensor:
        """Log-probabilities [t] under the reference; 0 where the objective reads none."""
        if not self.options.uses_reference:
            return torch.zeros_like(logps)
        if self.moving is not None:
            with torch.no_grad():
                return self.moving.module(batch)
        return torch.cat([values for one in groups for values in one.reference]).to(logps.device)

    def _metrics(self, pair: PairLogps, weights: Tensor) -> Metrics:
        """Weighted sums of what preference training watches."""
        beta = getattr(self.options.objective, "beta", 1.0)
        rewards = {
            "reward_chosen": beta * pair.chosen_logratios,
            "reward_rejected": beta * pair.rejected_logratios,
            "margin": beta * pair.margins,
        }
        values = {
            "accuracy": (pair.margins > 0).float(),
            "chosen_logps": pair.chosen,
            "rejected_logps": pair.rejected,
            "nll": nll(pair),
            **rewards,
        }
        return {name: (value.detach() * weights).sum() for name, value in values.items()}

    @torch.no_grad()
    def validate(self, groups: Sequence[PairGroup]) -> dict[str, float]:
        """Metrics on held-out pairs, averaged."""
        sums: dict[str, float] = {}
        for group in groups:
            loss, metrics = self.loss(self.module, [group])
            for name, value in {"loss": loss, **metrics}.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        total = sum(group.weight for group in groups)
        averages = {name: round(value / total, 6) for name, value in sums.items()}
        return averages | {"pairs": sum(len(group.pairs) for group in groups)}


def _terms(
    logps: Tensor,
    collisions: Tensor | None,
    reference: Tensor,
    batch: Batch,
    index: PairIndex,
    options: PolicySection,
) -> PairTerms:
    """The pairs of a microbatch, from log-probabilities [t] of its completion tokens."""
    lengths = batch.lengths.float()
    policy_sums, reference_sums = batch.summed(logps), batch.summed(reference)  # [C]

    def sums(side: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        if options.tail_weight == 1:
            return policy_sums[side], reference_sums[side]
        own = (batch.completion_of == side.unsqueeze(1)).float()  # [B, t]
        weights = ld_weights(own, lengths[other], alpha=options.tail_weight)
        return (weights * logps).sum(-1), (weights * reference).sum(-1)

    chosen, reference_chosen = sums(index.chosen, index.rejected)
    rejected, reference_rejected = sums(index.rejected, index.chosen)
    pair = PairLogps(
        chosen,
        rejected,
        reference_chosen,
        reference_rejected,
        lengths[index.chosen],
        lengths[index.rejected],
        label_margins=index.margins,
        p_chosen=index.p_chosen,
        log_ratios=options.log_ratios,
    )
    weights = index.weights
    if collisions is not None:
        both = torch.cat([index.chosen, index.rejected])
        own = (batch.completion_of == both.unsqueeze(1)).float()  # [2B, t]
        weights = weights * wpo_weights(logps.expand_as(own), collisions.expand_as(own), own)
    return PairTerms(pair, weights, (policy_sums - reference_sums)[index.foreign])


def _ranking_loss(
    logps: Tensor, reference: Tensor, batch: Batch, groups: Sequence[PairGroup], options: PolicySection
) -> tuple[Tensor, Metrics]:
    """Plackett-Luce loss of the groups' rankings, each weighted by its pairs."""
    objective = options.objective
    assert objective.kind == "plackett_luce"
    ratios = shaped_logratios(
        batch.summed(logps), batch.summed(reference), batch.lengths.float(), options.log_ratios
    )
    sizes = [len(one.tokens.completions) for one in groups]
    scores = pad_sequence(list((objective.beta * ratios).split(sizes)), batch_first=True)  # [G, K]
    order = pad_sequence([torch.tensor(ranks(one)) for one in groups], batch_first=True).to(scores.device)
    losses = plackett_luce_loss(scores, order, (order > 0).float())
    weights = torch.tensor([one.weight for one in groups], device=scores.device)
    best = scores.masked_fill(order == 0, -torch.inf).argmax(1) == order.masked_fill(
        order == 0, max(sizes) + 1
    ).argmin(1)
    return (losses * weights).sum(), {"accuracy": (best.float() * weights).sum()}
