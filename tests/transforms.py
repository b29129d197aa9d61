"""Every transform of torch.func, and every ordered pair of them, over every operation: `python tests/transforms.py`.

The truth is the reference through the same transforms; what is expected stands in tests/operations.py.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent)]

from operations import F64, OPERATIONS, Operation, inputs_of, weighted  # noqa: E402

Function = Callable[[Tensor], Tensor]
N, D = 5, 2


def vjp(f: Function) -> Function:
    def pulled(x: Tensor) -> Tensor:
        out, pull = torch.func.vjp(f, x)
        return pull(ramp(out))[0]

    return pulled


def jvp(f: Function) -> Function:
    return lambda x: torch.func.jvp(f, (x,), (ramp(x),))[1]


def vmap(f: Function) -> Function:
    mapped = torch.func.vmap(f, randomness="same")
    return lambda x: mapped(torch.stack([x, 0.5 * x, -x]))


def grad(f: Function) -> Function:
    return torch.func.grad(lambda x: (f(x) * ramp(f(x))).sum())


def ramp(x: Tensor) -> Tensor:
    """A weight for each element, of its shape."""
    return torch.linspace(1, 2, x.numel(), dtype=x.dtype, device=x.device).reshape(x.shape)


# With how often each differentiates, and whether in forward mode.
TRANSFORMS: dict[str, tuple[Callable[[Function], Function], int, bool]] = {
    "grad": (grad, 1, False),
    "vjp": (vjp, 1, False),
    "jacrev": (torch.func.jacrev, 1, False),
    "jvp": (jvp, 1, True),
    "jacfwd": (partial(torch.func.jacfwd, randomness="same"), 1, True),
    "hessian": (
        lambda f: torch.func.jacfwd(torch.func.jacrev(f), randomness="same"),
        2,
        True,
    ),
    "vmap": (vmap, 0, False),
}
CHAINS = [(name,) for name in TRANSFORMS] + list(itertools.product(TRANSFORMS, repeat=2))


def expected(operation: Operation, chain: tuple[str, ...]) -> str:
    """ "right" or "refused"."""
    if not operation.differentiable:
        return "right"  # its derivatives are 0
    orders = sum(TRANSFORMS[name][1] for name in chain)
    forward = any(TRANSFORMS[name][2] for name in chain)
    fits = orders <= operation.orders and (operation.forward or not forward)
    return "right" if fits else "refused"


def point(device: str = "cpu") -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(N, D, generator=g, dtype=F64).to(device) / 2


def function(operation: Operation, backend: str | None, device: str = "cpu") -> Function:
    """Of one tensor, on which every input depends: a number."""
    fixed = inputs_of(operation, N, D, F64, device)

    def f(x: Tensor) -> Tensor:
        inputs = [t + (i + 1) * x for i, t in enumerate(fixed)]
        outputs = operation.seeded(*inputs, backend=backend)
        # Backends draw other permutations: of a test the statistic alone is compared.
        return weighted(outputs[:1] if operation.name == "mmd_test" else outputs)

    return f


def apply(chain: tuple[str, ...], f: Function) -> Function:
    """chain[0](chain[1](f))."""
    for name in reversed(chain):
        f = TRANSFORMS[name][0](f)
    return f


def refusal(operation: Operation) -> str:
    """What a refusal must match: one line, with the name of the operation and the way out."""
    name = operation.name.split(",")[0]
    return rf"^vimae_kernels\.{name} has .*backend='reference'[^\n]*$"


def outcome(operation: Operation, chain: tuple[str, ...], backend: str, device: str = "cpu") -> str:
    """ "right", "refused", or what else happened."""
    try:
        got = apply(chain, function(operation, backend, device))(point(device))
    except Exception as error:
        ours = isinstance(error, RuntimeError) and re.match(refusal(operation), str(error))
        return "refused" if ours else f"{type(error).__name__}: {error}"
    want = apply(chain, function(operation, "reference", device))(point(device))
    return "right" if torch.allclose(got, want, rtol=1e-8, atol=1e-10) else "wrong"


def main() -> int:
    bad = 0
    backend = sys.argv[1] if len(sys.argv) > 1 else "native"
    marks = {"right": "yes", "refused": "-"}
    for operation in OPERATIONS:
        print(f"\n{operation}   (rows: outer transform; yes: right, -: refused)")
        table = {chain: outcome(operation, chain, backend) for chain in CHAINS}
        print(" " * 9 + "".join(f"{name:>9}" for name in ["alone", *TRANSFORMS]))
        for outer in TRANSFORMS:
            row = [table[(outer,)], *(table[outer, inner] for inner in TRANSFORMS)]
            print(f"{outer:9}" + "".join(f"{marks.get(cell, 'ERROR'):>9}" for cell in row))
        for chain, found in table.items():
            if found != expected(operation, chain):
                bad += 1
                print("  not as expected:", " of ".join(chain), "->", found.splitlines()[0])
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
