"""Stages that measure policies and decide which one to keep."""

from typing import Literal

from prefloop import data
from prefloop.config import Experiment, hashed
from prefloop.interfaces import InputError
from prefloop.records import Group, Prompt
from prefloop.stages.shared import (
    digests,
    engine_config,
    evaluation_folder,
    gold_scorer,
    loop_reward_scorer,
    model_folder,
    sample_all,
    sampling,
    scorer_digest,
    stage_seed,
    text_statistics,
    without_paths,
)
from prefloop.store import Artefact, Build, RowFile, Stage, read_records, write_json, write_rows


def evaluate(
    x: Experiment,
    policy: Artefact,
    prompts: Artefact,
    *,
    split: str,
    reference: Artefact,
    proxy: Artefact | None,
    start: Artefact | None,
    previous: Artefact | None,
) -> Stage:
    """Samples and measurements of a policy on prompts it was never trained on.

    `split` is `evaluation` or `gate`. `start` and `previous` are the evaluations of the SFT policy and of the policy
    before, to compare with prompt by prompt.
    """
    embedded = x.generate.sampling_engine.kind == "hf"

    def body(build: Build) -> None:
        from prefloop.evaluate.measure import measure
        from prefloop.evaluate.text import text_loss

        wanted = read_records(prompts.path / f"{split}.jsonl", Prompt)
        file = RowFile(build.path / "groups.jsonl")
        with sampling(
            x,
            policy,
            version=0,
            seed=stage_seed(x, split),
            num_completions=x.evaluate.num_completions,
            temperature=x.evaluate.temperature,
            temperatures=None,
        ) as generator:
            # servers compute as they were started; they and others may hold another policy than the one that is measured
            dtype = None if x.generate.sampling_engine.kind == "remote" else "float32"
            sample_all(x, policy, build, file, generator, wanted, check=not embedded, dtype=dtype)
        groups = read_records(file.path, Group)
        if not groups:
            raise InputError(
                f"all {len(wanted)} {split} prompts are longer than generate.max_prompt_length "
                f"({x.generate.max_prompt_length} tokens) or the model's context, so there is nothing to measure"
            )
        build.count(len(wanted), len(groups), {"prompt_too_long": len(wanted) - len(groups)})
        rows, build.stats = measure(
            groups,
            policy=model_folder(policy),
            reference=model_folder(reference),
            scorers={
                "score": gold_scorer(x, x.evaluate.scorer, None) if x.evaluate.scorer else None,
                "second": gold_scorer(x, x.evaluate.second_scorer, None)
                if x.evaluate.second_scorer
                else None,
                "proxy": loop_reward_scorer(x, proxy, labels=0) if proxy else None,
            },
            start=evaluation_folder(start) if start else None,
            previous=evaluation_folder(previous) if previous else None,
            options=x.evaluate,
            runtime=x.runtime,
        )
        build.stats |= text_statistics(groups)
        if x.evaluate.text is not None:
            build.stats |= text_loss(
                data.read_texts(x.evaluate.text).rows,
                policy=model_folder(policy),
                max_tokens=x.generate.max_prompt_length + x.generate.max_new_tokens,
                options=x.evaluate,
                runtime=x.runtime,
            )
        write_rows(build.path / "measurements.jsonl", rows)

    section = without_paths(x.evaluate, "prompts", "num_prompts", "num_samples_shown", "suites")
    shape = without_paths(x.generate, "engine", "search", "num_completions", "temperature", "temperatures")
    if not embedded:
        shape["engine"] = engine_config(x.generate.sampling_engine)
    config = {"evaluate": section, "sampling": shape, "split": split, "seed": x.seed}
    inputs = {
        "policy": policy,
        "prompts": prompts,
        "reference": reference,
        "proxy": proxy,
        "start": start,
        "previous": previous,
    }
    external = {
        role: digest
        for role, section in (("scorer", x.evaluate.scorer), ("second", x.evaluate.second_scorer))
        if section is not None
        for digest in [scorer_digest(section)]
        if digest is not None
    } | digests(text=x.evaluate.text)
    number = x.evaluate.num_prompts if split == "evaluation" else x.loop.gate.num_prompts
    work = f"{number} prompts x {x.evaluate.num_completions}"
    return Stage("evaluate", 2, config, inputs, body, external=external, work=work)


def promote(
    x: Experiment,
    candidate: Artefact,
    previous: Artefact,
    gated: Artefact,
    evaluations: tuple[Artefact | None, Artefact | None],
) -> Stage:
    """Keeps the new policy, or rolls back to the one before; the choice is an artefact like any other.

    `gated` is the candidate's evaluation on the gate's prompts; `evaluations` are those of candidate and previous on the
    evaluation prompts, so that the next policy is compared with the one that was kept.
    """

    def body(build: Build) -> None:
        stats = gated.stats
        gain = stats["proxy_gain_vs_previous" if x.loop.gate.metric == "proxy" else "score_gain_vs_previous"]
        kl = stats["kl"]["mean"] if stats["kl"] else 0.0
        reasons = []
        if gain is not None and gain["high"] < 0:
            reasons.append(f"{x.loop.gate.metric} fell by {-gain['mean']:.3f}, interval below 0")
        if x.loop.gate.max_kl is not None and kl > x.loop.gate.max_kl:
            reasons.append(f"KL {kl:.2f} is above {x.loop.gate.max_kl:g}")
        reason = "; ".join(reasons) or f"{x.loop.gate.metric} did not fall"
        _keep(build, candidate, previous, evaluations, promoted=not reasons, reason=reason)

    config = hashed(x.loop.gate)
    inputs = {**_choices(candidate, previous, evaluations), "gated": gated}
    return Stage("promote", 1, config, inputs, body, work="keep or roll back")


def decided(
    candidate: Artefact,
    previous: Artefact,
    evaluations: tuple[Artefact | None, Artefact | None],
    verdict: Literal["promote", "reject"],
) -> Stage:
    """The same choice where people have made it: their verdict is part of the key, so that what follows is planned by it."""

    def body(build: Build) -> None:
        is_kept = verdict == "promote"
        reason = f"people decided to {verdict} it"
        _keep(build, candidate, previous, evaluations, promoted=is_kept, reason=reason)

    config = {"decided": verdict}
    inputs = _choices(candidate, previous, evaluations)
    return Stage("promote", 1, config, inputs, body, work=f"{verdict}, as people decided")


def _choices(
    candidate: Artefact, previous: Artefact, evaluations: tuple[Artefact | None, Artefact | None]
) -> dict[str, Artefact | None]:
    return {
        "candidate": candidate,
        "previous": previous,
        "candidate_evaluation": evaluations[0],
        "previous_evaluation": evaluations[1],
    }


def _keep(
    build: Build,
    candidate: Artefact,
    previous: Artefact,
    evaluations: tuple[Artefact | None, Artefact | None],
    *,
    promoted: bool,
    reason: str,
) -> None:
    """Writes which policy and which evaluation to go on with."""
    kept, measured = (candidate, evaluations[0]) if promoted else (previous, evaluations[1])
    choice = {
        "policy": kept.key,
        "folder": model_folder(kept).parent.name,
        "evaluation": evaluation_folder(measured).name if measured else None,
        "promoted": promoted,
        "reason": reason,
    }
    write_json(build.path / "policy.json", choice)
    build.stats = choice
