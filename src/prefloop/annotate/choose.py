"""Which annotator a config section means. Imports only the one that is asked for."""

from collections.abc import Callable
from pathlib import Path

from prefloop.config import Annotator, RuntimeSection
from prefloop.interfaces import Comparer, InputError, Scorer


def scorer(section: Annotator, *, seed: int, reward_scorer: Callable[[str | None], Scorer]) -> Scorer:
    """The annotator as one that scores. Raises InputError for those that only compare.

    `reward_scorer` makes the scorer of a reward model: of the one at a path, or of the loop's own for None.
    """
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

            gold = scorer(section.gold, seed=seed, reward_scorer=reward_scorer)
            return SimulatedScorer(section, gold, seed=seed)
        case "pairwise" | "judge" | "human":
            raise InputError(
                f"annotator {section.kind!r} compares and gives no scores; "
                "choose reward_model, rule, function, recorded or simulated"
            )


def comparer(
    section: Annotator,
    *,
    seed: int,
    cache: Path,
    human_folder: Path,
    reward_scorer: Callable[[str | None], Scorer],
    runtime: RuntimeSection,
) -> Comparer:
    """The annotator as one that compares. Raises InputError for those that only score."""
    match section.kind:
        case "pairwise":
            from prefloop.annotate.pairwise import load_pairwise

            return load_pairwise(section, runtime)
        case "judge":
            from prefloop.annotate.judge import JudgeComparer

            return JudgeComparer(section, seed=seed, cache=cache)
        case "recorded":
            from prefloop.annotate.recorded import RecordedScorer

            return RecordedScorer(section)
        case "simulated":
            from prefloop.annotate.simulated import SimulatedComparer

            gold = scorer(section.gold, seed=seed, reward_scorer=reward_scorer)
            return SimulatedComparer(section, gold, seed=seed)
        case "human":
            from prefloop.annotate.human import HumanComparer

            return HumanComparer(section, human_folder)
        case "reward_model" | "rule" | "function":
            raise InputError(
                f"annotator {section.kind!r} gives scores and does not compare; "
                "choose pairwise, judge, recorded, simulated or human"
            )
