"""Training a process reward model: P(right) at the end of every step of a solution."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefloop.batches import Codec, TokenGroup, collate
from prefloop.config import ProcessReward
from prefloop.forward import of_each
from prefloop.interfaces import InputError, Progress
from prefloop.launch import processes
from prefloop.losses import rule_loss
from prefloop.modeling import new_reward_model, note_reward, save_model
from prefloop.reward.steps import StepsModule, step_ids
from prefloop.train.loop import Metrics
from prefloop.train.rewards.job import RewardJob, fitted, verdict_accuracy
from prefloop.verdicts import StepVerdicts


@dataclass(frozen=True)
class JudgedSolutions:
    """The solutions of a prompt, where their judged steps end, and how likely each is right."""

    tokens: TokenGroup
    places: tuple[tuple[int, ...], ...]
    right: tuple[tuple[float, ...], ...]
    name: str

    @property
    def weight(self) -> float:
        """Each judged step counts once."""
        return float(sum(map(len, self.places)))


def train_process(job: RewardJob, progress: Progress) -> dict[str, Any]:
    """Trains and saves the model to `job.out / "model"`; returns its statistics."""
    objective = job.options.objective
    assert isinstance(objective, ProcessReward), "train_reward chooses the trainer"
    model, codec = new_reward_model(job.trunk, job.runtime)
    solutions, too_long = encode_solutions(job.rows, codec, job)
    if not solutions:
        raise InputError(f"all {too_long} solutions are longer than reward.max_length; raise it")
    module = StepsModule(model, pad_id=codec.pad_id, runtime=job.runtime)
    stats = fitted(
        job, module, solutions, lambda trained, items: steps_loss(trained, items, module), progress
    )
    if processes(job.runtime).is_main_process:
        note_reward(
            module.model, kind=objective.kind, separator=objective.separator, reduction=objective.reduction
        )
        save_model(module.model, codec.tokenizer, job.out / "model", dtype=job.dtype)
    return stats | {
        "num_rows": len(job.rows),
        "prompts": len(solutions),
        "truncated": 0,
        "dropped": {"too_long": too_long},
        "validation": None,
        "held_out": _measure(module, codec, job) if job.held_out else None,
    }


def encode_solutions(
    rows: Sequence[object], codec: Codec, job: RewardJob
) -> tuple[list[JudgedSolutions], int]:
    """The solutions by prompt, and how many were left out because they are too long to be read whole."""
    objective = job.options.objective
    assert isinstance(objective, ProcessReward), "train_reward chooses the trainer"
    by_prompt: dict[str, list[tuple[StepVerdicts, tuple[int, ...], tuple[int, ...]]]] = {}
    too_long = 0
    for one in rows:
        assert isinstance(one, StepVerdicts), "the stage reads the rows that the objective learns from"
        ids, ends = step_ids(codec, one.steps, objective.separator)
        if len(codec.prompt_ids(one.prompt.messages)) + len(ids) > job.options.max_length:
            too_long += 1
            continue
        by_prompt.setdefault(one.prompt.id, []).append((one, ids, ends))
    found = []
    for same in by_prompt.values():
        judged = [
            [(end, right) for end, right in zip(ends, one.right, strict=True) if right is not None]
            for one, _, ends in same
        ]
        found.append(
            JudgedSolutions(
                TokenGroup(
                    tuple(codec.prompt_ids(same[0][0].prompt.messages)), tuple(ids for _, ids, _ in same)
                ),
                tuple(tuple(end for end, _ in steps) for steps in judged),
                tuple(tuple(right for _, right in steps) for steps in judged),
                same[0][0].prompt.id,
            )
        )
    return found, too_long


def steps_loss(trained: Any, items: Sequence[JudgedSolutions], module: StepsModule) -> tuple[Tensor, Metrics]:
    """Summed binary cross-entropy of the judged steps."""
    device = next(trained.parameters()).device
    tokens = [one.tokens for one in items]
    batch = collate(tokens, share=module.shares, pad_id=module.pad_id, device=device)
    before = (batch.lengths.cumsum(0) - batch.lengths).tolist()  # [C]
    places = [places for one in items for places in one.places]
    flat = [start + place for start, row in zip(before, places, strict=True) for place in row]
    logits = trained(batch)[flat]
    right = torch.tensor([value for one in items for row in one.right for value in row], device=device)
    agrees = (logits > 0) == (right > 0.5)
    return rule_loss(logits, right).sum(), {"accuracy": agrees.float().sum()}


def _measure(module: StepsModule, codec: Codec, job: RewardJob) -> dict[str, Any] | None:
    """How P(right) agrees with the verdicts on the steps of held-out prompts."""
    solutions, _ = encode_solutions(job.held_out, codec, job)
    logits = of_each(module, [one.tokens for one in solutions], module.by_completion, job.runtime)
    found = [
        (one.name, float(values[place].sigmoid()), label)
        for one, rows in zip(solutions, logits, strict=True)
        for values, places, right in zip(rows, one.places, one.right, strict=True)
        for place, label in zip(places, right, strict=True)
    ]
    return verdict_accuracy(*map(list, zip(*found, strict=True))) if found else None
