"""Does a tree search find better tales than independent samples, of the same number and of the same number of tokens?

A model made from scratch learns to tell tales; their hidden grammar says how good they are. One search is guided by that
gold score itself, another by a reward model that has learned from comparisons of samples. For each prompt of each seed
it is set beside the first K of many independent samples, and beside as many as its tokens buy, of which the same guide
keeps the K best.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from prefloop import config, tales
from prefloop.annotate.reward_model import load_scorer
from prefloop.annotate.rules import RuleScorer
from prefloop.generate.groups import Author
from prefloop.generate.hf import hf_generator
from prefloop.generate.mcts import TreeGenerator, one_at_a_time
from prefloop.interfaces import Scorer, no_progress
from prefloop.modeling import load_codec, load_policy, make_tiny_model
from prefloop.records import Completion, Group, Prompt, Score
from prefloop.selection import pairs_of
from prefloop.statistics import mean_interval
from prefloop.train.reward import RewardJob, train_reward
from prefloop.train.sft import SftJob, train_sft

SFT = config.SftSection(learning_rate=3e-3, batch_size=8, max_steps=240, max_length=128)
REWARD = config.RewardSection(
    seed_prompts=1, learning_rate=5e-4, batch_size=32, epochs=2, max_length=160, validation_share=0
)
RUNTIME = config.RuntimeSection(device="cpu", threads=1)
GOLD = RuleScorer(config.RuleAnnotator(kind="rule", rule="tales"))
MAX_NEW_TOKENS = 120


class Kept(NamedTuple):
    """Gold scores of what one way came to for one prompt."""

    picked: float
    """Of the completion that the guide likes best."""
    mean: float
    """Of all K."""


def main() -> None:
    """Prints a table for each guide."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="policies, each with prompts of its own")
    parser.add_argument("--prompts", type=int, default=48, help="of each seed")
    parser.add_argument("--num-completions", type=int, default=8, help="K")
    parser.add_argument("--iterations", type=int, default=16, help="of the search, a step")
    parser.add_argument("--actions", type=int, default=2, help="of the search, at a node")
    parser.add_argument(
        "--most-samples", type=int, default=64, help="of a prompt, of which as many count as tokens buy"
    )
    parser.add_argument("--labels", type=int, default=512, help="comparisons for the reward model")
    parser.add_argument("--sft-steps", type=int, default=SFT.max_steps, help="training of the policy")
    options = parser.parse_args()
    found: dict[str, dict[str, list[Kept]]] = {"gold": {}, "reward model": {}}
    spent: dict[str, list[float]] = {"gold": [], "reward model": []}
    with tempfile.TemporaryDirectory() as name:
        for seed in range(options.seeds):
            one_seed(Path(name) / str(seed), seed, options, found, spent)
    for guide, ways in found.items():
        print(f"\nguided by the {guide}; a search drew {mean(spent[guide]):.0f} tokens a prompt")
        for way, kept in ways.items():
            print(f"  {way:28} {described(kept, ways['search'])}")


def one_seed(
    folder: Path,
    seed: int,
    options: argparse.Namespace,
    found: dict[str, dict[str, list[Kept]]],
    spent: dict[str, list[float]],
) -> None:
    """Makes a policy and a reward model, and adds what every way finds with them."""
    policy = imitate(folder, seed, options.sft_steps)
    prompts = tales.prompts()
    asked, prompts = prompts[: options.labels], prompts[options.labels :]
    prompts = prompts[seed * options.prompts : (seed + 1) * options.prompts]
    reward = reward_model(policy, asked, folder / "reward", seed)
    number = options.num_completions
    pools = sample(policy, prompts, seed, options.most_samples)
    for guide, scorer in (("gold", GOLD), ("reward model", reward)):
        engine = config.MctsEngine(kind="mcts", iterations=options.iterations, actions=options.actions)
        trees = search(policy, scorer, prompts, seed, number, engine)
        costs = [group.tree.num_tokens for group in trees if group.tree is not None]
        afforded = [within(pool, cost) for pool, cost in zip(pools, costs, strict=True)]
        ways = {
            f"{number} samples": [one.model_copy(update={"completions": one.completions[:number]}) for one in pools],
            "samples of as many tokens": afforded,
            "search": trees,
        }  # fmt: skip
        for way, groups in ways.items():
            found[guide].setdefault(way, []).extend(kept_of(groups, scorer, number))
        spent[guide] += costs
        bought = mean(len(one.completions) for one in afforded)
        print(f"seed {seed}, {guide}: the tokens of a search buy {bought:.0f} samples", flush=True)


