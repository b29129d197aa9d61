"""What a trained model is judged by."""

from __future__ import annotations

from typing import Any

import torch

import vimae_kernels as vk

from . import encoding
from .autoencoder import Autoencoder
from .data import ImageData, Images
from .joint import JointAutoencoder
from .metrics import labels


@torch.no_grad()
def summary(model: Autoencoder, images: Images) -> dict[str, float]:
    """How well a model reconstructs images, and how close their codes are to the prior.

    Args:
        model: any system.
        images: (N, C, H, W), N >= 2.

    Returns:
        "reconstruction", the mean of -log p(x|z) at the code of x (of a mean, where there is a
        posterior; ||x - g(z)||^2 in squared pixel units where the likelihood is "l2"), and "mmd",
        the unbiased squared MMD between N draws from q(z) and N samples of the prior, the same draws
        and samples at every call. Of a joint code, that of its continuous part.
    """
    error = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)
    for x in encoding.inputs(model, images):
        error -= model.log_likelihood(x, model.encode(x)).sum()
    z = encoding.draws(model, images)
    generator = torch.Generator(z.device).manual_seed(1)
    prior = model.sample_prior(len(z), generator)[:, : model.latent_dim]
    return {"reconstruction": float(error) / len(images), "mmd": float(vk.mmd(z, prior))}


def evaluate(model: Autoencoder, data: ImageData) -> dict[str, Any]:
    """All of the above on the test set: "images", "reconstruction", "mmd", "svm", "categories"."""
    results = {
        "images": len(data.test),
        **summary(model, data.test.images),
        "svm": labels.svm_accuracy(model, data),
    }
    if isinstance(model, JointAutoencoder):
        results["categories"] = labels.categories(model, data.test)
    return results
