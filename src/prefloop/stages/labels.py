"""Stages that collect labels: prompts, completions, judgements, preference pairs."""

import contextlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop import data, selection
from prefloop.config import Experiment, SourceSection, hashed, uses_loop_reward
from prefloop.interfaces import PairTask
from prefloop.records import Comparison, Group, Judgement, PreferencePair, Prompt, Refusal, Score
from prefloop.stages import people
from prefloop.stages.asking import all_pairs, proposals, why_not_asked
from prefloop.stages.knockout import play
from prefloop.stages.shared import (
    annotator_digests,
    annotator_scorer,
    chunks,
    compared_with_trainer,
    digests,
    engine_config,
    gold_scorer,
    loop_reward_scorer,
    mean,
    model_folder,
    read_judgements,
    reward_scorer,
    sample_all,
    sampled,
    sampling,
    searching,
    share,
    source_config,
    stage_seed,
    text_statistics,
    without_paths,
)
from prefloop.statistics import wins
from prefloop.store import (
    Artefact,
    Build,
    RowFile,
    Stage,
    read_json,
    read_records,
    tally,
    write_json,
    write_rows,
)

if TYPE_CHECKING:
    from prefloop.generate.groups import PolicyGenerator
    from prefloop.generate.mcts import TreeGenerator

GROUPS_PER_CHUNK = 32


def import_pairs(x: Experiment, source: SourceSection, role: str) -> Stage:
    """Preference pairs from a file."""

    def body(build: Build) -> None:
        loaded = data.read_pairs(source)
        write_rows(build.path / "pairs.jsonl", loaded.rows)
        build.count(loaded.rows_in, len(loaded.rows), loaded.dropped)
        lengths = [(float(len(one.chosen.text)), float(len(one.rejected.text))) for one in loaded.rows]
        longer = wins([chosen for chosen, _ in lengths], [rejected for _, rejected in lengths])
        build.stats = {"pairs": len(loaded.rows), "format": loaded.format, "longer_is_chosen": mean(longer)}

    config = {"sources": source_config(source)}
    return Stage(
        "import", 1, config, {}, body, external=digests(**{role: source}), work=f"read {source.path}"
    )


def replayed(x: Experiment, pairs: Sequence[Artefact], batch: int) -> Stage:
    """As many pairs as a label batch gave, from all batches one after the other, as they came or shuffled."""

    def body(build: Build) -> None:
        batches = [read_records(one.path / "pairs.jsonl", PreferencePair) for one in pairs]
        everything = [pair for one in batches for pair in one]
        if x.loop.replay == "shuffled":
            random.Random(stage_seed(x, "replay")).shuffle(everything)
        start = sum(len(one) for one in batches[:batch])
        rows = everything[start : start + len(batches[batch])]
        write_rows(build.path / "pairs.jsonl", rows)
        build.count(len(rows), len(rows))
        build.stats = {"pairs": len(rows), "from": len(everything)}

    config = {"order": x.loop.replay, "batch": batch, "seed": x.seed}
    return Stage("replay", 1, config, {"pairs": pairs}, body, work=f"batch {batch + 1} of {len(pairs)}")


def mixed(first: Artefact, second: Artefact) -> Stage:
    """Groups that have the completions of two others in turn; prompts that lack one of them are dropped."""

    def body(build: Build) -> None:
        ours = read_records(first.path / "groups.jsonl", Group)
        theirs = {one.prompt.id: one for one in read_records(second.path / "groups.jsonl", Group)}
        rows = [
            one.model_copy(
                update={
                    "completions": tuple(
                        each
                        for both in zip(one.completions, theirs[one.prompt.id].completions, strict=True)
                        for each in both
                    )
                }
            )
            for one in ours
            if one.prompt.id in theirs
        ]
        write_rows(build.path / "groups.jsonl", rows)
        build.count(len(ours), len(rows), {"no_counterpart": len(ours) - len(rows)})
        build.stats = text_statistics(rows)

    return Stage("mix", 1, {}, {"first": first, "second": second}, body, work="put halves together")


