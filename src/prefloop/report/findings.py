"""What the numbers mean: the verdict, remarks and warnings of a report."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefloop.config import MAIN_ARM
from prefloop.evaluate.judge_card import read_card
from prefloop.interfaces import InputError
from prefloop.report.numbers import fixed, number, percent
from prefloop.report.types import Estimate, Finding, Policy, Report, last_policy
from prefloop.report.values import dig, each_once
from prefloop.report.words import decimals, describe, range_text

TRUNCATED_WARNING = 0.2
REPEATED_WARNING = 0.1
"""Share of evaluation answers that are one and the same text."""
JUDGES = ("judge", "pairwise", "reward_model")
"""Annotators that a card can be made of."""
REFUSAL_WARNING = 0.05
LENGTH_WARNING = 1.5
"""Answers this many times as long as the start's deserve a look."""
KL_GROWTH_WARNING = 1.25
"""Growth of the KL divergence in one iteration that should have bought a better score."""


def verdict_of(report: Report) -> str:
    """One sentence, no stronger than the paired intervals."""
    if not report.stages:
        return "Nothing has run yet."
    final = report.final
    if final is None:
        return _early_verdict(report)
    if final.score_gain_vs_start:
        change = _change(report, f"Held-out {report.score_name}", final.score_gain_vs_start, final.score)
    elif final.proxy_gain_vs_start:
        change = _change(report, "The reward model's own score", final.proxy_gain_vs_start, None)
    else:
        return f"Nothing to judge by: no evaluator and no reward model looked at {_effort(report)}."
    steps = _step_verdicts([one for one in report.policies if one.arm == MAIN_ARM])
    return f"{change} in {_effort(report)}{'; ' + steps if steps else ''}."


def _early_verdict(report: Report) -> str:
    """What can be said while no iteration stands."""
    if any(one.promoted is False for one in report.policies):
        return "Every iteration so far was rolled back: the start stands."
    stages = each_once(report.stages)
    progress = f"{sum(stage.status == 'done' for stage in stages)} of {len(stages)} stages are done"
    start = report.start
    if start and start.score:
        score = f"{report.score_name} {number(start.score.mean)} on {start.num_prompts:,} held-out prompts"
        return f"No iteration has been evaluated yet; the start has {score}, and {progress}."
    return f"No policy has been evaluated yet; {progress}."


def _change(report: Report, what: str, gain: Estimate, score: Estimate | None) -> str:
    places, start = decimals(gain), report.start
    words = {1: "rose", -1: "fell", 0: "did not measurably change:"}[gain.side_of(0)]
    if score and start and start.score:
        words += f" from {fixed(start.score.mean, places)} to {fixed(score.mean, places)}"
    interval = f", {100 * report.confidence:g}% interval {range_text(gain)}" if gain.bounded else ""
    return f"{what} {words} ({fixed(gain.mean, places, sign=True)}{interval})"


def _effort(report: Report) -> str:
    """What was spent, on policies that were rolled back too."""
    last = last_policy(report.policies, MAIN_ARM)
    iterations, labels = (last.iteration + 1, last.labels) if last and last.iteration is not None else (0, 0)
    plurals = ["" if count == 1 else "s" for count in (iterations, labels)]
    return f"{iterations} iteration{plurals[0]} with {labels:,} label{plurals[1]}"


def _step_verdicts(policies: Sequence[Policy]) -> str:
    """How each iteration stands to the one before, in words; nothing for a first one that stands alone."""
    said: dict[str, list[int]] = {}
    for policy in policies:
        gain = policy.score_gain_vs_previous
        if policy.iteration is None:
            continue
        if policy.promoted is False:
            said.setdefault("rolled back", []).append(policy.iteration + 1)
        elif gain:
            words = {1: "improved", -1: "fell", 0: "unclear"}[gain.side_of(0)]
            said.setdefault(words, []).append(policy.iteration + 1)
    if list(said.values()) == [[1]] and "rolled back" not in said:
        return ""
    if set(said) == {"improved"}:
        return "every iteration improved on the one before"
    if set(said) == {"unclear"}:
        return "no iteration can be told apart from the one before"
    phrases = {
        "improved": "{} improved on the one before",
        "unclear": "{} cannot be told apart from the one before",
        "fell": "{} fell below the one before",
        "rolled back": "{} {was} rolled back",
    }
    return ", ".join(
        phrases[words].format(_numbered(found), was="was" if len(found) == 1 else "were")
        for words, found in said.items()
    )


