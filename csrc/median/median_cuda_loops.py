"""What the inner loops of median_cuda.cu take by hand, for benchmarks/gpu_static.py and tests/test_cuda_static.py."""

from vimae_kernels._triton import Loop


def loops(kernel: str) -> tuple[Loop, ...]:
    """Of a kernel by its name without namespaces: a pair and coordinate is a subtraction and a multiply-add."""
    if kernel.startswith("count_below"):
        # One more addition for sixteen coordinates: squares are summed per chunk.
        return (Loop("distances", "FADD" if "float" in kernel else "DADD", 17 / 16, 2),)
    return ()
