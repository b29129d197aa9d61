"""Autoencoders trained by matching distributions in latent space, on top of `vimae_kernels`."""

from .autoencoder import Autoencoder
from .systems import build, hyperparameters, names

__all__ = ["Autoencoder", "build", "hyperparameters", "names"]
