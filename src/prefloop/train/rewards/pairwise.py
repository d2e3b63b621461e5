"""Training a language model to say which of two completions is better, by the one letter that it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefloop.batches import Codec, TokenGroup, collate
from prefloop.config import PairwiseReward
from prefloop.forward import LogpsModule
from prefloop.interfaces import InputError, PairTask, Progress
from prefloop.launch import processes
from prefloop.modeling import load_policy, load_tokenizer, note_reward, save_model
from prefloop.records import PreferencePair
from prefloop.reward.questions import Questions, over_both_orders, p_shown
from prefloop.train.loop import Metrics
from prefloop.train.rewards.job import RewardJob, fitted, pair_accuracy

ORDERS = 4
"""Tells the random numbers that order the two from others of the same seed."""


@dataclass(frozen=True)
class AskedPair:
    """A comparison as a question, and how likely A is the right answer."""

    tokens: TokenGroup
    p_a: float
    weight: float
    name: str


def train_pairwise(job: RewardJob, progress: Progress) -> dict[str, Any]:
    """Trains and saves the model to `job.out / "model"`; returns its statistics."""
    objective = job.options.objective
    assert isinstance(objective, PairwiseReward), "train_reward chooses the trainer"
    codec = Codec(load_tokenizer(job.trunk))
    model = load_policy(job.trunk, job.runtime)
    questions = Questions(codec, template=objective.template, name=job.trunk)
    context = getattr(model.config, "max_position_embeddings", None) or job.options.max_length
    max_length = min(job.options.max_length, context)
    asked = ask_in_random_order(job.pairs, questions, seed=job.seed)
    fitting = [one for one in asked if one.tokens.longest <= max_length]
    if not fitting:
        raise InputError(
            f"all {len(asked)} comparisons are longer than {max_length} tokens; raise reward.max_length"
        )
    module = LogpsModule(model, pad_id=codec.pad_id, runtime=job.runtime)
    stats = fitted(
        job, module, fitting, lambda trained, items: letters_loss(trained, items, module), progress
    )
    stats["validation"] = _validate(module, questions, job, max_length) if job.validation else None
    if processes(job.runtime).is_main_process:
        note_reward(module.model, kind=objective.kind, template=objective.template)
        save_model(module.model, codec.tokenizer, job.out / "model", dtype=job.dtype)
    return stats | {
        "num_rows": len(job.pairs),
        "prompts": len({one.prompt.id for one in job.pairs}),
        "truncated": 0,
        "dropped": {"too_long": len(asked) - len(fitting)},
        "a_is_better": round(float(np.mean([one.p_a > 0.5 for one in fitting])), 6),
    }


def ask_in_random_order(
    pairs: Sequence[PreferencePair], questions: Questions, *, seed: int
) -> list[AskedPair]:
    """One question a pair, the chosen completion first in about half of them."""
    chosen_first = np.random.default_rng([seed, ORDERS]).random(len(pairs)) < 0.5
    asked = []
    for pair, is_first in zip(pairs, chosen_first.tolist(), strict=True):
        a, b = (pair.chosen, pair.rejected) if is_first else (pair.rejected, pair.chosen)
        p_a = pair.p_chosen if is_first else 1 - pair.p_chosen
        asked.append(AskedPair(questions.ask(pair.prompt, a, b), p_a, pair.weight, pair.id))
    return asked


def letters_loss(trained: Any, items: Sequence[AskedPair], module: LogpsModule) -> tuple[Tensor, Metrics]:
    """Cross-entropy of the letter, summed, among all tokens of the vocabulary."""
    device = next(trained.parameters()).device
    tokens = [one.tokens for one in items]
    batch = collate(tokens, share=module.shares, pad_id=module.pad_id, device=device)
    logps = batch.summed(trained(batch)).view(-1, 2)  # [B, 2], of A and of B
    p_a = torch.tensor([one.p_a for one in items], device=device)
    weights = torch.tensor([one.weight for one in items], device=device)
    losses = -(p_a * logps[:, 0] + (1 - p_a) * logps[:, 1])
    right = (logps[:, 0] > logps[:, 1]) == (p_a > 0.5)
    return (losses * weights).sum(), {"accuracy": (right.float() * weights).sum()}


def _validate(
    module: LogpsModule, questions: Questions, job: RewardJob, max_length: int
) -> dict[str, Any] | None:
    """How the model orders held-out pairs, over both orders; pairs that are too long are left out and counted."""
    tasks = [PairTask(one.prompt, one.chosen, one.rejected) for one in job.validation]
    shown = p_shown(module, questions, tasks, job.runtime, max_length=max_length)
    known = [(pair, over_both_orders(*p) - 0.5) for pair, p in zip(job.validation, shown, strict=True) if p]
    if not known:
        return None
    return {
        **pair_accuracy([pair for pair, _ in known], [lead for _, lead in known]),
        "too_long": len(shown) - len(known),
    }
