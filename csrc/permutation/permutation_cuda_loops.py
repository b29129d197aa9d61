"""What the inner loops of permutation_cuda.cu take by hand: benchmarks/gpu_static.py, tests/test_cuda_static.py."""

from vimae_kernels._triton import Loop


def loops(kernel: str) -> tuple[Loop, ...]:
    """Of a kernel by its name without namespaces: a kernel value and labelling is a multiply-add."""
    if not kernel.startswith("tiles"):
        return ()
    # A thread has too few pairs for its loads. In float64 it has the registers for one labelling, so that every
    # kernel value is loaded for a single multiply-add or, as a pair, for two; and the loop that is found there is
    # counted with the unpacking of its labels. A debt.
    add, fma, limit = ("FADD", "FFMA", 1.35) if "float" in kernel else ("DADD", "DFMA", 7.5)
    # One more addition for sixteen coordinates: squares are summed per chunk. A debt: a thread's eight pairs take
    # three loads, and the loop brings its coordinates to shared memory.
    distances = Loop("distances", add, 17 / 16, 2, 1.52, without="MUFU")
    return distances, Loop("labels", fma, 1, 1, limit)