def generate(
    x: Experiment,
    policy: Artefact,
    drawn: Artefact,
    reward: Artefact | None,
    *,
    version: int,
    number: int | None,
) -> Stage:
    """Completions of one label batch by the current policy; a tree search may go by the reward model."""
    engine = x.generate.engine
    recorded = engine.source if engine.kind == "recorded" else None
    guide = reward if x.search_uses_reward else None

    def body(build: Build) -> None:
        wanted = read_records(drawn.path / "prompts.jsonl", Prompt)
        file = RowFile(build.path / "groups.jsonl")
        if recorded is not None:
            from prefloop.generate.recorded import RecordedGenerator

            generator = RecordedGenerator(data.read_groups(recorded).rows)
            for rows in chunks(build, file, wanted, GROUPS_PER_CHUNK):
                for groups, items in sampled(build, file, generator, rows, len(wanted)):
                    file.append(groups, items=items)
        else:
            with _policy_generator(x, policy, guide, version) as generator:
                sample_all(x, policy, build, file, generator, wanted)
        groups = read_records(file.path, Group)
        gap = None if recorded else compared_with_trainer(x, policy, groups)
        build.count(
            len(wanted),
            len(groups),
            {"prompt_too_long" if not recorded else "short": len(wanted) - len(groups)},
        )
        build.stats = {**text_statistics(groups), "policy_version": version, "trainer_gap": gap}
        if engine.kind == "mcts":
            build.stats["search"] = _search_statistics(groups)

    config = {**without_paths(x.generate, "engine"), "version": version, "seed": x.seed}
    config["engine"] = engine_config(engine)
    inputs: dict[str, Artefact | None] = {"prompts": drawn}
    if recorded is None:
        inputs = {"policy": policy, "prompts": drawn}
    external = digests(groups=recorded)
    if engine.kind == "mcts":
        inputs["reward"] = guide
        external |= annotator_digests(engine.value)
    work = f"{'all' if number is None else number} prompts {_completions_of(x)}"
    return Stage("generate", 2, config, inputs, body, external=external, work=work)


def _completions_of(x: Experiment) -> str:
    engine, number = x.generate.engine, x.generate.num_completions
    match engine.kind:
        case "recorded":
            return "recorded completions"
        case "mcts":
            by = "reward" if x.search_uses_reward else engine.value.kind
            return f"x {number} completions by tree search, {engine.iterations} iterations a step, values by {by}"
        case _ if x.generate.search is not None:
            return f"x {number} completions by {x.generate.search.kind} search"
        case _:
            return f"x {number} completions"


@contextlib.contextmanager
def _policy_generator(
    x: Experiment, policy: Artefact, guide: Artefact | None, version: int
) -> "Iterator[PolicyGenerator | TreeGenerator]":
    """What makes groups of the policy's completions: sampling, or a search."""
    seed = stage_seed(x, "generate")
    if x.generate.engine.kind == "mcts":
        with searching(x, policy, guide, version=version, seed=seed, dtype=x.model.dtype) as search:
            yield search
    else:
        search = x.generate.search
        with sampling(x, policy, version=version, seed=seed, dtype=x.model.dtype, search=search) as plain:
            yield plain


def _search_statistics(groups: Sequence[Group]) -> dict[str, Any]:
    """What the trees of all groups cost and hold."""
    trees = [group.tree for group in groups if group.tree is not None]
    return {
        "completions_drawn": sum(one.num_drawn for one in trees),
        "tokens_drawn": sum(one.num_tokens for one in trees),
        "mean_nodes": mean([len(one.nodes) for one in trees]),
        "mean_committed": mean([len(one.committed) - 1 for one in trees]),
        "values_by": tally(one.annotator for one in trees),
    }


