"""Training a policy by reinforcement: it samples, is scored, and learns from its own samples.

Puts rollouts, the losses of `losses/policy.py` and the optimiser loop together. Knows nothing about where prompts and scores
come from.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prefloop.algorithms import Algorithm
from prefloop.batches import Codec, TokenGroup
from prefloop.config import RlSection, RuntimeSection
from prefloop.forward import LogpsModule, ValuesModule
from prefloop.interfaces import InputError, Progress, Scorer
from prefloop.launch import processes
from prefloop.lean import make_lean
from prefloop.losses import PolicyTokens, TokenLosses, counted, kl_k3, ptx_losses, token_losses, token_weights
from prefloop.modeling import (
    Dtype,
    load_codec,
    load_policy,
    load_reward_model,
    new_reward_model,
    save_model,
    settle,
)
from prefloop.records import Prompt, Text
from prefloop.store import RowFile
from prefloop.train.actor import ActorCritic, Said
from prefloop.train.adapters import WithoutAdapters, merged, trainable, without_dropout
from prefloop.train.comparing import Comparing
from prefloop.train.loop import Metrics, Task, fit
from prefloop.train.rollouts import GeneratorOf, Rollouts, Sample
from prefloop.trust_region import Tried, difference_product, flat, line_search, natural_step, unflat

SAID = ("score_first", "score_last", "kl", "engine_gap")
"""What the statistics say of the batches."""
BOUND = 0.01
"""Of a trust region's step, in nats a token, where nothing else is asked for (arXiv:1502.05477, section 8.1)."""
DAMPING, ITERATIONS, BACKTRACK, ATTEMPTS = 0.1, 10, 0.8, 10
WIDTH = 1e-2
"""How far weights are moved to see how the gradient of the KL changes, as the norm of the change."""


@dataclass(frozen=True)
class RlJob:
    """Everything a training process needs; paths are model folders."""

    start: Path
    reference: Path
    critic: Path | None
    """A reward model to begin the critic with; None for the policy's own trunk."""
    prompts: tuple[Prompt, ...]
    texts: tuple[Text, ...]
    sampler: GeneratorOf
    scorer: Callable[[], Scorer]
    """Makes the scorer in the process that uses it."""
    constraint: Callable[[], Scorer] | None
    """The same for what the constraint asks, where there is one."""
    gold: Callable[[], Scorer] | None
    """The same for a score that is logged only."""
    options: RlSection
    dtype: Dtype
    seed: int
    runtime: RuntimeSection
    out: Path


def train_online(job: RlJob, progress: Progress) -> dict[str, Any]:
    """Trains and saves the policy to `job.out / "model"`; returns its statistics."""
    settle(job.runtime)
    options, codec = job.options, load_codec(job.start)
    row = options.row
    policy = LogpsModule(load_policy(job.start, job.runtime), pad_id=codec.pad_id, runtime=job.runtime)
    policy.model = _trainable(policy.model, job, "CAUSAL_LM")
    critic = _critic(job, codec) if row is not None and row.baseline == "critic" else None
    module = ActorCritic(policy, critic)
    reference = _reference(job, codec, policy) if options.needs_reference else None
    scorer = job.scorer()
    constraint = job.constraint() if job.constraint is not None else None
    texts, cut_texts = _texts(job, codec)
    spare = _spare(job) if options.ahead else None
    if options.frozen_layers:
        own = [one.model for one in (reference,) if one is not None and one.model is not policy.model]
        module.share(
            [*own, *([spare] if spare else []), *models_of(scorer), *models_of(constraint)],
            layers=options.frozen_layers,
        )
    rollouts = Rollouts(
        module,
        reference,
        job.sampler,
        scorer,
        codec,
        job.prompts,
        options,
        constraint=constraint,
        gold=job.gold() if job.gold is not None else None,
        texts=texts,
        file=RowFile(job.out / "samples.jsonl") if processes(job.runtime).is_main_process else None,
        spare=spare,
        dtype=job.dtype,
        seed=job.seed,
        runtime=job.runtime,
    )
    learning = (
        Comparing(module, rollouts) if row is None else Learning(module, rollouts, row, dtype=job.dtype)
    )
    try:
        stats: dict[str, Any] = fit(
            module,
            learning.task(),
            options,
            steps=options.steps * options.steps_together,
            seed=job.seed,
            dtype=job.dtype,
            runtime=job.runtime,
            folder=job.out,
            progress=progress,
        )
    finally:
        rollouts.close()
    policy.model = merged(policy.model)
    has_kl = row is not None and row.kl != "none"
    stats |= {
        "algorithm": options.algorithm.name,
        "rows": dict(rollouts.standing.rows),
        "sources": dict(rollouts.standing.sources),
        "standardised_by": getattr(scorer, "standardised_by", None) or None,
        **{name: _rounded(rollouts.standing.said.get(name)) for name in SAID},
        "kl_coef": _rounded(rollouts.standing.kl_coef) if has_kl else None,
        "texts": len(texts) if job.texts else None,
        "texts_cut": cut_texts if job.texts else None,
        "shares_prompts": module.shares,
        "shared_layers": module.shared_layers if critic is not None else None,
    }
    if processes(job.runtime).is_main_process:
        save_model(policy.model, codec.tokenizer, job.out / "model", dtype=job.dtype)
    return stats


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _trainable(model: Any, job: RlJob, task: str) -> Any:
    without_dropout(model)
    return trainable(model, job.options, task=task, dtype=job.dtype, seed=job.seed, runtime=job.runtime)


