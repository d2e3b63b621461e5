"""What a study is: an experiment, arms that differ in a few keys, what is measured, and the claims that it shall decide.

All of it stands in one YAML file that is written before the first run, so that nothing can be chosen by its result.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from prefloop import config
from prefloop.config import Experiment, Section
from prefloop.interfaces import InputError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Share = Annotated[float, Field(ge=0, le=1)]
Overrides = dict[str, Any]
"""Config keys with dots, and their values."""
ONLY = ""
"""Name of the setting of a study that has no settings."""


class Measure(Section):
    """One number of each run: a figure of a stage, or a mean of what a stage logged."""

    stage: str = "evaluate"
    """Role of the stage, as `prefloop plan` prints it."""
    figure: str | None = None
    """Place in the stage's figures, as `prefloop show` prints them: score.mean."""
    of: Literal["last", "first", "change", "highest", "mean"] = "last"
    """Of a figure: which stage of this role in the run; `change` is the last one's less the first one's; `mean` is over all
    that have it; `highest` is chosen after looking, so that the more stages a run has the higher it is."""
    metric: str | None = None
    """Name in what the stage logged step by step: rl/score."""
    between: tuple[Share, Share] = (0.0, 1.0)
    """Of a metric: from which to which share of the training the mean is taken."""
    less: tuple[Share, Share] | None = None
    """Of a metric: the mean over this part is subtracted, which leaves how far it rose."""

    @model_validator(mode="after")
    def _one_source(self) -> "Measure":
        if (self.figure is None) == (self.metric is None):
            raise ValueError("give figure or metric")
        if self.metric is None and {"between", "less"} & self.model_fields_set:
            raise ValueError("between, less: are parts of a metric; a figure has none")
        if self.figure is None and "of" in self.model_fields_set:
            raise ValueError(
                "of: chooses a figure's stage; a metric is that of all stages, one after the other"
            )
        for low, high in [self.between, *([self.less] if self.less else [])]:
            if low >= high:
                raise ValueError(f"between, less: [{low:g}, {high:g}] is empty; begin with the smaller")
        return self


class Course(Section):
    """A figure of the policies along the loop, drawn for every arm."""

    figure: str
    """Place in the figures of the evaluations: win_rate_vs_start.mean."""
    against: Literal["labels", "root_kl"] = "labels"
    """The labels spent until then, or the square root of the KL divergence from the start, in nats (arXiv:2204.05862)."""

    @property
    def name(self) -> str:
        """As it is called in results."""
        return f"{self.figure} against {self.against}"


class Criterion(Section):
    """A claim that is held, not held or open, by the confidence interval over seeds."""

    claim: str
    """What is claimed, in words."""
    measure: str
    """Of which measure."""
    arm: str | None = None
    """In which arm; left out, the claim is made of every arm."""
    minus: str | list[str] | None = None
    """The arm whose value of the same seed is subtracted; of several, the mean of theirs, to ask which side an arm is on."""
    above: float | None = None
    """The claim holds where the whole interval lies above this."""
    below: float | None = None
    """The claim holds where the whole interval lies below this."""

    @model_validator(mode="after")
    def _one_bound(self) -> "Criterion":
        if (self.above is None) == (self.below is None):
            raise ValueError("give above or below")
        return self

    @property
    def subtracted(self) -> tuple[str, ...]:
        """The arms whose mean is subtracted."""
        return (self.minus,) if isinstance(self.minus, str) else tuple(self.minus or ())