def labels_per_prompt(x: Experiment) -> int:
    """Labels one prompt costs at most: one a scored completion, one a comparison, each vote and each order of a judge."""
    annotator, number = x.annotate.annotator, x.generate.num_completions
    if annotator.kind == "human":
        return people.labels_per_prompt(x, annotator)
    if x.annotate.asks in ("scores", "recorded"):
        return number
    matches = {"one_pair": 1, "knockout": number - 1}
    questions = matches.get(x.annotate.asks, number * (number - 1) // 2)
    match annotator.kind:
        case "simulated":
            return questions * annotator.votes
        case "judge":
            return questions * (2 if annotator.both_orders else 1)
        case "pairwise":
            return questions * 2
        case _:
            return questions


def annotate(x: Experiment, groups: Artefact, reward: Artefact | None, *, number: int) -> Stage:
    """Judgements on the groups of one label batch, as append-only rows with their author."""
    section = x.annotate
    proposes = section.asks == "one_pair" and reward is not None and x.reward.objective.gives_scores
    reward_used = reward if proposes or uses_loop_reward(section.annotator) else None

    def body(build: Build) -> None:
        rows = read_records(groups.path / "groups.jsonl", Group)
        proxy = _proxy_scores(x, build, rows, reward) if proposes and reward is not None else None
        file = RowFile(build.path / "judgements.jsonl")
        skipped: Counter[str] = Counter()
        if section.annotator.kind == "recorded":
            from prefloop.annotate.recorded import RecordedScorer

            recorded = RecordedScorer(section.annotator)
            for chunk in chunks(build, file, rows, GROUPS_PER_CHUNK):
                file.append(recorded.replay(chunk), items=len(chunk))
        elif section.annotator.kind == "human":
            skipped = _ask_people(x, build, file, rows, proxy, groups, reward)
        elif section.asks == "scores":
            scorer = annotator_scorer(x, reward)
            for chunk in chunks(build, file, rows, GROUPS_PER_CHUNK):
                file.append(scorer.score(chunk), items=len(chunk))
            if moments := getattr(scorer, "standardised_by", None):
                write_json(build.path / "standardised_by.json", moments)
        else:
            skipped = _compare(x, build, file, rows, proxy, reward)
        judgements = read_judgements(file.path)
        judged = {one.prompt_id for one in judgements}
        build.count(len(rows), len(judged), skipped)
        build.stats = _annotation_statistics(x, rows, judgements, proxy, build, reward)

    config = {**without_paths(section), "seed": x.seed}
    return Stage(
        "annotate",
        2 if section.random_share else 1,  # which prompts are drawn by chance
        config,
        {"groups": groups, "reward": reward_used},
        body,
        external=annotator_digests(section.annotator),
        work=f"{number * labels_per_prompt(x)} labels by {section.annotator.kind}",
    )


def _proxy_scores(x: Experiment, build: Build, rows: list[Group], reward: Artefact) -> dict[str, Score]:
    scorer = loop_reward_scorer(x, reward, labels=0)
    file = RowFile(build.path / "proxy.jsonl")
    for chunk in chunks(build, file, rows, GROUPS_PER_CHUNK):
        file.append(scorer.score(chunk), items=len(chunk))
    return {one.completion_id: one for one in read_records(file.path, Score)}


def _compare(
    x: Experiment,
    build: Build,
    file: RowFile,
    rows: list[Group],
    proxy: dict[str, Score] | None,
    reward: Artefact | None,
) -> Counter[str]:
    """Asks the annotator; returns why groups could not be asked about."""
    from prefloop.annotate.choose import comparer

    annotator = comparer(
        x.annotate.annotator,
        seed=stage_seed(x, "annotate"),
        cache=build.path.parent.parent / "cache" / "judge",
        reward_scorer=lambda path: reward_scorer(x, path, reward, labels=1),
        runtime=x.runtime,
        loop_reward=model_folder(reward) if reward and not x.reward.objective.gives_scores else None,
    )
    asked = _pair_tasks(x, rows, proxy)
    skipped = Counter(why_not_asked(group) for group in rows if not asked[group.prompt.id])
    if x.annotate.asks == "knockout":
        for chunk in chunks(
            build, file, [group for group in rows if asked[group.prompt.id]], GROUPS_PER_CHUNK
        ):
            file.append(play(annotator, chunk), items=len(chunk))
    else:
        tasks = [task for group in rows for task in asked[group.prompt.id]]
        for chunk in chunks(build, file, tasks, 4 * GROUPS_PER_CHUNK):
            file.append(annotator.compare(chunk), items=len(chunk))
    _add_usage(build.log("annotator.json"), getattr(annotator, "stats", {}))
    return skipped


def _ask_people(
    x: Experiment,
    build: Build,
    file: RowFile,
    rows: list[Group],
    proxy: dict[str, Score] | None,
    groups: Artefact,
    reward: Artefact | None,
) -> Counter[str]:
    """Puts all questions of the label batch to people at once; returns why groups could not be asked about."""
    from prefloop.annotate.human import People

    asked = people.questions(x, rows, proxy)
    questions = [one for group in rows for one in asked[group.prompt.id]]
    for chunk in chunks(build, file, questions, max(1, len(questions))):
        annotator = x.annotate.annotator
        assert annotator.kind == "human", "the caller knows"
        found, said = People(annotator, people.asked_by(x, build.path.parent.parent, groups, reward)).judge(
            chunk
        )
        write_json(build.path / people.ROUND_FILE, {"project": found.project_id, "round": found.id})
        file.append(said, items=len(chunk))
    return Counter(why_not_asked(group) for group in rows if not asked[group.prompt.id])


def _pair_tasks(
    x: Experiment, rows: list[Group], proxy: dict[str, Score] | None
) -> dict[str, list[PairTask]]:
    """The comparisons to ask for, by prompt; of a knockout, those that could come up."""
    if x.annotate.asks != "one_pair":
        return {group.prompt.id: all_pairs(group) for group in rows}
    found = proposals(x, rows, proxy)
    return {
        group.prompt.id: [found[group.prompt.id].task] if group.prompt.id in found else [] for group in rows
    }


def _add_usage(path: Path, usage: dict[str, float]) -> None:
    """Adds what this process used to what earlier tries of the stage did."""
    if usage:
        before = read_json(path) if path.is_file() else {}
        write_json(path, {name: before.get(name, 0) + value for name, value in usage.items()})


def _annotation_statistics(
    x: Experiment,
    rows: list[Group],
    judgements: list[Judgement],
    proxy: dict[str, Score] | None,
    build: Build,
    reward: Artefact | None,
) -> dict[str, Any]:
    scores = selection.mean_scores([one for one in judgements if isinstance(one, Score)])
    comparisons = [one for one in judgements if isinstance(one, Comparison)]
    usage = build.log("annotator.json")
    proxy_values = {id: one.value for id, one in (proxy or {}).items()}
    return {
        "labels": sum(one.labels for one in judgements),
        "pseudo_labels": len(proxy or {}),
        "refusals": sum(isinstance(one, Refusal) for one in judgements),
        "ties": sum(one.p_a == 0.5 for one in comparisons),
        "annotators": tally(one.annotator for one in judgements),
        "score": selection.group_statistics(rows, scores, lambda one: len(one.text)) if scores else None,
        "parts": _mean_parts(judgements),
        "strategies": _strategies(x, rows, proxy),
        "proxy": selection.group_statistics(rows, proxy_values, lambda one: len(one.text)) if proxy else None,
        "gold_agreement": _gold_agreement(x, rows, comparisons, reward),
        "usage": read_json(usage) if usage.is_file() else None,
    }


def _strategies(x: Experiment, rows: list[Group], proxy: dict[str, Score] | None) -> dict[str, int] | None:
    """How the pairs that were asked about were chosen."""
    if x.annotate.asks != "one_pair":
        return None
    return tally(one.strategy for one in proposals(x, rows, proxy).values())


def _mean_parts(judgements: list[Judgement]) -> dict[str, float] | None:
    """Mean of each part that scores were made of."""
    parts = [one.parts for one in judgements if isinstance(one, Score) and one.parts]
    names = dict.fromkeys(name for one in parts for name in one)
    found = {name: mean([one[name] for one in parts if name in one]) for name in names}
    return {name: value for name, value in found.items() if value is not None} or None


def _gold_agreement(
    x: Experiment, rows: list[Group], comparisons: list[Comparison], reward: Artefact | None
) -> float | None:
    """In a simulation: how often the noisy verdicts agree with the noise-free gold. Written, never trained on."""
    annotator = x.annotate.annotator
    if annotator.kind != "simulated" or not comparisons:
        return None
    asked = {one.a for one in comparisons} | {one.b for one in comparisons}
    scorer = gold_scorer(x, annotator.gold, reward)
    gold = {
        one.completion_id: one.value
        for one in scorer.score(rows)
        if isinstance(one, Score) and one.completion_id in asked
    }
    decided = [one for one in comparisons if one.p_a != 0.5 and gold[one.a] != gold[one.b]]
    return share([(one.p_a > 0.5) == (gold[one.a] > gold[one.b]) for one in decided]) if decided else None


def select_pairs(x: Experiment, groups: Artefact, judgements: Artefact | None) -> Stage:
    """Preference pairs of one label batch: from judgements, or without any from the steps of a tree search."""
    section = x.select.model_copy(update={"rule": x.select.score_rule}) if judgements else x.select

    def body(build: Build) -> None:
        rows = read_records(groups.path / "groups.jsonl", Group)
        by_prompt: dict[str, list[Judgement]] = {}
        for one in read_judgements(judgements.path / "judgements.jsonl") if judgements else ():
            by_prompt.setdefault(one.prompt_id, []).append(one)
        pairs: list[PreferencePair] = []
        dropped: Counter[str] = Counter()
        used = 0
        for group in rows:
            found, reason = selection.pairs_of(
                group, by_prompt.get(group.prompt.id, []), section, seed=stage_seed(x, "select")
            )
            pairs += found
            used += bool(found)
            if reason is not None:
                dropped[reason] += 1
        write_rows(build.path / "pairs.jsonl", pairs)
        build.count(len(rows), used, dropped)
        build.stats = {
            "pairs": len(pairs),
            "mean_margin": mean([one.margin for one in pairs]),
            "mean_length_chosen": mean([len(one.chosen.text) for one in pairs]),
            "mean_length_rejected": mean([len(one.rejected.text) for one in pairs]),
        }

    config = {**hashed(section), "seed": x.seed}
    inputs = {"groups": groups, "judgements": judgements} if judgements else {"groups": groups}
    return Stage("select", 1, config, inputs, body, work=section.rule)
