"""Measuring a policy on held-out prompts, with intervals over prompts and paired comparisons.

Receives scorers and samples; knows nothing about how they were made.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefloop.batches import TokenGroup
from prefloop.config import EvaluateSection, RuntimeSection
from prefloop.forward import LogpsModule, all_sequence_logps
from prefloop.interfaces import Scorer
from prefloop.modeling import load_codec, load_policy
from prefloop.records import Group, Record, Score
from prefloop.statistics import Interval, by_prompt, correlation, mean_interval, wins
from prefloop.store import read_records


class Measurement(Record):
    """What was measured on one sample."""

    prompt_id: str
    completion_id: str
    score: float | None = None
    second: float | None = None
    proxy: float | None = None
    kl: float
    """log policy - log reference of the whole completion: an unbiased sample of the KL divergence, in nats."""
    tokens: int
    characters: int


def measure(
    groups: Sequence[Group],
    *,
    policy: Path,
    reference: Path,
    scorers: Mapping[str, Scorer | None],
    start: Path | None,
    previous: Path | None,
    options: EvaluateSection,
    runtime: RuntimeSection,
) -> tuple[list[Measurement], dict[str, Any]]:
    """Rows and summary figures of a policy's samples.

    `start` and `previous` are artefact folders of earlier evaluations on the same prompts. The proxy is compared on
    equal terms: their samples are scored again by the reward model in use now.
    """
    rows, sampler_gap = _rows(groups, policy, reference, scorers, runtime)
    stats: dict[str, Any] = {"num_prompts": len(groups), "sampler_logp_gap": sampler_gap}
    for name in ("score", "second", "proxy", "kl", "tokens"):
        stats[name] = _interval(per_prompt(rows, name), options)
    stats["judged_by"] = "score" if scorers["score"] else "proxy" if scorers["proxy"] else None
    for role, folder in (("start", start), ("previous", previous)):
        stats |= _against(rows, role, folder, scorers["proxy"], options)
    judged = (
        [(getattr(row, stats["judged_by"]), row.characters) for row in rows] if stats["judged_by"] else []
    )
    stats["score_length_correlation"] = correlation([one[0] for one in judged], [one[1] for one in judged])
    return rows, stats


def _rows(
    groups: Sequence[Group],
    policy: Path,
    reference: Path,
    scorers: Mapping[str, Scorer | None],
    runtime: RuntimeSection,
) -> tuple[list[Measurement], float | None]:
    values = {name: score_all(scorer, groups) for name, scorer in scorers.items()}
    completions = [one for group in groups for one in group.completions]
    codec = load_codec(policy)
    tokens = [
        TokenGroup(
            tuple(codec.prompt_ids(group.prompt.messages)),
            tuple(tuple(codec.completion_ids(group.prompt.messages, one)) for one in group.completions),
        )
        for group in groups
    ]

    def logps_under(folder: Path) -> list[float]:
        module = LogpsModule(load_policy(folder, runtime), pad_id=codec.pad_id, runtime=runtime)
        return [value for values in all_sequence_logps(module, tokens, runtime) for value in values]

    policy_logps = logps_under(policy)
    reference_logps = logps_under(reference)
    gaps = [
        abs(logp - sum(one.token_logps)) / len(one.token_logps)
        for one, logp in zip(completions, policy_logps, strict=True)
        if one.token_logps
    ]
    lengths = [len(ids) for one in tokens for ids in one.completions]
    measured = [
        Measurement(
            prompt_id=one.prompt_id,
            completion_id=one.id,
            score=values["score"].get(one.id),
            second=values["second"].get(one.id),
            proxy=values["proxy"].get(one.id),
            kl=round(logp - reference_logp, 6),
            tokens=length,
            characters=len(one.text),
        )
        for one, length, logp, reference_logp in zip(
            completions, lengths, policy_logps, reference_logps, strict=True
        )
    ]
    return measured, round(max(gaps), 8) if gaps else None


def score_all(scorer: Scorer | None, groups: Sequence[Group]) -> dict[str, float]:
    """Scores by completion id; completions a scorer refused are missing."""
    if scorer is None:
        return {}
    return {one.completion_id: one.value for one in scorer.score(groups) if isinstance(one, Score)}


def per_prompt(rows: Sequence[Measurement], name: str) -> dict[str, float]:
    """Mean of one measurement for each prompt that has it."""
    found = [(row.prompt_id, value) for row in rows if (value := getattr(row, name)) is not None]
    return by_prompt([one[0] for one in found], [one[1] for one in found])


def _against(
    rows: Sequence[Measurement],
    role: str,
    folder: Path | None,
    proxy: Scorer | None,
    options: EvaluateSection,
) -> dict[str, Any]:
    """Paired gains and win rates against an earlier evaluation."""
    names = {"score": "score_gain", "second": "second_gain", "proxy": "proxy_gain"}
    if folder is None:
        return {f"{gain}_vs_{role}": None for gain in names.values()} | {f"win_rate_vs_{role}": None}
    theirs = read_records(folder / "measurements.jsonl", Measurement)
    groups = read_records(folder / "groups.jsonl", Group)
    rescored = score_all(proxy, groups)
    theirs = [row.model_copy(update={"proxy": rescored.get(row.completion_id)}) for row in theirs]
    stats: dict[str, Any] = {}
    for name, gain in names.items():
        ours, other = per_prompt(rows, name), per_prompt(theirs, name)
        shared = [one for one in ours if one in other]
        stats[f"{gain}_vs_{role}"] = _interval({one: ours[one] - other[one] for one in shared}, options)
    judged = "score" if any(row.score is not None for row in rows) else "proxy"
    ours, other = per_prompt(rows, judged), per_prompt(theirs, judged)
    shared = [one for one in ours if one in other]
    won = wins([ours[one] for one in shared], [other[one] for one in shared])
    stats[f"win_rate_vs_{role}"] = _interval(dict(zip(shared, won, strict=True)), options)
    return stats


def _interval(values: Mapping[str, float], options: EvaluateSection) -> Interval | None:
    return mean_interval(list(values.values()), confidence=options.confidence, resamples=options.resamples)