class Study(Section):
    """A study as it stands in its file."""

    name: Name
    """Folder of its results."""
    question: str
    """What it asks, in a line."""
    about: str = ""
    """What a reader has to know: what is hidden from whom, on which seeds numbers were chosen, what it cannot tell."""
    experiment: str
    """A built-in experiment, or the path of an experiment file."""
    overrides: Overrides = Field(default_factory=dict)
    """Changes for all runs."""
    settings: dict[Name, Overrides] = Field(default_factory=dict)
    """Circumstances that every arm is run in; arms are compared within each."""
    arms: dict[Name, Overrides] = Field(min_length=1)
    """What is compared: names, and their changes."""
    baseline: str | None = None
    """The arm that others are compared with in the tables."""
    measures: dict[str, Measure] = Field(min_length=1)
    """What is measured of each run."""
    curves: list[str] = Field(default_factory=list)
    """Metrics of the policies' training that are drawn."""
    courses: list[Course] = Field(default_factory=list)
    """Figures that are drawn along the loop."""
    criteria: list[Criterion] = Field(default_factory=list)
    """What is to be decided."""
    seeds: int = Field(default=5, ge=1)
    """How many seeds, from 0."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Level of all intervals."""

    @model_validator(mode="after")
    def _names_are_known(self) -> "Study":
        named = [("baseline", self.baseline)]
        for place, one in enumerate(self.criteria):
            named += [(f"criteria.{place}.arm", one.arm)]
            named += [(f"criteria.{place}.minus", arm) for arm in one.subtracted]
        for where, arm in named:
            if arm is not None and arm not in self.arms:
                raise ValueError(f"{where} = {arm}: no such arm; there is {', '.join(self.arms)}")
        for place, one in enumerate(self.criteria):
            if one.measure not in self.measures:
                known = ", ".join(self.measures)
                raise ValueError(
                    f"criteria.{place}.measure = {one.measure}: no such measure; there is {known}"
                )
        return self


@dataclass(frozen=True)
class Run:
    """One arm in one setting with one seed."""

    setting: str
    arm: str
    seed: int
    experiment: Experiment

    @property
    def label(self) -> str:
        """How people call it."""
        return ", ".join([*filter(None, (self.setting, self.arm)), f"seed {self.seed}"])


def built_in() -> list[str]:
    """The names of the studies that come with prefloop."""
    return sorted(one.name.removesuffix(".yaml") for one in _folder().iterdir() if one.name.endswith(".yaml"))


def text_of(name: str) -> str:
    """The text of a built-in study, or of a file. Raises InputError."""
    if name in built_in():
        return (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"no study {name!r}: choose {', '.join(built_in())}, or name a file like them "
            "(`prefloop study NAME --definition` prints one)"
        ) from error


def _folder() -> Any:
    return files("prefloop") / "studies"


def parse(text: str, *, where: str) -> Study:
    """Reads a study from YAML text. Raises InputError, also where one of its runs is no valid experiment."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: broken YAML: {error}") from error
    try:
        study = Study.model_validate(data)
    except ValidationError as error:
        raise InputError("\n".join(f"{where}: {_explained(one)}" for one in error.errors())) from error
    for setting, arm in itertools.product(study.settings or [ONLY], study.arms):
        experiment_of(study, setting, arm, 0)
    return study


def _explained(detail: Any) -> str:
    place = ".".join(str(one) for one in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def runs_of(
    study: Study, seeds: Sequence[int], *, arms: Sequence[str] = (), overrides: Sequence[str] = ()
) -> list[Run]:
    """All runs, or those of some arms. Raises InputError.

    The first arm comes with all seeds: side by side its runs make what the other arms share. Then seed by seed, so that of a
    study that is stopped early some seeds are complete.
    """
    for one in arms:
        if one not in study.arms:
            raise InputError(f"--arm {one}: no such arm in {study.name}; there is {', '.join(study.arms)}")
    (first, *others) = itertools.product(study.settings or [ONLY], arms or study.arms)
    places = [(*first, seed) for seed in seeds] + [(*one, seed) for seed in seeds for one in others]
    return [
        Run(setting, arm, seed, experiment_of(study, setting, arm, seed, overrides=overrides))
        for setting, arm, seed in places
    ]


def experiment_of(
    study: Study, setting: str, arm: str, seed: int, *, overrides: Sequence[str] = ()
) -> Experiment:
    """The experiment of one run; what is given later wins. Raises InputError."""
    name = "-".join([study.name, *filter(None, (setting, arm)), f"seed{seed}"])
    given = [study.overrides, study.settings.get(setting, {}), study.arms[arm]]
    changes = [*itertools.chain.from_iterable(map(_spelled, given)), *overrides]
    path = Path(study.experiment)
    text = path.read_text(encoding="utf-8") if path.is_file() else config.preset(study.experiment)
    return config.parse(text, [*changes, f"name={name}", f"seed={seed}"], where=f"{study.name}, {arm}")


def _spelled(changes: Overrides) -> Iterator[str]:
    """As on the command line: JSON is YAML."""
    return (f"{key}={json.dumps(value)}" for key, value in changes.items())
