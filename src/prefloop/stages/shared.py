"""What several stages need: seeds, digests for keys, chunks, and the parts that experiments name."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from prefloop import data, tales
from prefloop.annotate.choose import NO_PARTS, OwnParts
from prefloop.config import (
    Annotator,
    CompositeAnnotator,
    Engine,
    Experiment,
    GoldScorer,
    JudgeAnnotator,
    PairwiseAnnotator,
    RewardModelAnnotator,
    SearchValue,
    SourceSection,
    hashed,
)
from prefloop.containers import hub_commit
from prefloop.interfaces import Generator, InputError, Scorer, Unavailable
from prefloop.records import Group, Judgement, PreferencePair, Prompt, content_id, judgement_adapter
from prefloop.scoring.outputs import is_refusal, kinds_of
from prefloop.statistics import distinct_n
from prefloop.store import Artefact, Build, RowFile, digest_path, read_json, read_records
from prefloop.targets import function_digest

if TYPE_CHECKING:
    from prefloop.generate.groups import PolicyGenerator
    from prefloop.generate.mcts import TreeGenerator
    from prefloop.modeling import Dtype

Item = TypeVar("Item")
PROMOTIONS = {"promote": "policy.json", "promote_reward": "reward.json"}
"""Kinds of artefacts that point to a model, and the file that says to which."""
PATH_KEYS = frozenset({"path", "model", "target", "source"})
"""Config keys that name outside files; those enter a key by content."""


def model_folder(artefact: Artefact) -> Path:
    """The transformers folder of a policy or reward model; a promotion points to the one that was kept."""
    if artefact.kind in PROMOTIONS:
        return artefact.path.parent / read_json(artefact.path / PROMOTIONS[artefact.kind])["folder"] / "model"
    return artefact.path / "model"


def evaluation_folder(artefact: Artefact) -> Path:
    """The folder of an evaluation; a promotion points to that of the policy that was kept."""
    if artefact.kind == "promote":
        return artefact.path.parent / read_json(artefact.path / "policy.json")["evaluation"]
    return artefact.path


def stage_seed(x: Experiment, *names: object) -> int:
    """A seed for one purpose, so that purposes do not share random numbers."""
    return int(content_id(x.seed, *names), 16) >> 33


@contextlib.contextmanager
def sampling(
    x: Experiment, policy: Artefact, *, version: int, seed: int, dtype: "Dtype" = "float32", **changes: object
) -> "Iterator[PolicyGenerator]":
    """A generator of the policy by the experiment's engine, which computes in `dtype`; `changes` replace keys of `generate`.

    Where the engine runs no policy, the embedded one samples; where it searches, the one below it. There is no beam search
    unless `search` is among the changes.
    """
    from prefloop.generate.choose import policy_generator

    with policy_generator(
        model_folder(policy),
        x.generate.sampling_engine,
        x.generate.plain.model_copy(update=changes),
        seed=seed,
        version=version,
        runtime=x.runtime,
        dtype=dtype,
    ) as generator:
        yield generator


@contextlib.contextmanager
def searching(
    x: Experiment,
    policy: Artefact,
    reward: Artefact | None,
    *,
    version: int,
    seed: int,
    dtype: "Dtype" = "float32",
) -> "Iterator[TreeGenerator]":
    """A generator that searches, by the values that the experiment's engine names."""
    from prefloop.generate.choose import tree_generator

    engine = x.generate.engine
    assert engine.kind == "mcts", "the caller knows"
    with tree_generator(
        model_folder(policy),
        engine,
        x.generate,
        search_scorer(x, engine.value, policy, reward),
        seed=seed,
        version=version,
        runtime=x.runtime,
        dtype=dtype,
    ) as generator:
        yield generator


def engine_config(engine: Engine) -> Any:
    """What of an engine enters a key: its kind, and options that change what it samples."""
    values = without_paths(engine, "source")  # a source enters by content
    return values if len(values) > 1 else engine.kind


