"""prefloop's side: the public training stages, and for an iteration the scorer and the selection of the loop."""

import functools
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Done, Side
from benchmarks.data import text_groups, word_score
from benchmarks.machine import Moment, now, total
from benchmarks.settings import BETA, LEARNING_RATE, MAX_GRAD_NORM, SEED, WEIGHT_DECAY, Folders
from benchmarks.shapes import SHAPES
from prefloop.annotate.reward_model import RewardModelScorer
from prefloop.batches import Codec
from prefloop.config import (
    GenerateSection,
    PolicySection,
    RewardSection,
    RlSection,
    RuntimeSection,
    SelectSection,
)
from prefloop.generate.groups import Author
from prefloop.generate.hf import hf_generator
from prefloop.interfaces import Generator
from prefloop.modeling import in_dtype, load_codec, load_policy, load_reward_model, settle
from prefloop.records import Completion, Group, Message, PreferencePair, Prompt, Score, content_id
from prefloop.selection import pairs_of
from prefloop.stages.reinforce import sampler
from prefloop.train.online import RlJob, train_online
from prefloop.train.preference import PolicyJob, train_policy
from prefloop.train.reward import RewardJob, train_reward

ANNOTATOR = "benchmark"
NEVER = 1_000_000
"""Steps between checkpoints: none is written, on either side."""


class StepClock:
    """A progress that remembers when the last step ended."""

    def __init__(self) -> None:
        self.last = now()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        self.last = now()


def run(case: Case, side: Side, folders: Folders, threads: int) -> Done:
    """The work of a case."""
    runtime = RuntimeSection(device=case.device, threads=threads, save_every_steps=NEVER)
    if side.microbatch:
        runtime = runtime.model_copy(update={"microbatch_tokens": side.microbatch})
    match case.task:
        case "dpo":
            return train_dpo(case, pairs_of_data(case), folders, runtime)
        case "reward":
            return train_ranking(case, folders, runtime)
        case "iteration":
            return iterate(case, folders, runtime)
        case "generate":
            return sample(case, folders, runtime)
        case "rl":
            return reinforce(case, folders, runtime)


# --- data ------------------------------------------------------------------------------------------------------------


def groups(case: Case, codec: Codec | None = None) -> list[Group]:
    """The records of the data; with a codec, completions carry token ids as a sampler's do."""
    found = []
    for texts in text_groups(case.data, SHAPES[case.model].vocabulary):
        prompt = Prompt.of((Message(role="user", content=texts.prompt),))
        completions = [
            Completion(
                id=content_id(prompt.id, index),
                prompt_id=prompt.id,
                text=text,
                token_ids=tuple(codec.answer_ids(prompt.messages, text)) if codec else None,
            )
            for index, text in enumerate(texts.completions)
        ]
        found.append(Group(prompt=prompt, completions=tuple(completions)))
    return found


def pairs_of_data(case: Case) -> tuple[PreferencePair, ...]:
    """All pairs of every group, each weighted so that a prompt counts once."""
    weight = 1 / math.comb(case.data.num_completions, 2)
    return tuple(
        PreferencePair.of(group.prompt, better, worse, margin=1.0, annotator=ANNOTATOR, weight=weight)
        for group in groups(case)
        for better, worse in itertools.combinations(group.completions, 2)
    )


# --- stages ----------------------------------------------------------------------------------------------------------


def training_options(case: Case) -> dict[str, object]:
    """What both training sections are given, so that TRL can be given the same."""
    return {
        "learning_rate": LEARNING_RATE,
        "epochs": case.epochs,
        "batch_size": case.prompts_per_step,
        "warmup_ratio": 0.0,
        "schedule": "constant",
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": MAX_GRAD_NORM,
        "max_length": max(case.longest, 8),
        "lora": {"rank": case.lora_rank} if case.lora_rank else None,
    }


def train_dpo(
    case: Case, pairs: tuple[PreferencePair, ...], folders: Folders, runtime: RuntimeSection
) -> Done:
    """The policy stage on pairs."""
    options = PolicySection.model_validate(
        {
            **training_options(case),
            "objective": {"kind": "dpo", "beta": BETA},
            "max_prompt_length": case.longest,
        }
    )
    job = PolicyJob(
        start=folders.policy,
        reference=folders.policy,
        pairs=pairs,
        validation=(),
        options=options,
        steps=None,
        dtype=case.dtype,
        seed=SEED,
        runtime=runtime,
        out=folders.out,
    )
    loading = _loading(folders.policy, runtime)
    started, clock = now(), StepClock()
    train_policy(job, clock)
    return _done(case, started, clock, Moment(2 * loading.wall, 2 * loading.cpu), folders.out)


def train_ranking(case: Case, folders: Folders, runtime: RuntimeSection) -> Done:
    """The reward stage on all pairs of every ranking."""
    job = RewardJob(
        trunk=str(folders.policy),
        pairs=pairs_of_data(case),
        validation=(),
        options=RewardSection.model_validate(training_options(case)),
        dtype=case.dtype,
        seed=SEED,
        runtime=runtime,
        out=folders.out,
    )
    loading = _loading(folders.policy, runtime)
    started, clock = now(), StepClock()
    train_reward(job, clock)
    return _done(case, started, clock, loading, folders.out)


def _loading(folder: Path, runtime: RuntimeSection) -> Moment:
    """What it takes to load a model once, from files that the system has read before."""
    started = now()
    load_policy(folder, runtime)
    return now().since(started)


