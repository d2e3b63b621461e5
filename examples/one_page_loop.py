"""Online iterative RLHF on one page: the idea of prefloop, without its workspace, resume and reports.

A model made from scratch learns to tell tales. Then, twice: it tells four tales to each of some new prompts, a rule scores
them, best and worst become a preference pair, and DPO moves the policy to the better ones. Half a minute on one core.
"""

import tempfile
from pathlib import Path
from statistics import mean

from prefloop import config, tales
from prefloop.annotate.rules import RuleScorer
from prefloop.generate.hf import Author, hf_generator
from prefloop.interfaces import no_progress
from prefloop.modeling import load_codec, load_policy, make_tiny_model
from prefloop.records import Group, PreferencePair, Prompt
from prefloop.selection import pairs_of
from prefloop.train.preference import PolicyJob, train_policy
from prefloop.train.sft import SftJob, train_sft

SFT = config.SftSection(learning_rate=3e-3, batch_size=8, max_steps=240, max_length=128)
SAMPLING = config.GenerateSection(num_completions=4, max_new_tokens=80)
DPO = config.PolicySection(learning_rate=4e-4, batch_size=16, epochs=2, max_length=128)
RUNTIME = config.RuntimeSection(device="cpu", threads=1)
ANNOTATOR = RuleScorer(config.RuleAnnotator(kind="rule", rule="tales"))


def main(folder: Path) -> None:
    """The loop."""
    held_out, *batches = [tales.prompts()[start : start + 64] for start in (0, 64, 128)]
    policy = reference = imitate(folder / "sft")
    print(f"start: mean gold score {mean_gold(sample(policy, held_out)):.2f}")
    for i, new_prompts in enumerate(batches, 1):
        pairs = best_against_worst(sample(policy, new_prompts))  # online: it learns from its newest tales
        policy = improve(policy, reference, pairs, folder / f"policy-{i}")
        print(f"iteration {i}: {len(pairs)} pairs, mean gold score {mean_gold(sample(policy, held_out)):.2f}")


def imitate(out: Path) -> Path:
    """The first policy: a model from scratch that has learned from demonstrations."""
    make_tiny_model([one.text for one in tales.texts()], base := out / "base", seed=0)
    job = SftJob(
        start=base, demonstrations=tuple(tales.demonstrations()), texts=(), options=SFT, dtype="float32",
        seed=0, runtime=RUNTIME, out=out,
    )  # fmt: skip
    train_sft(job, no_progress)
    return out / "model"


def sample(policy: Path, prompts: list[Prompt]) -> list[Group]:
    """Four tales a prompt by one policy."""
    model, codec, who = load_policy(policy, RUNTIME), load_codec(policy), Author(policy.parent.name, 0)
    return list(hf_generator(model, codec, SAMPLING, seed=0, author=who, runtime=RUNTIME).generate(prompts))


def best_against_worst(groups: list[Group]) -> list[PreferencePair]:
    """One pair a prompt, or none where its best and its worst tale score the same."""
    rule = config.SelectSection(rule="max_min")
    return [pair for one in groups for pair in pairs_of(one, list(ANNOTATOR.score([one])), rule, seed=0)[0]]


def improve(policy: Path, reference: Path, pairs: list[PreferencePair], out: Path) -> Path:
    """The next policy: DPO from the current one, held near the first."""
    out.mkdir()
    job = PolicyJob(
        start=policy, reference=reference, pairs=tuple(pairs), validation=(), options=DPO, steps=None,
        dtype="float32", seed=0, runtime=RUNTIME, out=out,
    )  # fmt: skip
    train_policy(job, no_progress)
    return out / "model"


def mean_gold(groups: list[Group]) -> float:
    """What is really wanted; here the annotator sees it without noise."""
    return mean(score.value for score in ANNOTATOR.score(groups))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
