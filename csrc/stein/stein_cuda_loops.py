"""What the inner loops of stein_cuda.cu take by hand, for benchmarks/gpu_static.py and tests/test_cuda_static.py."""

import re

from vimae_kernels._triton import Loop

VALUE, GRADIENT, STEIN = "012"


def loops(kernel: str) -> tuple[Loop, ...]:
    """Of a kernel by its name without namespaces; a pair and coordinate is a subtraction, a multiply-add and another
    for what pulls on the row, a given score three more for its products."""
    if found := re.match(r"register_kernel<(\d+), \d, \(Family\)(\d), \(Sum\)(\d), true>", kernel):
        d, rbf, computes = int(found[1]), found[2] == "1", found[3]
        # A reciprocal or exponential and its argument; powers of it and their factors; p, u and its force, and sums.
        powers = {STEIN: 2, VALUE: 3, GRADIENT: 4}[computes] * (1 if rbf else 2)
        rest = {STEIN: 2, VALUE: 8, GRADIENT: 16}[computes]
        plain = (2 if computes == VALUE else 3) * d + 2 + powers + rest
        # Not the loop for tiles on the diagonal, which selects.
        return (Loop("pairs", "MUFU", 1, plain, without="FSEL"),)
    if found := re.match(
        r"tiled_kernel<(float|double), \(Family\)(\d), \(Sum\)(\d), (true|false)>", kernel
    ):
        double, rbf = found[1] == "double", found[2] == "1"
        products = found[3] != STEIN and found[4] == "false"
        add, fma = ("DADD", "DFMA") if double else ("FADD", "FFMA")
        # One more addition for sixteen coordinates: squares are summed per chunk. In float64 the value of the
        # discrepancy has 1.252 times these.
        limit = 1.26 if double else 1.25
        distances = Loop("distances", add, products + 17 / 16, 5 if products else 2, limit=limit)
        around = "DSETP" if double and rbf else "MUFU"
        pull = Loop("pull", fma, 1, 1, without=around)
        return (distances,) if found[3] == VALUE else (distances, pull)
    return ()
