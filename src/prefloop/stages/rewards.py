"""Stages that make reward models: the rows to train on, training, bringing one along, and keeping the better one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prefloop import data, verdicts
from prefloop.config import Experiment, MultiObjectiveReward, PairwiseAnnotator, SourceSection
from prefloop.interfaces import InputError, PairTask
from prefloop.launch import run_job
from prefloop.records import Comparison, Completion, Group, PreferencePair, Score
from prefloop.stages.labels import import_pairs
from prefloop.stages.models import split_pairs, where_pairs_went
from prefloop.stages.shared import (
    digests,
    loop_reward_scorer,
    mean,
    model_digest,
    model_folder,
    read_pairs,
    share,
    source_config,
    stage_seed,
    training_work,
    without_paths,
)
from prefloop.statistics import not_worse, rank_correlation, wins
from prefloop.store import Artefact, Build, Stage, read_records, write_json, write_rows

ALL_BAD_FILE = "all_bad.jsonl"
CONFIDENCE = 0.95
RESAMPLES = 10_000
NOT_THE_MODELS = ("data", "model", "seed_prompts", "start", "gate", "pairs_per_prompt")
"""Keys of `reward` that say where rows come from or what is done with the model afterwards."""


# --- rows ------------------------------------------------------------------------------------------------------------


def import_preferences(x: Experiment, source: SourceSection) -> Stage:
    """Preferences from a file: best against worst of each row, or all pairs where the objective wants them."""
    if not x.reward.reads_all_pairs:
        return import_pairs(x, source, "reward_data")

    def body(build: Build) -> None:
        loaded = verdicts.read_rankings(source)
        pairs = [pair for ranking in loaded.rows for pair in ranking.pairs]
        all_bad = [ranking.group for ranking in loaded.rows if ranking.all_bad]
        write_rows(build.path / "pairs.jsonl", pairs)
        write_rows(build.path / ALL_BAD_FILE, all_bad)
        build.count(loaded.rows_in, len(loaded.rows), loaded.dropped)
        lengths = [(float(len(one.chosen.text)), float(len(one.rejected.text))) for one in pairs]
        longer = wins([chosen for chosen, _ in lengths], [rejected for _, rejected in lengths])
        build.stats = {
            "pairs": len(pairs),
            "rankings": len(loaded.rows),
            "all_bad": len(all_bad),
            "format": loaded.format,
            "longer_is_chosen": mean(longer),
        }

    config = {"sources": source_config(source), "pairs": "all"}
    external = digests(reward_data=source)
    return Stage("import", 1, config, {}, body, external=external, work=f"read {source.path}")


def _read_verdicts(x: Experiment) -> data.Loaded[Any] | None:
    """The rows of objectives that learn from other than pairs, or next to them."""
    objective = x.reward.objective
    if isinstance(objective, MultiObjectiveReward):
        return verdicts.read_ratings(objective.ratings)
    if objective.rows == "pairs" or x.reward.data is None:
        return None
    return (verdicts.read_rule_verdicts if objective.rows == "rules" else verdicts.read_steps)(x.reward.data)


# --- models ----------------------------------------------------------------------------------------------------------


def import_reward(x: Experiment, path: str) -> Stage:
    """A finished reward model, checked and copied into the workspace."""

    def body(build: Build) -> None:
        from prefloop.modeling import (
            SCORING_KINDS,
            load_policy,
            load_reward_model,
            load_tokenizer,
            save_model,
            settle,
        )

        settle(x.runtime)
        if x.reward.objective.gives_scores:
            model, codec = load_reward_model(path, x.runtime, kinds=SCORING_KINDS)
            tokenizer = codec.tokenizer
        else:
            model, tokenizer = load_policy(path, x.runtime), load_tokenizer(path)
        save_model(model, tokenizer, build.path / "model", dtype="float32")
        if x.reward.objective.gives_scores:
            from prefloop.reward.heads import copy_heads

            copy_heads(path, model, build.path / "model")
        build.stats = {"validation": None, "num_rows": 0}

    config: dict[str, Any] = {"imported": True}
    if not x.reward.objective.gives_scores:
        config["compares"] = True
    external = {"model": model_digest(path, None)}
    return Stage("reward", 1, config, {}, body, external=external, work=f"import {path}")


def reward_model(x: Experiment, trunk: Artefact, pairs: Sequence[Artefact]) -> Stage:
    """A reward model trained on all pairs given, or on other verdicts, from the SFT policy's trunk or another model."""
    objective = x.reward.objective
    demonstrations = x.sft.data if getattr(objective, "zero_at", "none") == "demonstrations" else None

    def body(build: Build) -> None:
        from prefloop.train.reward import train_reward

        loaded = _read_verdicts(x)
        job = _job(x, build, trunk, pairs, loaded)
        if demonstrations is not None:
            job = replace(job, demonstrations=tuple(data.read_demonstrations(demonstrations).rows))
        build.stats = run_job(train_reward, job, x.runtime, build.progress)
        dropped = Counter(build.stats.get("dropped", {}))
        if objective.rows == "pairs":
            number = len(job.pairs) + len(job.validation) + len(job.all_bad)
            build.count(number, number - sum(dropped.values()), dropped)
        elif loaded is not None:
            kept = len(loaded.rows) - sum(dropped.values())
            build.count(loaded.rows_in, kept, dropped + Counter(loaded.dropped))

    config = {**without_paths(x.reward, *NOT_THE_MODELS), "dtype": x.model.dtype, "seed": x.seed}
    external = {} if x.reward.start == "sft" else {"start": model_digest(x.reward.start, None)}
    verdict_source = _verdict_source(x)
    if verdict_source is not None:
        config["rows"] = source_config(verdict_source)
    external |= digests(rows=verdict_source, demonstrations=demonstrations)
    inputs = {"trunk": trunk if x.reward.start == "sft" else None, "pairs": pairs}
    return Stage("reward", 3, config, inputs, body, external=external, work=training_work(x.reward))


