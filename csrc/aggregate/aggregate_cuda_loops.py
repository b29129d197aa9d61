"""What inner loops of aggregate_cuda.cu take by hand, for benchmarks/gpu_static.py and tests/test_cuda_static.py."""

import re

from vimae_kernels._triton import Loop


def loops(kernel: str) -> tuple[Loop, ...]:
    """Of a kernel by its name without namespaces, in float32 without stratified weights. A pair of one coordinate is
    a difference, a product, a multiply-add, an exponential and what it is for; of many, the first three."""
    found = re.match(r"(marginal|joint)(_rows|_columns|)_kernel<float, false>", kernel)
    if not found:
        return ()
    if found[1] == "marginal":
        return (Loop("pairs", "MUFU", 1, {"": 7, "_rows": 6, "_columns": 10}[found[2]]),)
    return (Loop("densities", "FFMA", 1, 3),)