def imitate(folder: Path, seed: int, steps: int) -> Path:
    """A policy from scratch that has learned from demonstrations."""
    make_tiny_model([one.text for one in tales.texts()], base := folder / "base", seed=seed)
    job = SftJob(
        start=base, demonstrations=tuple(tales.demonstrations()), texts=(), dtype="float32", seed=seed, runtime=RUNTIME,
        options=SFT.model_copy(update={"max_steps": steps}), out=folder,
    )  # fmt: skip
    train_sft(job, no_progress)
    return folder / "model"


def reward_model(policy: Path, prompts: Sequence[Prompt], out: Path, seed: int) -> Scorer:
    """A reward model that has learned which of two samples the gold score likes better."""
    out.mkdir()
    groups = sample(policy, prompts, seed + 1000, 2)
    rule = config.SelectSection(rule="first_two")
    pairs = [pair for one in groups for pair in pairs_of(one, list(GOLD.score([one])), rule, seed=seed)[0]]
    job = RewardJob(
        trunk=str(policy), pairs=tuple(pairs), validation=(), options=REWARD, dtype="float32", seed=seed, runtime=RUNTIME,
        out=out,
    )  # fmt: skip
    train_reward(job, no_progress)
    return load_scorer(out / "model", RUNTIME, name="reward", same_tokens=True, labels=0)


def sample(policy: Path, prompts: Sequence[Prompt], seed: int, number: int) -> list[Group]:
    """Independent samples."""
    options = config.GenerateSection(num_completions=number, max_new_tokens=MAX_NEW_TOKENS)
    model, codec, author = load_policy(policy, RUNTIME), load_codec(policy), Author("policy", 0)
    plain = hf_generator(model, codec, options, seed=seed, author=author, runtime=RUNTIME)
    return list(plain.generate(prompts))


def search(
    policy: Path, scorer: Scorer, prompts: Sequence[Prompt], seed: int, number: int, engine: config.MctsEngine
) -> list[Group]:
    """What a tree search finds."""
    options = config.GenerateSection(num_completions=number, max_new_tokens=MAX_NEW_TOKENS, engine=engine)
    model, codec, author = load_policy(policy, RUNTIME), load_codec(policy), Author("policy", 0)
    plain = hf_generator(model, codec, one_at_a_time(options), seed=seed, author=author, runtime=RUNTIME)
    return list(TreeGenerator(plain, scorer, engine, number).generate(prompts))


def within(pool: Group, num_tokens: int) -> Group:
    """The first samples up to the one that spends the last of so many tokens."""
    kept: list[Completion] = []
    for one in pool.completions:
        if num_tokens <= 0:
            break
        kept.append(one)
        num_tokens -= len(one.token_ids or ())
    if num_tokens > 0:
        raise SystemExit("the tokens of a search buy more samples: give more --most-samples")
    return pool.model_copy(update={"completions": tuple(kept)})


def kept_of(groups: Sequence[Group], guide: Scorer, number: int) -> list[Kept]:
    """Gold scores of the K completions of each group that the guide likes best."""
    liked, gold = (
        {one.completion_id: one.value for one in scorer.score(groups) if isinstance(one, Score)}
        for scorer in (guide, GOLD)
    )
    rows = []
    for group in groups:
        best = sorted((one.id for one in group.completions), key=lambda one: -liked[one])[:number]
        rows.append(Kept(gold[best[0]], mean(gold[one] for one in best)))
    return rows


def described(kept: Sequence[Kept], search: Sequence[Kept]) -> str:
    """Mean gold scores, and by how much the search leads, with 95 % intervals over prompts."""
    words = []
    for name in Kept._fields:
        own, other = ([getattr(one, name) for one in rows] for rows in (kept, search))
        lead = mean_interval(
            [b - a for a, b in zip(own, other, strict=True)], confidence=0.95, resamples=10_000
        )
        assert lead is not None, "there are prompts"
        text = f"{name} {mean(own):5.2f}"
        if kept is not search:
            text += f" (search leads by {lead['mean']:+.2f}, {lead['low']:+.2f} to {lead['high']:+.2f})"
        words.append(text)
    return "  ".join(words)


if __name__ == "__main__":
    main()
