"""Training a reward model: which trainer an objective means. Imports only the one that is asked for."""

from typing import Any

from prefloop.interfaces import Progress
from prefloop.modeling import settle
from prefloop.train.rewards.job import RewardJob, fit_reward_group

__all__ = ["RewardJob", "fit_reward_group", "train_reward"]


def train_reward(job: RewardJob, progress: Progress) -> dict[str, Any]:
    """Trains and saves the reward model to `job.out / "model"`; returns its statistics."""
    settle(job.runtime)
    match job.options.objective.kind:
        case "pairwise":
            from prefloop.train.rewards.pairwise import train_pairwise

            return train_pairwise(job, progress)
        case "ensemble":
            from prefloop.train.rewards.ensemble import train_ensemble

            return train_ensemble(job, progress)
        case "multi_objective":
            from prefloop.train.rewards.multi_objective import train_multi_objective

            return train_multi_objective(job, progress)
        case "process":
            from prefloop.train.rewards.process import train_process

            return train_process(job, progress)
        case "rules":
            from prefloop.train.rewards.rules import train_rules

            return train_rules(job, progress)
        case _:
            from prefloop.train.rewards.scalar import train_scalar

            return train_scalar(job, progress)
