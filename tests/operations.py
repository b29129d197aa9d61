"""Every public operation as a case: inputs, and a call that gives a tuple of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import vimae_kernels as vk

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


class Operation(NamedTuple):
    name: str
    run: Callable[
        ..., tuple[Tensor, ...]
    ]  # of the inputs, with backend= and, if random, generator=
    inputs: int = 1  # z alone; z and p; z, mean and log_var
    differentiable: int = 1  # how many of the inputs have a gradient
    unit: float = 1.0  # of the outputs: how large a result is that is only rounding
    random: bool = False
    orders: float = math.inf  # how often it can be differentiated, in any mode
    forward: bool = True  # whether forward mode is one of them

    def __str__(self) -> str:
        return self.name

    def seeded(self, *inputs: Tensor, backend: str | None) -> tuple[Tensor, ...]:
        """The same random numbers at every call."""
        if not self.random:
            return self.run(*inputs, backend=backend)
        generator = torch.Generator(inputs[0].device).manual_seed(3)
        return self.run(*inputs, backend=backend, generator=generator)


def tuple_of(function: Callable[..., Any], **fixed: Any) -> Callable[..., tuple[Tensor, ...]]:
    def run(*inputs: Tensor, **options: Any) -> tuple[Tensor, ...]:
        result = function(*inputs, **fixed, **options)
        return (result,) if isinstance(result, Tensor) else tuple(result)

    return run


def with_score(function: Callable[..., Any], **fixed: Any) -> Callable[..., tuple[Tensor, ...]]:
    def run(z: Tensor, score: Tensor, **options: Any) -> tuple[Tensor, ...]:
        return (function(z, score=score, **fixed, **options),)

    return run


def with_tau(logits: Tensor, tau: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """One temperature for each row."""
    return (vk.gumbel_softmax(logits, 0.5 + tau[..., :1].square(), **options),)


SCALES = vk.IMQ((1.0, 2.0, 4.0, 8.0, 20.0, 40.0, 80.0))
MSS = {"weighting": "mss", "dataset_size": 1000}
MWS = {"weighting": "mws", "dataset_size": 1000}
OPERATIONS = [
    Operation("mmd", tuple_of(vk.mmd), 2, 2, orders=2),
    Operation(
        "mmd, seven scales", tuple_of(vk.mmd, kernel=SCALES, estimator="biased"), 2, 2, 7, orders=2
    ),
    Operation("mmd, median", tuple_of(vk.mmd, kernel=vk.RBF("median")), 2, 2, orders=2),
    Operation(
        "mmd, closed form", tuple_of(vk.mmd, prior="normal", estimator="closed_form"), orders=2
    ),
    Operation("mmd_test", tuple_of(vk.mmd_test, permutations=50), 2, 0, random=True),
    Operation("stein_gradient", tuple_of(vk.stein_gradient), 1, 0),
    Operation("stein_gradient, score", with_score(vk.stein_gradient, kernel="imq"), 2, 0),
    Operation("stein_loss", tuple_of(vk.stein_loss, prior="logistic")),
    Operation("ksd", tuple_of(vk.ksd), orders=1),
    Operation("ksd, score", with_score(vk.ksd, kernel="rbf", estimator="biased"), 2, 2, orders=1),
    Operation(
        "aggregate_log_density", tuple_of(vk.aggregate_log_density), 3, 3, orders=1, forward=False
    ),
    Operation(
        "aggregate_log_density, mss",
        tuple_of(vk.aggregate_log_density, **MSS),
        3,
        3,
        orders=1,
        forward=False,
    ),
    Operation(
        "latent_information", tuple_of(vk.latent_information, **MWS), 3, 3, orders=1, forward=False
    ),
    Operation("total_correlation", tuple_of(vk.total_correlation), 3, 3, orders=1),
    Operation("gumbel_softmax", tuple_of(vk.gumbel_softmax, tau=0.7), random=True),
    Operation("gumbel_softmax, hard", tuple_of(vk.gumbel_softmax, hard=True), random=True),
    Operation("gumbel_softmax, tensor tau", with_tau, 2, 2, random=True),
]


def inputs_of(
    operation: Operation, n: int, d: int, dtype: torch.dtype, device: str, batch: Any = ()
) -> list[Tensor]:
    """Numbers that every dtype holds exactly, so that float64 truth is of the same numbers."""
    g = torch.Generator().manual_seed(n + d)
    made = [torch.randn(*batch, n, d, generator=g) * scale for scale in (0.8, 1.0, 0.5)]
    return [t.bfloat16().half().to(device, dtype) for t in made[: operation.inputs]]


def evaluate(
    operation: Operation, inputs: list[Tensor], backend: str | None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Outputs, and gradients of a fixed weighting of all of them."""
    inputs = [t.detach() for t in inputs]
    active = inputs[: operation.differentiable]
    for t in active:
        t.requires_grad_()
    outputs = operation.seeded(*inputs, backend=backend)
    if not active:
        return tuple(t.detach() for t in outputs), ()
    gradients = torch.autograd.grad(weighted(outputs), active)
    return tuple(t.detach() for t in outputs), gradients


def weighted(outputs: tuple[Tensor, ...]) -> Tensor:
    """A sum in which every element of every output counts differently."""
    total = torch.zeros((), dtype=F64, device=outputs[0].device)
    for i, t in enumerate(outputs):
        weight = torch.arange(1.0, 1 + t.numel(), device=t.device, dtype=F64) / t.numel()
        total = total + ((i + 1) * (1 + weight.reshape(t.shape)) * t.double()).sum()
    return total
