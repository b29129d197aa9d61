"""What the inner loops of median_cuda.cu take by hand, for benchmarks/gpu_static.py and tests/test_cuda_static.py."""

from vimae_kernels._triton import Loop


def loops(kernel: str) -> tuple[Loop, ...]:
    """Of a kernel by its name without namespaces: a pair and coordinate is a subtraction and a multiply-add."""
    if kernel.startswith("count_below"):
        # One more addition for sixteen coordinates: squares are summed per chunk. A debt: the loop brings its
        # coordinates to shared memory, and 16 bytes are two doubles, twice the loads.
        add, limit = ("FADD", 1.3) if "float" in kernel else ("DADD", 1.45)
        return (Loop("distances", add, 17 / 16, 2, limit),)
    return ()