def rule_model(x: Experiment, trunk: Artefact) -> Stage:
    """The rule model beside the reward model, the same as one that an experiment trains alone."""
    assert x.rules is not None, "the caller asked"
    return reward_model(x.model_copy(update={"reward": x.rules.as_reward}), trunk, ())


def _verdict_source(x: Experiment) -> SourceSection | None:
    objective = x.reward.objective
    if isinstance(objective, MultiObjectiveReward):
        return objective.ratings
    return x.reward.data if objective.rows != "pairs" else None


def _job(
    x: Experiment,
    build: Build,
    trunk: Artefact,
    pairs: Sequence[Artefact],
    loaded: data.Loaded[Any] | None,
) -> Any:
    """What the training process gets; the split into training and validation is by prompt, for all rows alike."""
    from prefloop.train.reward import RewardJob

    held_out_share = x.reward.validation_share
    training, validation = split_pairs(read_pairs(pairs), held_out_share)
    rows, held_out = split_pairs(loaded.rows, held_out_share) if loaded is not None else ([], [])
    if not training and x.reward.objective.rows == "pairs":
        raise InputError(
            "no preference pairs to train the reward model on: "
            f"{where_pairs_went(pairs, {'held out by reward.validation_share': len(validation)})}"
        )
    if not rows and loaded is not None:
        raise InputError(
            f"{loaded.rows_in} rows, but none to train the reward model on: {len(held_out)} are held out by "
            f"reward.validation_share, and {loaded.dropped or 'none'} were dropped"
        )
    return RewardJob(
        trunk=str(model_folder(trunk)) if x.reward.start == "sft" else x.reward.start,
        pairs=tuple(training),
        validation=tuple(validation),
        options=x.reward,
        dtype=x.model.dtype,
        seed=stage_seed(x, "reward"),
        runtime=x.runtime,
        out=build.path,
        all_bad=tuple(_all_bad(pairs, held_out_share)),
        rows=tuple(rows),
        held_out=tuple(held_out),
    )


def _all_bad(pairs: Sequence[Artefact], held_out_share: float) -> list[Group]:
    """Groups of which no completion was good enough; those of held-out prompts are left out."""
    files = [one.path / ALL_BAD_FILE for one in pairs]
    groups = [group for file in files if file.is_file() for group in read_records(file, Group)]
    return split_pairs(groups, held_out_share)[0]


# --- the better one --------------------------------------------------------------------------------------------------


