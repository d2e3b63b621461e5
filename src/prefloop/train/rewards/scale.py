"""Where 0 is on a reward model's scale, and how long a unit: what is stored with the model and applied when it scores."""

from collections.abc import Callable, Sequence

import numpy as np

from prefloop.batches import Codec, TokenGroup
from prefloop.config import ScalarReward
from prefloop.interfaces import InputError
from prefloop.records import Demonstration
from prefloop.train.groups import grouped
from prefloop.train.rewards.job import RewardJob, fit_reward_group

Score = Callable[[Sequence[TokenGroup]], list[float]]
"""What the heads give for every completion of groups, before any scale."""


def score_scale(
    objective: ScalarReward, job: RewardJob, codec: Codec, training: Sequence[TokenGroup], score: Score
) -> dict[str, float]:
    """Shift and scale as the objective asks: a score is (what the head gives - shift) / scale."""
    shift, scale = 0.0, 1.0

    def moments(groups: Sequence[TokenGroup]) -> tuple[float, float]:
        return mean_and_deviation(score([fit_reward_group(one, job.options.max_length)[0] for one in groups]))

    if objective.normalise == "standardise":
        shift, scale = moments(training)
    if objective.zero_at == "demonstrations":
        if not job.demonstrations:
            raise InputError(
                "reward.objective.zero_at: sft.data has no demonstrations; name some, or use validation"
            )
        shift, _ = moments([_demonstrated(one, codec) for one in job.demonstrations])
    if objective.zero_at == "validation":
        if not job.validation:
            raise InputError("reward.objective.zero_at: no pairs are held out; raise reward.validation_share")
        held_out = grouped(job.validation, codec, "prompt", per_prompt=False)
        shift, _ = moments([one.tokens for one in held_out])
    return {"shift": shift, "scale": scale}


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation; a deviation of 0, of equal values, counts as 1."""
    return float(np.mean(values)), float(np.std(values)) or 1.0


def _demonstrated(one: Demonstration, codec: Codec) -> TokenGroup:
    *before, answer = one.messages
    return TokenGroup(tuple(codec.prompt_ids(before)), (tuple(codec.answer_ids(before, answer.content)),))
