"""How what is trained is spread over processes, and how its state is put together again.

Every process holds all weights (DDP), or torch spreads weights, gradients and optimiser state over them (FSDP2), or
DeepSpeed does (ZeRO). All take the same steps, and all give and take the same state: whole tensors by name, so that
training can go on with another number of processes or spread in another way. Knows nothing about losses or files.
"""

import contextlib
import copy
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from prefloop.config import OptimizerSection, RuntimeSection
from prefloop.forward import plain
from prefloop.interfaces import InputError
from prefloop.launch import zero_settings
from prefloop.modeling import layers_of
from prefloop.train.optimizers import make_optimizer

State = dict[str, Any]
"""Whole tensors on the CPU, and what else a checkpoint needs to know."""


class Spread(Protocol):
    """A module in training, wherever its weights are."""

    module: nn.Module
    """What losses are computed with."""
    optimizer: Optimizer
    """What the schedule sets the learning rate of."""
    weights: dict[str, nn.Parameter]
    """Those that are trained, or this process's parts of them, by name."""
    even: bool
    """Whether all processes must compute equally many microbatches."""

    def microbatch(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around a forward and backward pass; gradients of all processes are averaged at the last one of a step."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds to the gradients."""
        ...

    def tried(self, loss: Tensor) -> bool:
        """Whether the gradient of this loss alone is finite, as far as that can be told; forgets it."""
        ...

    def clip(self, max_norm: float) -> float:
        """Clips the gradient and returns the norm that it had."""
        ...

    def step(self) -> None:
        """Changes the weights and forgets the gradients."""
        ...

    def state(self) -> State:
        """Weights that are trained, buffers, and the optimiser's state. All processes take part."""
        ...

    def load(self, state: State) -> None:
        """Goes on from such a state."""
        ...

    def finish(self) -> None:
        """Puts the whole weights back into the module that was given."""
        ...


def spread(
    module: nn.Module, options: OptimizerSection, accelerator: Accelerator, runtime: RuntimeSection
) -> "InTorch | InDeepSpeed":
    """The module made ready for training on all processes. Raises InputError for what cannot be spread as asked."""
    sharded = runtime.sharding == "fsdp" and accelerator.num_processes > 1
    if sharded or runtime.deepspeed is not None:
        _check_can_be_sharded(options, "runtime.deepspeed" if runtime.deepspeed else "runtime.sharding: fsdp")
    if runtime.deepspeed is not None:
        return InDeepSpeed(module, options, zero_settings(runtime.deepspeed))
    if sharded:
        return InTorch(module, _sharded(module, accelerator), options, even=True)
    trained = accelerator.prepare_model(module)
    return InTorch(module, trained, options, pause=lambda: accelerator.no_sync(trained))


def _check_can_be_sharded(options: OptimizerSection, key: str) -> None:
    if options.optimizer != "adamw":
        raise InputError(
            f"{key}: optimizer {options.optimizer} needs whole weights; use adamw, or do not shard"
        )
    if options.lora is not None and options.lora.quantize != "none":
        raise InputError(
            f"{key}: weights in 4 bits cannot be sharded; set lora.quantize to none, or do not shard"
        )


def trained_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that ask for gradients, by name; shared ones once."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be spread over processes. All processes take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _own(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, spread as `like` is."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors for a checkpoint. All processes take part."""
    return {name: whole(one.detach()).to("cpu", copy=True) for name, one in tensors.items()}


@torch.no_grad()
def fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Puts whole values into tensors that may be spread over processes."""
    for name, one in tensors.items():
        one.copy_(_own(values[name], one))


# --- by torch --------------------------------------------------------------------------------------------------------


class InTorch:
    """Weights in every process, or in shards that torch knows to handle."""

    def __init__(
        self,
        given: nn.Module,
        module: nn.Module,
        options: OptimizerSection,
        *,
        even: bool = False,
        pause: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self._given = given
        self._bare = module if even else given
        self._pause = pause
        self.module = module
        self.even = even
        self.weights = trained_weights(self._bare)
        self.optimizer = make_optimizer(self.weights, options)

    def microbatch(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if last else self._pause()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def tried(self, loss: Tensor) -> bool:
        loss.backward()
        norm = self.clip(math.inf)
        self.optimizer.zero_grad(set_to_none=True)
        return math.isfinite(norm)

    def clip(self, max_norm: float) -> float:
        return float(whole(nn.utils.clip_grad_norm_(list(self.weights.values()), max_norm)))

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> State:
        optimizer = tree_map(
            lambda one: whole(one).cpu() if isinstance(one, Tensor) else one, self.optimizer.state_dict()
        )
        return {
            "weights": whole_on_cpu(self.weights),
            "buffers": whole_on_cpu(dict(self._bare.named_buffers())),
            "optimizer": optimizer,
        }

    def load(self, state: State) -> None:
        fill(self.weights, state["weights"])
        for name, buffer in self._bare.named_buffers():
            buffer.data = state["buffers"][name].to(buffer.device)
        optimizer = state["optimizer"]
        for index, weight in enumerate(self.weights.values()):
            values = optimizer["state"].get(index, {})
            for name, value in values.items():
                if isinstance(weight, DTensor) and isinstance(value, Tensor) and value.shape == weight.shape:
                    values[name] = _own(value, weight)
        self.optimizer.load_state_dict(optimizer)

    def finish(self) -> None:
        if self._bare is not self._given:
            _hand_back(self._given, [whole(one.detach()) for one in self._bare.parameters()])


def _sharded(module: Any, accelerator: Accelerator) -> nn.Module:
    """A twin of the module whose weights are spread over all processes, layer by layer; the module is left empty."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    twin = _twin(module)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for layer in layers_of(plain(twin.model)) if hasattr(twin, "model") else []:
        fully_shard(layer, mesh=mesh)
    # embeddings and head stay together: they may be one matrix
    fully_shard(twin, mesh=mesh)
    _empty(module)
    return twin


def _twin(module: Any) -> Any:
    """A copy of the module with parameters of its own that share memory with those of the module."""
    shared = {
        id(one): nn.Parameter(one.detach(), requires_grad=one.requires_grad) for one in module.parameters()
    }
    return copy.deepcopy(module, shared)


def _empty(module: nn.Module) -> None:
    for weight in module.parameters():
        weight.data = weight.data.new_empty(0)


def _hand_back(module: nn.Module, values: list[Tensor]) -> None:
    for weight, value in zip(module.parameters(), values, strict=True):
        weight.data = value


# --- by DeepSpeed ----------------------------------------------------------------------------------------------------


MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a weight, as torch and DeepSpeed call it."""


class InDeepSpeed:
    """Weights, gradients and optimiser state in DeepSpeed's hands (ZeRO, arXiv:1910.02054)."""

    even = True

    def __init__(self, given: nn.Module, options: OptimizerSection, settings: dict[str, Any]) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        import deepspeed  # type: ignore[import-not-found]

        self._given = given
        twin = _twin(given)
        self.weights = trained_weights(twin)
        self.optimizer = make_optimizer(self.weights, options)
        self._group = {
            name: value for name, value in self.optimizer.param_groups[0].items() if name != "params"
        }
        settings = {
            **settings,
            "train_micro_batch_size_per_gpu": 1,  # it only counts; what a microbatch is, the loop decides
            "gradient_accumulation_steps": 1,
            "gradient_clipping": options.max_grad_norm,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        self._engine, *_ = deepspeed.initialize(model=twin, optimizer=self.optimizer, config=settings)
        self.module = self._engine
        _empty(given)

    def microbatch(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        self._engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def tried(self, loss: Tensor) -> bool:
        """Not told here: DeepSpeed has no backward pass without a step."""
        return True

    def clip(self, max_norm: float) -> float:
        """Also takes the step: DeepSpeed does both at once."""
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def step(self) -> None:
        """Done already."""

    def state(self) -> State:
        from deepspeed.utils import (  # type: ignore[import-not-found]
            safe_get_full_fp32_param,
            safe_get_full_optimizer_state,
        )

        weights = list(self.weights.values())
        step = next(iter(self.optimizer.state.values()))["step"].cpu()
        moments = {
            index: {
                "step": step.clone(),
                **{name: safe_get_full_optimizer_state(weight, name).cpu() for name in MOMENTS},
            }
            for index, weight in enumerate(weights)
        }
        group = {name: self.optimizer.param_groups[0][name] for name in self._group}
        return {
            "weights": {name: safe_get_full_fp32_param(one).cpu() for name, one in self.weights.items()},
            "buffers": whole_on_cpu(dict(self._engine.module.named_buffers())),
            "optimizer": {"state": moments, "param_groups": [{**group, "params": list(range(len(weights)))}]},
        }

    def load(self, state: State) -> None:
        import deepspeed  # type: ignore[import-not-found]
        from deepspeed.utils import (  # type: ignore[import-not-found]
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
        )

        with deepspeed.zero.GatheredParameters(list(self.weights.values()), modifier_rank=0):
            fill(self.weights, state["weights"])
        moments = state["optimizer"]["state"]
        self._begin_moments(moments[0]["step"])
        for index, (name, weight) in enumerate(self.weights.items()):
            safe_set_full_fp32_param(weight, state["weights"][name].to(weight.device))
            for key in MOMENTS:
                safe_set_full_optimizer_state(weight, moments[index][key].to(weight.device), key)
        for name, buffer in self._engine.module.named_buffers():
            buffer.data = state["buffers"][name].to(buffer.device)
        for name in self._group:
            self.optimizer.param_groups[0][name] = state["optimizer"]["param_groups"][0][name]

    def _begin_moments(self, step: Tensor) -> None:
        """Makes the optimiser's state, which DeepSpeed would make at the first step, so that it can be filled."""
        zero = self._engine.optimizer
        stage_3 = hasattr(zero, "fp32_partitioned_groups_flat")
        for flat in zero.fp32_partitioned_groups_flat if stage_3 else zero.single_partition_of_fp32_groups:
            self.optimizer.state[flat] = {
                "step": step.to(flat.device, copy=True),
                **{name: torch.zeros_like(flat) for name in MOMENTS},
            }
        if not stage_3:
            zero._lazy_init_hp_params_optimizer_state()

    def finish(self) -> None:
        import deepspeed  # type: ignore[import-not-found]

        parameters = list(self._engine.module.parameters())
        with deepspeed.zero.GatheredParameters(parameters):
            values = [one.detach().clone() for one in parameters]
        self._engine.destroy()
        _hand_back(self._given, values)
