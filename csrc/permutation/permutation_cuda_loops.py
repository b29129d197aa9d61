"""What the inner loops of permutation_cuda.cu take by hand: benchmarks/gpu_static.py, tests/test_cuda_static.py."""

from vimae_kernels._triton import Loop


def loops(kernel: str) -> tuple[Loop, ...]:
    """Of a kernel by its name without namespaces: a kernel value and labelling is a multiply-add."""
    if not kernel.startswith("tiles"):
        return ()
    double = "double" in kernel
    # A square is a multiply-add and a step of 32 coordinates, of which a thread has 16, one more addition.
    add, fma = ("DADD", "DFMA") if double else ("FADD", "FFMA")
    distances = Loop("distances", add, 17 / 16, 2, without="MUFU")
    around = "DSETP" if double and "(Family)1" in kernel else "MUFU"
    return distances, Loop("labels", fma, 1, 1, without=around)
