"""Stages that make the prompts of a run: split, drawn, and written by the policy itself."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from prefloop import data
from prefloop.config import Experiment, FileSource, PromptSource, SelfPlaySource, SourceSection
from prefloop.interfaces import InputError
from prefloop.records import Prompt
from prefloop.stages.shared import digests, engine_config, sampling, source_config, stage_seed, without_paths
from prefloop.store import Artefact, Build, Stage, read_records, tally, write_rows

OF_FILES = (FileSource, SelfPlaySource)
"""Sources that may name a file."""


def prompts(x: Experiment) -> Stage:
    """Training, gate and evaluation prompts: deduplicated, disjoint, in the order in which they will be used."""
    gate = x.loop.gate.num_prompts if x.loop.gate.metric != "none" else 0
    kept = x.rl.num_prompts if x.rl is not None else 0
    wanted = x.reward.seed_prompts + x.loop.batches * x.loop.prompts_per_batch + kept

    def body(build: Build) -> None:
        train = _prompt_rows(x)
        held_out = data.read_prompts(x.evaluate.prompts) if x.evaluate.prompts else None
        evaluation = list(held_out.rows[: x.evaluate.num_prompts]) if held_out else []
        unseen = {one.id for one in evaluation}
        texts = {_normal(one.text) for one in evaluation}
        rows = [one for one in train.rows if one.id not in unseen and _normal(one.text) not in texts]
        dropped = Counter(train.dropped) + Counter({"in_evaluation": len(train.rows) - len(rows)})
        order = np.random.default_rng(stage_seed(x, "prompts")).permutation(len(rows)).tolist()
        rows = [rows[index] for index in order]
        if held_out is None:
            evaluation, rows = rows[: x.evaluate.num_prompts], rows[x.evaluate.num_prompts :]
        gated, rows = rows[:gate], rows[gate:]
        if len(rows) < wanted:
            lost = "".join(
                f"; {number} were dropped as {reason}" for reason, number in dropped.items() if number
            )
            raise InputError(
                f"{_prompts_path(x)}: {len(rows)} different prompts are left for training after holding out "
                f"{len(evaluation)} for evaluation and {gate} for the gate, but the run needs {wanted} "
                f"(reward.seed_prompts {x.reward.seed_prompts} + loop.batches {x.loop.batches} x "
                f"loop.prompts_per_batch {x.loop.prompts_per_batch}{f' + rl.num_prompts {kept}' if kept else ''}){lost}"
            )
        unused = len(rows) - wanted
        write_rows(build.path / "train.jsonl", rows[:wanted])
        write_rows(build.path / "gate.jsonl", gated)
        write_rows(build.path / "evaluation.jsonl", evaluation)
        used = wanted + len(gated) + (0 if held_out else len(evaluation))
        dropped["not_needed"] += unused
        build.count(train.rows_in, used, dropped)
        build.stats = {
            "train": wanted,
            "gate": len(gated),
            "evaluation": len(evaluation),
            "evaluation_from": "its own file" if held_out else "held out of the training prompts",
            "format": train.format,
        }

    sources = {"prompts": _prompt_source(x), "evaluation": x.evaluate.prompts}
    config = {
        "sources": source_config(*sources.values()),
        "train": wanted,
        "gate": gate,
        "evaluation": x.evaluate.num_prompts,
        "seed": x.seed,
    }
    return Stage(
        "prompts", 1, config, {}, body, external=digests(**sources), work=f"{wanted} training prompts"
    )


def all_prompts(source: SourceSection) -> Stage:
    """Every prompt of a file, each once, in its order."""

    def body(build: Build) -> None:
        loaded = data.read_prompts(source)
        write_rows(build.path / "prompts.jsonl", loaded.rows)
        build.count(loaded.rows_in, len(loaded.rows), loaded.dropped)
        build.stats = {"format": loaded.format}

    config = {"sources": source_config(source)}
    return Stage("prompts", 1, config, {}, body, external=digests(prompts=source), work=f"read {source.path}")


def _prompt_source(x: Experiment) -> SourceSection | None:
    if x.prompts is None and x.generate.engine.kind == "recorded":
        return x.generate.engine.source
    return x.prompts


def _prompts_path(x: Experiment) -> str:
    source = _prompt_source(x)
    return source.path if source else "prompts"


def _prompt_rows(x: Experiment) -> data.Loaded[Prompt]:
    source = _prompt_source(x)
    if source is None:
        return data.Loaded([], 0, {}, "none")
    if x.prompts is None:  # the prompts of recorded groups
        loaded = data.read_groups(source)
        return data.Loaded(
            [group.prompt for group in loaded.rows], loaded.rows_in, loaded.dropped, loaded.format
        )
    return data.read_prompts(source)


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def draw_prompts(x: Experiment, source: Artefact, start: int, number: int) -> Stage:
    """The prompts of one label batch."""

    def body(build: Build) -> None:
        rows = read_records(source.path / "train.jsonl", Prompt)[start : start + number]
        write_rows(build.path / "prompts.jsonl", rows)
        build.count(number, len(rows))

    return Stage(
        "draw", 1, {"start": start, "number": number}, {"prompts": source}, body, work=f"{number} prompts"
    )


def invent_prompts(
    x: Experiment,
    policy: Artefact,
    source: Artefact,
    drawn: Artefact,
    sources: Sequence[PromptSource],
    *,
    version: int,
    number: int,
    batch: int,
) -> Stage:
    """Drawn prompts, a part of them replaced by those of other files and by prompts that the policy makes.

    `batch` counts the draws of one kind: each takes the next prompts of the files.
    """
    files = {place: one.prompts for place, one in enumerate(sources) if isinstance(one, OF_FILES)}
    files = {place: one for place, one in files.items() if one is not None}

    def body(build: Build) -> None:
        from prefloop.generate.invent import Dropped, invent, share_of

        before = read_records(drawn.path / "prompts.jsonl", Prompt)
        seed = stage_seed(x, "invent")
        others = [
            _next_prompts(files[place], share_of(one, len(before)), batch, seed=seed)
            if place in files
            else None
            for place, one in enumerate(sources)
        ]
        with sampling(
            x, policy, version=version, seed=seed, dtype=x.model.dtype, num_completions=1, temperatures=None
        ) as generator:
            made = invent(before, sources, generator, seed=seed, others=others)
        held_out = {
            _normal(one.text)
            for split in ("evaluation", "gate")
            for one in read_records(source.path / f"{split}.jsonl", Prompt)
        }
        kept: dict[str, Prompt] = {}
        reasons: list[str] = []
        for one in made:
            if isinstance(one, Dropped):
                reasons.append(one.reason)
            elif _normal(one.text) in held_out:
                reasons.append("in_evaluation")
            elif kept.setdefault(one.id, one) is not one:
                reasons.append("duplicate")
        write_rows(build.path / "prompts.jsonl", kept.values())
        build.count(len(before), len(kept), tally(reasons))
        build.stats = {"sources": tally(one.source for one in kept.values())}

    shape = without_paths(x.generate, "engine", "search", "num_completions", "temperatures")
    config = {
        "sources": [without_paths(one) for one in sources],
        "sampling": shape | {"engine": engine_config(x.generate.sampling_engine)},
        "version": version,
        "seed": x.seed,
        **({"batch": batch} if files else {}),
    }
    inputs = {"policy": policy, "prompts": source, "drawn": drawn}
    external = digests(**{f"prompts_{place}": one for place, one in files.items()})
    kinds = ", ".join(f"{round(one.share * number)} {one.kind}" for one in sources)
    return Stage("invent", 1, config, inputs, body, external=external, work=f"of {number} prompts {kinds}")


def _next_prompts(source: SourceSection, number: int, batch: int, *, seed: int) -> list[Prompt]:
    """The prompts of a file that are a batch's turn, in a shuffled order that begins again at its end."""
    rows = data.read_prompts(source).rows
    if len(rows) < number:
        raise InputError(
            f"{source.path}: {len(rows)} different prompts, but its share in prompt_sources is {number} a batch; lower the "
            "share, or give more prompts"
        )
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    return [rows[order[place % len(rows)]] for place in range(batch * number, (batch + 1) * number)]
