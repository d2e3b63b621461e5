"""Which annotator a config section means. Imports only the one that is asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefloop.config import Annotator, CompositeAnnotator, RuleModelAnnotator, RuntimeSection
from prefloop.interfaces import Comparer, InputError, Scorer
from prefloop.records import Group

RewardScorer = Callable[[str | None], Scorer]
"""Makes the scorer of a reward model: of the one at a path, or of the loop's own for None."""


@dataclass(frozen=True)
class OwnParts:
    """What the loop has made itself, for sections that name nothing in its place."""

    rules: Path | None = None
    """The folder of its rule model."""
    same_tokens: bool = False
    """Whether that reads the policy's tokens."""
    groups: Path | None = None
    """A file of the SFT policy's answers."""


NO_PARTS = OwnParts()


def scorer(
    section: Annotator,
    *,
    seed: int,
    reward_scorer: RewardScorer,
    runtime: RuntimeSection,
    own: OwnParts = NO_PARTS,
) -> Scorer:
    """The annotator as one that scores. Raises InputError for those that only compare."""
    match section.kind:
        case "reward_model":
            return reward_scorer(section.model)
        case "rule":
            from prefloop.annotate.rules import RuleScorer

            return RuleScorer(section)
        case "function":
            from prefloop.annotate.function import FunctionScorer

            return FunctionScorer(section)
        case "recorded":
            from prefloop.annotate.recorded import RecordedScorer

            return RecordedScorer(section)
        case "simulated":
            from prefloop.annotate.simulated import SimulatedScorer

            gold = scorer(section.gold, seed=seed, reward_scorer=reward_scorer, runtime=runtime)
            return SimulatedScorer(section, gold, seed=seed)
        case "rule_model":
            return _rule_model(section, runtime, own)
        case "composite":
            return _composite(section, seed=seed, reward_scorer=reward_scorer, runtime=runtime, own=own)
        case "pairwise" | "judge" | "human":
            raise InputError(
                f"annotator {section.kind!r} compares and gives no scores; "
                "choose reward_model, rule, function, recorded, simulated, rule_model or composite"
            )


def _rule_model(section: RuleModelAnnotator, runtime: RuntimeSection, own: OwnParts) -> Scorer:
    from prefloop.annotate.reward_model import load_rule_scorer

    is_own = section.model is None
    if is_own and own.rules is None:
        raise InputError("rule_model: name a model here; the loop's own rule model cannot play this role")
    return load_rule_scorer(
        section.model or str(own.rules),
        runtime,
        name=f"rules:{own.rules.parent.name if is_own and own.rules else section.model}",
        rules=section.rules,
        reduction=section.reduction,
        same_tokens=is_own and own.same_tokens,
        labels=1,
    )


def _composite(
    section: CompositeAnnotator,
    *,
    seed: int,
    reward_scorer: RewardScorer,
    runtime: RuntimeSection,
    own: OwnParts,
) -> Scorer:
    from prefloop.annotate.composite import CompositeScorer, token_counter

    preference = scorer(section.preference, seed=seed, reward_scorer=reward_scorer, runtime=runtime, own=own)
    rules = _rule_model(section.rules, runtime, own) if section.rules else None
    return CompositeScorer(
        section,
        preference,
        rules,
        count_tokens=token_counter(preference, rules),
        reference=_reference(section, own),
    )


def _reference(section: CompositeAnnotator, own: OwnParts) -> Sequence[Group]:
    from prefloop.data import read_groups
    from prefloop.store import read_records

    if section.reference is None:
        return ()
    if section.reference != "sft":
        return read_groups(section.reference).rows
    if own.groups is None:
        raise InputError("composite: reference sft is for rl.reward; name a file of groups here")
    return read_records(own.groups, Group)


def comparer(
    section: Annotator,
    *,
    seed: int,
    cache: Path,
    reward_scorer: RewardScorer,
    runtime: RuntimeSection,
    loop_reward: Path | None = None,
) -> Comparer:
    """The annotator as one that compares. Raises InputError for those that only score.

    `loop_reward` is the folder of the loop's own reward model, where that is one that compares.
    """
    match section.kind:
        case "pairwise":
            from prefloop.annotate.pairwise import load_pairwise

            if section.model is not None or loop_reward is None:
                return load_pairwise(section, runtime)
            own = section.model_copy(update={"model": str(loop_reward)})
            return load_pairwise(own, runtime, name=f"pairwise:{loop_reward.parent.name}")
        case "judge":
            from prefloop.annotate.judge import JudgeComparer

            return JudgeComparer(section, seed=seed, cache=cache)
        case "recorded":
            from prefloop.annotate.recorded import RecordedScorer

            return RecordedScorer(section)
        case "simulated":
            from prefloop.annotate.simulated import SimulatedComparer

            gold = scorer(section.gold, seed=seed, reward_scorer=reward_scorer, runtime=runtime)
            return SimulatedComparer(section, gold, seed=seed)
        case "human":
            raise InputError(
                "annotator 'human': people are asked through the label store, a label batch at a time"
            )
        case "reward_model" | "rule" | "function" | "rule_model" | "composite":
            raise InputError(
                f"annotator {section.kind!r} gives scores and does not compare; "
                "choose pairwise, judge, recorded, simulated or human"
            )