def sample_all(
    x: Experiment,
    policy: Artefact,
    build: Build,
    file: RowFile,
    generator: "PolicyGenerator | TreeGenerator",
    wanted: Sequence[Prompt],
    *,
    check: bool = True,
    dtype: "Dtype | None" = None,
) -> None:
    """Samples the prompts that the file has no groups of yet; the first groups are checked before any is written."""
    for chunk in chunks(build, file, wanted, generator.prompts_per_chunk):
        for groups, items in sampled(build, file, generator, chunk, len(wanted)):
            if groups and check:
                compared_with_trainer(x, policy, groups, dtype=dtype)
                check = False
            file.append(groups, items=items)


def sampled(
    build: Build, file: RowFile, generator: Generator, prompts: Sequence[Prompt], total: int
) -> Iterator[tuple[list[Group], int]]:
    """The groups of a chunk of prompts, without those that got no completions, and the number of prompts that they answer;
    tells how far it is meanwhile. Where servers fail in the middle, gives what came before."""
    found: list[Group] = []
    number = 0
    try:
        for number, group in enumerate(generator.generate(prompts), 1):
            build.progress(file.items + number, total, file.path.stem)
            if group.completions:
                found.append(group)
    except Unavailable:
        yield found, number
        raise
    yield found, number


def compared_with_trainer(
    x: Experiment, policy: Artefact, groups: Sequence[Group], *, dtype: "Dtype | None" = None
) -> float | None:
    """How far an engine's log-probabilities of the first groups are from training's; PrefloopError beyond rounding.

    `dtype` is what the groups were sampled in: the model's, unless another is given.
    """
    from prefloop.forward import LogpsModule
    from prefloop.modeling import load_codec, load_policy
    from prefloop.trust import compare_with_trainer

    folder = model_folder(policy)
    codec = load_codec(folder)
    module = LogpsModule(load_policy(folder, x.runtime), pad_id=codec.pad_id, runtime=x.runtime)
    engine = x.generate.sampling_engine
    given = engine.dtype if engine.kind == "remote" and engine.dtype != "auto" else None
    return compare_with_trainer(
        groups, module, codec, x.runtime, dtype=dtype or x.model.dtype, engine_dtype=given
    )


def text_statistics(groups: Sequence[Group]) -> dict[str, Any]:
    """Counts, lengths and diversity of completions."""
    completions = [one for group in groups for one in group.completions]
    tokens = [len(one.token_ids) for one in completions if one.token_ids is not None]
    return {
        "num_completions": len(completions),
        "num_tokens": sum(tokens),
        "mean_tokens": round(sum(tokens) / len(tokens), 3) if tokens else None,
        "mean_characters": round(sum(len(one.text) for one in completions) / max(1, len(completions)), 3),
        "truncated_share": share([one.finish_reason == "length" for one in completions]),
        "distinct_1": distinct_n([one.text for one in completions], 1),
        "distinct_2": distinct_n([one.text for one in completions], 2),
        "refused_share": share([is_refusal(one.text) for one in completions]),
        "judge_directed_share": share([bool(kinds_of(one.text)) for one in completions]),
    }


def share(flags: Sequence[bool]) -> float:
    return round(sum(flags) / len(flags), 6) if flags else 0.0


def mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None


def read_pairs(artefacts: Iterable[Artefact]) -> list[PreferencePair]:
    """The pairs of several artefacts, in order."""
    return [
        one for artefact in artefacts for one in read_records(artefact.path / "pairs.jsonl", PreferencePair)
    ]


def read_judgements(path: Path) -> list[Judgement]:
    """The judgement rows of a file that prefloop wrote."""
    with path.open(encoding="utf-8") as file:
        return [judgement_adapter.validate_json(line) for line in file]


