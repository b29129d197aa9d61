"""Fused, exact, differentiable kernels for distribution matching in latent space."""

from . import nn
from ._backend import use_backend
from ._info import info
from .kernels import IMQ, RBF
from .ops.aggregate.op import aggregate_log_density, latent_information, total_correlation
from .ops.gumbel.op import gumbel_softmax
from .ops.ksd.op import ksd
from .ops.mmd.op import mmd
from .ops.permutation.op import mmd_test
from .ops.stein.op import stein_gradient, stein_loss
from .priors import Logistic

__all__ = [
    "IMQ",
    "RBF",
    "Logistic",
    "aggregate_log_density",
    "gumbel_softmax",
    "info",
    "ksd",
    "latent_information",
    "mmd",
    "mmd_test",
    "nn",
    "stein_gradient",
    "stein_loss",
    "total_correlation",
    "use_backend",
]
__version__ = "0.1.0"
