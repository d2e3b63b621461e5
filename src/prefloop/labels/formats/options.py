"""What an export may choose: margins, thresholds, what is left out."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from prefloop.records import Record

WEAKEST = 0.5
"""Distance of the weakest strength, 4 or 5 of 1 to 8, from the middle."""
DISTANCES = (3.5, 2.5, 1.5, WEAKEST)
BAD_FLAGS = (
    "fails_instruction", "inappropriate", "hallucination", "encourages_harm", "denigrates", "harmful_advice",
)  # fmt: skip
"""Those of InstructGPT's form that say that something is wrong; others, as an opinion, only describe."""
SftSource = Literal["demonstration", "edit", "chosen"]


class ExportOptions(Record):
    """How judgements become rows of a format."""

    margins: tuple[float, float, float, float] | None = (1.0, 2 / 3, 1 / 3, 0.0)
    """Margin of a pair from the strongest strength to the weakest; null leaves the column out."""
    margin_without_strength: float = 0.0
    """Margin of a pair that was only ordered, as in a ranking."""
    weakest: Literal["keep", "drop"] = "keep"
    """What happens to pairs of the weakest strength."""
    weakest_p: float = Field(default=0.55, ge=0.5, le=1)
    """How sure the weakest strength is that the chosen completion is better."""
    min_agreement: float | None = Field(default=None, gt=0.5, le=1)
    """Smallest share of a comparison's votes for its more frequent choice, from two votes on."""
    near_duplicates: Literal["drop", "keep"] = "drop"
    """Rows of another task that differ in case and spacing only."""
    reserved_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of prompts held out by the hash of their id."""
    rating: str = "overall"
    """The rating that says how good a completion is."""
    good_from: float = 5.0
    """Smallest rating of a desirable completion."""
    bad_to: float = 3.0
    """Largest rating of an undesirable one."""
    bad_flags: tuple[str, ...] = BAD_FLAGS
    """Flags of a form that make a completion undesirable, whatever its rating."""
    rating_range: tuple[float, float] = (1.0, 7.0)
    """Ratings outside are errors and left out."""
    sft_sources: tuple[SftSource, ...] = ("demonstration", "edit", "chosen")
    """What is worth imitating."""
    annotator_weights: dict[str, float] = Field(default_factory=dict)
    """Weight of a vote by annotator; 1 where it is not named."""
    redact: str = ""
    """`path/to/file.py:name` of a function from text to text that takes personal data out."""
    guidelines: str = ""
    """Told to the annotators of other tools."""
    filter: dict[str, Any] = Field(default_factory=dict)
    """How the rows were chosen; kept in the manifest."""
    watermark: int | None = None
    """Largest judgement that was looked at; kept in the manifest."""

    @model_validator(mode="after")
    def _thresholds(self) -> Self:
        if self.bad_to >= self.good_from:
            raise ValueError(f"bad_to = {self.bad_to} must be below good_from = {self.good_from}")
        return self

    def margin(self, distance: float | None) -> float:
        """The margin of a strength, by its distance from the middle."""
        if distance is None or self.margins is None:
            return self.margin_without_strength
        return self.margins[DISTANCES.index(distance)]
