"""Small heads on the features of a frozen language model: ensembles, and objectives weighted by a gate.

A feature is the hidden state at the last token of a completion, or of a prompt. The heads are saved beside the model.
C completions, D features, M heads or objectives.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from prefloop.batches import Batch, TokenGroup
from prefloop.config import RuntimeSection
from prefloop.forward import hidden_states, of_each, scaled, share_prompts
from prefloop.interfaces import InputError
from prefloop.lean import make_lean
from prefloop.modeling import reward_notes

HEADS_FILE = "heads.safetensors"
NO_SPREAD = 1e-6
"""A feature whose deviation is smaller is constant."""


class FeaturesModule(nn.Module):
    """A frozen language model that gives features of completions and of their prompts."""

    def __init__(self, model: PreTrainedModel, *, pad_id: int, runtime: RuntimeSection) -> None:
        super().__init__()
        make_lean(model)
        self.pad_id = pad_id
        self.shares = share_prompts(model, pad_id, runtime)
        self.model: Any = model

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features [C, D] of the completions, and of their prompts; no gradient reaches the model."""
        with torch.no_grad():
            hidden = hidden_states(self.model, batch)
        numbers = torch.arange(len(batch.lengths), device=hidden.device)
        first = torch.searchsorted(batch.completion_of, numbers).clamp(max=len(batch.predictors) - 1)
        return hidden[batch.ends].float(), hidden[batch.predictors[first]].float()


class FeatureScale(nn.Module):
    """Brings features to mean 0 and deviation 1, as those of the training data were."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(num_features))
        self.deviation = nn.Buffer(torch.ones(num_features))

    def fit(self, features: Tensor) -> None:
        """Takes mean and deviation of features [N, D]."""
        deviation = features.std(0, correction=0)
        self.mean.copy_(features.mean(0))
        self.deviation.copy_(torch.where(deviation > NO_SPREAD, deviation, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """The features [..., D], scaled."""
        return (features - self.mean) / self.deviation


class EnsembleHeads(nn.Module):
    """Heads of the same shape and different weights, computed side by side."""

    def __init__(self, num_features: int, *, num_heads: int, hidden_size: int) -> None:
        super().__init__()
        self.scale = FeatureScale(num_features)
        self.inner = nn.Parameter(torch.randn(num_heads, num_features, hidden_size)) if hidden_size else None
        self.outer = nn.Parameter(torch.randn(num_heads, hidden_size or num_features))
        with torch.no_grad():
            for weights in (self.inner, self.outer):
                if weights is not None:
                    weights.div_(weights.shape[1] ** 0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Scores [C, M] from features [C, D]."""
        states = self.scale(features).unsqueeze(1)  # [C, 1, D]
        if self.inner is not None:
            states = torch.einsum("cod,mdh->cmh", states, self.inner).tanh()
        return (states * self.outer).sum(-1)