def chunks(build: Build, file: RowFile, items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items whose rows are not yet in the file, in chunks of a size that may differ from run to run; progress is told in
    items."""
    for start in range(file.items, len(items), size):
        build.progress(start, len(items), file.path.stem)
        yield items[start : start + size]
    build.progress(len(items), len(items), file.path.stem)


def annotator_scorer(x: Experiment, reward: Artefact | None) -> Scorer:
    """The annotator, as one that scores."""
    from prefloop.annotate.choose import scorer

    return scorer(
        x.annotate.annotator,
        seed=stage_seed(x, "annotate"),
        reward_scorer=lambda path: reward_scorer(x, path, reward, labels=1),
        runtime=x.runtime,
    )


def search_scorer(x: Experiment, section: SearchValue, policy: Artefact, reward: Artefact | None) -> Scorer:
    """What a tree search goes by; it costs no labels."""
    if section.kind == "self":
        from prefloop.annotate.self_evaluation import load_self_evaluation
        from prefloop.modeling import settle

        settle(x.runtime)
        return load_self_evaluation(model_folder(policy), section, x.runtime)
    return gold_scorer(x, section, reward)


def gold_scorer(
    x: Experiment,
    section: GoldScorer | CompositeAnnotator,
    reward: Artefact | None,
    own: OwnParts = NO_PARTS,
) -> Scorer:
    """The scorer that a section names, for measuring; it costs no labels."""
    from prefloop.annotate.choose import scorer

    return scorer(
        section,
        seed=0,
        reward_scorer=lambda path: reward_scorer(x, path, reward, labels=0),
        runtime=x.runtime,
        own=own,
    )


def reward_scorer(x: Experiment, path: str | None, reward: Artefact | None, *, labels: int) -> Scorer:
    """The scorer of a reward model at a path, or of the loop's own when there is no path."""
    if path is None:
        if reward is None:
            raise InputError(
                "reward_model: name a model here; the loop's own reward model cannot play this role"
            )
        return loop_reward_scorer(x, reward, labels=labels)
    from prefloop.annotate.reward_model import load_scorer
    from prefloop.modeling import settle

    settle(x.runtime)
    return load_scorer(path, x.runtime, name=f"reward:{path}", same_tokens=False, labels=labels)


def loop_reward_scorer(x: Experiment, reward: Artefact, *, labels: int) -> Scorer:
    """The scorer of the loop's own reward model, or of the one that a promotion kept."""
    from prefloop.annotate.reward_model import load_scorer
    from prefloop.modeling import settle

    settle(x.runtime)
    own_tokens = x.reward.model is None and x.reward.start == "sft"
    return load_scorer(
        model_folder(reward), x.runtime, name=f"reward:{reward.key}", same_tokens=own_tokens, labels=labels
    )


def check_card(
    annotator: JudgeAnnotator | PairwiseAnnotator | RewardModelAnnotator, *, same_words: bool = True
) -> None:
    """Refuses a judge whose card is of another one, or says that it is no better than length or chance. Without a card
    nothing is known. A judge that is asked in other words than the card's (`same_words`) is known by its model."""
    if annotator.card is None:
        return
    from prefloop.evaluate.judge_card import read_card

    card, own = read_card(Path(annotator.card)), model_identity(annotator)
    given = {name: card.identity.get(name) for name in own}
    if not same_words:
        own, given = ({name: one[name] for name in one if name != "words"} for one in (own, given))
    if given != own:
        differing = ", ".join(
            f"{name} {given[name]} instead of {own[name]}" for name in own if given[name] != own[name]
        )
        raise InputError(
            f"card: {annotator.card} is of another model or question ({differing}); make one of this one with "
            "`prefloop reward-card`"
        )
    if card.objection is not None:
        raise InputError(
            f"{annotator.kind} {annotator.model}: its card {annotator.card} says that it {card.objection}. Take another, or "
            "leave `card` out to use it all the same"
        )


def model_identity(annotator: JudgeAnnotator | PairwiseAnnotator | RewardModelAnnotator) -> dict[str, str]:
    """What a card tells a judge or reward model by: its content, of one behind an endpoint its name, and what it is asked
    where that can be chosen."""
    if annotator.kind == "judge":
        from prefloop.annotate.judge import words_digest

        return {"model": annotator.model, "words": words_digest(annotator)}
    assert annotator.model is not None, "the loop's own models have no card"
    identity = {"model": model_digest(annotator.model, None)}
    if annotator.kind == "pairwise" and annotator.template != "auto":  # a card asks in the model's own words
        identity["words"] = annotator.template
    return identity


def annotator_digests(annotator: Annotator | SearchValue, *, same_words: bool = True) -> dict[str, str]:
    """What an annotator's verdicts depend on beside its section. Raises InputError for one whose card forbids it."""
    if isinstance(annotator, JudgeAnnotator | PairwiseAnnotator):
        check_card(annotator, same_words=same_words)
    match annotator.kind:
        case "recorded":
            return {"recorded": data.source_digest(SourceSection(path=annotator.path))}
        case "pairwise":
            return {"model": model_digest(annotator.model, None)} if annotator.model else {}
        case "composite":
            digest = scorer_digest(annotator.preference)
            found = {"preference": digest} if digest else {}
            if annotator.rules is not None and annotator.rules.model is not None:
                found["rules"] = model_digest(annotator.rules.model, None)
            given = annotator.reference if isinstance(annotator.reference, SourceSection) else None
            return found | digests(reference=given)
        case "simulated":
            digest = scorer_digest(annotator.gold)
            return {"gold": digest} if digest else {}
        case "reward_model" | "rule" | "function" | "rule_model":
            digest = scorer_digest(annotator)
            return {"scorer": digest} if digest else {}
        case "human":
            from prefloop.annotate.human import outside_digests

            return outside_digests(annotator)
        case _:
            return {}


def scorer_digest(section: GoldScorer) -> str | None:
    """The same of a scorer, wherever it stands."""
    if isinstance(section, RewardModelAnnotator):
        check_card(section)
    match section.kind:
        case "function":
            return function_digest(section.target)
        case "reward_model" | "rule_model":
            return model_digest(section.model, None) if section.model else None
        case "rule":
            return tales.VERSION if section.rule.startswith("tales") else None


def model_digest(path: str, revision: str | None) -> str:
    """What a model's content is known by: the digest of its folder, or the hub commit."""
    if Path(path).exists() or path.startswith((".", "/", "~")):
        return digest_path(Path(path))
    return hub_commit(path, "model", revision)


def digests(**sources: SourceSection | None) -> dict[str, str]:
    return {role: data.source_digest(one) for role, one in sources.items() if one is not None}


def source_config(*sources: SourceSection | None) -> list[Any]:
    return [
        None if one is None else {key: value for key, value in hashed(one).items() if key != "path"}
        for one in sources
    ]


def without_paths(section: BaseModel, *leave_out: str) -> dict[str, Any]:
    """Hashed values without keys that name outside files: those enter by content. Data sources keep their options."""
    values: dict[str, Any] = {}
    for name, value in hashed(section).items():
        inner = getattr(section, name)
        if isinstance(inner, SourceSection):
            values[name] = source_config(inner)[0]
        elif name not in leave_out:
            values[name] = _pathless(value)
    return values


def _pathless(value: Any) -> Any:
    if isinstance(value, dict):
        local = value.get("kind") != "judge"  # a judge's model is a name, not a file
        return {key: _pathless(one) for key, one in value.items() if not (local and key in PATH_KEYS)}
    return value


def training_work(options: Any, steps: int | None = None) -> str:
    if steps or options.max_steps:
        return f"{steps or options.max_steps} steps of {options.batch_size}"
    return f"{options.epochs:g} epochs, batches of {options.batch_size}"
