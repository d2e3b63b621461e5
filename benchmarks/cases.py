"""What is measured: synthetic data, the work on it, the side that does the work, and what a run returns.

Plain dataclasses that travel as JSON between the script and the fresh process of each run. Knows nothing about torch.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from benchmarks.machine import Moment
from benchmarks.shapes import SHAPES, forward_flops

Task = Literal["dpo", "reward", "iteration", "generate", "rl"]
Dtype = Literal["float32", "bfloat16"]
SHORTEST = 4
"""Fewest tokens of a prompt or completion: two are marks of the chat template."""
RAGGED_SHARE = 0.75
"""Ragged lengths are uniform within this share below and above the length asked for."""


class Lengths(NamedTuple):
    """Tokens of one group, marks of the chat template and terminator included."""

    prompt: int
    completions: tuple[int, ...]


@dataclass(frozen=True)
class Data:
    """Groups of random words: prompts with completions in order of preference, best first."""

    num_prompts: int
    prompt_length: int
    completion_length: int
    num_completions: int = 2
    ragged: bool = False
    seed: int = 0

    def lengths(self) -> list[Lengths]:
        """The lengths of every group; the same on every machine."""
        rng = random.Random(self.seed)

        def drawn(length: int) -> int:
            spread = round(length * RAGGED_SHARE) if self.ragged else 0
            return max(SHORTEST, rng.randint(length - spread, length + spread))

        return [
            Lengths(
                drawn(self.prompt_length),
                tuple(drawn(self.completion_length) for _ in range(self.num_completions)),
            )
            for _ in range(self.num_prompts)
        ]


@dataclass(frozen=True)
class Case:
    """One piece of work that every side does alike."""

    name: str
    task: Task
    model: str
    dtype: Dtype
    data: Data
    prompts_per_step: int
    epochs: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    lora_rank: int = 0
    """0 trains all weights."""
    algorithm: str = ""
    """Of reinforcement."""
    rl: dict[str, Any] = field(default_factory=dict)
    """Further keys of `rl`."""
    scored_by_model: bool = False
    """Of reinforcement: a reward model scores, and the critic begins as it."""

    @property
    def pairs_per_prompt(self) -> int:
        """All pairs of a ranking for a reward model, one pair otherwise; of what is sampled, the completions."""
        if self.task == "generate":
            return self.data.num_completions
        return math.comb(self.data.num_completions, 2) if self.task == "reward" else 1

    @property
    def num_pairs(self) -> int:
        """Pairs in the data."""
        return self.data.num_prompts * self.pairs_per_prompt

    @property
    def pairs_per_step(self) -> int:
        """Pairs in one optimiser step."""
        return self.prompts_per_step * self.pairs_per_prompt

    @property
    def num_steps(self) -> int:
        """Optimiser steps; of what is sampled, the tokens of a completion."""
        if self.task == "generate":
            return self.data.completion_length
        return math.ceil(self.data.num_prompts * self.epochs / self.prompts_per_step)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and completion together."""
        return max(one.prompt + max(one.completions) for one in self.data.lengths())

    @property
    def tokens_that_count(self) -> int:
        """Every prompt once, every completion once, no padding; for each pass over the data."""
        return self.epochs * sum(one.prompt + sum(one.completions) for one in self.data.lengths())

    @property
    def flops(self) -> float:
        """Floating-point operations that the tokens that count need: training passes, and the reference once for DPO; one
        forward pass for what is sampled."""
        shape, with_head = SHAPES[self.model], self.task in ("dpo", "generate")
        forward = sum(
            forward_flops(shape, one.prompt, one.completions, with_head=with_head)
            for one in self.data.lengths()
        )
        if self.task == "generate":
            return forward
        passes = 2 if self.lora_rank else 3  # frozen weights need no gradient of their own
        return forward * (passes * self.epochs + with_head)


@dataclass(frozen=True)
class Side:
    """Who does the work, and with which settings."""

    label: str
    framework: Literal["prefloop", "trl", "transformers", "continuous_batching", "vllm"]
    microbatch: int = 0
    """Pairs in one forward pass of TRL, tokens in one of prefloop; 0 finds TRL's best, and leaves prefloop its default."""
    gradient_checkpointing: bool = False
    precomputed_reference: bool = True
    group_by_length: bool = False
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """What a side says about work it has done."""

    whole: Moment
    """From model folder to model folder."""
    parts: dict[str, Moment]
    """The whole without loading and saving models: reference log-probabilities, optimiser steps, whatever came before."""
    train_s: float
    """Optimiser steps alone, by the trainer's own log or clock."""
    num_pairs: int
    num_steps: int
    loss_first: float
    loss_last: float
    picks: Sequence[tuple[int, int]] = ()
    """Chosen and rejected completion of each prompt, where the work selects them."""

    @classmethod
    def of_samples(cls, took: Moment, *, num_completions: int, num_tokens: int) -> "Done":
        """What was sampled, with the mean length of a completion in place of steps; there is no loss."""
        length = round(num_tokens / num_completions)
        return cls(took, {"sample": took}, 0.0, num_completions, length, 0.0, 0.0)


@dataclass(frozen=True)
class Measured:
    """What one run took and what came out of it; times but `steps_cpu_s` and `seconds` are of the wall clock."""

    whole_s: float
    steps_s: float
    """The sum of the parts."""
    steps_cpu_s: float
    """The same in CPU seconds of all threads; on one thread, much less than `steps_s` says that the machine was busy."""
    seconds: float
    """What speeds are made of: `steps_cpu_s` on one thread of a CPU, where neighbours disturb it least, else `steps_s`."""
    parts: dict[str, float]
    """Of `seconds`, by name."""
    train_s: float
    num_pairs: int
    num_steps: int
    loss_first: float
    loss_last: float
    picks: Sequence[tuple[int, int]]
    peak_growth_mb: float
    """Peak memory over the imports and one float32 copy of the weights."""
    weights_dtype: str
    activations_dtype: str
