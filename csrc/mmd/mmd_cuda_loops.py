"""What the inner loops of mmd_cuda.cu take by hand, for benchmarks/gpu_static.py and tests/test_cuda_static.py."""

import re

from vimae_kernels._triton import Loop


def loops(kernel: str) -> tuple[Loop, ...]:
    """Of a kernel by its name without namespaces; a pair and coordinate is a subtraction, a multiply-add and another
    for the gradient, a kernel a reciprocal or exponential and two more."""
    if found := re.match(r"register_kernel<(\d+), \d, \(Family\)\d, (true|false), true>", kernel):
        d, gradient = int(found[1]), found[2] == "true"
        return (Loop("pairs", "MUFU", 1, (3 if gradient else 2) * d + 3),)
    if found := re.match(r"tiled_kernel<(float|double), \(Family\)(\d), \(Order\)(\d)>", kernel):
        double, rbf, hessian = found[1] == "double", found[2] == "1", found[3] == "2"
        add, fma = ("DADD", "DFMA") if double else ("FADD", "FFMA")
        # One more addition for sixteen coordinates: squares are summed per chunk.
        distances = Loop("distances", add, hessian + 17 / 16, 4 if hessian else 2)
        around = "DSETP" if double and rbf else "MUFU"
        gradient = Loop("gradient", fma, 1, 1, without=around)
        return (distances,) if found[3] == "0" else (distances, gradient)
    return ()
