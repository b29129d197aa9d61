"""The losses as modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from ._backend import Backend
from .kernels import Kernel
from .ops.aggregate.op import total_correlation
from .ops.mmd.op import mmd
from .ops.stein.op import stein_loss
from .priors import Prior

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["MMDLoss", "SteinLoss", "TotalCorrelation"]


class MMDLoss(torch.nn.Module):
    """`vimae_kernels.mmd` as a module: MMDLoss()(z) is the squared MMD of z to N(0, I).

    Args:
        prior, kernel, estimator, generator, group, backend: as of `vimae_kernels.mmd`. A prior given as a
            tensor moves with the module, but is not part of its state.
    """

    def __init__(
        self,
        prior: Prior = "normal",
        kernel: Kernel = "imq",
        *,
        estimator: Literal["unbiased", "biased", "closed_form"] = "unbiased",
        generator: torch.Generator | None = None,
        group: ProcessGroup | None = None,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        if isinstance(prior, Tensor):
            self.register_buffer("prior", prior, persistent=False)
        else:
            self.prior = prior
        self.kernel = kernel
        self.estimator = estimator
        self.generator = generator
        self.group = group
        self.backend = backend

    def forward(self, z: Tensor, prior: Prior | None = None) -> Tensor:
        """(...) for z (..., n, d). `prior`, where given, stands in for the module's."""
        return mmd(
            z,
            self.prior if prior is None else prior,
            self.kernel,
            estimator=self.estimator,
            generator=self.generator,
            group=self.group,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        prior = self.prior if not isinstance(self.prior, Tensor) else tuple(self.prior.shape)
        return f"prior={prior!r}, kernel={self.kernel!r}, estimator={self.estimator!r}"


class SteinLoss(torch.nn.Module):
    """`vimae_kernels.stein_loss` as a module: descending SteinLoss()(z) moves z towards N(0, I).

    Args:
        prior, kernel, group, backend: as of `vimae_kernels.stein_loss`.
    """

    def __init__(
        self,
        prior: Distribution | Literal["normal", "logistic"] = "normal",
        kernel: Kernel = "rbf",
        *,
        group: ProcessGroup | None = None,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        self.prior = prior
        self.kernel = kernel
        self.group = group
        self.backend = backend

    def forward(self, z: Tensor, score: Tensor | None = None) -> Tensor:
        """(...) for z (..., n, d). `score`, where given, stands in for that of the module's prior."""
        return stein_loss(
            z,
            self.prior if score is None else "normal",
            self.kernel,
            score=score,
            group=self.group,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return f"prior={self.prior!r}, kernel={self.kernel!r}"


class TotalCorrelation(torch.nn.Module):
    """`vimae_kernels.total_correlation` as a module.

    Args:
        weighting, dataset_size, backend: as of `vimae_kernels.total_correlation`.
    """

    def __init__(
        self,
        *,
        weighting: Literal["uniform", "mws", "mss"] = "uniform",
        dataset_size: int | None = None,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        self.weighting = weighting
        self.dataset_size = dataset_size
        self.backend = backend

    def forward(self, z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        """(...) in nats, for z (..., n, d), mean and log_var (..., B, d)."""
        return total_correlation(
            z,
            mean,
            log_var,
            weighting=self.weighting,
            dataset_size=self.dataset_size,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return f"weighting={self.weighting!r}, dataset_size={self.dataset_size}"
