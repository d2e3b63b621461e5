"""What a policy is trained to do with preference pairs. The keys of an objective are the keyword arguments of its loss.

`Objective` is the union of them all; `LogRatioSection` says how the log-ratios that most of them compare are formed.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from prefloop.config.section import Section, default_kind

Beta = Annotated[
    float, Field(gt=0, description="Temperature: how far the policy may move from the reference.")
]
Smoothing = Annotated[float, Field(ge=0, lt=0.5, description="Assumed probability that a label is wrong.")]


class LogRatioSection(Section):
    """How log(policy / reference) of a completion becomes the log-ratio that objectives compare."""

    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    """Divergence that keeps the policy near the reference (f-DPO, arXiv:2309.16240); all but reverse_kl bend the ratio."""
    alpha: float = Field(default=0.5, gt=0, le=1)
    """Order of the alpha divergence: near 0 it is the reverse, at 1 the forward KL."""
    length_penalty: float = Field(default=0.0, ge=0)
    """Added per token, so that length explains part of a preference: R-DPO's alpha / beta (arXiv:2403.19159)."""
    reference_free: bool = False
    """Compare the policy's log-probabilities themselves, as if the reference found all completions equally likely."""


class PairObjective(Section):
    """What the training loop must know of an objective before it computes the loss."""

    needs_reference: ClassVar[bool] = True
    """Whether the loss reads log-ratios to the reference."""
    needs_margin: ClassVar[bool] = False
    """Whether the loss reads how strongly the label prefers, `PairLogps.label_margins`."""
    whole_step: ClassVar[bool] = False
    """Whether a pair's loss depends on the other pairs of the optimiser step."""


class DpoObjective(PairObjective):
    """DPO (arXiv:2305.18290); with label smoothing it is conservative DPO."""

    kind: Literal["dpo"] = "dpo"
    """Name of the objective."""
    beta: Beta = 0.1
    label_smoothing: Smoothing | Literal["pair"] = 0.0
    """Assumed probability that a label is wrong, below 0.5; `pair` takes it from each pair's own `p_chosen`."""


class RobustObjective(PairObjective):
    """DPO whose expected loss is right although a share of the labels is flipped (arXiv:2403.00409)."""

    kind: Literal["robust"]
    """Name of the objective."""
    beta: Beta = 0.1
    label_smoothing: Smoothing = 0.1


class ExoPairObjective(PairObjective):
    """EXO for pairs: the reverse KL to the labels, smoothed (arXiv:2402.00856)."""

    kind: Literal["exo_pair"]
    """Name of the objective."""
    beta: Beta = 0.1
    label_smoothing: Smoothing = 1e-3


class HingeObjective(PairObjective):
    """Hinge loss on the DPO margin (SLiC, arXiv:2305.10425)."""

    kind: Literal["hinge"]
    """Name of the objective."""
    beta: Beta = 0.1


class IpoObjective(PairObjective):
    """IPO (arXiv:2310.12036)."""

    kind: Literal["ipo"]
    """Name of the objective."""
    beta: float = Field(default=0.1, gt=0)
    """The paper's tau; the target margin is 1 / (2 beta)."""


class DiscopopObjective(PairObjective):
    """DiscoPOP, a discovered blend of the logistic and the exponential loss (arXiv:2406.08414)."""

    kind: Literal["discopop"]
    """Name of the objective."""
    beta: Beta = 0.1
    tau: float = Field(default=0.05, gt=0, le=1)
    """How sharply the blend changes with the sign of the margin."""


class DpopObjective(PairObjective):
    """DPO-Positive: DPO that does not let the chosen completion become less likely (arXiv:2402.13228)."""

    kind: Literal["dpop"]
    """Name of the objective."""
    beta: Beta = 0.3
    penalty: float = Field(default=50.0, ge=0)
    """Weight of a chosen log-probability below the reference's; the paper's lambda."""


class OdpoObjective(PairObjective):
    """DPO with an offset: the stronger the preference, the larger the margin asked for (arXiv:2402.10571)."""

    needs_margin: ClassVar[bool] = True

    kind: Literal["odpo"]
    """Name of the objective."""
    beta: Beta = 0.1
    alpha: float = Field(default=1.0, ge=0)
    """Weight of the offset."""
    offset: Literal["log", "identity"] = "log"
    """The offset is alpha times this function of the label's margin; `identity` is DPO with a margin."""


