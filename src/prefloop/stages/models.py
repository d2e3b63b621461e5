"""Stages that make language models: the base model, supervised fine-tuning, policies."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from prefloop import data
from prefloop.config import Experiment, SourceSection, hashed
from prefloop.interfaces import InputError
from prefloop.launch import run_job
from prefloop.records import PreferencePair, Prompt, content_id
from prefloop.stages.shared import (
    digests,
    mean,
    model_digest,
    model_folder,
    read_pairs,
    source_config,
    stage_seed,
    training_work,
    without_paths,
)
from prefloop.store import Artefact, Build, Stage


def base_model(x: Experiment) -> Stage:
    """The language model brought into the workspace, or made from scratch."""
    section = hashed(x.model)
    path = section.pop("path")
    if path.startswith("builtin:"):
        texts = x.sft.text or x.sft.data
        if texts is None:
            raise InputError(
                f"model.path = {path!r}: a model from scratch needs text to learn from; name sft.text"
            )

        def make(build: Build) -> None:
            from prefloop.modeling import make_tiny_model

            if path != "builtin:tiny-llama":
                raise InputError(f"model.path = {path!r}: the only built-in model is builtin:tiny-llama")
            sentences = [*_all_text(x)]
            make_tiny_model(sentences, build.path / "model", seed=stage_seed(x, "base"))
            build.count(len(sentences), len(sentences))
            build.stats = {"made_from": texts.path}

        config = {"path": path, "seed": x.seed, "sources": source_config(x.sft.text, x.sft.data)}
        return Stage(
            "base",
            1,
            config,
            {},
            make,
            external=digests(text=x.sft.text, data=x.sft.data),
            work="a new model",
        )

    def bring(build: Build) -> None:
        from prefloop.modeling import import_model, settle

        settle(x.runtime)
        build.stats = import_model(x.model, build.path / "model", x.runtime)

    external = {"model": model_digest(path, x.model.revision)}
    if "{" not in x.model.template and Path(x.model.template).is_file():
        external["template"] = data.source_digest(SourceSection(path=x.model.template))
    return Stage("base", 1, section, {}, bring, external=external, work=f"import {path}")


def _all_text(x: Experiment) -> Iterator[str]:
    if x.sft.text is not None:
        yield from (row.text for row in data.read_texts(x.sft.text).rows)
    if x.sft.data is not None:
        for row in data.read_demonstrations(x.sft.data).rows:
            yield from (message.content for message in row.messages)


def sft(x: Experiment, base: Artefact) -> Stage:
    """Supervised fine-tuning of the base model."""

    def body(build: Build) -> None:
        from prefloop.train.sft import SftJob, train_sft

        texts = data.read_texts(x.sft.text) if x.sft.text else None
        shown = data.read_demonstrations(x.sft.data) if x.sft.data else None
        loaded = [one for one in (texts, shown) if one is not None]
        job = SftJob(
            start=model_folder(base),
            demonstrations=tuple(shown.rows) if shown else (),
            texts=tuple(texts.rows) if texts else (),
            options=x.sft,
            dtype=x.model.dtype,
            seed=stage_seed(x, "sft"),
            runtime=x.runtime,
            out=build.path,
        )
        build.stats = run_job(train_sft, job, x.runtime, build.progress)
        dropped = sum((Counter(one.dropped) for one in loaded), Counter())
        used = build.stats["num_demonstrations"] + build.stats["num_texts"]
        dropped["not_drawn"] = sum(len(one.rows) for one in loaded) - used
        build.count(sum(one.rows_in for one in loaded), used, dropped)

    config = {**without_paths(x.sft, "data", "text"), "dtype": x.model.dtype, "seed": x.seed}
    external = digests(text=x.sft.text, data=x.sft.data)
    return Stage("sft", 2, config, {"base": base}, body, external=external, work=training_work(x.sft))


def train_policy(
    x: Experiment,
    start: Artefact,
    reference: Artefact | None,
    pairs: Sequence[Artefact],
    *,
    version: int,
    batches: int,
) -> Stage:
    """The policy after one iteration. Without `reference` the one at the path `policy.reference` is used."""
    steps = x.policy.steps_per_batch * batches if x.policy.steps_per_batch and batches else None

    def body(build: Build) -> None:
        from prefloop.train.preference import PolicyJob, train_policy

        everything = read_pairs(pairs)
        fresh = [one for one in everything if not _is_stale(one, version, x.loop.max_staleness)]
        training, validation = split_pairs(fresh, x.policy.validation_share)
        if not training:
            kept_back = {
                "older than loop.max_staleness": len(everything) - len(fresh),
                "held out by policy.validation_share": len(validation),
            }
            raise InputError(
                f"no preference pairs to train the policy on: {where_pairs_went(pairs, kept_back)}"
            )
        job = PolicyJob(
            start=model_folder(start),
            reference=model_folder(reference) if reference else Path(x.policy.reference),
            pairs=tuple(training),
            validation=tuple(validation),
            options=x.policy,
            steps=steps,
            dtype=x.model.dtype,
            seed=stage_seed(x, "policy"),
            runtime=x.runtime,
            out=build.path,
            reference_logps=_logps_folder(build, reference.name if reference else external["reference"], x),
        )
        build.stats = run_job(train_policy, job, x.runtime, build.progress)
        ages = [version - one.chosen.policy_version for one in fresh if one.chosen.policy]
        build.stats |= {
            "mean_staleness": mean(ages),
            "reference": reference.name if reference else x.policy.reference,
        }
        build.count(len(everything), len(fresh), {"stale": len(everything) - len(fresh)})

    config = {
        **without_paths(x.policy, "offline_data", "reference", "start", "data", "steps_per_batch"),
        "steps": steps,
        "dtype": x.model.dtype,
        "seed": x.seed,
        "max_staleness": x.loop.max_staleness,
        "version": version if x.loop.max_staleness is not None else None,
    }
    external = {} if reference else {"reference": model_digest(x.policy.reference, None)}
    inputs = {"start": start, "reference": reference, "pairs": pairs}
    return Stage("policy", 3, config, inputs, body, external=external, work=training_work(x.policy, steps))


def _logps_folder(build: Build, reference: str, x: Experiment) -> Path:
    """Where log-probabilities under a reference are kept for all stages that use it."""
    return build.path.parent.parent / "cache" / "logps" / f"{reference}-{x.model.dtype}"


def _is_stale(pair: PreferencePair, version: int, max_staleness: int | None) -> bool:
    return bool(
        max_staleness is not None
        and pair.chosen.policy
        and version - pair.chosen.policy_version > max_staleness
    )


ADVICE = {
    ("generate", "prompt_too_long"): "shorten the prompts, or raise generate.max_prompt_length",
    ("annotate", "identical"): "raise generate.temperature",
    ("select", "tie"): "choose an annotator that tells completions apart, or raise generate.temperature",
}
"""What to do about a reason that a stage gave."""


def where_pairs_went(pairs: Sequence[Artefact], kept_back: Mapping[str, int]) -> str:
    """Why a training stage has no pairs: what the stages before dropped, what it kept back itself, and what to do."""
    told = [f"{number} {reason}" for reason, number in kept_back.items() if number]
    lost: Counter[tuple[str, str]] = Counter()
    for artefact in pairs:
        for one in (*_sources(artefact), artefact):
            for reason, number in one.manifest["rows"]["dropped"].items():
                lost[one.kind, reason] += number
    told += [f"{kind} dropped {number} {reason}" for (kind, reason), number in lost.items()]
    return "; ".join([", ".join(told), *(ADVICE[one] for one in lost if one in ADVICE)])


def _sources(pairs: Artefact) -> list[Artefact]:
    """The groups and judgements that pairs were selected from, if they were."""
    inputs, folder = pairs.manifest["inputs"], pairs.path.parent
    roles = {"generate": "groups", "annotate": "judgements"}
    found = [(kind, inputs[role]) for kind, role in roles.items() if role in inputs]
    return [Artefact(kind, key, folder / f"{kind}-{key}") for kind, key in found]


class HasPrompt(Protocol):
    """A row that belongs to a prompt."""

    @property
    def prompt(self) -> Prompt:
        """The prompt."""
        ...


Row = TypeVar("Row", bound=HasPrompt)


def split_pairs(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Training and validation rows, split by prompt so that no prompt is on both sides, the same way every time."""
    threshold = int(share * (1 << 64))
    held_out = [int(content_id("validation", one.prompt.id), 16) < threshold for one in rows]
    return (
        [one for one, out in zip(rows, held_out, strict=True) if not out],
        [one for one, out in zip(rows, held_out, strict=True) if out],
    )