class GatedObjectives(nn.Module):
    """Objectives as linear functions of a completion's features, weighted by a gate that reads the prompt's.

    After ArmoRM (arXiv:2406.12845); the softmax of the gate is over the objectives.
    """

    def __init__(
        self, num_features: int, *, num_objectives: int, gate_hidden_size: int, temperature: float
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.scale = FeatureScale(num_features)
        self.probe = nn.Buffer(torch.zeros(num_features, num_objectives))
        self.objective_scale = FeatureScale(num_objectives)
        self.correction = nn.Buffer(torch.eye(num_objectives))
        self.gate = nn.Sequential(
            nn.Linear(num_features, gate_hidden_size), nn.ReLU(), nn.Linear(gate_hidden_size, num_objectives)
        )
        self.gain = nn.Parameter(torch.ones(()))

    def objectives(self, features: Tensor) -> Tensor:
        """Corrected objective scores [C, M] from features [C, D]."""
        return self.objective_scale(features @ self.probe) @ self.correction

    def weights(self, prompts: Tensor) -> Tensor:
        """Weights of the objectives, rows that sum to 1, [C, M] from features [C, D] of the prompts."""
        return (self.gate(self.scale(prompts)) / self.temperature).softmax(-1)

    def forward(self, objectives: Tensor, prompts: Tensor) -> Tensor:
        """Scores [C]: the objectives [C, M] by their weights, times a learned gain."""
        return self.gain * (objectives * self.weights(prompts)).sum(-1)


# --- in use ----------------------------------------------------------------------------------------------------------


class EnsembleModule(nn.Module):
    """A model with an ensemble: the mean of the heads, their standard deviation, and each of them."""

    def __init__(self, features: FeaturesModule, heads: EnsembleHeads) -> None:
        super().__init__()
        self.pad_id, self.shares = features.pad_id, features.shares
        self.features = features
        self.heads = heads
        self.part_names = ("deviation", *(f"head_{number}" for number in range(len(heads.outer))))

    def forward(self, batch: Batch) -> Tensor:
        """Score and parts of each completion, [C, 2 + M]."""
        scores = scaled(self.heads(self.features(batch)[0]), self.features.model)  # [C, M]
        deviation = scores.std(1, correction=0)
        return torch.cat([scores.mean(1, keepdim=True), deviation.unsqueeze(1), scores], 1)


class ObjectivesModule(nn.Module):
    """A model with gated objectives: the score, each objective, and its weight."""

    def __init__(self, features: FeaturesModule, heads: GatedObjectives, names: Sequence[str]) -> None:
        super().__init__()
        self.pad_id, self.shares = features.pad_id, features.shares
        self.features = features
        self.heads = heads
        self.part_names = (*names, *(f"weight/{name}" for name in names))

    def forward(self, batch: Batch) -> Tensor:
        """Score and parts of each completion, [C, 1 + 2 M]."""
        completions, prompts = self.features(batch)
        objectives = self.heads.objectives(completions)
        score = self.heads(objectives, prompts).unsqueeze(1)
        return torch.cat([score, objectives, self.heads.weights(prompts)], 1)


HeadsModule = EnsembleModule | ObjectivesModule


def all_features(
    module: FeaturesModule, groups: Sequence[TokenGroup], runtime: RuntimeSection
) -> list[tuple[Tensor, Tensor]]:
    """Features of each group's completions [K, D] and of its prompt [D], on the CPU."""
    rows = of_each(
        module, groups, lambda batch: list(zip(*(one.cpu() for one in module(batch)), strict=True)), runtime
    )
    return [(torch.stack([one for one, _ in row]), row[0][1]) for row in rows]


def all_parts(
    module: HeadsModule, groups: Sequence[TokenGroup], runtime: RuntimeSection
) -> list[list[list[float]]]:
    """Score and parts of every completion of each group."""
    return of_each(module, groups, lambda batch: module(batch).tolist(), runtime)


def save_heads(heads: nn.Module, folder: Path) -> None:
    """Saves heads beside their model."""
    state = {name: weight.detach().cpu().contiguous() for name, weight in heads.state_dict().items()}
    save_file(state, folder / HEADS_FILE)


def copy_heads(path: str, model: PreTrainedModel, folder: Path) -> None:
    """Copies the heads of a model that has some to another folder. Raises InputError where they are missing."""
    if reward_notes(model.config).get("kind") in ("ensemble", "multi_objective"):
        found = cached_file(path, HEADS_FILE, _raise_exceptions_for_missing_entries=False)
        if found is None:
            raise InputError(f"{path}: its {HEADS_FILE} is missing; copy the folder again")
        shutil.copyfile(found, folder / HEADS_FILE)


def load_heads(
    path: Path | str, model: PreTrainedModel, *, pad_id: int, runtime: RuntimeSection
) -> HeadsModule:
    """A model with the heads that were saved beside it. Raises InputError where they are missing or do not fit."""
    notes = reward_notes(model.config)
    features = FeaturesModule(model, pad_id=pad_id, runtime=runtime)
    num_features = model.config.get_text_config().hidden_size
    try:
        state = load_file(str(cached_file(str(path), HEADS_FILE)))
        if notes["kind"] == "ensemble":
            ensemble = EnsembleHeads(
                num_features, num_heads=notes["num_heads"], hidden_size=notes["hidden_size"]
            )
            ensemble.load_state_dict(state)
            module: HeadsModule = EnsembleModule(features, ensemble)
        else:
            gated = GatedObjectives(
                num_features,
                num_objectives=len(notes["objectives"]),
                gate_hidden_size=notes["gate_hidden_size"],
                temperature=notes["gate_temperature"],
            )
            gated.load_state_dict(state)
            module = ObjectivesModule(features, gated, notes["objectives"])
    except (OSError, RuntimeError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"{path}: its {HEADS_FILE} cannot be read: {first}; copy the folder again"
        ) from error
    return module.to(model.device).eval()