class AotObjective(PairObjective):
    """Alignment by optimal transport: all margins of the policy above those of the reference (arXiv:2406.05882)."""

    whole_step: ClassVar[bool] = True

    kind: Literal["aot"]
    """Name of the objective."""
    beta: Beta = 0.1


class AotPairObjective(PairObjective):
    """Alignment by optimal transport: all chosen log-ratios above all rejected ones (arXiv:2406.05882)."""

    whole_step: ClassVar[bool] = True

    kind: Literal["aot_pair"]
    """Name of the objective."""
    beta: Beta = 0.1


class CrossEntropyObjective(PairObjective):
    """Logistic loss on the chosen log-ratio alone; the rejected completion is not used."""

    kind: Literal["cross_entropy"]
    """Name of the objective."""
    beta: Beta = 0.1


class BcoPairObjective(PairObjective):
    """BCO: each side classified on its own, against the mean reward (arXiv:2404.04656)."""

    whole_step: ClassVar[bool] = True

    kind: Literal["bco_pair"]
    """Name of the objective."""
    beta: Beta = 0.1


class KtoObjective(PairObjective):
    """KTO on both sides of a pair: each is desirable or not, against the policy's KL (arXiv:2402.01306)."""

    whole_step: ClassVar[bool] = True

    kind: Literal["kto"]
    """Name of the objective."""
    beta: Beta = 0.1
    desirable_weight: float = Field(default=1.0, ge=0)
    """Weight of chosen completions, the paper's lambda_D."""
    undesirable_weight: float = Field(default=1.0, ge=0)
    """Weight of rejected completions, the paper's lambda_U."""


class SppoHardObjective(PairObjective):
    """SPPO with win probabilities 1 and 0 (arXiv:2405.00675)."""

    kind: Literal["sppo_hard"]
    """Name of the objective."""
    beta: float = Field(default=0.1, gt=0)
    """The paper's 1 / eta; the log-ratios aim at +- 1 / (2 beta)."""


class NcaPairObjective(PairObjective):
    """NCA for pairs: noise contrastive alignment keeps the chosen likelihood up (arXiv:2402.05369)."""

    kind: Literal["nca_pair"]
    """Name of the objective."""
    beta: Beta = 0.1


class ApoZeroObjective(PairObjective):
    """APO-zero: chosen up, rejected down; for data better than the policy (arXiv:2408.06266)."""

    kind: Literal["apo_zero"]
    """Name of the objective."""
    beta: Beta = 0.1


class ApoDownObjective(PairObjective):
    """APO-down: both down, rejected more; for data worse than the policy (arXiv:2408.06266)."""

    kind: Literal["apo_down"]
    """Name of the objective."""
    beta: Beta = 0.1


class SoftKlObjective(PairObjective):
    """KL from the policy's preference to the one that the label's margin implies."""

    needs_margin: ClassVar[bool] = True

    kind: Literal["soft_kl"]
    """Name of the objective."""
    beta: Beta = 0.1
    target_excess: float = Field(default=1e-3, ge=0)
    """Added to the denominator of the target e^m / (1 + e^m), so that no label is certain."""


class SoftTvObjective(PairObjective):
    """Total variation between the policy's preference and the one that the label's margin implies."""

    needs_margin: ClassVar[bool] = True

    kind: Literal["soft_tv"]
    """Name of the objective."""
    beta: Beta = 0.1


class SoftHellingerObjective(PairObjective):
    """Squared Hellinger distance between the policy's preference and the one that the label's margin implies."""

    needs_margin: ClassVar[bool] = True

    kind: Literal["soft_hellinger"]
    """Name of the objective."""
    beta: Beta = 0.1


class SoftRevKlObjective(PairObjective):
    """DPO with soft labels: cross-entropy with the preference that the label's margin implies."""

    needs_margin: ClassVar[bool] = True

    kind: Literal["soft_rev_kl"]
    """Name of the objective."""
    beta: Beta = 0.1


class SimpoObjective(PairObjective):
    """SimPO: length-averaged log-probabilities, a target margin and no reference (arXiv:2405.14734)."""

    needs_reference: ClassVar[bool] = False

    kind: Literal["simpo"]
    """Name of the objective."""
    beta: float = Field(default=2.0, gt=0)
    """Scale of the length-averaged log-probabilities."""
    gamma: float = Field(default=1.0, ge=0)
    """Margin that the chosen completion must lead by."""


