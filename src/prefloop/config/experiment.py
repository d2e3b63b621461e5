"""One experiment, and reading it from YAML and `section.key=value` overrides."""

import difflib
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from prefloop.config.annotate import (
    COMPARING_KINDS,
    MOST_RANKED,
    AnnotateSection,
    SelectSection,
    SimulatedAnnotator,
    uses_loop_reward,
    uses_loop_rules,
    uses_sft_groups,
)
from prefloop.config.generate import GenerateSection
from prefloop.config.loop import EvaluateSection, LoopSection
from prefloop.config.reward import RewardSection, RulesSection
from prefloop.config.rl import RlSection
from prefloop.config.runtime import RuntimeSection
from prefloop.config.section import Section
from prefloop.config.source import Model, ModelSection, Source
from prefloop.config.training import PolicySection, SftSection
from prefloop.interfaces import InputError


class Experiment(Section):
    """One experiment: everything the loop reads."""

    name: str = Field(default="experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its folder in the workspace."""
    seed: int = Field(default=0, ge=0)
    """Every random choice follows from this."""
    model: Model = ModelSection()
    """The language model everything starts from."""
    prompts: Source | None = None
    """Training prompts."""
    sft: SftSection = SftSection()
    """Supervised fine-tuning."""
    reward: RewardSection = RewardSection()
    """The reward model."""
    rules: RulesSection | None = None
    """A rule model beside it, for `rl.reward` or `rl.constraint`; leave out for none."""
    generate: GenerateSection = GenerateSection()
    """Sampling from the policy."""
    annotate: AnnotateSection = AnnotateSection()
    """Judging the samples."""
    select: SelectSection = SelectSection()
    """From judgements to pairs."""
    policy: PolicySection = PolicySection()
    """Training the policy."""
    rl: RlSection | None = None
    """Training the policy by reinforcement, in place of `policy`; left out, it learns from pairs."""
    evaluate: EvaluateSection = EvaluateSection()
    """Measuring the policy."""
    loop: LoopSection = LoopSection()
    """The outer loop."""
    arms: dict[str, dict[str, Any]] = {}
    """Variants that run after the main one and share what they can: {name: {section.key: value}}."""
    runtime: RuntimeSection = RuntimeSection()
    """Devices, processes, batch splitting, logging."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Experiment":
        if self.needs_prompts and self.prompts is None and self.generate.engine.kind != "recorded":
            raise ValueError(
                "prompts: missing; name a file of prompts (or set loop.batches=0 to train on pairs only)"
            )
        if (
            not self.loop.batches
            and self.evaluate.num_prompts
            and not (self.evaluate.prompts or self.prompts)
        ):
            raise ValueError("evaluate.prompts: missing; name a file, or set evaluate.num_prompts=0")
        if (
            self.loop.batches
            and self.generate.engine.kind != "recorded"
            and self.generate.num_completions < 2
        ):
            raise ValueError(
                f"generate.num_completions = {self.generate.num_completions}: selection {self.select.rule} needs at least 2"
            )
        if self.needs_labels and not self.has_reward_model and self._uses_loop_reward():
            raise ValueError(
                "annotate.annotator: reward_model needs a reward model; set reward.model, reward.data, "
                "or annotate.annotator.model"
            )
        if (
            self.needs_labels
            and self._uses_loop_reward()
            and self._compares() != (not self.reward.objective.gives_scores)
        ):
            can = "scores" if self.reward.objective.gives_scores else "compares"
            raise ValueError(
                f"annotate.annotator: {self.annotate.annotator.kind} cannot use the loop's reward model, which {can}; "
                "choose the other of reward_model and pairwise, or name a model"
            )
        if self.annotate.asks == "ranking" and self.generate.num_completions > MOST_RANKED:
            raise ValueError(
                f"generate.num_completions = {self.generate.num_completions}: people rank at most {MOST_RANKED}; "
                "sample fewer, or set annotate.annotator.task=pairwise"
            )
        problem = (
            self._search_problem()
            or self._rl_problem()
            or self._rules_problem()
            or self._control_problem()
            or self._judge_problem()
            or self._propose_problem()
        )
        if problem is not None:
            raise ValueError(problem)
        if self.reward.seed_prompts and (
            self.annotate.annotator.kind == "reward_model" or self._uses_loop_reward()
        ):
            raise ValueError(
                "reward.seed_prompts: labels from a reward model cannot train it; use reward.data"
            )
        if self.reward.seed_prompts and self.annotate.annotator.kind == "recorded":
            raise ValueError(
                "reward.seed_prompts: a recorded annotator cannot judge new samples; use reward.data"
            )
        if self.loop.gate.metric == "proxy" and not (
            self.has_reward_model and self.reward.objective.gives_scores
        ):
            raise ValueError("loop.gate.metric: proxy needs a reward model that scores")
        if getattr(self.reward.objective, "zero_at", "none") == "demonstrations" and self.sft.data is None:
            raise ValueError("reward.objective.zero_at: demonstrations are those of sft.data; name some")
        if self.loop.gate.metric == "score" and self.evaluate.scorer is None:
            raise ValueError("loop.gate.metric: score needs evaluate.scorer")
        if (
            self.model.path.startswith("builtin:")
            and self.loop.batches
            and self.sft.text is None
            and self.sft.data is None
        ):
            raise ValueError("sft.text: a model from scratch needs text to learn from")
        own = (self.model.template, self.model.terminator) == ("auto", "auto")
        if self.model.path.startswith("builtin:") and not own:
            raise ValueError("model.template: a built-in model has a template and a terminator of its own")
        return self

    def _judge_problem(self) -> str | None:
        """Why a benchmark's judge cannot be who taught the policy."""
        taught = {self.reward.model, getattr(self.annotate.annotator, "model", None)} - {None}
        for name, suite in self.evaluate.suites.items():
            judge = getattr(suite, "judge", None)
            if judge is None or judge.kind not in ("reward_model", "pairwise"):
                continue
            if judge.model is None:
                return f"evaluate.suites.{name}.judge: name a model; the loop's own is what policies are trained against"
            if judge.model in taught:
                return (
                    f"evaluate.suites.{name}.judge: {judge.model} also teaches the policy: it would measure how well it was "
                    "obeyed; name another"
                )
        return None

    def _propose_problem(self) -> str | None:
        """Why the reward model cannot pick pairs as asked."""
        rule = self.annotate.propose
        if rule in ("thompson", "uncertainty") and getattr(self.reward.objective, "kind", "") != "ensemble":
            return f"annotate.propose: {rule} asks the heads of an ensemble; set reward.objective: {{kind: ensemble}}"
        return None

    def _control_problem(self) -> str | None:
        """Why the loop cannot replay, or sample from its start."""
        if self.loop.replay != "none" and (self.rl is not None or not self.loop.batches):
            return (
                "loop.replay: replays the pairs that the loop collects; here it collects none for the policy"
            )
        if self.loop.from_start != "half":
            return None
        if (
            self.generate.num_completions % 2
            or self.generate.temperatures
            or self.generate.engine.kind != "hf"
        ):
            return "loop.from_start: half needs an even generate.num_completions, one temperature, and the hf engine"
        return None

    def _search_problem(self) -> str | None:
        engine = self.generate.engine
        if engine.kind != "mcts":
            if self.loop.batches and self.select.rule == "siblings":
                return "select.rule: siblings are the steps of a tree search; set generate.engine.kind=mcts"
            return None
        if self.search_uses_reward:
            if not self.has_reward_model:
                return (
                    "generate.engine.value: reward needs a reward model; set reward.model, reward.data or "
                    "reward.seed_prompts, or name another scorer"
                )
            if not self.reward.objective.gives_scores:
                return f"generate.engine.value: reward needs one that scores; {self.reward.objective.kind} compares"
        return None

    def _rl_problem(self) -> str | None:
        if self.rl is None:
            return None
        if any(map(uses_loop_reward, self.rl.scorers)) and not (
            self.has_reward_model and self.reward.objective.gives_scores
        ):
            return (
                "rl.reward: needs a reward model that scores; set reward.model, reward.data or reward.seed_prompts, "
                "or name another scorer"
            )
        runtime = self.runtime
        if runtime.deepspeed is not None or (runtime.sharding == "fsdp" and runtime.num_processes > 1):
            return (
                "runtime.sharding, deepspeed: rl samples from the weights that it trains, which must be whole"
            )
        if self.rl.row is not None and self.rl.row.update == "trust_region" and runtime.num_processes > 1:
            return "runtime.num_processes: trpo runs in one process; set it to 1"
        if self.loop.batches and not self.labels_teach_reward:
            return (
                "loop.batches: with rl only a reward model learns from labels, and none does; set loop.batches=0, or "
                "reward.seed_prompts or reward.data and loop.reward_refresh_every"
            )
        return None

    def _rules_problem(self) -> str | None:
        """The loop's own rule model and the SFT policy's answers are known to `rl` alone."""
        asked = {"annotate.annotator": self.annotate.annotator, "evaluate.scorer": self.evaluate.scorer}
        asked |= {"evaluate.second_scorer": self.evaluate.second_scorer}
        if isinstance(self.annotate.annotator, SimulatedAnnotator):
            asked["annotate.annotator.gold"] = self.annotate.annotator.gold
        if self.generate.engine.kind == "mcts":
            asked["generate.engine.value"] = self.generate.engine.value
        for key, section in asked.items():
            if section is not None and uses_loop_rules(section):
                return f"{key}: only rl asks the loop's own rule model; name one in model"
            if section is not None and uses_sft_groups(section):
                return f"{key}.reference: sft is for rl.reward; name a file of groups, or leave it out"
        wanted = self.rl is not None and any(map(uses_loop_rules, self.rl.scorers))
        if wanted and self.rules is None:
            return "rules.data: missing; name verdicts on rules that train the rule model, or name a finished one in model"
        if self.rules is not None and not wanted:
            return (
                "rules: nothing asks this rule model; give rl.reward kind composite and rules: {} without a model, or "
                "leave it out (reward.objective.kind=rules trains one alone)"
            )
        return None

    def _uses_loop_reward(self) -> bool:
        return uses_loop_reward(self.annotate.annotator)

    def _compares(self) -> bool:
        return self.annotate.annotator.kind in COMPARING_KINDS

    @property
    def needs_prompts(self) -> bool:
        """Whether anything is sampled for training or for the gate."""
        gated = self.loop.gate.metric != "none"
        return bool(self.loop.batches or self.reward.seed_prompts or gated or self.rl is not None)

    @property
    def search_uses_reward(self) -> bool:
        """Whether completions are searched for by the loop's own reward model."""
        engine = self.generate.engine
        return engine.kind == "mcts" and uses_loop_reward(engine.value)

    @property
    def labels_teach_reward(self) -> bool:
        """Whether the reward model is trained anew on what the loop's label batches say."""
        return (
            self.has_reward_model
            and self.reward.learns_from_labels
            and any(self.loop.refreshes_reward_after(i) for i in range(self.loop.iterations))
        )

    @property
    def needs_labels(self) -> bool:
        """Whether anybody reads the annotator's verdicts on the loop's label batches: step pairs are the search's own."""
        return bool(self.loop.batches) and (self.select.rule != "siblings" or self.labels_teach_reward)

    @property
    def has_reward_model(self) -> bool:
        """Whether the loop has a reward model of its own."""
        return bool(self.reward.model or self.reward.data or self.reward.seed_prompts)

    @property
    def evaluator_is_annotator(self) -> bool:
        """Whether the same scorer both labels and evaluates: fine for cost curves, unsafe as the only metric."""
        return self.evaluate.scorer is not None and self.evaluate.scorer == self.annotate.annotator

    def starting_from(self, path: str) -> "Experiment":
        """The experiment with another model to start from."""
        return self.model_copy(update={"model": self.model.model_copy(update={"path": path})})

    def arm(self, name: str) -> "Experiment":
        """The experiment with the overrides of one arm. Raises InputError for unknown keys."""
        overrides = [(key, value) for key, value in self.arms[name].items()]
        data = self.model_dump(exclude={"arms"}, exclude_unset=True)
        for key, value in overrides:
            _set(data, key, value, where=f"arms.{name}")
        return _parse(data, where=f"arms.{name}")


MAIN_ARM = "main"


def load(path: Path, overrides: Iterable[str] = ()) -> Experiment:
    """Reads an experiment. Overrides are `section.key=value` with YAML values. Raises InputError."""
    return parse(read_text(path), overrides, where=str(path))


def read_text(path: Path) -> str:
    """The text of a file. Raises InputError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read it: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text file") from error


def load_suites(path: Path, overrides: Iterable[str] = ()) -> Experiment:
    """Reads an experiment for its `evaluate.suites`; the file may hold nothing else. Raises InputError."""
    text = read_text(path)
    names_prompts = re.search(r"(?m)^prompts\s*:", text) is not None
    alone = [] if names_prompts else ["loop.batches=0", "evaluate.num_prompts=0"]
    x = parse(text, [*alone, *overrides], where=str(path))
    if not x.evaluate.suites:
        raise InputError(
            f"{path}: evaluate.suites: names no benchmark; for instance `maths: {{kind: gsm8k, path: test.jsonl}}`"
        )
    return x


def preset(name: str) -> str:
    """The text of a built-in experiment. Raises InputError where there is none of this name."""
    file = files("prefloop") / "presets" / f"{name}.yaml"
    if not file.is_file():
        raise InputError(f"no built-in experiment {name!r}; `prefloop init --help` names them")
    return file.read_text(encoding="utf-8")


def parse(text: str, overrides: Iterable[str] = (), *, where: str) -> Experiment:
    """Reads an experiment from YAML text; `where` names it in errors."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: broken YAML: {error}") from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise InputError(f"{where}: an experiment is a YAML mapping, not {type(data).__name__}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise InputError(
                f"{override!r}: an override looks like section.key=value, for instance loop.batches=3"
            )
        try:
            _set(data, key, yaml.safe_load(value), where="override")
        except yaml.YAMLError as error:
            raise InputError(f"{override!r}: broken YAML value: {error}") from error
    experiment = _parse(data, where=where)
    for arm in experiment.arms:
        if arm == MAIN_ARM:
            raise InputError(f"{where}: arms.{arm}: the name {MAIN_ARM!r} belongs to the experiment itself")
        experiment.arm(arm)
    return experiment


