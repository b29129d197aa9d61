import os

# torch keeps what it compiled on disk, by the names of operations: not by what these names mean today.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills what the package allocates with NaN, so that an output nobody wrote cannot pass for a result."""
    new_empty = torch.Tensor.new_empty

    def poison(self: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        fresh = new_empty(self, *args, **kwargs)
        return fresh.fill_(float("nan")) if fresh.is_floating_point() else fresh.fill_(-(2**30))

    monkeypatch.setattr(torch.Tensor, "new_empty", poison)
