"""The losses as modules.

They refuse what the functions refuse when they are made, as far as that depends on no data. What they return has one
value for each batch entry, as that of the functions: `.mean()` or `.sum()` is torch's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from . import _checks, _score
from ._backend import Backend, check_backend
from ._distributed import check_group
from .kernels import Kernel, resolve_kernel
from .ops.aggregate.op import check_weighting, total_correlation
from .ops.mmd.op import check_options, mmd
from .ops.stein.op import stein_loss
from .priors import Prior

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["MMDLoss", "SteinLoss", "TotalCorrelation"]


class MMDLoss(torch.nn.Module):
    """`vimae_kernels.mmd` as a module: MMDLoss()(z) is the squared MMD of z to N(0, I).

    Args:
        prior, kernel, estimator, generator, group, backend: as of `vimae_kernels.mmd`. A prior given as an
            `nn.Parameter` is a parameter of the module; as another tensor it moves with the module, but is not
            part of its state. A distribution is left as it is, its parameters in whose hands they are.
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
        check_options(prior, kernel, estimator)
        _checks.generator(generator)
        check_group(group)
        check_backend(backend)
        if isinstance(prior, Tensor) and not isinstance(prior, torch.nn.Parameter):
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
        _score.check_prior(prior)
        resolve_kernel(kernel)
        check_group(group)
        check_backend(backend)
        self.prior = prior
        self.kernel = kernel
        self.group = group
        self.backend = backend

    def forward(self, z: Tensor, score: _score.Score | None = None) -> Tensor:
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
        weighting, dataset_size, group, backend: as of `vimae_kernels.total_correlation`.
    """

    def __init__(
        self,
        *,
        weighting: Literal["uniform", "mws", "mss"] = "uniform",
        dataset_size: int | None = None,
        group: ProcessGroup | None = None,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        check_weighting(weighting, dataset_size)
        check_group(group)
        check_backend(backend)
        self.weighting = weighting
        self.dataset_size = dataset_size
        self.group = group
        self.backend = backend

    def forward(self, z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        """(...) in nats, for z (..., n, d), mean and log_var (..., B, d)."""
        return total_correlation(
            z,
            mean,
            log_var,
            weighting=self.weighting,
            dataset_size=self.dataset_size,
            group=self.group,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return f"weighting={self.weighting!r}, dataset_size={self.dataset_size}"
