"""Algorithms that compare the completions of a prompt with each other, batch by batch, instead of weighing each by an
advantage: the DPO family without a file of pairs in between, and self-play.
"""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from prefloop.config.objectives import DpoObjective, IpoObjective, SingleObjective
from prefloop.config.section import Section

PairsName = Literal["online_dpo", "online_ipo", "xpo"]
XPO_EXPLORATION = 1e-5
"""TRL's; arXiv:2405.21046 lets it fall from iteration to iteration and gives no number for one that does not."""


class PairsSection(Section):
    """The best completion of a prompt against its worst, in every batch anew (arXiv:2402.04792)."""

    name: PairsName
    """`online_dpo`, `online_ipo`: pairs of the policy's own samples. `xpo`: a sample of the policy against one of the
    reference, and a bonus for what the reference would not say (arXiv:2405.21046)."""
    objective: SingleObjective | None = None
    """What a pair teaches; left out, what the name says: `dpo` or `ipo`."""
    exploration: float | None = Field(default=None, ge=0)
    """For `xpo`: weight of the log-probability of the reference's samples, which is to fall; left out, 1e-5."""

    @property
    def taught(self) -> SingleObjective:
        """What a pair teaches."""
        return self.objective or (IpoObjective(kind="ipo") if self.name == "online_ipo" else DpoObjective())

    @property
    def bonus(self) -> float:
        """Weight of the log-probability of the reference's samples; 0 where none are drawn."""
        if self.name != "xpo":
            return 0.0
        return XPO_EXPLORATION if self.exploration is None else self.exploration

    @property
    def asks_reference(self) -> bool:
        """Whether half of the completions are sampled from the reference."""
        return self.name == "xpo"

    @property
    def needs_reference(self) -> bool:
        """Whether log-ratios to the reference are read."""
        return self.taught.needs_reference or self.asks_reference

    @model_validator(mode="after")
    def _keys_are_read(self) -> "PairsSection":
        if self.exploration is not None and self.name != "xpo":
            raise ValueError(f"exploration: {self.name} has none; use xpo, or leave it out")
        if self.taught.whole_step:
            raise ValueError(
                f"objective: {self.taught.kind} compares the pairs of a whole step; train on such pairs with `policy`"
            )
        return self


class SppoSection(Section):
    """SPPO (arXiv:2405.00675): each completion's log-ratio aims at how often it beats the policy's others."""

    name: Literal["sppo"]
    """The algorithm."""
    beta: float = Field(default=1e-3, gt=0)
    """How far the policy may move: log-ratios aim at (win rate - 1/2) / beta; the paper's 1 / eta."""

    needs_reference: ClassVar[bool] = True
