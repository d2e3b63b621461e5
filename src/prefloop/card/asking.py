"""What a model says about pairs: loads it, as a scalar reward model or as one that compares, and asks it about each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from prefloop.browse import CLASSIFIER
from prefloop.config import JudgeAnnotator, PairwiseAnnotator, RuntimeSection, read_text
from prefloop.evaluate.card_types import Kind, Opinion
from prefloop.interfaces import InputError, PairTask, Progress
from prefloop.records import Completion, Group, PreferencePair, Prompt
from prefloop.store import read_json

AT_ONCE = 64
"""Prompts or pairs between two signs of progress."""
CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
Values = list[tuple[float, float] | None]
"""Of each pair what `Opinion.values` holds; None where a model does not judge it."""


def is_judge(name: str) -> bool:
    """Whether a name on the command line is a file that describes a judge."""
    return name.endswith((".yaml", ".yml"))


def kind_of(folder: str, *, pairwise: bool) -> Kind:
    """Whether a model scores or compares, by its architecture; where that cannot be seen from here, as asked for."""
    path = Path(folder) / "config.json"
    if not path.is_file():  # a hub name; loading it says if it is something else
        return "pairwise" if pairwise else "scalar"
    config = read_json(path)
    names = [str(one) for one in config.get("architectures") or ()] if isinstance(config, dict) else []
    if pairwise and any(name.endswith(CLASSIFIER) for name in names):
        raise InputError(
            f"--pairwise: {folder} is {', '.join(names)}, which gives scores; leave --pairwise out"
        )
    if pairwise or any(name.endswith(CAUSAL) for name in names):
        return "pairwise"
    if not names:
        raise InputError(
            f"{path}: names no architecture, so the model's kind cannot be told; add architectures, or say --pairwise "
            "if it is a causal language model that answers A or B"
        )
    return "scalar"


def ask(
    name: str,
    folder: str,
    pairs: Sequence[PreferencePair],
    *,
    pairwise: bool,
    cache: Path,
    progress: Progress,
) -> "Asked":
    """What the model in a folder, or of the hub, says about each pair; or the judge that a YAML file describes.

    Replies of a judge are kept in `cache`. Raises InputError and Unavailable.
    """
    if is_judge(name):
        return Asked(name, "pairwise", _judged(name, pairs, cache, progress))
    kind = kind_of(folder, pairwise=pairwise)
    from prefloop.modeling import settle

    runtime = RuntimeSection()
    settle(runtime)
    values = (_scores if kind == "scalar" else _compared)(folder, pairs, runtime, progress)
    return Asked(name, kind, values)


@dataclass(frozen=True)
class Asked:
    """A model, and what it said about every pair."""

    name: str
    kind: Kind
    values: Values

    def opinion(self, known: Sequence[bool]) -> Opinion:
        """What it said about the pairs that every model asked could judge."""
        kept = (values for values, is_known in zip(self.values, known, strict=True) if is_known and values)
        return Opinion(self.name, self.kind, tuple(kept))


def _scores(
    folder: str, pairs: Sequence[PreferencePair], runtime: RuntimeSection, progress: Progress
) -> Values:
    """Scores of both sides; a completion that is in several pairs is scored once."""
    from prefloop.annotate.reward_model import NotFinite, RewardModelScorer
    from prefloop.modeling import load_reward_model

    model, codec = load_reward_model(folder, runtime)
    scorer = RewardModelScorer(model, codec, name=folder, same_tokens=False, labels=0, runtime=runtime)
    groups = groups_of(pairs)
    scores: dict[str, float] = {}
    for start in range(0, len(groups), AT_ONCE):
        progress(start, len(groups))
        chunk = groups[start : start + AT_ONCE]
        wanted = iter([completion.id for group in chunk for completion in group.completions])
        try:
            for score in scorer.score(chunk):
                scores[next(wanted)] = score.value
        except NotFinite as error:
            raise InputError(_not_finite(folder, pairs, next(wanted))) from error
    progress(len(groups), len(groups))
    return [(scores[one.chosen.id], scores[one.rejected.id]) for one in pairs]


def groups_of(pairs: Sequence[PreferencePair]) -> list[Group]:
    """The prompts of the pairs, each with its different completions."""
    prompts: dict[str, Prompt] = {}
    completions: dict[str, dict[str, Completion]] = {}
    for pair in pairs:
        prompts.setdefault(pair.prompt.id, pair.prompt)
        for side in (pair.chosen, pair.rejected):
            completions.setdefault(pair.prompt.id, {}).setdefault(side.id, side)
    return [
        Group(prompt=prompt, completions=tuple(completions[name].values()))
        for name, prompt in prompts.items()
    ]


def _not_finite(folder: str, pairs: Sequence[PreferencePair], completion_id: str) -> str:
    places = [place for place, one in enumerate(pairs) if completion_id in (one.chosen.id, one.rejected.id)]
    pair = pairs[places[0]]
    side = "chosen" if pair.chosen.id == completion_id else "rejected"
    return (
        f"pair {places[0] + 1} of {len(pairs)} (id {pair.id}): {folder} gives the {side} completion a score that is not "
        "a finite number; its weights may be damaged, copy or download them again"
    )


def _compared(
    folder: str, pairs: Sequence[PreferencePair], runtime: RuntimeSection, progress: Progress
) -> Values:
    """P(the one shown first is better) in both orders; None for pairs that do not fit the model."""
    from prefloop.annotate.pairwise import load_pairwise

    comparer = load_pairwise(PairwiseAnnotator(kind="pairwise", model=folder), runtime)
    values: Values = []
    for start in range(0, len(pairs), AT_ONCE):
        progress(start, len(pairs))
        chunk = pairs[start : start + AT_ONCE]
        values += comparer.p_shown([PairTask(one.prompt, one.chosen, one.rejected) for one in chunk])
    progress(len(pairs), len(pairs))
    return values


def _judged(path: str, pairs: Sequence[PreferencePair], cache: Path, progress: Progress) -> Values:
    """The same of a judge behind an endpoint; None for pairs on which a verdict could not be read."""
    from prefloop.annotate.judge import JudgeComparer

    judge = JudgeComparer(read_judge(Path(path)), seed=0, cache=cache)
    values: Values = []
    tasks = [PairTask(one.prompt, one.chosen, one.rejected) for one in pairs]
    for shown in judge.probabilities(tasks):
        progress(len(values), len(pairs))
        # shown with the rejected first: P(the one shown first) is that of the rejected
        values.append(None if shown is None else (shown[0], 1 - shown[1]))
    progress(len(pairs), len(pairs))
    return values


def read_judge(path: Path) -> JudgeAnnotator:
    """The judge that a file describes, by the keys of an experiment's `annotate.annotator`. Raises InputError."""
    try:
        value = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: broken YAML: {error}") from error
    try:
        return JudgeAnnotator.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(one) for one in first["loc"])
        raise InputError(
            f"{path}: {place or 'a judge'}: {first['msg']}; for instance kind: judge, base_url, model"
        ) from error