class CpoObjective(PairObjective):
    """CPO: DPO without a reference, plus the likelihood of the chosen completion (arXiv:2401.08417)."""

    needs_reference: ClassVar[bool] = False

    kind: Literal["cpo"]
    """Name of the objective."""
    beta: float = Field(default=0.1, gt=0)
    """Scale of the difference of the log-probabilities."""
    nll_weight: float = Field(default=1.0, ge=0)
    """Weight of the negative log-likelihood per chosen token."""


class OrpoObjective(PairObjective):
    """ORPO: fine-tuning on the chosen completion with an odds-ratio penalty; no reference (arXiv:2403.07691)."""

    needs_reference: ClassVar[bool] = False

    kind: Literal["orpo"]
    """Name of the objective."""
    odds_weight: float = Field(default=0.1, ge=0)
    """Weight of the odds-ratio term, the paper's lambda."""


class RaftObjective(PairObjective):
    """Fine-tuning on the chosen completion only (RAFT, best-of-n; arXiv:2304.06767)."""

    needs_reference: ClassVar[bool] = False

    kind: Literal["raft"]
    """Name of the objective."""


class PlackettLuceObjective(PairObjective):
    """Plackett-Luce likelihood of each prompt's whole ranking (DPO, section 4 of arXiv:2305.18290)."""

    kind: Literal["plackett_luce"]
    """Name of the objective."""
    beta: float = Field(default=0.1, gt=0)
    """Temperature: how far the policy may move from the reference."""


_Single = (
    DpoObjective
    | RobustObjective
    | ExoPairObjective
    | HingeObjective
    | IpoObjective
    | DiscopopObjective
    | DpopObjective
    | OdpoObjective
    | AotObjective
    | AotPairObjective
    | CrossEntropyObjective
    | BcoPairObjective
    | KtoObjective
    | SppoHardObjective
    | NcaPairObjective
    | ApoZeroObjective
    | ApoDownObjective
    | SoftKlObjective
    | SoftTvObjective
    | SoftHellingerObjective
    | SoftRevKlObjective
    | SimpoObjective
    | CpoObjective
    | OrpoObjective
    | RaftObjective
)
SingleObjective = Annotated[_Single, Field(discriminator="kind"), default_kind("dpo")]


class MixPart(Section):
    """One objective of a mix."""

    objective: SingleObjective
    """The objective."""
    weight: float = Field(default=1.0, gt=0)
    """What its loss is multiplied with."""


class MixObjective(Section):
    """Weighted sum of objectives, such as MPO's dpo, bco_pair and raft (arXiv:2411.10442)."""

    kind: Literal["mix"]
    """Name of the objective."""
    parts: list[MixPart] = Field(min_length=1)
    """The objectives and their weights."""

    @field_validator("parts")
    @classmethod
    def _one_baseline(cls, parts: list[MixPart]) -> list[MixPart]:
        with_baseline = [part.objective.kind for part in parts if part.objective.kind in ("bco_pair", "kto")]
        if len(with_baseline) > 1:
            raise ValueError(f"{' and '.join(with_baseline)} cannot share one running baseline; keep one")
        return parts

    @property
    def needs_reference(self) -> bool:
        """Whether any part reads log-ratios to the reference."""
        return any(part.objective.needs_reference for part in self.parts)

    @property
    def needs_margin(self) -> bool:
        """Whether any part reads how strongly the label prefers."""
        return any(part.objective.needs_margin for part in self.parts)

    @property
    def whole_step(self) -> bool:
        """Whether a pair's loss depends on the other pairs of the optimiser step."""
        return any(part.objective.whole_step for part in self.parts)


Objective = Annotated[
    _Single | PlackettLuceObjective | MixObjective, Field(discriminator="kind"), default_kind("dpo")
]


def objectives_in(objective: Objective) -> list[_Single | PlackettLuceObjective]:
    """The objective itself, or the parts of a mix."""
    return [part.objective for part in objective.parts] if objective.kind == "mix" else [objective]


def shaping_problem(objective: Objective, log_ratios: LogRatioSection) -> str | None:
    """Why the objective cannot have its log-ratios shaped so, or None where it can."""
    if log_ratios == LogRatioSection():
        return None
    for one in objectives_in(objective):
        if not one.needs_reference:
            return f"{one.kind} uses no log-ratios; leave log_ratios out"
        if one.kind == "ipo" and log_ratios.length_penalty:
            return "ipo averages over length, so that length_penalty cancels; set it to 0"
        if one.kind == "aot" and log_ratios.divergence != "reverse_kl":
            return f"aot sorts policy and reference apart; divergence {log_ratios.divergence} has no meaning for it"
    return None
