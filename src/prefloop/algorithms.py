"""Policy-gradient algorithms as rows of one table: advantage, ratio, clip, reduction, and where the KL enters.

Data only: no formula is here, and it starts without torch. `advantages.py` and `losses/policy.py` compute what the columns
say. `vary` changes columns of a row; a value that nothing would read is an error.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from prefloop.interfaces import InputError

Baseline = Literal["critic", "group", "leave_one_out", "running", "none"]
Scale = Literal["group", "batch", "none"]
Ratio = Literal["token", "sequence", "sequence_mean", "none"]
Clip = Literal["surrogate", "weight", "none"]
Reduction = Literal["token", "sequence", "constant", "sum"]
Kl = Literal["reward_k1", "loss_k2", "loss_k3", "none"]
Update = Literal["gradient", "trust_region"]


@dataclass(frozen=True)
class Algorithm:
    """A row of the table. A number is None where the row reads none. Raises InputError for columns that do not fit."""

    source: str
    """Where columns and numbers come from, and who says otherwise."""
    baseline: Baseline
    """What is subtracted from the return: the critic's value (GAE), the mean of the group, that of the group's other
    completions, the mean of all earlier completions, or nothing. Nothing leaves the reward to go of each token; the three
    means judge the completion as a whole."""
    scale: Scale
    """What the advantage is divided by: the standard deviation of its group's returns, or that of the batch's advantages,
    whose mean is subtracted too."""
    ratio: Ratio
    """What of policy / sampling policy weighs an advantage: each token's, the completion's, the completion's to the power
    1 / length, or nothing: then the loss is -advantage * log-probability."""
    clip: Clip
    """The worse of the loss and that of the clipped ratio, or the clipped ratio as a constant weight of the
    log-probability."""
    reduction: Reduction
    """Mean of all tokens; mean within a completion, then over completions; sum / longest length allowed, then mean over
    completions; sum, then mean over completions."""
    kl: Kl
    """How the KL to the reference enters: estimator k1 in the reward, or k2 or k3 in the loss."""
    update: Update = "gradient"
    """A step of the optimiser, or the natural gradient's step within a bound on the KL to the sampling policy."""
    clip_low: float | None = None
    """The ratio counts as at least 1 - clip_low; None where weights have no lower bound."""
    clip_high: float | None = None
    """The ratio counts as at most 1 + clip_high."""
    kl_coef: float | None = None
    """Weight of the KL to the reference."""
    gae_lambda: float | None = None
    """Exponential weight of longer estimates of the advantage (arXiv:1506.02438)."""
    value_coef: float | None = None
    """Weight of the critic's loss beside the policy's; a trust region bounds the policy's step alone, and the
    optimiser takes the critic's."""
    value_clip: float | None = None
    """How far a value may move from that of the sampling policy's critic; None for no bound."""
    gamma: float = 1.0
    """Discount of later rewards."""
    entropy_coef: float = 0.0
    """Weight of the entropy that is added to the objective."""
    ptx_coef: float = 0.0
    """Weight of the mean log-probability of pretraining tokens that is added to the objective."""

    def __post_init__(self) -> None:
        for name, needed in _readers(self.baseline, self.clip, self.kl).items():
            value = getattr(self, name)
            if value is not None and needed is None:
                raise InputError(f"{name} = {value}: nothing reads it; {_columns(self)}")
            if value is None and needed:
                raise InputError(f"{name}: a number is needed; {_columns(self)}")
        wrong = [why for why, found in _misfits(self).items() if found]
        if wrong:
            raise InputError(f"{'; '.join(wrong)}; {_columns(self)}")


def vary(row: Algorithm, **changes: Any) -> Algorithm:
    """The row with other values; its own numbers that nothing reads any more are left out."""
    columns = {name: changes.get(name, getattr(row, name)) for name in ("baseline", "clip", "kl")}
    unread = [name for name, needed in _readers(**columns).items() if needed is None]
    return replace(row, **(dict.fromkeys(unread) | changes))


def _readers(baseline: Baseline, clip: Clip, kl: Kl) -> dict[str, bool | None]:
    """For each number that may be None: whether one is needed, or None where nothing would read it."""
    critic = True if baseline == "critic" else None
    return {
        "clip_low": {"surrogate": True, "weight": False, "none": None}[clip],
        "clip_high": None if clip == "none" else True,
        "kl_coef": None if kl == "none" else True,
        "gae_lambda": critic,
        "value_coef": critic,
        "value_clip": False if critic else None,
    }


def _misfits(row: Algorithm) -> dict[str, bool]:
    """What columns must not say together, and whether they do."""
    bounded = row.update == "trust_region"
    return {
        "a clip needs a ratio": row.clip != "none" and row.ratio == "none",
        "clip: weight is for the ratios of tokens": row.clip == "weight" and row.ratio != "token",
        "scale: group needs a baseline from the group": row.scale == "group"
        and row.baseline not in ("group", "leave_one_out"),
        "update: trust_region bounds the step itself; it takes ratio: token and clip: none": bounded
        and (row.ratio, row.clip) != ("token", "none"),
        "update: trust_region follows the advantages alone; put the KL into the reward": bounded
        and row.kl.startswith("loss"),
        "update: trust_region follows the advantages alone: entropy_coef and ptx_coef are 0": bounded
        and (row.entropy_coef, row.ptx_coef) != (0, 0),
    }