def keys() -> list[str]:
    """Every dotted config key, sections included, in the order of the documentation."""
    return list(_walk(Experiment, ""))


def hashed(section: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """The values of a section as they enter an artefact's key.

    All values are hashed, defaults too, so that a changed default never reuses old artefacts. A key added later is
    declared with `json_schema_extra={"inert": value}`, the value that means "as before this key existed"; it is left out
    while it has that value, so that adding it keeps old artefacts valid. Keys marked NOT_HASHED are left out.
    """
    if not isinstance(section, BaseModel):
        return dict(section)
    values: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        extra = field.json_schema_extra
        if isinstance(extra, dict) and (
            extra.get("hashed") is False or ("inert" in extra and extra["inert"] == value)
        ):
            continue
        values[name] = _plain(value)
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return hashed(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _set(data: dict[str, Any], dotted: str, value: Any, *, where: str) -> None:
    *path, last = dotted.split(".")
    for depth, name in enumerate(path, 1):
        inner = data.get(name)
        if isinstance(inner, str):
            # a shorthand is refined: `prompts=x.jsonl prompts.limit=3`, `rl.algorithm=ppo rl.algorithm.kl_coef=0.1`
            inner = {"name" if f"{'.'.join(path[:depth])}.name" in keys() else "path": inner}
        elif inner is None:
            inner = {}
        elif not isinstance(inner, dict):
            raise InputError(f"{where}: {dotted}: {name} is not a section")
        data[name] = dict(inner)
        data = data[name]
    data[last] = value


def _parse(data: dict[str, Any], *, where: str) -> Experiment:
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        raise InputError("\n".join(f"{where}: {_explain(detail)}" for detail in error.errors())) from error


def _explain(detail: Any) -> str:
    location = [str(part) for part in detail["loc"]]
    known = keys()
    # pydantic puts the tag of a union member into the location; a key path has no such part
    names = {name for one in known for name in one.split(".")}
    unknown = location[-1:] if detail["type"] == "extra_forbidden" else []
    key = ".".join(part for part in location if part in names or [part] == unknown)
    if detail["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        parent = key.rpartition(".")[0]
        siblings = [name for name in known if name.rpartition(".")[0] == parent]
        hint = f"did you mean {nearest[0]}?" if nearest else f"known here: {', '.join(siblings) or 'nothing'}"
        return f"{key}: unknown key; {hint}"
    message = detail["msg"].removeprefix("Value error, ")
    if not location:
        return message
    if detail["type"] == "union_tag_invalid":
        given, which = detail["ctx"], detail["ctx"]["discriminator"].strip("'")
        choices = given["expected_tags"].replace("'", "")
        return f"{key}.{which} = {given['tag']!r}: there is none of this name; choose {choices}"
    return (
        f"{key} = {detail['input']!r}: {message}" if detail["type"] != "value_error" else f"{key}: {message}"
    )


def _walk(section: type[BaseModel], prefix: str) -> Iterable[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        seen: set[str] = set()
        for inner in sections_in(field.annotation):
            for key in _walk(inner, f"{prefix}{name}."):
                if key not in seen:
                    seen.add(key)
                    yield key


def sections_in(annotation: Any) -> list[type[Section]]:
    """The config sections that a field's annotation may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    found: list[type[Section]] = []
    for inner in getattr(annotation, "__args__", ()):
        found += sections_in(inner)
    return found
