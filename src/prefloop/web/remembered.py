"""What the app computes for leads and keeps in memory for a while. One of each app; it is lost with it."""

from dataclasses import dataclass, field

from fastapi import Request

from prefloop.labels.rounds import Standing
from prefloop.web.calibrating import RoundFigures
from prefloop.web.disagreements import Disagreements
from prefloop.web.kept import Kept
from prefloop.web.quality import Quality


@dataclass
class Remembered:
    """Figures and queues."""

    quality: Kept[Quality] = field(default_factory=Kept[Quality])
    rounds: Kept[RoundFigures] = field(default_factory=Kept[RoundFigures])
    standings: Kept[tuple[Standing, int]] = field(default_factory=lambda: Kept(fresh_s=2.0, patience_s=0.5))
    """How far a round is, and how many judgements are new in it."""
    disagreements: Disagreements = field(default_factory=Disagreements)


def remembered(request: Request) -> Remembered:
    """That of the app which a request came to."""
    return request.app.state.remembered
