"""What the card of a judge or reward model says, for those who are about to let it label or rank."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop.interfaces import InputError
from prefloop.store import read_json

CHANCE = 0.5
HOW = "`prefloop reward-card` writes one"


@dataclass(frozen=True)
class CardSummary:
    """The figures that decide whether a judge may judge."""

    identity: Mapping[str, str]
    """What the model is told from others by."""
    data: str
    pairs: int
    accuracy: tuple[float, float, float]
    """With the ends of its interval."""
    length_rule: str
    """Always preferring the `longer` or the `shorter` answer, whichever does better on these pairs."""
    beats_length: bool
    agree: float | None
    """Share of pairs on which both orders agree; None for what scores answers one by one."""

    @property
    def objection(self) -> str | None:
        """Why it should not judge; None where it may."""
        if self.accuracy[1] <= CHANCE:
            return f"{self.text}: not better than chance"
        if not self.beats_length:
            return f"{self.text}: not better than always preferring the {self.length_rule} answer"
        return None

    @property
    def text(self) -> str:
        """In words."""
        mean, low, high = (f"{100 * one:.0f}" for one in self.accuracy)
        agree = "" if self.agree is None else f", both orders agree on {100 * self.agree:.0f} %"
        return f"orders {mean} % [{low}, {high}] of {self.pairs:,} pairs of {self.data} right{agree}"


def read_card(path: Path) -> CardSummary:
    """Reads a card.json. Raises InputError."""
    if not path.is_file():
        raise InputError(f"card: no file {path}; {HOW}")
    value = read_json(path)
    try:
        return _summary(value)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"card: {path} is no card ({type(error).__name__}: {error}); {HOW}") from error


def _summary(value: Any) -> CardSummary:
    measured = value["measured"]
    accuracy, length, position = measured["accuracy"], measured["length"], measured["position"]
    return CardSummary(
        identity=dict(value["identity"]),
        data=str(value["data"]),
        pairs=int(measured["num_pairs"]),
        accuracy=(float(accuracy["mean"]), float(accuracy["low"]), float(accuracy["high"])),
        length_rule=str(length["stronger"]),
        beats_length=length["verdict"]["direction"] == "better",
        agree=None if position is None else float(position["agree"]["mean"]),
    )