def _reference(job: RlJob, codec: Codec, policy: LogpsModule) -> LogpsModule | WithoutAdapters:
    # what is sampled from is asked through its model, where adapters cannot be left out for a while
    if job.options.lora is not None and job.reference == job.start and not job.options.asks_reference:
        return WithoutAdapters(policy)
    return LogpsModule(load_policy(job.reference, job.runtime), pad_id=codec.pad_id, runtime=job.runtime)


def _spare(job: RlJob) -> Any:
    """A second policy that samples ahead."""
    model = load_policy(job.start, job.runtime)
    if job.options.frozen_layers:
        make_lean(model)  # otherwise sampling lays its weights out anew, those too that it shares
    return _trainable(model, job, "CAUSAL_LM")


def models_of(scorer: Scorer | None) -> Sequence[Any]:
    """The models that a scorer asks, where it says so."""
    return getattr(scorer, "models", ())


def _critic(job: RlJob, codec: Codec) -> ValuesModule:
    if job.critic is None:
        model, _ = new_reward_model(job.start, job.runtime)
    else:
        model, own = load_reward_model(job.critic, job.runtime)
        if own.tokenizer.get_vocab() != codec.tokenizer.get_vocab():
            raise InputError(
                f"rl.critic.start: {job.critic} has other tokens than the policy; use `policy`, or a reward model trained "
                "from it"
            )
    critic = ValuesModule(model, pad_id=codec.pad_id, runtime=job.runtime)
    critic.model = _trainable(model, job, "SEQ_CLS")
    return critic


def _texts(job: RlJob, codec: Codec) -> tuple[list[TokenGroup], int]:
    """Pretraining text, no longer than a prompt and its completion may be, and how many rows had to be cut. Raises
    InputError where there is nothing to learn from."""
    longest = job.options.max_prompt_length + job.options.max_new_tokens
    rows = [codec.text_ids(one.text) for one in job.texts]
    found = [TokenGroup(tuple(ids[:1]), (tuple(ids[1:longest]),)) for ids in rows if len(ids) > 1]
    if job.texts and not found:
        raise InputError("rl.pretraining: every text is empty")
    return found, sum(len(ids) > longest for ids in rows)