def promote_reward(
    x: Experiment, candidate: Artefact, previous: Artefact, pairs: Sequence[Artefact]
) -> Stage:
    """Keeps the refreshed reward model, or the one before; both are judged on pairs that neither was trained on."""
    gate = x.reward.gate
    assert gate is not None, "the pipeline asks for a promotion only where there is a gate"

    def body(build: Build) -> None:
        _, held_out = split_pairs(read_pairs(pairs), x.reward.validation_share)
        build.count(len(held_out), len(held_out))
        if not held_out:
            kept, build.stats = candidate, {"promoted": True, "reason": "no held-out pairs to compare on"}
        else:
            new, old = (_opinion(x, one, held_out) for one in (candidate, previous))
            verdict = not_worse(
                wins(new.leads, [0.0] * len(held_out)),
                wins(old.leads, [0.0] * len(held_out)),
                tolerance=gate.tolerance,
                confidence=CONFIDENCE,
                resamples=RESAMPLES,
                clusters=[one.prompt.id for one in held_out],
            )
            passes = verdict.not_worse or gate.tolerance == 1
            kept = candidate if passes else previous
            change = f"{100 * verdict.difference['mean']:+.1f} points of {len(held_out)} held-out pairs"
            build.stats = {
                "promoted": passes,
                "reason": f"{change}, tolerance {100 * gate.tolerance:g}",
                "accuracy_change": verdict.difference,
                "direction": verdict.direction,
                **compared(new, old),
            }
        build.stats |= {"reward": kept.key, "folder": model_folder(kept).parent.name}
        write_json(build.path / "reward.json", build.stats)

    config = {"tolerance": gate.tolerance, "validation_share": x.reward.validation_share}
    inputs = {"candidate": candidate, "previous": previous, "pairs": pairs}
    return Stage("promote_reward", 1, config, inputs, body, work="keep the better reward model")


@dataclass(frozen=True)
class Opinion:
    """What a reward model says about held-out pairs."""

    leads: list[float]
    """By how much each chosen completion is preferred."""
    scores: list[float]
    """Of every different completion; nothing of models that only compare."""


def _opinion(x: Experiment, reward: Artefact, pairs: Sequence[PreferencePair]) -> Opinion:
    if not x.reward.objective.gives_scores:
        from prefloop.annotate.pairwise import load_pairwise

        section = PairwiseAnnotator(kind="pairwise", model=str(model_folder(reward)))
        comparer = load_pairwise(section, x.runtime)
        rows = comparer.compare([PairTask(one.prompt, one.chosen, one.rejected) for one in pairs])
        return Opinion([one.p_a - 0.5 if isinstance(one, Comparison) else 0.0 for one in rows], [])
    scores = {
        one.completion_id: one.value
        for one in loop_reward_scorer(x, reward, labels=0).score(groups_of(pairs))
        if isinstance(one, Score)
    }
    return Opinion([scores[one.chosen.id] - scores[one.rejected.id] for one in pairs], list(scores.values()))


def groups_of(pairs: Sequence[PreferencePair]) -> list[Group]:
    """The prompts of the pairs, each with its different completions."""
    completions: dict[str, dict[str, Completion]] = {}
    for pair in pairs:
        completions.setdefault(pair.prompt.id, {}).update(
            {pair.chosen.id: pair.chosen, pair.rejected.id: pair.rejected}
        )
    prompts = {pair.prompt.id: pair.prompt for pair in pairs}
    return [
        Group(prompt=prompt, completions=tuple(completions[name].values()))
        for name, prompt in prompts.items()
    ]


def compared(new: Opinion, old: Opinion) -> dict[str, Any]:
    """How far two reward models agree on the same pairs, and how far the scores have moved."""
    alike = [(a > 0) == (b > 0) and (a < 0) == (b < 0) for a, b in zip(new.leads, old.leads, strict=True)]
    drift = None
    if new.scores:
        drift = {
            "mean": round(float(np.mean(new.scores) - np.mean(old.scores)), 6),
            "deviation_new": round(float(np.std(new.scores)), 6),
            "deviation_old": round(float(np.std(old.scores)), 6),
            "rank_correlation": rank_correlation(new.scores, old.scores),
        }
    return {"agreement": share(alike), "drift": drift}
