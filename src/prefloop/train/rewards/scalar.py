"""Training a reward model with one output: Bradley-Terry, margin ranking, Plackett-Luce, Sparrow's preference model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from prefloop.batches import Codec, collate
from prefloop.config import (
    BradleyTerryReward,
    MarginRankingReward,
    PlackettLuceReward,
    RewardSection,
    ScalarReward,
    SparrowReward,
)
from prefloop.forward import ScoresModule, all_scores
from prefloop.interfaces import InputError, Progress
from prefloop.launch import processes
from prefloop.modeling import new_reward_model, note_reward, save_model
from prefloop.records import PreferencePair
from prefloop.store import write_rows
from prefloop.train.groups import Grouping, Pair, PairGroup, grouped, ranks
from prefloop.train.loop import Metrics
from prefloop.train.rewards.choices import RandomStatements, choices
from prefloop.train.rewards.job import RewardJob, fit_reward_group, fitted, pair_accuracy
from prefloop.train.rewards.losses import ChoiceGroup, ScoredGroup, choice_loss, pairs_loss, ranking_loss
from prefloop.train.rewards.scale import score_scale

RANDOM_FILE = "random_statements.jsonl"
Loss = Callable[[Tensor, Sequence[Any]], tuple[Tensor, Metrics]]


def train_scalar(job: RewardJob, progress: Progress) -> dict[str, Any]:
    """Trains and saves the reward model to `job.out / "model"`; returns its statistics."""
    model, codec = new_reward_model(job.trunk, job.runtime)
    groups, counts, loss = examples(job, codec)
    module = ScoresModule(model, pad_id=codec.pad_id, runtime=job.runtime)
    stats = fitted(
        job, module, groups, lambda trained, items: loss(_scores(trained, items, module), items), progress
    )
    assert isinstance(job.options.objective, ScalarReward), "train_reward chooses the trainer"
    training = [one.tokens for one in groups]
    scale = score_scale(
        job.options.objective,
        job,
        codec,
        training,
        lambda tokens: [score for row in all_scores(module, tokens, job.runtime) for score in row],
    )
    note_reward(module.model, kind=job.options.objective.kind, **scale)
    stats["validation"] = validate(module, job.validation, codec, job) if job.validation else None
    if processes(job.runtime).is_main_process:
        save_model(module.model, codec.tokenizer, job.out / "model", dtype=job.dtype)
    return stats | {"num_rows": len(job.pairs) + len(job.all_bad), "prompts": len(groups), **counts}


def _scores(trained: Any, groups: Sequence[ScoredGroup], module: ScoresModule) -> Tensor:
    device = next(trained.parameters()).device
    tokens = [one.tokens for one in groups]
    return trained(collate(tokens, share=module.shares, pad_id=module.pad_id, device=device))


# --- what is trained on ----------------------------------------------------------------------------------------------


def examples(job: RewardJob, codec: Codec) -> tuple[list[Any], dict[str, Any], Loss]:
    """What the objective is trained on, counts of it, and its loss."""
    objective = job.options.objective
    if isinstance(objective, SparrowReward):
        groups, counts = choice_groups(job, codec, objective)
        return groups, counts, lambda scores, items: choice_loss(scores, items, objective)
    pairs, cut_rows = encode_groups(job.pairs, codec, job.options)
    counts = {"truncated": cut_rows}
    if isinstance(objective, PlackettLuceReward):
        for group in pairs:
            check_ranking(group)
        return pairs, counts, lambda scores, items: ranking_loss(scores, items, objective)
    assert isinstance(objective, BradleyTerryReward | MarginRankingReward), "train_reward chooses the trainer"
    return pairs, counts, lambda scores, items: pairs_loss(scores, items, objective)


def encode_groups(
    pairs: Sequence[PreferencePair], codec: Codec, options: RewardSection
) -> tuple[list[PairGroup], int]:
    """Token groups of pairs, each prompt counting once, and how many completions had to be cut to fit.

    The margin of a pair becomes what its chosen score is asked to lead by.
    """
    grouping: Grouping = "prompt" if options.objective.groupings == {"prompt"} else options.grouping
    groups, cut_rows = [], 0
    for group in grouped(pairs, codec, grouping, per_prompt=grouping == "prompt"):
        tokens, number = fit_reward_group(group.tokens, options.max_length)
        cut_rows += number
        leads = tuple(replace(pair, margin=wanted_lead(pair, options)) for pair in group.pairs)
        groups.append(replace(group, tokens=tokens, pairs=leads))
    return groups, cut_rows


def wanted_lead(pair: Pair, options: RewardSection) -> float:
    """What the chosen score is asked to lead by (Llama 2, arXiv:2307.09288). Raises InputError for an unknown margin."""
    objective = options.objective
    if not isinstance(objective, BradleyTerryReward):
        return 0.0
    if objective.margin_table is None:
        return objective.margin_scale * pair.margin
    if pair.margin not in objective.margin_table:
        known = ", ".join(f"{one:g}" for one in objective.margin_table)
        raise InputError(
            f"pair {pair.id}: its label has margin {pair.margin:g}, but reward.objective.margin_table knows {known}; "
            "add it to the table, or use margin_scale"
        )
    return objective.margin_table[pair.margin]


def check_ranking(group: PairGroup) -> None:
    """Raises InputError unless the pairs of a prompt are all those of one ranking, which is what the loss reads."""
    places = ranks(group)
    implied = {(a, b) for a in range(len(places)) for b in range(len(places)) if places[a] < places[b]}
    if implied != {(pair.chosen, pair.rejected) for pair in group.pairs}:
        raise InputError(
            f"pairs {group.name}: are not all pairs of one ranking, which plackett_luce needs; give whole rankings, "
            "or use reward.objective.kind=bradley_terry"
        )


def choice_groups(
    job: RewardJob, codec: Codec, objective: SparrowReward
) -> tuple[list[ChoiceGroup], dict[str, Any]]:
    """The choices of a Sparrow preference model; which random statements they were set against is written down."""
    groups, unclear = choices(
        job.pairs, job.all_bad, codec, random_per_option=objective.random_per_option, seed=job.seed
    )
    if not groups:
        raise InputError(
            "reward.data: no prompt has a single best completion, so there is no choice to learn from"
        )
    if processes(job.runtime).is_main_process:
        write_rows(
            job.out / RANDOM_FILE,
            (RandomStatements(prompt_id=one.name, completion_ids=one.random_ids) for one in groups),
        )
    cut = [fit_reward_group(one.tokens, job.options.max_length) for one in groups]
    fitting = [replace(one, tokens=tokens) for one, (tokens, _) in zip(groups, cut, strict=True)]
    return fitting, {
        "truncated": sum(number for _, number in cut),
        "all_bad": len(job.all_bad),
        "without_one_best": unclear,
        "random_statements": sum(len(one.random_ids) for one in groups),
    }


# --- validation -------------------------------------------------------------------------------------------------------


def validate(
    module: ScoresModule, pairs: Sequence[PreferencePair], codec: Codec, job: RewardJob
) -> dict[str, Any]:
    """How the model orders held-out pairs; each completion is scored once."""
    groups = grouped(pairs, codec, "prompt", per_prompt=False)
    tokens = [fit_reward_group(one.tokens, job.options.max_length)[0] for one in groups]
    leads = {
        pair.id: scores[pair.chosen] - scores[pair.rejected]
        for scores, group in zip(all_scores(module, tokens, job.runtime), groups, strict=True)
        for pair in group.pairs
    }
    return pair_accuracy(pairs, [leads[one.id] for one in pairs])
