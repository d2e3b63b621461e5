"""The card of a reward model: how well it orders pairs that people ordered, as one HTML file and as JSON.

Loads data and models, has `evaluate.reward_card` measure, and writes. The terminal's tables are in `terminal`, the
figures in `figures`, the sentences in `words`, the page is `card.html.jinja`.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import prefloop
from prefloop.browse import named_model
from prefloop.card.asking import Asked, ask, is_judge, read_judge
from prefloop.card.figures import figures
from prefloop.card.pairs import read_card_pairs, trained_prompts
from prefloop.card.probing import TEXTS, probes_of, probing_pairs
from prefloop.card.words import FILTERS, Finding, counts_text, findings_of, previous_verdict, verdict_of
from prefloop.config import JudgeAnnotator, RewardModelAnnotator, SourceSection
from prefloop.evaluate.card_types import RewardCard
from prefloop.evaluate.reward_card import reward_card
from prefloop.interfaces import InputError, Progress
from prefloop.records import PreferencePair
from prefloop.stages.shared import model_identity
from prefloop.store import Workspace, disk_errors, tally, write_json, write_text

CONFIDENCE, RESAMPLES = 0.95, 10_000


@dataclass(frozen=True)
class CardOptions:
    """What may be asked of a card besides model and data."""

    pairwise: bool = False
    tolerance: float = 0.0
    num_mistakes: int = 5
    probe: bool = True
    """Whether texts that are written for judges are tried."""


@dataclass(frozen=True)
class Card:
    """A reward card with where its pairs come from and what it means in words."""

    version: str
    identity: dict[str, str]
    """What the model is told from others by, where it is asked to label."""
    data: str
    rows_in: int
    rows_out: int
    dropped: dict[str, int]
    pairs_dropped: dict[str, int]
    verdict: str
    previous_verdict: str | None
    findings: tuple[Finding, ...]
    measured: RewardCard


def make_card(
    workspace: Workspace,
    model: str,
    data: SourceSection,
    previous: str | None,
    options: CardOptions,
    progress: Progress,
) -> Card:
    """Judges a model, named as an artefact, folder or hub model, on data. Raises InputError and Unavailable."""
    source = read_card_pairs(workspace, data)
    if not source.pairs:
        raise InputError(
            f"{data.path}: no pairs in {source.rows_in} rows; dropped: {counts_text(source.dropped)}"
        )

    def asked_about(name: str, pairs: Sequence[PreferencePair]) -> Asked:
        return ask(
            name,
            named_model(workspace, name),
            pairs,
            pairwise=options.pairwise,
            cache=workspace.cache / "judge",
            progress=progress,
        )

    asked = [asked_about(one, source.pairs) for one in (model, previous) if one is not None]
    known = [all(one.values[place] is not None for one in asked) for place in range(len(source.pairs))]
    pairs = [pair for pair, is_known in zip(source.pairs, known, strict=True) if is_known]
    if not pairs:
        raise InputError(f"{data.path}: {len(source.pairs)} pairs, and {why_not(model)} for all of them")
    measured = reward_card(
        pairs,
        *(one.opinion(known) for one in asked),
        tolerance=options.tolerance,
        confidence=CONFIDENCE,
        resamples=RESAMPLES,
        num_mistakes=options.num_mistakes,
    )
    if options.probe:
        probing = probing_pairs(pairs)
        number = len(probing) // len(TEXTS)
        probes = probes_of(asked_about(model, probing), number, confidence=CONFIDENCE)
        measured = dataclasses.replace(measured, probes=probes)
    unjudged = tally([why_not(model)] * (len(source.pairs) - len(pairs)))
    return Card(
        version=prefloop.__version__,
        identity=model_identity(_annotator(model, named_model(workspace, model))),
        data=source.name,
        rows_in=source.rows_in,
        rows_out=source.rows_out,
        dropped=dict(source.dropped),
        pairs_dropped={**source.pairs_dropped, **unjudged},
        verdict=verdict_of(measured),
        previous_verdict=previous_verdict(measured),
        findings=tuple(findings_of(measured, source, trained_prompts(workspace, model))),
        measured=measured,
    )


def _annotator(name: str, folder: str) -> JudgeAnnotator | RewardModelAnnotator:
    """The model as an experiment would name it."""
    return (
        read_judge(Path(name)) if is_judge(name) else RewardModelAnnotator(kind="reward_model", model=folder)
    )


def why_not(model: str) -> str:
    """Why a model says nothing about a pair."""
    return "no_verdict" if is_judge(model) else "too_long"


def as_dict(card: Card) -> dict[str, Any]:
    """The card as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(card)))


def write_card(card: Card, folder: Path) -> Path:
    """Writes card.html and card.json into a folder; returns the path of the page."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "card.json", as_dict(card))
        write_text(folder / "card.html", render(card))
    return folder / "card.html"


def card_folder(workspace: Workspace, model: str, data: str) -> Path:
    """Where the card of a model on data is kept, unless told otherwise."""
    names = ["-".join(Path(one).parts[-2:]) for one in (model, data)]
    return workspace.root / "cards" / re.sub(r"[^\w.-]+", "-", "-on-".join(names)).strip("-.")


def render(card: Card) -> str:
    """The page, in the style of the report. All text from outside is escaped; no script, and nothing is fetched."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment.get_template("card.html.jinja").render(
        card=card,
        measured=card.measured,
        level=f"{100 * card.measured.confidence:g}%",
        figures=figures(card.measured),
        style=environment.from_string(report_style()).render(),
    )


def report_style() -> str:
    """The style sheet of the report: both pages look the same, in light and dark."""
    page = (files("prefloop.report") / "report.html.jinja").read_text(encoding="utf-8")
    return page.partition("<style>")[2].partition("</style>")[0]
