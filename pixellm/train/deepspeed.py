"""The one place that knows DeepSpeed: building the engine, and full fp32 values by parameter name in and out of it.

Full values depend neither on the number of workers nor on the ZeRO stage, which is what makes a checkpoint of ours portable.
"""

import logging
import math
import os
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pixellm.errors import ModelError
from pixellm.train.config import TrainConfig
from pixellm.train.parameters import ParameterGroup

MOMENTS = ("exp_avg", "exp_avg_sq")
REDUCE_BUCKET_SIZE = 500_000_000  # values, DeepSpeed's default; the bucket is allocated whole


@dataclass(frozen=True)
class TrainedState:
    """Everything an optimiser step changes, in float32 by parameter name; `num_updates` is Adam's step count."""

    parameters: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    num_updates: int


def import_deepspeed(use_gpu: bool) -> ModuleType:
    """DeepSpeed for the device of this run. On the CPU its shared-memory collectives stay off: they would be compiled first, 40 s with a
    compiler at hand, and gloo does the same work."""
    if not use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if not use_gpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def build_deepspeed_config(config: TrainConfig, num_trained: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a run that trains `num_trained` values: its buckets are no larger than what goes through them."""
    values = config.to_deepspeed()
    values["zero_optimization"].setdefault("reduce_bucket_size", min(num_trained, REDUCE_BUCKET_SIZE))
    return values


class Engine:
    """A DeepSpeed engine around `model`, with the learning rate set by us at each step and its trained state by name."""

    def __init__(self, model: nn.Module, groups: list[ParameterGroup], config: TrainConfig):
        deepspeed = import_deepspeed(config.use_gpu)
        deepspeed.init_distributed(dist_backend="nccl" if config.use_gpu else "gloo", auto_mpi_discovery=False, verbose=False)
        self.config, self.groups, self._deepspeed = config, groups, deepspeed
        self.parameters = {name: parameter for group in groups for name, parameter in group.parameters.items()}
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        num_trained = sum(parameter.numel() for parameter in self.parameters.values())
        self.engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model, config=build_deepspeed_config(config, num_trained),
            model_parameters=[{"params": list(group.parameters.values()), "lr": 0.0} for group in groups])
        for values in self.engine.basic_optimizer.state.values():  # stage 0 in bf16 has already counted an empty step
            values["step"] = torch.zeros_like(values["step"])
        self._is_plain = config.zero_stage == 0

    @property
    def module(self) -> nn.Module:
        """The model itself, with its parameters in the precision of the run."""
        return self.engine.module

    @property
    def device(self) -> torch.device:
        """Where batches have to be."""
        return self.engine.device

    def forward(self, **inputs: Tensor) -> Any:
        """The model's forward pass."""
        return self.engine(**inputs)

    def backward(self, loss: Tensor) -> None:
        """Gradients of `loss`, summed over micro-steps and averaged over workers: scale the loss by their number to get the sum."""
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate_factor: float) -> float | None:
        """Ends a micro-step. The last one of an optimiser step updates the weights and returns the gradient's norm before clipping.

        A gradient that is no number updates nothing: the norm that is returned is not finite then.
        """
        is_update = self.engine.is_gradient_accumulation_boundary()
        for group, values in zip(self._optimizer.param_groups, self.groups, strict=True):
            group["lr"] = values.learning_rate * learning_rate_factor
        plain_norm = self._plain_norm() if is_update and self._is_plain and self.config.precision == "fp32" else None
        if plain_norm is not None and not math.isfinite(plain_norm):  # the other stages and precisions do so by themselves
            for parameter in self.parameters.values():
                parameter.grad = None
        self.engine.step()
        if not is_update:
            return None
        return plain_norm if plain_norm is not None else float(self.engine.get_global_grad_norm())

    def gather_state(self) -> TrainedState:
        """Full values, on every worker (collective: all workers call it). Needs one optimiser step to have been taken."""
        self._link_moments()
        parameters: dict[str, Tensor] = {}
        moments: dict[str, dict[str, Tensor]] = {moment: {} for moment in MOMENTS}
        for name, parameter in self.parameters.items():
            parameters[name] = self._get(parameter).detach().float().cpu().clone()
            for moment in MOMENTS:
                moments[moment][name] = self._get(parameter, moment).detach().float().cpu().clone()
        return TrainedState(parameters, moments, self._num_updates())

    def load_state(self, state: TrainedState) -> None:
        """Put full values in (all workers call it). The optimiser must have taken a step, at learning rate 0: before, it has no state.

        Raises ModelError when the names or shapes are not those that this run trains.
        """
        self._check_names(state)
        self._link_moments()
        for name, parameter in self.parameters.items():
            self._set(parameter, state.parameters[name].to(self.device))
            for moment in MOMENTS:
                self._set(parameter, state.moments[moment][name].to(self.device), moment)
        for values in self.engine.basic_optimizer.state.values():
            values["step"] = torch.full_like(values["step"], float(state.num_updates))

    def _link_moments(self) -> None:
        """DeepSpeed 0.19 links parameters to their moments after the first *group* was stepped, when later groups have none: link again."""
        if hasattr(self._optimizer, "_lazy_init_hp_params_optimizer_state"):
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _num_updates(self) -> int:
        states = list(self.engine.basic_optimizer.state.values())
        assert states, "the optimiser has no state before its first step"
        return int(states[0]["step"])

    def _get(self, parameter: nn.Parameter, moment: str | None = None) -> Tensor:
        if self._is_plain:
            master = self._master(parameter)
            return master if moment is None else self.engine.basic_optimizer.state[master][moment]
        if moment is None:
            return self._deepspeed.utils.safe_get_full_fp32_param(parameter)
        return self._deepspeed.utils.safe_get_full_optimizer_state(parameter, moment)

    def _set(self, parameter: nn.Parameter, value: Tensor, moment: str | None = None) -> None:
        if self._is_plain:
            self._get(parameter, moment).data.copy_(value)
        elif moment is None:
            self._deepspeed.utils.safe_set_full_fp32_param(parameter, value)
        else:
            self._deepspeed.utils.safe_set_full_optimizer_state(parameter, value, moment)
        if moment is not None:
            return
        # the master copy alone would leave the next forward pass with the old weights
        if self.config.zero_stage == 3:
            with self._deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if torch.distributed.get_rank() == 0:
                    parameter.data.copy_(value)
        else:
            parameter.data.copy_(value)

    def _master(self, parameter: nn.Parameter) -> Tensor:
        """Stage 0 has no helper of its own: the float32 copy of a parameter is the parameter, or its twin in DeepSpeed's wrapper."""
        if self.config.precision == "fp32":
            return parameter
        for low, high in zip(self._optimizer.fp16_groups, self._optimizer.fp32_groups, strict=True):
            for candidate, master in zip(low, high, strict=True):
                if candidate is parameter:
                    return master
        raise AssertionError("a trained parameter without a master copy")

    def _plain_norm(self) -> float:
        return float(torch.stack([p.grad.norm() for p in self.parameters.values() if p.grad is not None]).norm())

    def _check_names(self, state: TrainedState) -> None:
        ours, theirs = self.parameters.keys(), state.parameters.keys()
        missing, unknown = sorted(ours - theirs), sorted(theirs - ours)
        if missing or unknown:
            raise ModelError(f"the checkpoint and this run train different parameters: {len(missing)} only here {missing[:3]}, "
                             f"{len(unknown)} only there {unknown[:3]}; resume with the same `model`, `lora`, `frozen`, or another `run`")
        for name, parameter in self.parameters.items():
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            if shape != tuple(state.parameters[name].shape):
                found = tuple(state.parameters[name].shape)
                raise ModelError(f"{name} is {found} in the checkpoint, {shape} in the model; use another `run`")

