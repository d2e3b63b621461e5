"""Sampling from the policy."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prefloop.config.section import Section, default_kind
from prefloop.config.source import Source


class HfEngine(Section):
    """Samples with transformers in this process."""

    kind: Literal["hf"] = "hf"
    """Name of the engine."""


class RecordedEngine(Section):
    """Takes completions from a file of groups instead of sampling; no policy is run."""

    kind: Literal["recorded"]
    """Name of the engine."""
    source: Source
    """Groups: `prompt` and a list of `responses`."""


PolicyEngine = HfEngine
"""Those that run a policy."""
Engine = Annotated[PolicyEngine | RecordedEngine, Field(discriminator="kind"), default_kind("hf")]


class TemperatureShare(Section):
    """A part of a group's completions and the temperature they are drawn at."""

    count: int = Field(ge=1)
    """How many completions."""
    temperature: float = Field(ge=0)
    """Their temperature; 0 is greedy."""


class GenerateSection(Section):
    """How completions are drawn from the policy."""

    engine: Engine = HfEngine()
    """Who samples."""
    num_completions: int = Field(default=8, ge=1)
    """Completions per prompt; pairs need at least two."""
    temperature: float = Field(default=1.0, ge=0)
    """1.0 samples the policy itself; 0 is greedy."""
    temperatures: list[TemperatureShare] | None = None
    """Mixed temperatures, for instance 4 at 1.0 and 4 at 0.7; counts must sum to `num_completions`."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Keep the smallest set of tokens with this probability."""
    top_k: int = Field(default=0, ge=0)
    """Keep this many tokens; 0 keeps all."""
    min_p: float = Field(default=0.0, ge=0, le=1, json_schema_extra={"inert": 0.0})
    """Drop tokens less likely than this share of the most likely one."""
    repetition_penalty: float = Field(default=1.0, gt=0, json_schema_extra={"inert": 1.0})
    """Divides (negative ones: multiplies) the logits of tokens that the prompt or the completion has already."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default=[], json_schema_extra={"inert": []})
    """Strings that end a completion; they stay in it."""
    stop_tokens: list[str] = Field(default=[], json_schema_extra={"inert": []})
    """Tokens that end a completion, beside the terminator."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Longest completion; longer ones end with finish_reason `length`."""
    max_prompt_length: int = Field(default=1000, ge=1)
    """Longer prompts are dropped and counted, never cut."""

    @model_validator(mode="after")
    def _counts_add_up(self) -> "GenerateSection":
        if self.temperatures and sum(share.count for share in self.temperatures) != self.num_completions:
            total = sum(share.count for share in self.temperatures)
            raise ValueError(
                f"temperatures count {total} completions but num_completions is {self.num_completions}"
            )
        return self
