"""The stage that trains a policy by reinforcement: samples, scores and updates in one."""

import functools
from pathlib import Path
from typing import Any

from prefloop import data
from prefloop.annotate.choose import OwnParts
from prefloop.config import (
    CompositeAnnotator,
    Experiment,
    GenerateSection,
    PairsSection,
    RewardModelAnnotator,
    RlSection,
    RuntimeSection,
    uses_loop_reward,
)
from prefloop.interfaces import Generator, InputError
from prefloop.launch import run_job
from prefloop.records import Prompt
from prefloop.stages.shared import (
    annotator_digests,
    digests,
    gold_scorer,
    model_digest,
    model_folder,
    stage_seed,
    without_paths,
)
from prefloop.store import Artefact, Build, Stage, read_records

NOT_THE_STAGES = ("num_prompts", "reference", "start")
"""Keys of `rl` that say what the stage is given."""


def reinforce(
    x: Experiment,
    start: Artefact,
    reference: Artefact,
    reward: Artefact | None,
    prompts: Artefact,
    *,
    version: int,
    rules: Artefact | None = None,
    scale: Artefact | None = None,
) -> Stage:
    """The policy after one iteration of reinforcement; `reward` and `rules` are the loop's own models, `scale` the SFT
    policy's answers that parts of the reward are standardised on."""
    options = x.rl
    assert options is not None, "the caller asked"
    own = reward if any(map(uses_loop_reward, options.scorers)) else None
    parts = OwnParts(
        rules=model_folder(rules) if rules else None,
        same_tokens=x.rules is not None and x.rules.start == "sft",
        groups=scale.path / "groups.jsonl" if scale else None,
    )
    critic = _critic(x)
    own_critic = own if critic == "reward" else None

    def body(build: Build) -> None:
        from prefloop.train.online import RlJob, train_online

        rows = read_records(prompts.path / "prompts.jsonl", Prompt)
        if len(rows) < options.prompts_per_step:
            raise InputError(
                f"rl.prompts_per_step = {options.prompts_per_step}: of rl.num_prompts only {len(rows)} are left, see "
                f"`prefloop show {prompts.name}`; raise rl.num_prompts, or lower the shares of rl.prompt_sources"
            )
        texts = data.read_texts(options.pretraining) if options.pretraining else None
        folder = None if critic in (None, "policy", "reward") else Path(critic)
        job = RlJob(
            start=model_folder(start),
            reference=model_folder(reference),
            critic=model_folder(own_critic) if own_critic else folder,
            prompts=tuple(rows),
            texts=tuple(texts.rows) if texts else (),
            sampler=sampler,
            scorer=functools.partial(gold_scorer, x, options.reward, own, parts),
            constraint=functools.partial(gold_scorer, x, options.constraint.scorer, own, parts)
            if options.constraint
            else None,
            gold=functools.partial(gold_scorer, x, options.gold, own, parts) if options.gold else None,
            options=options,
            dtype=x.model.dtype,
            seed=stage_seed(x, "rl", version),
            runtime=x.runtime,
            out=build.path,
        )
        build.stats = run_job(train_online, job, x.runtime, build.progress)
        used = dict(build.stats["rows"])
        asked = used.pop("prompts")
        build.count(asked, asked - sum(used.values()), used)

    config = {
        **without_paths(options, *NOT_THE_STAGES),
        "algorithm": _columns(options),
        "dtype": x.model.dtype,
        "seed": x.seed,
        "version": version,
    }
    external = annotator_digests(options.reward) | digests(pretraining=options.pretraining)
    if options.constraint is not None:
        outside = annotator_digests(options.constraint.scorer)
        external |= {f"constraint_{name}": digest for name, digest in outside.items()}
    if options.gold is not None:
        external |= {f"gold_{name}": digest for name, digest in annotator_digests(options.gold).items()}
    if critic not in (None, "policy", "reward"):
        external["critic"] = model_digest(critic, None)
    inputs = {
        "start": start,
        "reference": reference,
        "reward": own,
        "prompts": prompts,
        "rules": rules,
        "scale": scale,
    }
    sampled = options.prompts_per_step * options.num_completions
    return Stage(
        "policy",
        4,
        config,
        inputs,
        body,
        external=external,
        work=f"{options.algorithm.name}, {options.steps} batches of {sampled} samples",
    )


def sampler(
    model: Any, codec: Any, options: GenerateSection, *, seed: int, version: int, runtime: RuntimeSection
) -> Generator:
    """Samples in this process, from the weights in training."""
    from prefloop.generate.groups import Author
    from prefloop.generate.hf import hf_generator

    author = Author("policy in training", version)
    return hf_generator(model, codec, options, seed=seed, author=author, runtime=runtime)


def _columns(options: RlSection) -> dict[str, Any]:
    """What the algorithm is made of, whatever it is called."""
    if isinstance(options.algorithm, PairsSection):
        taught, bonus = options.algorithm.taught.model_dump(), options.algorithm.bonus
        return {"objective": taught, "exploration": bonus, "asks_reference": options.asks_reference}
    if options.row is None:
        return options.algorithm.model_dump()
    return {name: value for name, value in vars(options.row).items() if name != "source"}


def _critic(x: Experiment) -> str | None:
    """Where the critic begins: `reward` is the loop's own reward model; None where the algorithm has none."""
    options = x.rl
    assert options is not None, "the caller asked"
    if options.row is None or options.row.baseline != "critic":
        return None
    scorer = options.reward.preference if isinstance(options.reward, CompositeAnnotator) else options.reward
    if options.critic.start == "auto":
        own = isinstance(scorer, RewardModelAnnotator) and scorer.model is None and x.reward.start == "sft"
        return "reward" if own and x.reward.model is None else "policy"
    if options.critic.start == "reward" and not uses_loop_reward(options.reward):
        raise InputError(
            "rl.critic.start: rl.reward is not the loop's own reward model; use `policy`, or the folder of a reward model"
        )
    return options.critic.start
