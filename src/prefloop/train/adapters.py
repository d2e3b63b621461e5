"""Low-rank adapters around a model, and back to plain weights."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from prefloop.config import LoraSection


def with_adapters(model: PreTrainedModel, lora: LoraSection | None, *, task: str) -> Any:
    """The model itself, or a peft model that trains low-rank adapters only."""
    if lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type=task,
    )
    return get_peft_model(model, config)


def merged(model: nn.Module) -> PreTrainedModel:
    """The plain model, adapters merged into its weights."""
    merge = getattr(model, "merge_and_unload", None)
    return merge() if merge is not None else model  # type: ignore[return-value]
