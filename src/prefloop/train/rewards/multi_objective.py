"""Training objectives and their gate on a frozen model (ArmoRM, arXiv:2406.12845).

Ratings give each objective a linear probe; preferences then teach a gate, which reads the prompt alone, how to weigh them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefloop.batches import Codec, TokenGroup
from prefloop.config import MultiObjectiveReward
from prefloop.interfaces import InputError, Progress
from prefloop.launch import processes
from prefloop.losses import bradley_terry_loss
from prefloop.modeling import new_reward_model, note_reward, save_model
from prefloop.reward.heads import FeaturesModule, GatedObjectives, all_features, save_heads
from prefloop.train.groups import index_pairs
from prefloop.train.loop import Metrics, Task
from prefloop.train.rewards.features import FeatureGroup, encoded, leads
from prefloop.train.rewards.job import RewardJob, fit_reward_group, fit_task, pair_accuracy
from prefloop.train.rewards.probes import corrections, ridge_probe
from prefloop.verdicts import Rated

FEWEST_RATINGS = 2


@dataclass(frozen=True)
class WeighedGroup:
    """The preferences of a prompt with the objectives of its completions."""

    features: FeatureGroup
    objectives: Tensor
    """[K, M]"""


def train_multi_objective(job: RewardJob, progress: Progress) -> dict[str, Any]:
    """Trains and saves the model and its heads to `job.out / "model"`; returns its statistics."""
    objective = job.options.objective
    assert isinstance(objective, MultiObjectiveReward), "train_reward chooses the trainer"
    model, codec = new_reward_model(job.trunk, job.runtime)
    trunk = FeaturesModule(model.eval(), pad_id=codec.pad_id, runtime=job.runtime)
    rated = [one for one in job.rows if isinstance(one, Rated)]
    groups, cut_rows = encoded(job.pairs, trunk, codec, job)
    heads, names, probes = probed(rated, trunk, codec, job, objective)
    heads.scale.fit(torch.stack([one.prompt for one in groups]))
    task = Task(
        weighed(groups, heads),
        tokens=lambda group: len(group.objectives),
        count=lambda group: group.features.pairs.weight,
        name=lambda group: group.features.pairs.name,
        loss=gate_loss,
    )
    options = job.options.model_copy(update={"learning_rate": objective.head_learning_rate})
    stats = fit_task(job, heads, task, options, progress)
    heads.to("cpu")
    stats["validation"] = _validate(trunk, heads, codec, job) if job.validation else None
    note_reward(
        model,
        kind=objective.kind,
        objectives=names,
        gate_hidden_size=objective.gate_hidden_size,
        gate_temperature=objective.gate_temperature,
    )
    if processes(job.runtime).is_main_process:
        save_model(model, codec.tokenizer, job.out / "model", dtype=job.dtype)
        save_heads(heads, job.out / "model")
    counts = {
        "num_rows": len(job.pairs),
        "prompts": len(groups),
        "truncated": cut_rows,
        "ratings": len(rated),
    }
    return stats | counts | {"objectives": probes, "gate": _gate_statistics(groups, heads, names)}


def probed(
    rated: Sequence[Rated],
    trunk: FeaturesModule,
    codec: Codec,
    job: RewardJob,
    objective: MultiObjectiveReward,
) -> tuple[GatedObjectives, list[str], dict[str, Any]]:
    """Heads whose objectives follow the ratings, the names of the objectives, and how well each is predicted."""
    names = sorted({name for one in rated for name in one.ratings})
    given = {name: np.array([name in one.ratings for one in rated]) for name in names}
    _check_objectives(given, objective)
    features = _rated_features(rated, trunk, codec, job).numpy()  # [N, D]
    probes = [
        ridge_probe(
            features[given[name]],
            np.array([one.ratings[name] for one in rated if name in one.ratings]),
            seed=job.seed,
        )
        for name in names
    ]
    heads = _new_heads(features.shape[1], len(names), objective, seed=job.seed)
    heads.probe.copy_(torch.tensor(np.stack([one.weights for one in probes], 1)))
    predicted = torch.tensor(features) @ heads.probe  # [N, M]
    heads.objective_scale.fit(predicted)
    told: dict[str, Any] = {
        name: {"ratings": int(given[name].sum()), "alpha": one.alpha, "error": round(one.held_out_error, 6)}
        for name, one in zip(names, probes, strict=True)
    }
    if objective.verbosity is not None:
        scaled = heads.objective_scale(predicted).double().numpy()
        place = names.index(objective.verbosity)
        matrix, left = corrections(scaled, place, max_correlation=objective.max_correlation)
        heads.correction.copy_(torch.tensor(matrix))
        for number, name in enumerate(names):
            told[name] |= {"taken": round(-matrix[place, number], 6), "verbosity_correlation": left[number]}
    return heads, names, told


def _check_objectives(given: dict[str, np.ndarray], objective: MultiObjectiveReward) -> None:
    if objective.verbosity is not None and objective.verbosity not in given:
        raise InputError(
            f"reward.objective.verbosity = {objective.verbosity!r}: the ratings have {', '.join(given) or 'no objectives'}"
        )
    for name, which in given.items():
        if which.sum() < FEWEST_RATINGS:
            raise InputError(
                f"reward.objective.ratings: objective {name} has {int(which.sum())} ratings; give more, or drop it"
            )


def _rated_features(rated: Sequence[Rated], trunk: FeaturesModule, codec: Codec, job: RewardJob) -> Tensor:
    """Features of the rated completions, [N, D]."""
    groups = []
    for one in rated:
        messages = one.prompt.messages
        answer = tuple(codec.answer_ids(messages, one.completion.text))
        whole = TokenGroup(tuple(codec.prompt_ids(messages)), (answer,))
        groups.append(fit_reward_group(whole, job.options.max_length)[0])
    return torch.cat([completions for completions, _ in all_features(trunk, groups, job.runtime)])


def _new_heads(
    num_features: int, num_objectives: int, objective: MultiObjectiveReward, *, seed: int
) -> GatedObjectives:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GatedObjectives(
            num_features,
            num_objectives=num_objectives,
            gate_hidden_size=objective.gate_hidden_size,
            temperature=objective.gate_temperature,
        )


@torch.no_grad()
def weighed(groups: Sequence[FeatureGroup], heads: GatedObjectives) -> list[WeighedGroup]:
    """The groups with their objectives."""
    return [WeighedGroup(one, heads.objectives(one.completions)) for one in groups]


def gate_loss(trained: Any, items: Sequence[WeighedGroup]) -> tuple[Tensor, Metrics]:
    """Bradley-Terry loss of the gated score, summed."""
    device = next(trained.parameters()).device
    objectives = torch.cat([one.objectives for one in items]).to(device)  # [C, M]
    prompts = torch.stack([one.features.prompt for one in items for _ in one.objectives]).to(device)  # [C, D]
    scores = trained(objectives, prompts)
    index = index_pairs([one.features.pairs for one in items], device)
    chosen, rejected = scores[index.chosen], scores[index.rejected]
    losses = bradley_terry_loss(chosen, rejected, index.p_chosen)
    metrics = {"accuracy": (chosen > rejected).float(), "margin": (chosen - rejected).detach()}
    return (losses * index.weights).sum(), {
        name: (one * index.weights).sum() for name, one in metrics.items()
    }


@torch.no_grad()
def _validate(trunk: FeaturesModule, heads: GatedObjectives, codec: Codec, job: RewardJob) -> dict[str, Any]:
    groups, _ = encoded(job.validation, trunk, codec, job)
    scores = [
        heads(one.objectives, one.features.prompt.expand(len(one.objectives), -1))
        for one in weighed(groups, heads)
    ]
    found = leads(scores, groups)
    return pair_accuracy(job.validation, [found[one.id] for one in job.validation])


@torch.no_grad()
def _gate_statistics(
    groups: Sequence[FeatureGroup], heads: GatedObjectives, names: Sequence[str]
) -> dict[str, Any]:
    """Weight of each objective over the training prompts: mean and deviation, which is 0 for a gate that ignores them."""
    weights = heads.weights(torch.stack([one.prompt for one in groups]))  # [N, M]
    deviations = weights.std(0, correction=0).tolist()
    return {
        name: {"mean": round(mean, 6), "deviation": round(deviation, 6)}
        for name, mean, deviation in zip(names, weights.mean(0).tolist(), deviations, strict=True)
    }