def _numbered(iterations: Sequence[int]) -> str:
    if len(iterations) == 1:
        return f"iteration {iterations[0]}"
    return f"iterations {', '.join(map(str, iterations[:-1]))} and {iterations[-1]}"


def remarks_of(report: Report) -> Iterator[str]:
    """Sentences under the verdict."""
    final = report.final
    if final and not final.score:
        yield "No independent evaluator looked: this shows that the policy pleases its reward model, no more."
    for one in report.differences:
        equal = one.labels == one.other_labels
        labels = f"At equal labels ({one.labels:,})" if equal else "At unequal labels"
        verb = {1: "is ahead of", -1: "is behind", 0: "cannot be told apart from"}[one.score.side_of(0)]
        counts = "" if equal else f" ({one.labels:,} against {one.other_labels:,})"
        yield f"{labels}{counts}, {MAIN_ARM} {verb} {one.arm}: {describe(one.score, report.confidence)}."


def findings_of(report: Report) -> list[Finding]:
    """What a careful reader would ask about before believing the numbers; warnings first."""
    groups = (
        _evaluator_findings,
        _judge_findings,
        _optimisation_findings,
        _outcome_findings,
        _text_findings,
        _label_findings,
    )
    found = [finding for group in groups for finding in group(report)]
    return sorted(found, key=lambda one: one.level != "warning")


def _evaluator_findings(report: Report) -> Iterator[Finding]:
    scorer = dig(report.experiment, "evaluate.scorer")
    if scorer and scorer == dig(report.experiment, "annotate.annotator"):
        yield Finding(
            "warning",
            "The evaluator is the annotator",
            f"{report.evaluator} both labels and evaluates. Fine for label-efficiency curves, unsafe as the "
            "only metric: its own blind spots look like progress.",
        )
    elif not scorer and report.stages:
        yield Finding(
            "warning",
            "No independent evaluator",
            "evaluate.scorer is not set, so only the reward model's own score and text statistics are known.",
        )
    elif is_simulation(report.experiment):
        yield Finding(
            "note",
            "This is a simulation",
            f"The evaluator ({report.evaluator}) is the truth that the simulated annotators see through "
            "noise; training saw only their labels.",
        )


def _judge_findings(report: Report) -> Iterator[Finding]:
    """What is known of the models that label or rank here, apart from the loop's own reward model."""
    suites = dig(report.experiment, "evaluate.suites") or {}
    places = {"annotate.annotator": dig(report.experiment, "annotate.annotator")}
    places |= {f"evaluate.suites.{name}.judge": one.get("judge") for name, one in suites.items()}
    for place, judge in places.items():
        if not judge or judge["kind"] not in JUDGES or not judge.get("model"):
            continue
        name = f"{judge['model']} ({place})"
        if not judge.get("card"):
            yield Finding(
                "note",
                "A judge without a card",
                f"How often {name} is right, and what length and place do to it, is not known here: measure it with "
                f"`prefloop reward-card`, and name the card in {place}.card.",
            )
            continue
        try:
            card = read_card(Path(judge["card"]))
        except InputError as error:
            yield Finding("note", "A card that cannot be read", f"{name}: {error}.")
        else:
            rule = f"always preferring the {card.length_rule} answer does worse"
            yield Finding("note", "The judge's card", f"{name} {card.text}; {rule}.")


def _optimisation_findings(report: Report) -> Iterator[Finding]:
    for arm in report.arms:
        chain = [
            one for one in report.policies if one.arm == arm and one.iteration is not None and one.evaluated
        ]
        idle: list[Policy] = []
        for before, after in itertools.pairwise(chain):
            gain = after.score_gain_vs_previous
            if gain is None or after.promoted is False or gain.side_of(0) > 0:
                continue
            if gain.side_of(0) < 0 and _mean(after.proxy_effect) > _mean(before.proxy_effect):
                yield Finding(
                    "warning",
                    "Over-optimisation",
                    f"In {_full_name(after)} the reward model's gain over the start rose from "
                    f"{number(_mean(before.proxy_effect))} to {number(_mean(after.proxy_effect))} standard deviations, "
                    f"while the {report.score_name} changed by {describe(gain, report.confidence)}.",
                )
            elif _mean(after.kl) > KL_GROWTH_WARNING * _mean(before.kl):
                idle.append(after)
        if idle:
            iterations = _numbered([(one.iteration or 0) + 1 for one in idle])
            yield Finding(
                "warning",
                "KL grew without a better score",
                f"In {iterations} of {arm} the policy moved on, to {number(_mean(idle[-1].kl))} nats from the start, "
                f"but no gain in {report.score_name} can be shown. Consider stopping earlier.",
            )


