"""Where and how things run."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prefloop.config.section import Section


class RuntimeSection(Section):
    """Where and how things run. Must not change results, so nothing here is part of an artefact's key."""

    workspace: str = "workspace"
    """Folder of all artefacts and runs."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where models run."""
    num_processes: int = Field(default=1, ge=1)
    """Processes on this machine: training is data parallel, sampling shares the prompts."""
    sharding: Literal["none", "fsdp"] = "none"
    """`fsdp`: training processes share weights, gradients and optimiser state instead of holding a copy each."""
    deepspeed: str | None = None
    """A JSON file with DeepSpeed's `zero_optimization`, which then takes the place of `sharding`."""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 leaves the choice to torch."""
    microbatch_tokens: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Tokens computed in one forward and backward pass; the optimiser's batch is cut into as many as needed. `auto` is 2048
    on a CPU, where more is no faster and takes memory, and 8192 elsewhere."""
    generation_rows: int = Field(default=256, ge=1)
    """Completions that a process samples side by side, at most."""
    generation_tokens: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Tokens whose keys and values a process holds while it samples, prompts and completions at their longest; where they
    are long, fewer run side by side. `auto` is half of the memory that the weights leave, 262144 at most."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    attention: Literal["sdpa", "flex", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel. `sdpa` and `flex` (CUDA only) can share prompts; the others are asked of transformers."""
    share_prompts: bool = True
    """Compute the prompt once for all completions of a group, where the model allows it."""
    save_every_steps: int = Field(default=50, ge=1)
    """Optimiser steps between checkpoints inside a training stage."""
    trackers: list[Literal["wandb", "tensorboard", "trackio"]] = []
    """Where metrics go besides metrics.jsonl."""

    @model_validator(mode="after")
    def _one_way_to_share(self) -> "RuntimeSection":
        if self.deepspeed is not None and self.sharding != "none":
            raise ValueError("deepspeed: takes the place of sharding; keep one of the two")
        return self
