"""Stages that measure a policy on benchmarks: its answers, then verdicts and scores.

Answers are an artefact of their own, so that another judge asks nothing of the policy.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.config import (
    AlpacaEvalSuite,
    ArenaHardSuite,
    Experiment,
    FunctionAnnotator,
    Gsm8kSuite,
    HumanEvalSuite,
    JudgeAnnotator,
    LmEvalSuite,
    MtBenchSuite,
    PairJudge,
    RewardBenchSuite,
    RewardModelAnnotator,
    RuleAnnotator,
    Suite,
    TruthfulQaSuite,
    WinRateSuite,
    WordedSuite,
)
from prefloop.interfaces import Comparer, InputError
from prefloop.records import Group, Message, Prompt
from prefloop.scoring import harness, outputs
from prefloop.scoring.figures import Scored
from prefloop.stages.shared import (
    annotator_digests,
    engine_config,
    gold_scorer,
    model_folder,
    reward_scorer,
    sample_all,
    sampling,
    stage_seed,
    without_paths,
)
from prefloop.store import (
    Artefact,
    Build,
    RowFile,
    Stage,
    digest_path,
    read_records,
    write_json,
    write_rows,
    write_text,
)
from prefloop.suites import arena_hard, gsm8k, human_eval, mt_bench, reward_bench, versus
from prefloop.suites.questions import Answered, Asked, Question, Row

if TYPE_CHECKING:
    from prefloop.annotate.referee import Referee
    from prefloop.suites.harness import Ending

ANSWERS, VERDICTS, SCORES = "answers.jsonl", "verdicts.jsonl", "scores.json"
UNITS = "units.json"
"""One value a question: what the figure that is told is the mean of."""
CATEGORIES = "categories.json"
"""Of each question, where the benchmark's file has some."""
CATEGORY_COLUMNS = ("category", "dataset", "cluster")
FIGURES = {
    "gsm8k": "accuracy",
    "alpaca_eval": "win_rate",
    "win_rate": "win_rate",
    "arena_hard": "question_mean",
    "mt_bench": "mean",
    "human_eval": "pass_at_1",
    "truthful_qa": "mc2",
    "reward_bench": "accuracy",
}
"""The figure that stands for a benchmark where there is room for one; it is a mean over questions."""
FILES = ("path", "inputs", "references", "templates", "context")
"""Keys that name outside files; those enter a key by content."""
AFTERWARDS = (*FILES, "judge", "baseline", "confidence_draws", "without_namespaces")
"""Keys that decide nothing about the answers."""


# --- what is asked ----------------------------------------------------------------------------------------------------


def questions(suite: WordedSuite) -> Asked:
    """What the policy is asked. Raises InputError."""
    match suite:
        case Gsm8kSuite():
            return gsm8k.questions(suite)
        case HumanEvalSuite():
            return human_eval.questions(suite)
        case AlpacaEvalSuite() | WinRateSuite():
            return versus.questions(suite)
        case ArenaHardSuite():
            return arena_hard.questions(suite)
        case MtBenchSuite():
            return mt_bench.questions(suite)


def answers(x: Experiment, name: str, suite: WordedSuite, policy: Artefact) -> Stage:
    """A policy's answers to the questions of a benchmark, turn by turn."""
    asked = questions(suite)
    embedded = x.generate.sampling_engine.kind == "hf"

    def body(build: Build) -> None:
        conversations = {one.key: [Message(role="user", content=one.turns[0])] for one in asked.questions}
        said: dict[str, list[tuple[str, ...]]] = {}
        cut: set[str] = set()
        for turn in range(max((len(one.turns) for one in asked.questions), default=0)):
            going = [one for one in asked.questions if turn < len(one.turns) and one.key in conversations]
            replies = _sampled(x, suite, policy, build, going, conversations, turn)
            for one in going:
                group = replies.get(one.key)
                if group is None:  # too long for the model: nothing more is asked
                    del conversations[one.key]
                    said.pop(one.key, None)
                    continue
                texts = [each.text for each in group.completions]
                before = said.get(one.key, [()] * len(texts))
                said[one.key] = [(*earlier, text) for earlier, text in zip(before, texts, strict=True)]
                if any(each.finish_reason == "length" for each in group.completions):
                    cut.add(one.key)
                conversations[one.key].append(Message(role="assistant", content=texts[0]))
                if turn + 1 < len(one.turns):
                    conversations[one.key].append(Message(role="user", content=one.turns[turn + 1]))
        if not said:
            raise InputError(
                f"{suite.path}: all {len(asked.questions)} questions are longer than max_prompt_length "
                f"({suite.max_prompt_length} tokens) or the model's context"
            )
        rows = [Answered(key=key, answers=tuple(texts), truncated=key in cut) for key, texts in said.items()]
        write_rows(build.path / ANSWERS, rows)
        number = len(asked.questions)
        build.count(number, len(rows), {"prompt_too_long": number - len(rows)})
        panel = outputs.panel(outputs.read_outputs(str(build.path / ANSWERS)), draws=suite.confidence_draws)
        build.stats = {
            "suite": name,
            "policy": policy.name,
            "panel": {figure: one.value for figure, one in panel.figures.items()},
            "notes": panel.notes,
        }

    config: dict[str, Any] = {"suite": without_paths(suite, *AFTERWARDS), "seed": x.seed}
    if not embedded:
        config["engine"] = engine_config(x.generate.sampling_engine)
    return Stage(
        "answers",
        1,
        config,
        {"policy": policy},
        body,
        external={"questions": digest_path(Path(suite.path))},
        work=f"{len(asked.questions)} questions of {suite.kind}",
    )


def _sampled(
    x: Experiment,
    suite: WordedSuite,
    policy: Artefact,
    build: Build,
    going: Sequence[Question],
    conversations: Mapping[str, Sequence[Message]],
    turn: int,
) -> dict[str, Group]:
    """The answers to one turn, by question; each temperature is a file of its own."""
    embedded = x.generate.sampling_engine.kind == "hf"
    found: dict[str, Group] = {}
    for temperature in sorted({one.temperature for one in going}):
        some = [one for one in going if one.temperature == temperature]
        prompts = {one.key: Prompt.of(tuple(conversations[one.key])) for one in some}
        file = RowFile(build.path / f"turn-{turn + 1}-at-{temperature:g}.jsonl")
        with sampling(
            x,
            policy,
            version=0,
            seed=stage_seed(x, "suite", turn),
            num_completions=getattr(suite, "num_completions", 1),
            temperature=temperature,
            temperatures=None,
            max_new_tokens=suite.max_new_tokens,
            max_prompt_length=suite.max_prompt_length,
        ) as generator:
            wanted = list({one.id: one for one in prompts.values()}.values())
            sample_all(x, policy, build, file, generator, wanted, check=not embedded, dtype="float32")
        groups = {one.prompt.id: one for one in read_records(file.path, Group)}
        found |= {key: groups[one.id] for key, one in prompts.items() if one.id in groups}
    return found


# --- verdicts and scores ----------------------------------------------------------------------------------------------


def suite(
    x: Experiment,
    name: str,
    suite: Suite,
    policy: Artefact,
    answered: Artefact | None,
    against: Artefact | None,
) -> Stage:
    """Verdicts on a policy's answers in the benchmark's own format, and the scores that are read from them.

    `against` are the answers of the policy that a win rate is measured against, or the policy that an implied reward is.
    TruthfulQA and RewardBench have no answers; RewardBench's `policy` may be a reward model.
    """

    def body(build: Build) -> None:
        every = list(_rows(x, suite, policy, answered, against, build))
        found = [one for one in every if one is not None]
        if not found:
            why = "no answer fits the model" if every else "the baseline has answered none of the questions"
            raise InputError(f"{suite.path}: nothing to judge: {why}")
        path = build.path / VERDICTS
        write_text(path, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in found))
        scored, units = _scored(suite, str(path), found, policy.name)
        too_long = {"too_long": len(every) - len(found)} if len(found) < len(every) else {}
        for one in scored:
            one.notes += answered.stats["notes"] if answered is not None else []
            one.rows_in += sum(too_long.values())
            one.dropped.update(too_long)
        write_json(build.path / SCORES, [one.to_json() for one in scored])
        write_json(build.path / UNITS, units)
        write_json(build.path / CATEGORIES, _categories(suite))
        build.count(len(every), len(found), too_long)
        build.stats = {
            "suite": name,
            "kind": suite.kind,
            "figure": _figure(suite, scored[0]),
            "panel": answered.stats["panel"] if answered is not None else None,
            "scores": [one.to_json() for one in scored],
        }

    config = without_paths(suite, *FILES) | {"seed": x.seed}
    files = {key: getattr(suite, key, None) for key in FILES}
    if isinstance(suite, ArenaHardSuite):
        config.pop("baseline")
        files["baseline"] = suite.baseline
    external = {key: digest_path(Path(path)) for key, path in files.items() if path is not None}
    if isinstance(suite, LmEvalSuite):
        external["lm-eval"] = _version("lm_eval")
    judge = getattr(suite, "judge", None)
    if judge is not None:
        in_pairs = isinstance(suite, AlpacaEvalSuite | WinRateSuite)
        external |= annotator_digests(judge, same_words=in_pairs)
    inputs = {"policy": policy, "answers": answered, "against": against}
    return Stage("suite", 2, config, inputs, body, external=external, work=suite.kind)


def _figure(suite: Suite, scored: Scored) -> str:
    """The figure that stands for it; where a kind has several settings, the first that is there."""
    named = FIGURES.get(suite.kind)
    return named if named in scored.figures else next(iter(scored.figures))


def _categories(suite: Suite) -> dict[str, str]:
    """The category of each question."""
    if isinstance(suite, RewardBenchSuite):
        return reward_bench.categories(reward_bench.questions(suite))
    if isinstance(suite, TruthfulQaSuite | LmEvalSuite):
        return {}
    found = {}
    for one in questions(suite).questions:
        column = next((name for name in CATEGORY_COLUMNS if one.row.get(name)), None)
        if column is not None:
            found[one.key] = str(one.row[column])
    return found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _rows(
    x: Experiment,
    suite: Suite,
    policy: Artefact,
    answered: Artefact | None,
    against: Artefact | None,
    build: Build,
) -> Iterator[Row | None]:
    model = policy.name
    if isinstance(suite, LmEvalSuite):
        from prefloop.modeling import settle
        from prefloop.suites import harness

        settle(x.runtime)

        def continued(texts: Sequence[str], ending: harness.Ending) -> list[str]:
            return _continued(x, policy, texts, ending)

        yield from harness.rows(suite, model_folder(policy), model, x.runtime, continued)
        return
    if isinstance(suite, TruthfulQaSuite):
        from prefloop.modeling import settle
        from prefloop.suites import truthful_qa

        settle(x.runtime)
        asked = truthful_qa.questions(suite)
        yield from truthful_qa.rows(asked, model_folder(policy), model, x.runtime, build.progress)
        return
    if isinstance(suite, RewardBenchSuite):
        candidates = reward_bench.questions(suite)
        judged = _judged_answers(x, suite, candidates, policy, against)
        yield from _told(judged, len(candidates.questions), build)
        return
    assert answered is not None, "every other benchmark is answered"
    asked, said = questions(suite), _read(answered)
    match suite:
        case Gsm8kSuite():
            found = gsm8k.rows(asked, said, model)
        case HumanEvalSuite():
            found = human_eval.rows(asked, said, suite, build.progress)
        case AlpacaEvalSuite():
            baseline = versus.baseline_of_file(suite.path, asked, suite.baseline)
            found = versus.alpaca_rows(said, model, baseline, _comparer(x, suite.judge, build))
        case WinRateSuite():
            baseline = _baseline(suite, asked, against)
            found = versus.win_rate_rows(said, model, baseline, _comparer(x, suite.judge, build))
        case ArenaHardSuite():
            found = arena_hard.rows(asked, said, model, suite, _referee(suite.judge, build))
        case MtBenchSuite():
            found = mt_bench.rows(asked, said, model, suite, _referee(suite.judge, build))
    yield from _told(found, len(said), build)


def _judged_answers(
    x: Experiment,
    suite: RewardBenchSuite,
    asked: reward_bench.AskedCandidates,
    subject: Artefact,
    against: Artefact | None,
) -> Iterator[Row | None]:
    """RewardBench's answers with the scores of a reward model, or of the reward that a policy implies."""
    from prefloop.annotate.implicit import ImplicitScorer
    from prefloop.annotate.reward_model import Texts, load_scorer
    from prefloop.modeling import context_of, settle

    settle(x.runtime)
    if suite.of == "reward":
        scorer = load_scorer(model_folder(subject), x.runtime, name=subject.name, same_tokens=False, labels=0)
    else:
        assert against is not None, "the caller has the policy that the loop started with"
        folders = model_folder(subject), model_folder(against)
        scorer = ImplicitScorer(*folders, name=subject.name, runtime=x.runtime)
    texts, context = (
        Texts(scorer.codec, same_tokens=False),
        min(context_of(one.config) for one in scorer.models),
    )

    def fits(group: Group) -> bool:
        tokens = texts.group(group)
        return len(tokens.prompt_ids) + max(map(len, tokens.completions)) <= context

    return reward_bench.rows(asked, scorer, subject.name, fits)


def _continued(x: Experiment, policy: Artefact, texts: Sequence[str], ending: "Ending") -> list[str]:
    """What the policy writes after texts that are no conversation. Of one too long for the model its end is read."""
    from prefloop.generate.sampling import Request

    with sampling(
        x,
        policy,
        version=0,
        seed=stage_seed(x, "lm_eval"),
        num_completions=1,
        temperature=ending.temperature,
        temperatures=None,
        max_new_tokens=ending.max_new_tokens,
        stop=list(ending.stop),
    ) as generator:
        room = generator.sampler.context - 1
        budget = min(ending.max_new_tokens, room)
        requests = []
        for place, text in enumerate(texts):
            prompt = Prompt.of((Message(role="user", content=text),))
            ids = generator.codec.tokenizer(text).input_ids[-max(1, room + 1 - budget) :]
            requests.append(Request(prompt.id, prompt, ids, budget, place))
        return [
            generator.completion(one.prompt, 0, sampled, ending.temperature).text
            for one, (sampled,) in zip(requests, generator.sampler.sample(requests), strict=True)
        ]


def _told(rows: Iterable[Row | None], total: int, build: Build) -> Iterator[Row | None]:
    for number, row in enumerate(rows):
        build.progress(min(number, total), total, "verdicts")
        yield row


def _read(artefact: Artefact) -> list[Answered]:
    return read_records(artefact.path / ANSWERS, Answered)


def _baseline(suite: WinRateSuite, asked: Asked, against: Artefact | None) -> versus.Baseline:
    if suite.baseline == "file":
        return versus.baseline_of_file(suite.path, asked, "file")
    if against is None:
        raise InputError(
            "win_rate: baseline `start` needs a policy to compare with: name it with --against, or set baseline: file"
        )
    return versus.baseline_of_answers(against.stats["policy"], _read(against))


def _scored(
    suite: Suite, path: str, rows: Sequence[Row], model: str
) -> tuple[list[Scored], dict[str, float]]:
    """What the verdicts say, as their format's scorer reads it, and a value for each question."""
    match suite:
        case Gsm8kSuite():
            return gsm8k.score(path, suite, questions(suite)), gsm8k.units(rows)
        case HumanEvalSuite():
            return human_eval.score(path, suite, questions(suite), model), human_eval.units(rows)
        case AlpacaEvalSuite():
            return versus.score_alpaca(path, suite, questions(suite)), versus.units(rows)
        case WinRateSuite():
            return versus.score_win_rate(path, suite, questions(suite)), versus.units(rows)
        case ArenaHardSuite():
            return arena_hard.score(path, suite, questions(suite)), arena_hard.units(rows)
        case MtBenchSuite():
            return mt_bench.score(path, suite, questions(suite)), mt_bench.units(rows)
        case RewardBenchSuite():
            asked = reward_bench.questions(suite)
            return reward_bench.score(path, suite, asked), reward_bench.units(rows)
        case LmEvalSuite():
            return harness.score(path, draws=suite.confidence_draws), dict(harness.units(rows))
        case TruthfulQaSuite():
            from prefloop.suites import truthful_qa

            asked = truthful_qa.questions(suite)
            return truthful_qa.score(path, suite, asked), truthful_qa.units(rows, asked)


def _comparer(x: Experiment, judge: PairJudge, build: Build) -> Comparer:
    """Who says which of two answers is better."""
    from prefloop.annotate.choose import comparer
    from prefloop.annotate.scored import ScoreComparer

    if isinstance(judge, RewardModelAnnotator | RuleAnnotator | FunctionAnnotator):
        scale = 1.0 if judge.kind == "reward_model" else 0.0
        return ScoreComparer(gold_scorer(x, judge, None), scale=scale)
    return comparer(
        judge,
        seed=stage_seed(x, "suite judge"),
        cache=_cache(build),
        reward_scorer=lambda path: reward_scorer(x, path, None, labels=0),
        runtime=x.runtime,
    )


def _referee(judge: JudgeAnnotator, build: Build) -> "Referee":
    from prefloop.annotate.referee import Referee

    return Referee(judge, _cache(build))


def _cache(build: Build) -> Path:
    """Of a judge's replies; all stages of a workspace share it."""
    return build.path.parent.parent / "cache" / "judge"
