"""What a policy is trained to do with preference pairs. The keys of an objective are the keyword arguments of its loss."""

from typing import Annotated, Literal

from pydantic import Field

from prefloop.config.section import Section, default_kind


class DpoObjective(Section):
    """DPO (arXiv:2305.18290); with label smoothing it is conservative DPO."""

    kind: Literal["dpo"] = "dpo"
    """Name of the objective."""
    beta: float = Field(default=0.1, gt=0)
    """Temperature: how far the policy may move from the reference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed probability that a label is wrong."""


class IpoObjective(Section):
    """IPO (arXiv:2310.12036)."""

    kind: Literal["ipo"]
    """Name of the objective."""
    beta: float = Field(default=0.1, gt=0)
    """The paper's tau; the target margin is 1 / (2 beta)."""


class HingeObjective(Section):
    """Hinge loss on the DPO margin (SLiC, arXiv:2305.10425)."""

    kind: Literal["hinge"]
    """Name of the objective."""
    beta: float = Field(default=0.1, gt=0)
    """Scale of the margin."""


class RaftObjective(Section):
    """Fine-tuning on the chosen completion only (RAFT, best-of-n; arXiv:2304.06767)."""

    kind: Literal["raft"]
    """Name of the objective."""


Objective = Annotated[
    DpoObjective | IpoObjective | HingeObjective | RaftObjective,
    Field(discriminator="kind"),
    default_kind("dpo"),
]
