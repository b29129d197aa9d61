"""Fused, exact, differentiable kernels for distribution matching in latent space."""

from ._backend import use_backend
from ._info import info
from .kernels import IMQ, RBF
from .ops.mmd.op import mmd
from .priors import Logistic

__all__ = ["IMQ", "RBF", "Logistic", "info", "mmd", "use_backend"]
__version__ = "0.1.0"