class Learning:
    """The losses of an algorithm on samples, as the optimiser loop needs them."""

    def __init__(self, module: ActorCritic, rollouts: Rollouts, row: Algorithm, *, dtype: str) -> None:
        self.module = module
        self.rollouts = rollouts
        self.options = rollouts.options
        self._first_row = row
        self._dtype = dtype

    @property
    def row(self) -> Algorithm:
        """The algorithm, with the weight of the KL as it is by now."""
        return self.rollouts.row or self._first_row

    def task(self) -> Task[Sample]:
        """Training on samples that are made as it goes."""
        reduction = self.row.reduction
        return Task(
            items=(),
            tokens=lambda one: self.module.cost(one.tokens) + sum(map(self.module.cost, one.texts)),
            count=lambda one: counted(torch.tensor(one.lengths), reduction=reduction),
            name=lambda one: f"prompt {one.name}",
            loss=self.loss,
            kept=self.rollouts.kept,
            made=self.rollouts,
            move=self.move if self.row.update == "trust_region" else None,
        )

    def loss(self, trained: Any, samples: Sequence[Sample]) -> tuple[Tensor, Metrics]:
        """Summed loss and summed metrics. `trained` is the module, or what replicates it."""
        row = self.row
        tokens, losses = self._losses(trained, samples)
        weights = token_weights(
            tokens.lengths, reduction=row.reduction, longest=self.options.max_new_tokens
        ).to(tokens.logps.device)
        parts = {"policy_loss": losses.policy, "kl": losses.kl, "value": losses.value}
        metrics = {name: (one.detach() * weights).sum() for name, one in parts.items() if one is not None}
        moved = kl_k3(tokens.old_logps, tokens.logps).detach()
        self.rollouts.moved += [float(moved.sum()), float(len(moved))]
        # means of a token, also where the loss adds up the tokens of a completion
        reduction = "token" if row.reduction == "token" else "sequence"
        even = token_weights(tokens.lengths, reduction=reduction, longest=1).to(moved.device)
        told = {"ratio": losses.ratios, "clipped": losses.clipped, "step_kl": moved}
        metrics |= {name: (one.detach() * even).sum() for name, one in told.items()}
        loss = (losses.total * weights).sum()
        texts = [text for one in samples for text in one.texts]
        if texts:
            said: Said = trained(self.module.batch(texts))
            scale = samples[0].text_weight
            loss = loss + scale * ptx_losses(said.logps, ptx_coef=row.ptx_coef).sum()
            metrics["text_nll"] = -scale * said.logps.detach().sum()
        return loss, metrics

    def _losses(self, trained: Any, samples: Sequence[Sample]) -> tuple[PolicyTokens, TokenLosses]:
        row = self.row
        batch = self.module.batch([one.tokens for one in samples])
        said: Said = trained(batch, entropies=bool(row.entropy_coef))
        device = said.logps.device

        def joined(name: str) -> Any:
            values = [getattr(one, name) for one in samples]
            return None if values[0] is None else torch.cat(values).to(device)

        old = joined("old_logps")
        tokens = PolicyTokens(
            said.logps,
            said.logps.detach() if old is None else old,
            joined("advantages"),
            batch.lengths,
            weights=joined("weights"),
            reference_logps=joined("reference_logps"),
            entropies=said.entropies,
            values=said.values,
            old_values=joined("old_values"),
            returns=joined("returns"),
        )
        return tokens, token_losses(tokens, row)

    # --- a step within a trust region ---

    def move(
        self, trained: nn.Module, weights: Mapping[str, nn.Parameter], passes: Sequence[Sequence[Sample]]
    ) -> Metrics:
        """TRPO's step of the policy, arXiv:1502.05477; the critic keeps its gradient for the optimiser.

        The KL is estimated on the batch's own tokens, which the old policy sampled (k3), and its Hessian by differences of
        its gradient, so that nothing has to be differentiated twice.
        """
        own = [weight for name, weight in weights.items() if name.startswith("policy.")]
        gradient = -flat([_gradient_of(one) for one in own])  # of what is to rise
        for one in own:
            one.grad = None
        around = Around(own)
        before = self._surrogate(trained, passes)

        def gradient_at(change: Tensor) -> Tensor:
            with around.moved(change), torch.enable_grad():
                total = torch.zeros_like(change)
                for part in passes:
                    kl = self._kl(trained, part)
                    total += flat(torch.autograd.grad(kl, own))
                return total

        def measure(change: Tensor) -> Tried:
            with around.moved(change), torch.no_grad():
                kl = sum(float(self._kl(trained, part)) for part in passes)
                return Tried(self._surrogate(trained, passes) - before, kl)

        bound = self.options.max_step_kl or BOUND
        step = natural_step(
            gradient,
            difference_product(gradient_at, width=WIDTH),
            max_kl=bound,
            damping=DAMPING,
            iterations=ITERATIONS,
        )
        found = line_search(step, measure, max_kl=bound, backtrack=BACKTRACK, attempts=ATTEMPTS)
        around.settle(found.change)
        told = {"trust_kl": found.tried.kl, "trust_gain": found.tried.gain, "trust_fraction": found.fraction}
        return {name: torch.tensor(value) for name, value in told.items()}

    def _kl(self, trained: Any, samples: Sequence[Sample]) -> Tensor:
        """This part's share of the mean KL(old ‖ new) of the batch's tokens."""
        batch = self.module.batch([one.tokens for one in samples])
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=self._dtype == "bfloat16"):
            said: Said = trained(batch)
        old = torch.cat([one.old_logps for one in samples if one.old_logps is not None])
        old = old.to(said.logps.device)
        return kl_k3(old, said.logps).sum() / self.rollouts.num_tokens

    @torch.no_grad()
    def _surrogate(self, trained: Any, passes: Sequence[Sequence[Sample]]) -> float:
        """Mean of ratio * advantage over the batch's tokens."""
        total = sum(float(self._losses(trained, part)[1].policy.sum()) for part in passes)
        return -total / self.rollouts.num_tokens


class Around:
    """Weights as they are, and changes of them that can be tried."""

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self._weights = weights
        self._kept = [one.detach().clone() for one in weights]

    @contextmanager
    def moved(self, change: Tensor) -> Iterator[None]:
        """The weights with a change [P] added; they are as before afterwards, bit by bit."""
        self.settle(change)
        try:
            yield
        finally:
            self._put(self._kept)

    def settle(self, change: Tensor) -> None:
        """Leaves the weights with a change added."""
        parts = unflat(change, self._kept)
        self._put([kept + part for kept, part in zip(self._kept, parts, strict=True)])

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for weight, value in zip(self._weights, values, strict=True):
            weight.copy_(value)


def _gradient_of(weight: nn.Parameter) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad
