"""The loop, and the two ways to walk it: planning it and running it.

`online_loop` is plain Python that hands stages to `do`. A planning `do` only notes their keys; a running `do` builds what
is missing. So the plan is exact, resume is the same call again, and variants share every artefact they have in common.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prefloop import stages
from prefloop.config import (
    MAIN_ARM,
    Experiment,
    GenerateSection,
    LmEvalSuite,
    RewardBenchSuite,
    TruthfulQaSuite,
    WinRateSuite,
    uses_sft_groups,
)
from prefloop.interfaces import InputError, PrefloopError, Progress
from prefloop.store import Artefact, Stage, Workspace, disk_errors, read_json, write_json
from prefloop.tracking import Tracker
from prefloop.watching import Entry, Watcher, followed

logger = logging.getLogger(__name__)

OTHER_SEED = 1_000_003
"""Added to the seed for samples of another policy on the same prompts."""
REWARD_KINDS = ("reward", "promote_reward")
"""Artefacts with a reward model."""
SCALE_PROMPTS = 512
"""The SFT policy's answers to so many prompts give the scale of a reward's parts: means are right to 4 % of a deviation."""


@dataclass
class Planner:
    """Notes every stage it is given, and computes nothing."""

    workspace: Workspace
    arm: str = MAIN_ARM
    iteration: int | None = None
    entries: list[Entry] = field(default_factory=list)
    decisions: Mapping[str, Literal["promote", "reject"]] = field(default_factory=dict)
    """What people decided about policies, by key; the loop's gate has no say there."""

    def __call__(self, stage: Stage, role: str | None = None) -> Artefact:
        """The artefact that the stage has, or will have."""
        artefact = self.workspace.artefact(stage)
        self.entries.append(Entry(self.arm, self.iteration, role or stage.kind, stage, artefact))
        return artefact


def online_loop(x: Experiment, do: Planner) -> Artefact:
    """The whole loop of one arm; returns its final policy."""
    prompts = do(stages.prompts(x)) if x.needs_prompts or x.evaluate.num_prompts else None
    base = do(stages.base_model(x))
    reference = do(stages.sft(x, base)) if x.sft.data or x.sft.text else base
    offline = (do(stages.import_pairs(x, x.policy.offline_data, "offline")),) if x.policy.offline_data else ()
    sizes = batch_sizes(x)
    reward, reward_data = first_reward(x, do, reference, prompts, sizes)
    rules = do(stages.rule_model(x, reference), "rules") if x.rules is not None else None
    start = measure(x, do, reference, prompts, reference, reward)
    first_answers = benchmarks(x, do, reference)
    reward_benchmarks(x, do, reward)
    policy, measured, collected = reference, start, ()
    for i in range(max(x.loop.iterations, 1 if offline or x.rl else 0)):
        do.iteration = i
        batches = [b for b in x.loop.batches_of(i) if sizes[1 + b]] if x.loop.batches else []
        if x.loop.batches and not batches:
            break  # the label budget is spent
        new = tuple(
            collect(x, do, policy, prompts, reward, sizes, b, version=i, start=reference) for b in batches
        )
        collected = (*collected, *new)
        pairs = (*offline, *(one.pairs for one in (collected if x.policy.data == "accumulated" else new)))
        reward_data = (*reward_data, *(one.labelled for one in new if one.labelled is not None))
        learned = reward
        if reward is not None and x.reward.learns_from_labels and new and x.loop.refreshes_reward_after(i):
            learned = refreshed_reward(x, do, reference, reward, reward_data)
            reward_benchmarks(x, do, learned)
        if x.rl is not None:  # what is optimised knows the newest labels
            reward = learned
            candidate = reinforce(x, do, policy, reference, reward, prompts, sizes, i, rules)
        else:
            candidate = train(x, do, policy, reference, pairs, i)
        after = measure(x, do, candidate, prompts, reference, reward, start, measured)
        benchmarks(x, do, candidate, first_answers, reference)
        reward = learned
        policy, measured = gate(x, do, candidate, policy, (after, measured), prompts, reference, reward)
    if x.loop.replay != "none":
        policy = replay(x, do, reference, [one.pairs for one in collected], prompts, reward, start)
    do.iteration = None
    return policy


def replay(
    x: Experiment,
    do: Planner,
    reference: Artefact,
    pairs: Sequence[Artefact],
    prompts: Artefact | None,
    reward: Artefact | None,
    start: Artefact | None,
) -> Artefact:
    """The policy that learns from the loop's pairs again, in as many steps as the loop did; nothing new is collected."""
    policy, measured, done = reference, start, do.iteration or 0
    accumulated: tuple[Artefact, ...] = ()
    for i in range(x.loop.iterations):
        do.iteration = done + 1 + i
        new = tuple(do(stages.replayed(x, pairs, b)) for b in x.loop.batches_of(i) if b < len(pairs))
        accumulated = (*accumulated, *new) if x.policy.data == "accumulated" else new
        policy = train(x, do, policy, reference, accumulated, i)
        measured = measure(x, do, policy, prompts, reference, reward, start, measured)
    return policy


def first_reward(
    x: Experiment,
    do: Planner,
    policy: Artefact,
    prompts: Artefact | None,
    sizes: Sequence[int],
) -> tuple[Artefact | None, tuple[Artefact, ...]]:
    """The reward model before the loop: brought along, or trained on a file, on first labels, or on both.

    Returned with the pairs it was trained on, because later reward models learn from them too.
    """
    if x.reward.model is not None:
        return do(stages.import_reward(x, x.reward.model)), ()
    if x.reward.data is not None and not x.reward.learns_from_labels:
        return do(stages.reward_model(x, policy, ())), ()
    pairs: list[Artefact] = []
    if x.reward.data is not None:
        pairs.append(do(stages.import_preferences(x, x.reward.data), "reward_data"))
    if sizes[0]:
        assert prompts is not None, "checked when the experiment was read"
        drawn = do(stages.draw_prompts(x, prompts, 0, sizes[0]))
        two = sampling_a_pair(x)
        groups = do(stages.generate(two, policy, drawn, None, version=0, number=sizes[0]))
        judgements = do(stages.annotate(two, groups, None, number=sizes[0]))
        pairs.append(do(stages.select_pairs(x, groups, judgements)))
    return (do(stages.reward_model(x, policy, tuple(pairs))) if pairs else None), tuple(pairs)


def refreshed_reward(
    x: Experiment, do: Planner, trunk: Artefact, previous: Artefact, pairs: Sequence[Artefact]
) -> Artefact:
    """The reward model trained anew on old and new judgements, unless the gate keeps the one before."""
    candidate = do(stages.reward_model(x, trunk, pairs))
    return do(stages.promote_reward(x, candidate, previous, pairs)) if x.reward.gate else candidate


def sampling_a_pair(x: Experiment) -> Experiment:
    """The experiment with two completions a prompt where one comparison is asked: without a reward model to choose the
    two worth asking about, more would be sampled in vain. Of mixed temperatures the first and the last are kept. Where the
    loop searches, these are plain samples: there is nothing to search by."""
    if x.generate.engine.kind == "mcts":
        x = x.model_copy(update={"generate": x.generate.plain})
    if x.annotate.asks != "one_pair":
        return x
    shares = x.generate.temperatures
    mixed = [one.model_copy(update={"count": 1}) for one in (shares[0], shares[-1])] if shares else None
    sampling = x.generate.model_copy(update={"num_completions": 2, "temperatures": mixed})
    return x.model_copy(update={"generate": sampling})


@dataclass(frozen=True)
class Collected:
    """What came of a label batch."""

    pairs: Artefact
    """For the policy."""
    labelled: Artefact | None
    """Pairs by the annotator, which reward models may learn from; None where nobody was asked."""


def collect(
    x: Experiment,
    do: Planner,
    policy: Artefact,
    prompts: Artefact | None,
    reward: Artefact | None,
    sizes: Sequence[int],
    batch: int,
    *,
    version: int,
    start: Artefact,
) -> Collected:
    """One label batch: draw, perhaps invent, generate, annotate, select. Pairs of a search's steps need no annotator, who is
    then asked only where the reward model learns from it."""
    assert prompts is not None, "checked when the experiment was read"
    size = sizes[1 + batch]
    drawn = do(stages.draw_prompts(x, prompts, sizes[0] + batch * x.loop.prompts_per_batch, size))
    if x.loop.prompt_sources:
        drawn = do(
            stages.invent_prompts(
                x, policy, prompts, drawn, x.loop.prompt_sources, version=version, number=size, batch=batch
            )
        )
    groups = sample_groups(x, do, policy, start, drawn, reward, version=version, number=size)
    steps = do(stages.select_pairs(x, groups, None)) if x.select.rule == "siblings" else None
    if steps is not None and not x.needs_labels:
        return Collected(steps, None)
    judgements = do(stages.annotate(x, groups, reward, number=size))
    labelled = do(stages.select_pairs(x, groups, judgements), "reward_data" if steps else None)
    return Collected(steps or labelled, labelled)


