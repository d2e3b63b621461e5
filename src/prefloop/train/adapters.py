"""A model made ready for training, and back to plain weights.

Decides which weights are trained: all of them, those above some frozen layers, or low-rank adapters, beside a base that may
be held in 4 bits. Knows nothing about losses or data.
"""

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from prefloop.batches import Batch
from prefloop.config import LoraSection, OptimizerSection, RuntimeSection
from prefloop.forward import LogpsModule, plain
from prefloop.interfaces import InputError
from prefloop.lean import LeanLinear
from prefloop.modeling import device_of, layers_of
from prefloop.train.optimizers import require_bitsandbytes


def trainable(
    model: PreTrainedModel,
    options: OptimizerSection,
    *,
    task: str,
    dtype: str,
    seed: int,
    runtime: RuntimeSection,
) -> Any:
    """The model, or a peft model around it, with exactly the weights to be trained asking for gradients.

    `task` is peft's name of what the model is for; `dtype` is what matrices are multiplied in. Raises InputError.
    """
    if options.lora is not None and options.lora.quantize == "4bit":
        quantise(model, dtype=getattr(torch, dtype), device=device_of(runtime))
    trained = with_adapters(model, options.lora, task=task, seed=seed)
    if options.frozen_layers:
        freeze(trained, options.frozen_layers)
    if runtime.gradient_checkpointing:
        checkpoint_activations(plain(trained))
    return trained


def without_dropout(model: nn.Module) -> None:
    """Has the model compute in training what it computes otherwise: dropout would be in every ratio and difference."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # layers that call the function keep the rate as a number of their own
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def checkpoint_activations(model: Any) -> None:
    """Has each layer's activations computed again in the backward pass. Raises InputError for models that cannot."""
    # transformers renamed it; models of the hub may know one name only
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise InputError(f"runtime.gradient_checkpointing: {error}") from error
    # only reentrant checkpoints need it; with frozen layers it would cost a backward pass through all of them
    model.disable_input_require_grads()


def freeze(model: Any, number: int) -> None:
    """Keeps the embeddings and the first layers as they are. Raises InputError where the model has fewer."""
    base = plain(model)
    layers = layers_of(base)
    if number > len(layers):
        raise InputError(f"frozen_layers = {number}: the model has {len(layers)} layers")
    trunk = getattr(base, base.base_model_prefix)
    embeddings = [
        base.get_input_embeddings(),
        *(one for one in trunk.modules() if isinstance(one, nn.Embedding)),
    ]
    for module in (*embeddings, *layers[:number]):
        module.requires_grad_(False)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise InputError(f"frozen_layers = {number}: nothing is left to train; freeze fewer layers")


def with_adapters(model: PreTrainedModel, lora: LoraSection | None, *, task: str, seed: int) -> Any:
    """The model itself, or a peft model that trains low-rank adapters only; `seed` decides how they begin."""
    if lora is None:
        return model
    from peft import LoraConfig

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        use_dora=lora.dora,
        task_type=task,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _wrapped(model, config)


def _wrapped(model: PreTrainedModel, config: Any) -> Any:
    from peft import get_peft_model

    with warnings.catch_warnings():  # peft reads a property by the name that transformers gave up
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, config)


class WithoutAdapters(nn.Module):
    """What a policy with adapters was before them: a reference that takes no memory of its own."""

    def __init__(self, policy: LogpsModule) -> None:
        super().__init__()
        self.policy = policy

    @property
    def model(self) -> Any:
        """The model with its adapters."""
        return self.policy.model

    @property
    def shares(self) -> bool:
        """Whether prompts are computed once for all their completions."""
        return self.policy.shares

    @property
    def pad_id(self) -> int:
        """The token that fills rows."""
        return self.policy.pad_id

    def forward(self, batch: Batch) -> Tensor:
        """Log-probabilities [t] of `batch.targets`, float32."""
        with self.model.disable_adapter():
            return self.policy(batch)


def merged(model: Any) -> PreTrainedModel:
    """The plain model, adapters merged into its weights; a quantised base is read anew as it was."""
    if not hasattr(model, "merge_and_unload"):
        return model
    return (_on_whole_base(model) if is_quantised(model) else model).merge_and_unload()


# --- four bits -------------------------------------------------------------------------------------------------------


def is_quantised(model: Any) -> bool:
    """Whether the base of a model is held in 4 bits."""
    return bool(getattr(plain(model), "is_loaded_in_4bit", False))


def quantise(model: Any, *, dtype: torch.dtype, device: torch.device) -> None:
    """Holds the linear layers of the trunk in 4-bit NormalFloat (arXiv:2305.14314), and multiplies in `dtype`."""
    require_bitsandbytes("lora.quantize: 4bit")
    from bitsandbytes.nn import Linear4bit, Params4bit

    trunk = getattr(model, model.base_model_prefix)
    places = [
        (parent, name, child)
        for parent in trunk.modules()
        for name, child in parent.named_children()
        if type(child) in (nn.Linear, LeanLinear)
    ]
    if not places:
        raise InputError(
            f"lora.quantize: {type(model).__name__} has no linear layers that could be held in 4 bits"
        )
    try:
        for parent, name, child in places:
            small = Linear4bit(
                child.in_features, child.out_features, bias=False, compute_dtype=dtype, quant_type="nf4"
            )
            small.weight = Params4bit(child.weight.detach(), requires_grad=False, quant_type="nf4")  # type: ignore[call-arg]
            small.bias = child.bias
            setattr(parent, name, small.to(device))
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"lora.quantize: bitsandbytes cannot hold weights in 4 bits on {device}: {error}; set it to none"
        ) from error
    model.is_loaded_in_4bit = True  # peft looks for it


def _on_whole_base(model: Any) -> Any:
    """The adapters of a quantised model around the weights that its base was made from."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    base = plain(model)
    with _quietly():
        whole = type(base).from_pretrained(
            base.name_or_path, config=copy.deepcopy(base.config), dtype=torch.float32
        )
    whole.set_attn_implementation(base.config._attn_implementation)
    whole = _wrapped(whole.to(base.device), model.peft_config["default"])
    set_peft_model_state_dict(whole, get_peft_model_state_dict(model))
    return whole


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' warnings: a reward model's head is not in its base, and comes with the adapters."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
