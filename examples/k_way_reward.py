"""Does it help to train a reward model on whole rankings, as InstructGPT does, rather than on their pairs, shuffled?

Trains on the same rankings with the same number of steps and of forward tokens, and measures on prompts held out: every
prompt is held out once. `--rankings` are rows of messages and ranked_responses, best first. The claim is in section 3.5 of
arXiv:2203.02155.
"""

import argparse
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prefloop.config import ModelSection, RewardSection, RuntimeSection, SourceSection
from prefloop.forward import ScoresModule, all_scores
from prefloop.interfaces import no_progress
from prefloop.modeling import import_model, load_codec, load_reward_model
from prefloop.records import PreferencePair
from prefloop.statistics import clustered_interval, wins
from prefloop.train.reward import RewardJob, train_reward
from prefloop.train.rewards.scalar import encode_groups
from prefloop.verdicts import Ranking, read_rankings

TEMPLATE = (
    "{% for m in messages %}{{ ' Human: ' if m.role == 'user' else ' Assistant: ' }}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} Assistant: {% endif %}"
)
RUNTIME = RuntimeSection(device="cpu", threads=1)
WHOLE, BY_WEIGHT, ALIKE = (
    "whole rankings",
    "shuffled pairs, a prompt counts once",
    "shuffled pairs, all alike",
)
FOLDS = 5
PROMPTS_PER_STEP = 8
Right = list[tuple[str, float]]
"""The prompt of each pair, and 1 where the model orders it right, one half for a tie."""


@dataclass
class Outcome:
    """What one way to train came to, over all folds and seeds."""

    tokens: int = 0
    held_out: Right = field(default_factory=list)


def main() -> None:
    """Trains every way on every fold, and prints a table for each number of epochs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="small pretrained causal language model")
    parser.add_argument("--rankings", required=True, help="file of rankings")
    parser.add_argument("--terminator", default="auto", help="token that ends an answer")
    parser.add_argument(
        "--epochs", type=float, nargs="+", default=[1.0, 4.0], help="passes over whole rankings"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    rankings = read_rankings(SourceSection(path=options.rankings)).rows
    with tempfile.TemporaryDirectory() as folder:
        trunk = Path(folder) / "model"
        section = ModelSection(path=options.model, template=TEMPLATE, terminator=options.terminator)
        import_model(section, trunk, RUNTIME)
        for epochs in options.epochs:
            outcomes = {way: Outcome() for way in (WHOLE, BY_WEIGHT, ALIKE)}
            for seed in range(options.seeds):
                for fold in range(FOLDS):
                    for way, outcome in outcomes.items():
                        run(way, rankings, fold, seed, epochs, trunk, options, outcome)
            show(epochs, outcomes)


def run(
    way: str,
    rankings: Sequence[Ranking],
    fold: int,
    seed: int,
    epochs: float,
    trunk: Path,
    options: argparse.Namespace,
    outcome: Outcome,
) -> None:
    """Trains one way on four fifths of the rankings, and adds what it gets right on them and on the rest."""
    training = [one for place, one in enumerate(rankings) if place % FOLDS != fold]
    held_out = [one for place, one in enumerate(rankings) if place % FOLDS == fold]
    pairs = [pair for one in training for pair in one.pairs]
    if way == ALIKE:
        pairs = [pair.model_copy(update={"weight": 1.0}) for pair in pairs]
    section = RewardSection(
        batch_size=PROMPTS_PER_STEP,
        max_steps=math.ceil(epochs * len(training) / PROMPTS_PER_STEP),
        learning_rate=options.learning_rate,
        max_length=options.max_length,
    )
    if way != WHOLE:  # as many pairs a step as cost the same
        single = section.model_copy(update={"grouping": "pair"})
        ratio = tokens_per_row(pairs, trunk, section) / tokens_per_row(pairs, trunk, single)
        section = single.model_copy(update={"batch_size": round(PROMPTS_PER_STEP * ratio)})
    with tempfile.TemporaryDirectory() as folder:
        job = RewardJob(str(trunk), tuple(pairs), (), section, "float32", seed, RUNTIME, Path(folder))
        outcome.tokens += train_reward(job, no_progress)["tokens"]
        outcome.held_out += ordered_right(Path(folder) / "model", held_out, section)


def tokens_per_row(pairs: Sequence[PreferencePair], trunk: Path, section: RewardSection) -> float:
    """Tokens that a row of a batch costs on average, its prompt computed once."""
    groups, _ = encode_groups(pairs, load_codec(trunk), section)
    return sum(one.tokens.num_tokens for one in groups) / len(groups)


def ordered_right(model: Path, rankings: Sequence[Ranking], section: RewardSection) -> Right:
    """Which pairs the model orders as people did; texts are cut as in training."""
    loaded, codec = load_reward_model(model, RUNTIME)
    module = ScoresModule(loaded, pad_id=codec.pad_id, runtime=RUNTIME)
    found: Right = []
    for one in rankings:
        (group,), _ = encode_groups(one.pairs, codec, section.model_copy(update={"grouping": "prompt"}))
        (scores,) = all_scores(module, [group.tokens], RUNTIME)
        right = wins(
            [scores[pair.chosen] for pair in group.pairs], [scores[pair.rejected] for pair in group.pairs]
        )
        found += [(one.group.prompt.id, value) for value in right]
    return found


def show(epochs: float, outcomes: dict[str, Outcome]) -> None:
    """Accuracies, and the difference to whole rankings on the same pairs; intervals resample prompts."""
    print(f"\n{epochs:g} epochs of whole rankings")
    whole = outcomes[WHOLE].held_out
    for way, outcome in outcomes.items():
        behind = [ours - theirs for (_, ours), (_, theirs) in zip(whole, outcome.held_out, strict=True)]
        print(
            f"{way:38} {outcome.tokens / 1e6:6.2f} M tokens, held out {percent(outcome.held_out)}, whole rankings lead by "
            f"{percent([(prompt, value) for (prompt, _), value in zip(whole, behind, strict=True)])}"
        )


def percent(right: Right) -> str:
    """A mean with its interval, in percent."""
    prompts, values = zip(*right, strict=True)
    found = clustered_interval(values, prompts, confidence=0.95, resamples=10_000)
    return (
        f"{100 * found['mean']:5.1f} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"
        if found
        else "-"
    )


if __name__ == "__main__":
    main()