def sample_groups(
    x: Experiment,
    do: Planner,
    policy: Artefact,
    start: Artefact,
    drawn: Artefact,
    reward: Artefact | None,
    *,
    version: int,
    number: int,
) -> Artefact:
    """Completions of a batch by the current policy, or half or all of them by that which the loop started with."""
    if x.loop.from_start == "all":
        policy, version = start, 0
    if x.loop.from_start != "half":
        return do(stages.generate(x, policy, drawn, reward, version=version, number=number))
    half = x.model_copy(
        update={
            "generate": x.generate.model_copy(update={"num_completions": x.generate.num_completions // 2})
        }
    )
    # the loop's first policy is its start: with one seed it would say the same twice
    other = half.model_copy(update={"seed": x.seed + OTHER_SEED})
    theirs = do(stages.generate(other, start, drawn, reward, version=0, number=number), "generate start")
    ours = do(stages.generate(half, policy, drawn, reward, version=version, number=number))
    return do(stages.mixed(theirs, ours))


def train(
    x: Experiment,
    do: Planner,
    policy: Artefact,
    reference: Artefact,
    pairs: Sequence[Artefact],
    iteration: int,
) -> Artefact:
    """The next policy, from the start weights and the reference that the experiment asks for."""
    start = policy if x.policy.start == "previous" else reference
    references = {"start": reference, "previous": policy}
    batches = len(x.loop.batches_of(iteration)) if x.loop.batches else 0
    return do(
        stages.train_policy(
            x, start, references.get(x.policy.reference), pairs, version=iteration, batches=batches
        )
    )


def reinforce(
    x: Experiment,
    do: Planner,
    policy: Artefact,
    reference: Artefact,
    reward: Artefact | None,
    prompts: Artefact | None,
    sizes: Sequence[int],
    iteration: int,
    rules: Artefact | None,
) -> Artefact:
    """The next policy by reinforcement, on prompts that no label batch has."""
    assert x.rl is not None and prompts is not None, "checked when the experiment was read"
    drawn = do(stages.draw_prompts(x, prompts, sum(sizes), x.rl.num_prompts), "rl prompts")
    scale = None
    if any(map(uses_sft_groups, x.rl.scorers)):
        first = drawn
        if x.rl.num_prompts > SCALE_PROMPTS:
            first = do(stages.draw_prompts(x, prompts, sum(sizes), SCALE_PROMPTS), "scale prompts")
        scale = do(
            stages.generate(sampling_as_rl(x), reference, first, None, version=0, number=None), "scale"
        )
    if x.rl.prompt_sources:
        drawn = do(
            stages.invent_prompts(
                x,
                policy,
                prompts,
                drawn,
                x.rl.prompt_sources,
                version=iteration,
                number=x.rl.num_prompts,
                batch=iteration,
            ),
            "rl invent",
        )
    start = policy if x.rl.start == "previous" else reference
    near = policy if x.rl.reference == "previous" else reference
    return do(stages.reinforce(x, start, near, reward, drawn, version=iteration, rules=rules, scale=scale))


def sampling_as_rl(x: Experiment) -> Experiment:
    """The experiment with one plain sample a prompt, as reinforcement draws them."""
    assert x.rl is not None, "the caller asked"
    plain = GenerateSection(
        num_completions=1, max_new_tokens=x.rl.max_new_tokens, max_prompt_length=x.rl.max_prompt_length
    )
    return x.model_copy(update={"generate": plain})


def measure(
    x: Experiment,
    do: Planner,
    policy: Artefact,
    prompts: Artefact | None,
    reference: Artefact,
    proxy: Artefact | None,
    start: Artefact | None = None,
    previous: Artefact | None = None,
    *,
    split: str = "evaluation",
    role: str = "evaluate",
) -> Artefact | None:
    """Evaluates a policy on held-out prompts, where the experiment has any."""
    if prompts is None or (split == "evaluation" and not x.evaluate.num_prompts):
        return None
    stage = stages.evaluate(
        x,
        policy,
        prompts,
        split=split,
        reference=reference,
        proxy=proxy if x.reward.objective.gives_scores else None,
        start=start,
        previous=previous,
    )
    return do(stage, role)


def benchmarks(
    x: Experiment,
    do: Planner,
    policy: Artefact,
    against: Mapping[str, Artefact | None] | None = None,
    start: Artefact | None = None,
) -> dict[str, Artefact | None]:
    """Measures a policy on every benchmark of the experiment; returns its answers to each, where it has any.

    `against` are the answers of the policy to compare with, `start`, where there is one; a win rate against nobody and a
    reward that is implied by no change are left out.
    """
    found: dict[str, Artefact | None] = {}
    for name, suite in x.evaluate.suites.items():
        found[name] = None
        if isinstance(suite, RewardBenchSuite):
            if suite.of == "policy" and start is not None:
                do(stages.suite(x, name, suite, policy, None, start), f"suite {name}")
            continue
        if not isinstance(suite, TruthfulQaSuite | LmEvalSuite):
            found[name] = do(stages.answers(x, name, suite, policy), f"answers {name}")
        theirs = None
        if isinstance(suite, WinRateSuite) and suite.baseline == "start":
            if against is None:
                continue
            theirs = against[name]
        do(stages.suite(x, name, suite, policy, found[name], theirs), f"suite {name}")
    return found


def compared_benchmarks(x: Experiment) -> list[str]:
    """The benchmarks on which a policy is nothing without the one that it started from."""
    return [
        name
        for name, one in x.evaluate.suites.items()
        if (isinstance(one, WinRateSuite) and one.baseline == "start")
        or (isinstance(one, RewardBenchSuite) and one.of == "policy")
    ]


def reward_benchmarks(x: Experiment, do: Planner, reward: Artefact | None) -> None:
    """Measures a reward model on those benchmarks of the experiment that are about reward models. Raises InputError."""
    for name, suite in x.evaluate.suites.items():
        if not isinstance(suite, RewardBenchSuite) or suite.of != "reward":
            continue
        if reward is None or not x.reward.objective.gives_scores:
            raise InputError(
                f"evaluate.suites.{name}: scores answers by a reward model, and this experiment has none that gives scores; "
                "set `of: policy`, or measure a reward model with `prefloop eval`"
            )
        do(stages.suite(x, name, suite, reward, None, None), f"suite {name}")


def gate(
    x: Experiment,
    do: Planner,
    candidate: Artefact,
    policy: Artefact,
    evaluations: tuple[Artefact | None, Artefact | None],
    prompts: Artefact | None,
    reference: Artefact,
    reward: Artefact | None,
) -> tuple[Artefact, Artefact | None]:
    """The policy to go on with and its evaluation: the candidate's, unless people or the gate send it back."""
    if verdict := do.decisions.get(candidate.key):
        kept = do(stages.decided(candidate, policy, evaluations, verdict))
        return kept, kept if evaluations[0] else None
    if x.loop.gate.metric == "none":
        return candidate, evaluations[0]
    before = measure(x, do, policy, prompts, reference, reward, split="gate", role="gate before")
    after = measure(
        x, do, candidate, prompts, reference, reward, previous=before, split="gate", role="gate after"
    )
    assert after is not None, "the gate has prompts of its own"
    kept = do(stages.promote(x, candidate, policy, after, evaluations))
    return kept, kept if evaluations[0] else None


def batch_sizes(x: Experiment) -> list[int]:
    """Prompts of the first reward model's label batch, then of every label batch, cut to `loop.max_labels`.

    Known before anything runs, so that the budget is part of the plan.
    """
    wanted = [x.reward.seed_prompts] + [x.loop.prompts_per_batch] * x.loop.batches
    if x.loop.max_labels is None:
        return wanted
    costs, left, sizes = label_costs(x), x.loop.max_labels, []
    for number, cost in zip(wanted, costs, strict=True):
        size = min(number, left // cost) if cost else number
        left -= size * cost
        sizes.append(size)
    if x.reward.seed_prompts and not any(sizes[1:]):
        raise InputError(
            f"loop.max_labels = {x.loop.max_labels}: the first reward model alone needs {wanted[0] * costs[0]}, "
            "so nothing is left for the loop"
        )
    return sizes


def label_costs(x: Experiment) -> list[int]:
    """Labels that a prompt costs, in the first reward model's label batch and in every other."""
    cost = stages.labels_per_prompt(x)
    return [cost, *[cost if x.needs_labels else 0] * x.loop.batches]


# --- planning and running --------------------------------------------------------------------------------------------


def plan(x: Experiment, workspace: Workspace) -> list[Entry]:
    """Every stage of every arm, in order, without computing anything."""
    entries: list[Entry] = []
    decisions = stages.decisions(x, workspace)
    for name, variant in {MAIN_ARM: x, **{name: x.arm(name) for name in x.arms}}.items():
        planner = Planner(workspace, name, entries=entries, decisions=decisions)
        online_loop(variant, planner)
    return entries


def run(x: Experiment, workspace: Workspace, watcher: Watcher) -> list[Entry]:
    """Builds whatever is missing, in order. Raises PrefloopError; the next call goes on from there."""
    workspace.create()
    entries = plan(x, workspace)
    write_run(x, workspace, entries)
    with disk_errors(workspace.root), Tracker(run_folder(workspace, x.name), x) as tracker:
        seen: set[str] = set()
        for entry in build_all(workspace, entries, followed(x, workspace, entries, watcher)):
            if entry.artefact.name not in seen:
                tracker.stage(entry.arm, entry.iteration, entry.role, entry.artefact)
            seen.add(entry.artefact.name)
    return entries


def sample(x: Experiment, workspace: Workspace, watcher: Watcher, policy: Artefact | None = None) -> Artefact:
    """Completions for every prompt of `prompts` by one policy, `model`'s where none is given; no loop, no run.

    Raises PrefloopError; the next call goes on from there.
    """
    assert x.prompts is not None, "the caller names them"
    workspace.create()
    do = Planner(workspace)
    prompts = do(stages.all_prompts(x.prompts))
    policy = policy or do(stages.base_model(x))
    reward = do(stages.import_reward(x, x.reward.model)) if x.reward.model and x.search_uses_reward else None
    groups = do(stages.generate(x, policy, prompts, reward, version=0, number=None))
    build_planned(do, watcher)
    return groups


def evaluate(
    x: Experiment,
    workspace: Workspace,
    watcher: Watcher,
    models: Sequence[Artefact],
    against: Artefact | None = None,
) -> list[Artefact]:
    """Every benchmark of the experiment for each policy or reward model that it is about, with no loop and no run; returns
    the scores.

    `against` is the policy that win rates and implied rewards are measured against. Raises PrefloopError; the next call goes
    on from there.
    """
    workspace.create()
    do = Planner(workspace)
    theirs = benchmarks(x, do, against) if against is not None else None
    for one in models:
        before = len(do.entries)
        if one.kind in REWARD_KINDS:
            reward_benchmarks(x, do, one)
        else:
            if against is None and (names := compared_benchmarks(x)):
                raise InputError(
                    f"evaluate.suites.{names[0]}: compares with another policy; name it with --against, or choose other "
                    "benchmarks with --suite"
                )
            benchmarks(x, do, one, theirs, against)
        if len(do.entries) == before:
            raise InputError(
                f"{one.name}: none of the benchmarks is about it: {', '.join(x.evaluate.suites)}"
            )
    build_planned(do, watcher)
    found = {one.artefact.name: one.artefact for one in do.entries if one.artefact.kind == "suite"}
    return list(found.values())


def base(x: Experiment, workspace: Workspace, watcher: Watcher, *, reward: str | None = None) -> Artefact:
    """The model that the experiment starts from, or a reward model, brought into the workspace as a run would do."""
    workspace.create()
    do = Planner(workspace)
    model = do(stages.base_model(x) if reward is None else stages.import_reward(x, reward))
    build_planned(do, watcher)
    return model


def build_planned(do: Planner, watcher: Watcher) -> None:
    """Builds what a planner has noted, where no run keeps a record of it."""
    with disk_errors(do.workspace.root):
        for _ in build_all(do.workspace, do.entries, watcher):
            pass


def build_all(workspace: Workspace, entries: Sequence[Entry], watcher: Watcher) -> Iterator[Entry]:
    """Builds what is missing, in order; yields each entry when it is there."""
    for number, entry in enumerate(entries, 1):
        reused = entry.artefact.exists
        started = time.monotonic()
        if not reused:
            progress = watcher.begins(entry, number, len(entries))
            build(workspace, entry, progress, lambda entry=entry: watcher.waits(entry))
        watcher.ends(entry, time.monotonic() - started, reused)
        yield entry


def build(workspace: Workspace, entry: Entry, progress: Progress, on_wait: Callable[[], None]) -> None:
    """Builds one stage; errors name it."""
    where = entry.role if entry.iteration is None else f"iteration {entry.iteration + 1}, {entry.role}"
    try:
        workspace.build(entry.stage, progress, on_wait)
    except PrefloopError as error:
        error.args = (f"{error}\n  (in {where}, artefact {entry.artefact.name})",)
        raise
    logger.info("built stage=%s artefact=%s", where, entry.artefact.name)


def run_folder(workspace: Workspace, name: str) -> Path:
    """Where a run keeps its plan, metrics and report."""
    return workspace.runs / name


def write_run(x: Experiment, workspace: Workspace, entries: Sequence[Entry]) -> None:
    """Writes the run's plan: the experiment and every stage with its key."""
    folder = run_folder(workspace, x.name)
    with disk_errors(workspace.root):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(
            folder / "run.json",
            {
                "name": x.name,
                "experiment": x.model_dump(mode="json"),
                "entries": [
                    {
                        "arm": one.arm,
                        "iteration": one.iteration,
                        "role": one.role,
                        "kind": one.stage.kind,
                        "key": one.artefact.key,
                        "work": one.stage.work,
                    }
                    for one in entries
                ],
            },
        )


def read_run(workspace: Workspace, name: str) -> dict[str, Any]:
    """A run's plan as it was written. Raises InputError naming the runs there are."""
    path = run_folder(workspace, name) / "run.json"
    if not path.is_file():
        known = sorted(one.parent.name for one in workspace.runs.glob("*/run.json"))
        raise InputError(
            f"no run {name!r} in {workspace.root}; there is {', '.join(known) if known else 'none yet'}"
        )
    return read_json(path)


def run_artefacts(workspace: Workspace, plan: dict[str, Any]) -> list[Artefact]:
    """The artefacts of a run, published or not, each once, in order."""
    named = {f"{one['kind']}-{one['key']}": one for one in plan["entries"]}
    return [Artefact(one["kind"], one["key"], workspace.artefacts / name) for name, one in named.items()]
