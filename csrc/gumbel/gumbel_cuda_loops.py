"""What the inner loops of gumbel_cuda.cu take by hand, for benchmarks/gpu_static.py and tests/test_cuda_static.py."""

import re

from vimae_kernels._triton import Loop

SOFT, HARD, BOTH = "012"


def loops(kernel: str) -> tuple[Loop, ...]:
    """Of a kernel by its name without namespaces: the first sweep over a row, in float32. An element takes what is
    counted in ops/gumbel/triton_impl.py."""
    found = re.match(r"gumbel_kernel<float, \d+, \(Wanted\)(\d)>", kernel)
    if not found:
        return ()
    ffma, plain = {SOFT: (21, 58), HARD: (19, 54), BOTH: (21, 60)}[found[1]]
    return (Loop("sums", "FFMA", ffma, plain),)
