"""A reward card in the terminal, as rich renderables; text from data and models is escaped."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from prefloop.card import Card
from prefloop.card.words import counts_text, points, range_text
from prefloop.evaluate.card_types import RewardCard
from prefloop.report.numbers import NOTHING, number, percent
from prefloop.statistics import Interval


def pages(card: Card) -> Iterator[RenderableType]:
    """Verdicts, tables, findings and counts, from the most important down."""
    measured = card.measured
    yield f"[bold]{escape(card.verdict)}[/]"
    if card.previous_verdict:
        yield f"[bold]{escape(card.previous_verdict)}[/]"
    yield _accuracy(measured)
    yield _breakdowns(measured)
    yield _figures(measured)
    if measured.probes:
        yield _probes(measured)
    for finding in card.findings:
        color = "yellow" if finding.level == "warning" else "dim"
        yield f"[{color}]{escape(finding.title)}.[/] {escape(finding.text)}"
    yield (
        f"{card.rows_in:,} rows in, {card.rows_out:,} out, dropped: {counts_text(card.dropped)}; "
        f"{measured.num_pairs:,} pairs judged, left out: {counts_text(card.pairs_dropped)}"
    )


def _accuracy(card: RewardCard) -> Table:
    title = f"{card.num_pairs:,} pairs of {card.num_prompts:,} prompts, {card.kind} model"
    table = _table(title, "", "accuracy", "95% interval", "ties")
    table.add_row(escape(card.model), *_share(card.accuracy), str(card.ties))
    if card.previous:
        table.add_row(escape(card.previous.model), *_share(card.previous.accuracy), str(card.previous.ties))
    table.add_row("always the longer", *_share(card.length.longer), "")
    table.add_row("always the shorter", *_share(card.length.shorter), "")
    table.add_row("always the first", percent(0.5), "", "")
    return table


def _breakdowns(card: RewardCard) -> Table:
    table = _table("Where it is right", "pairs by", "number", "right", "95% interval", "claimed")
    for breakdown in card.breakdowns:
        table.add_row(f"[blue]{breakdown.name}[/]")
        for one in breakdown.buckets:
            table.add_row(
                f"  {escape(one.name)}", str(one.right["n"]), *_share(one.right), percent(one.stated)
            )
    return table


def _probes(card: RewardCard) -> Table:
    table = _table(
        "Texts written for a judge: it should never prefer them", "text", "preferred", "95% interval"
    )
    for one in card.probes:
        table.add_row(one.name, *_share(one.preferred))
    return table


def _share(interval: Interval) -> tuple[str, str]:
    return percent(interval["mean"]), range_text(interval)


def _figures(card: RewardCard) -> Table:
    table = _table("Calibration and biases", "figure", "value")
    for name, value in _rows(card):
        table.add_row(name, value)
    return table


def _rows(card: RewardCard) -> Iterator[tuple[str, str]]:
    calibration, length = card.calibration, card.length
    yield "claimed on average", percent(calibration.stated)
    yield "expected calibration error", percent(calibration.expected_calibration_error)
    yield "Brier score (a coin: 0.250)", f"{calibration.brier:.3f}"
    yield "log loss (a coin: 0.693)", f"{calibration.log_loss:.3f}"
    yield "temperature that calibrates", number(calibration.temperature)
    preferred = length.prefers_longer
    yield "prefers the longer answer", percent(preferred["mean"]) if preferred else NOTHING
    if card.kind == "scalar":
        yield "rank correlation of score and length", number(length.correlation)
    yield "the same within pairs", number(length.correlation_within)
    if position := card.position:
        yield "both orders agree", percent(position.agree["mean"])
        yield "mean |p(a, b) + p(b, a) - 1|", number(position.inconsistency)
        yield "for the one shown first", points(position.first_bias["mean"], sign=True)
    if previous := card.previous:
        yield "same preference as the previous model", percent(previous.agree["mean"])
        yield "kappa of right and wrong", number(previous.kappa)
        yield "better / worse on", f"{previous.verdict.new_only} / {previous.verdict.old_only} pairs"
        yield "McNemar's exact test, p", number(previous.verdict.p_value)
        if shift := previous.shift:
            yield "mean score, new minus previous", number(shift.mean)
            yield "spread of scores, previous → new", f"{number(shift.sd_old)} → {number(shift.sd_new)}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    return table