def _mean(estimate: Estimate | None) -> float:
    return estimate.mean if estimate else 0.0


def _outcome_findings(report: Report) -> Iterator[Finding]:
    final, start = report.final, report.start
    if final and (won := final.win_rate_vs_start) and won.bounded and not won.side_of(0.5):
        yield Finding(
            "warning",
            "The win rate against the start includes one half",
            f"{percent(won.mean)}, interval {range_text(won, 'percent')}, on {final.num_prompts:,} prompts: "
            "not separable from no change.",
        )
    if final and start and final.second and start.second and (gain := final.score_gain_vs_start):
        before, after = start.second.mean, final.second.mean
        if gain.mean > 0 and after < before:
            yield Finding(
                "warning",
                "The second scorer disagrees",
                f"It went from {number(before)} to {number(after)} while the {report.score_name} rose: "
                "a shortcut may have been found.",
            )
    for one in report.differences:
        if one.labels != one.other_labels:
            yield Finding(
                "warning",
                f"{MAIN_ARM} and {one.arm} spent different numbers of labels",
                f"{one.labels:,} against {one.other_labels:,}; compare the curves at equal labels, not the ends.",
            )
        if one.steps != one.other_steps:
            yield Finding(
                "warning",
                f"{MAIN_ARM} and {one.arm} took different numbers of optimiser steps",
                f"{one.steps:,} against {one.other_steps:,}; more steps are an advantage of their own.",
            )
    for one in report.policies:
        if one.promoted is False:
            yield Finding("note", "A policy was rolled back", f"{_full_name(one)}: {one.reason}.")


def _text_findings(report: Report) -> Iterator[Finding]:
    evaluated = [one for one in report.policies if one.evaluated and one.num_completions > 1]
    if cut := [one for one in evaluated if (one.truncated_share or 0) > TRUNCATED_WARNING]:
        shares = ", ".join(f"{percent(one.truncated_share)} ({_full_name(one)})" for one in cut)
        yield Finding(
            "warning",
            "Many answers were cut off",
            f"{shares} of the evaluation answers reached the length limit; raise generate.max_new_tokens.",
        )
    if same := [one for one in evaluated if (one.repeated_share or 0) > REPEATED_WARNING]:
        shares = ", ".join(f"{percent(one.repeated_share)} ({_full_name(one)})" for one in same)
        yield Finding(
            "warning",
            "The same answer again and again",
            f"{shares} of the evaluation answers are one and the same text.",
        )
    before, after = (_mean(one.tokens) if one else 0.0 for one in (report.start, report.final))
    if before and after > LENGTH_WARNING * before:
        correlation = report.final.score_length_correlation if report.final else None
        yield Finding(
            "warning",
            "Answers grew much longer",
            f"From {number(before)} to {number(after)} tokens on average; the score's correlation with length is "
            f"{number(correlation)}.",
        )


def _label_findings(report: Report) -> Iterator[Finding]:
    for one in report.reward_models:
        accuracy, baseline = one.accuracy, one.length_baseline
        if accuracy and baseline and accuracy.bounded and accuracy.side_of(baseline.mean) < 1:
            yield Finding(
                "warning",
                "A reward model is not clearly better than preferring the longer answer",
                f"Trained {one.name}: accuracy {percent(accuracy.mean)} (interval {range_text(accuracy, 'percent')}) "
                f"against {percent(baseline.mean)} on {one.num_pairs:,} pairs.",
            )
    asked = sum(one.labels for one in report.collected)
    refused = sum(one.refusals for one in report.collected)
    if asked and refused / asked > REFUSAL_WARNING:
        text = f"{refused:,} of {asked:,} labels paid for gave no usable verdict."
        yield Finding("warning", "Many refusals", text)


def _full_name(policy: Policy) -> str:
    return policy.name if policy.arm == MAIN_ARM else f"{policy.arm}, {policy.name}"


def is_simulation(experiment: Mapping[str, Any]) -> bool:
    gold = dig(experiment, "annotate.annotator.gold")
    return gold is not None and gold == dig(experiment, "evaluate.scorer")


def part_name(section: Any) -> str:
    """An annotator or scorer in words: its kind and what distinguishes it."""
    if not section:
        return "none"
    details = [str(section[key]) for key in ("rule", "target", "model", "path") if section.get(key)]
    if section.get("gold"):
        details.append(f"gold: {part_name(section['gold'])}")
    return " · ".join([str(section["kind"]), *details])
