"""`python -m vimae_kernels`: what can run here, and what is missing for the rest."""

from ._info import info

info()
