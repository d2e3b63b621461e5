"""Every config section, and reading an experiment from YAML and `section.key=value` overrides.

One YAML file describes one experiment. Unknown keys are errors. `runtime:` is the only section that must not change
results and the only one that is never part of an artefact's key. Knows nothing about torch or files other than the
experiment itself.
"""

from prefloop.config.annotate import (
    COMPARING_KINDS,
    SCORING_KINDS,
    AnnotateSection,
    Annotator,
    FunctionAnnotator,
    GoldScorer,
    HumanAnnotator,
    JudgeAnnotator,
    PairwiseAnnotator,
    RecordedAnnotator,
    RewardModelAnnotator,
    RuleAnnotator,
    SelectionRule,
    SelectSection,
    SimulatedAnnotator,
)
from prefloop.config.experiment import MAIN_ARM, Experiment, hashed, keys, load, parse, sections_in
from prefloop.config.generate import Engine, GenerateSection, HfEngine, RecordedEngine, TemperatureShare
from prefloop.config.loop import EvaluateSection, GateSection, LoopSection
from prefloop.config.objectives import DpoObjective, HingeObjective, IpoObjective, Objective, RaftObjective
from prefloop.config.reward import RewardSection
from prefloop.config.runtime import RuntimeSection
from prefloop.config.section import NOT_HASHED, Section
from prefloop.config.source import DataFormat, Model, ModelSection, Source, SourceSection
from prefloop.config.training import (
    AnswerTrainingSection,
    LoraSection,
    PolicySection,
    SftSection,
    TrainingSection,
)

__all__ = [
    "AnnotateSection",
    "Annotator",
    "AnswerTrainingSection",
    "COMPARING_KINDS",
    "DataFormat",
    "DpoObjective",
    "Engine",
    "EvaluateSection",
    "Experiment",
    "FunctionAnnotator",
    "GateSection",
    "GenerateSection",
    "GoldScorer",
    "HfEngine",
    "HingeObjective",
    "HumanAnnotator",
    "IpoObjective",
    "JudgeAnnotator",
    "LoopSection",
    "LoraSection",
    "MAIN_ARM",
    "Model",
    "ModelSection",
    "NOT_HASHED",
    "Objective",
    "PairwiseAnnotator",
    "PolicySection",
    "RaftObjective",
    "RecordedAnnotator",
    "RecordedEngine",
    "RewardModelAnnotator",
    "RewardSection",
    "RuleAnnotator",
    "RuntimeSection",
    "SCORING_KINDS",
    "Section",
    "SelectSection",
    "SelectionRule",
    "SftSection",
    "SimulatedAnnotator",
    "Source",
    "SourceSection",
    "TemperatureShare",
    "TrainingSection",
    "hashed",
    "keys",
    "load",
    "parse",
    "sections_in",
]
