"""What the inner loops of gumbel_cuda.cu take by hand, for benchmarks/gpu_static.py and tests/test_cuda_static.py."""

from vimae_kernels._triton import Loop


def loops(kernel: str) -> tuple[Loop, ...]:
    """Of a kernel by its name without namespaces: the first sweep of the soft sample with its gradient, in float32.
    An element takes 61, as counted in ops/gumbel/triton_impl.py (the gradient's three among them)."""
    if not kernel.startswith("gumbel_kernel<float"):
        return ()
    # A debt: rows of any length that may begin anywhere, so each element has its mask and its 64-bit addresses.
    return (Loop("sums", "FFMA", 22, 61, limit=1.6),)