def _columns(row: Algorithm) -> str:
    names = ("baseline", "scale", "ratio", "clip", "kl", "update")
    return ", ".join(f"{name} = {getattr(row, name)}" for name in names)


PPO = Algorithm(
    source="arXiv:1707.06347, Eq. 7, as in arXiv:2203.02155 (kl_coef 0.02) and arXiv:2009.01325 (gae_lambda 0.95). "
    "value_clip 0.2 and value_coef 0.1 are OpenAI's code; the papers do not mention a value clip. arXiv:2204.05862 has "
    "kl_coef 0.001, arXiv:2307.09288 0.01",
    baseline="critic",
    scale="batch",
    ratio="token",
    clip="surrogate",
    reduction="token",
    kl="reward_k1",
    clip_low=0.2,
    clip_high=0.2,
    kl_coef=0.02,
    gae_lambda=0.95,
    value_coef=0.1,
    value_clip=0.2,
)
GRPO = Algorithm(
    source="arXiv:2402.03300, Eq. 3 and 4 (kl_coef 0.04). The clip is not in the paper; 0.2 is customary, arXiv:2501.12948 "
    "has 10. The standard deviation is the unbiased one plus 1e-4, as in TRL; the paper does not say which",
    baseline="group",
    scale="group",
    ratio="token",
    clip="surrogate",
    reduction="sequence",
    kl="loss_k3",
    clip_low=0.2,
    clip_high=0.2,
    kl_coef=0.04,
)
REINFORCE_PLUS_PLUS = Algorithm(
    source="arXiv:2501.03262 (clip 0.2, kl_coef 0.01 for chat, 0.001 for mathematics)",
    baseline="none",
    scale="batch",
    ratio="token",
    clip="surrogate",
    reduction="token",
    kl="reward_k1",
    clip_low=0.2,
    clip_high=0.2,
    kl_coef=0.01,
)
REINFORCE = Algorithm(
    source="Williams 1992, as in arXiv:2402.14740: whole completions, the mean of all earlier rewards as baseline; kl_coef "
    "0.03 for TL;DR, 0.1 for HH",
    baseline="running",
    scale="none",
    ratio="none",
    clip="none",
    reduction="sum",
    kl="reward_k1",
    kl_coef=0.03,
)

ALGORITHMS: dict[str, Algorithm] = {
    "ppo": PPO,
    "ppo_ptx": vary(
        PPO,
        ptx_coef=27.8,
        source="arXiv:2203.02155, Eq. 2: PPO with ptx_coef 27.8 (its gamma); 8 pretraining rows a completion",
    ),
    "a2c": Algorithm(
        source="arXiv:1602.01783, synchronous, without its entropy bonus of 0.01; with the KL to the fine-tuned policy as "
        "in Sparrow, arXiv:2209.14375: (1 - α) policy loss + α KL, which is kl_coef α / (1 - α). α 0.1 is ours",
        baseline="critic",
        scale="none",
        ratio="none",
        clip="none",
        reduction="token",
        kl="loss_k2",
        kl_coef=1 / 9,
        gae_lambda=1.0,
        value_coef=1.0,
    ),
    "trpo": Algorithm(
        source="arXiv:1502.05477; with GAE as in arXiv:1506.02438 (gae_lambda 0.97) and the KL of PPO in the reward",
        baseline="critic",
        scale="batch",
        ratio="token",
        clip="none",
        reduction="token",
        kl="reward_k1",
        update="trust_region",
        kl_coef=0.02,
        gae_lambda=0.97,
        value_coef=1.0,
    ),
    "reinforce": REINFORCE,
    "reinforce_plus_plus": REINFORCE_PLUS_PLUS,
    "reinforce_plus_plus_baseline": vary(
        REINFORCE_PLUS_PLUS,
        baseline="group",
        kl="loss_k2",
        source="arXiv:2501.03262: for several completions a prompt, the group's mean first, k2 in the loss",
    ),
    "rloo": vary(
        REINFORCE,
        baseline="leave_one_out",
        ratio="sequence",
        reduction="sequence",
        source="arXiv:2402.14740 (kl_coef as REINFORCE); the ratio is 1 unless samples are reused. TRL clips it at 0.2, the "
        "authors found a clip of no use",
    ),
    "grpo": GRPO,
    "dr_grpo": vary(
        GRPO,
        scale="none",
        reduction="constant",
        kl="none",
        source="arXiv:2503.20783: GRPO without the divisions by length and by standard deviation, and without KL",
    ),
    "dapo": vary(
        GRPO,
        clip_high=0.28,
        reduction="token",
        kl="none",
        source="arXiv:2503.14476, Eq. 8 (clip 0.2 and 0.28, no KL). Eq. 8 averages over the tokens of a group, the authors' "
        "code over those of the batch, and so do we. Its overlong penalty and mixed groups: `shaping.py`",
    ),
    "gspo": vary(
        GRPO,
        ratio="sequence_mean",
        kl="none",
        clip_low=3e-4,
        clip_high=4e-4,
        source="arXiv:2507.18071, Eq. 5 and 7 (clip 3e-4 and 4e-4, no KL in the objective)",
    ),
    "cispo": vary(
        GRPO,
        clip="weight",
        clip_low=None,
        clip_high=4.0,
        reduction="token",
        kl="none",
        source="arXiv:2506.13585, Eq. 4 and 5: no lower bound, the upper one not given; arXiv:2510.13786 finds 5, which is "
        "1 + clip_high, and little that depends on it",
    ),
}
"""All rows, by name."""