def _done(case: Case, started: Moment, clock: StepClock, loading: Moment, out: Path) -> Done:
    """The figures of a stage that has just ended."""
    log = [json.loads(line) for line in (out / "logs" / "metrics.jsonl").read_text().splitlines()]
    return Done(
        whole=now().since(started),
        parts={"train": clock.last.since(started).since(loading)},
        train_s=log[-1]["train/seconds"],
        num_pairs=case.num_pairs,
        num_steps=log[-1]["step"],
        loss_first=log[0]["train/loss"],
        loss_last=log[-1]["train/loss"],
    )


# --- iteration -------------------------------------------------------------------------------------------------------


def iterate(case: Case, folders: Folders, runtime: RuntimeSection) -> Done:
    """Scores the samples, chooses pairs and trains on them."""
    sampled = groups(case, load_codec(folders.policy))
    model, codec = load_reward_model(folders.reward_model, runtime)
    scorer = RewardModelScorer(model, codec, name=ANNOTATOR, same_tokens=True, labels=0, runtime=runtime)
    started = now()
    scores = list(scorer.score(sampled))
    scored = now().since(started)
    by_prompt = itertools.groupby(scores, key=lambda score: score.prompt_id)
    options = SelectSection(rule="max_min")
    pairs = tuple(
        pair
        for group, (_, verdicts) in zip(sampled, by_prompt, strict=True)
        for pair in pairs_of(group, list(verdicts), options, seed=SEED)[0]
    )
    selected = now().since(started).since(scored)
    trained = train_dpo(case, pairs, folders, runtime)
    return replace(
        trained,
        whole=total(scored, selected, trained.whole),
        parts={"score": scored, "select": selected, **trained.parts},
        picks=[_picks(group, pair) for group, pair in zip(sampled, pairs, strict=True)],
    )


def _picks(group: Group, pair: PreferencePair) -> tuple[int, int]:
    ids = [one.id for one in group.completions]
    return ids.index(pair.chosen.id), ids.index(pair.rejected.id)


# --- reinforcement ---------------------------------------------------------------------------------------------------


class WordScorer:
    """Scores the share of one word in five; it takes no time on either side."""

    name = ANNOTATOR

    def score(self, sampled: Iterable[Group]) -> Iterator[Score]:
        """One score a completion."""
        for group in sampled:
            for one in group.completions:
                value = word_score(one.text)
                yield Score(prompt_id=group.prompt.id, completion_id=one.id, value=value, annotator=self.name)


def _reward_model(folders: Folders, runtime: RuntimeSection) -> RewardModelScorer:
    model, codec = load_reward_model(folders.reward_model, runtime)
    return RewardModelScorer(model, codec, name=ANNOTATOR, same_tokens=True, labels=0, runtime=runtime)


def reinforce(case: Case, folders: Folders, runtime: RuntimeSection) -> Done:
    """The stage that samples, scores and updates; from the first sample to the last step."""
    begun: list[Moment] = []

    def noted(*arguments: Any, **options: Any) -> Generator:
        begun.append(now())
        return sampler(*arguments, **options)

    training = training_options(case)
    for name in ("epochs", "batch_size", "max_length"):
        del training[name]
    options = RlSection.model_validate(
        {
            **training,
            "algorithm": case.algorithm,
            "num_prompts": case.data.num_prompts,
            "steps": case.num_steps,
            "prompts_per_step": case.prompts_per_step,
            "num_completions": case.data.num_completions,
            "max_new_tokens": case.data.completion_length,
            "max_prompt_length": case.longest,
            **case.rl,
        }
    )
    job = RlJob(
        start=folders.policy,
        reference=folders.policy,
        critic=folders.reward_model if case.scored_by_model else None,
        prompts=tuple(one.prompt for one in groups(case)),
        texts=(),
        sampler=noted,
        scorer=functools.partial(_reward_model, folders, runtime) if case.scored_by_model else WordScorer,
        constraint=None,
        gold=None,
        options=options,
        dtype=case.dtype,
        seed=SEED,
        runtime=runtime,
        out=folders.out,
    )
    started, clock = now(), StepClock()
    train_online(job, clock)
    done = _done(case, started, clock, Moment(0.0, 0.0), folders.out)
    return replace(done, parts={"train": clock.last.since(begun[0])})


# --- sampling --------------------------------------------------------------------------------------------------------


def sample(case: Case, folders: Folders, runtime: RuntimeSection) -> Done:
    """The hf engine on prompts."""
    settle(runtime)
    codec = load_codec(folders.policy)
    codec.terminator_id = -1  # no token ends a completion
    options = GenerateSection(
        num_completions=case.data.num_completions,
        max_new_tokens=case.data.completion_length,
        max_prompt_length=case.longest,
    )
    model = in_dtype(load_policy(folders.policy, runtime), case.dtype)
    author = Author(ANNOTATOR, 0)
    prompts = [one.prompt for one in groups(case)]
    started = now()
    generator = hf_generator(model, codec, options, seed=SEED, author=author, runtime=runtime)
    completions = [one for group in generator.generate(prompts) for one in group.completions]
    took = now().since(started)
    tokens = sum(len(one.token_ids or ()) for one in completions)
    return Done.of_samples(took, num_completions=len(completions), num_tokens=tokens)
