"""The permutation two-sample test on the squared MMD: the public function and its operations."""

from __future__ import annotations

import math
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from ... import _checks
from ..._autograd import accumulator
from ..._backend import Backend, resolve
from ..._distributed import Ranks, between_graphs, meet
from ..._operation import lead, on_backend, operation
from ...kernels import RBF, Kernel, resolve_kernel
from ...priors import Prior, check_prior, check_shapes, sample_prior
from ..median.op import median_unit
from ..mmd.reference import kernel_of
from . import native_impl, reference

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

COLUMNS = 32  # labellings come in multiples of it
FEW = 16  # points whose kernel values with all others tell how large they are
BLOCK = 2**26  # random numbers held at once where labels are drawn by sorting them


class TwoSampleTest(NamedTuple):
    """The result of `mmd_test`."""

    statistic: Tensor
    p_value: Tensor


def mmd_test(
    z: Tensor,
    x: Prior,
    kernel: Kernel = "imq",
    *,
    permutations: int = 1000,
    generator: torch.Generator | None = None,
    group: ProcessGroup | None = None,
    backend: Backend | None = None,
) -> TwoSampleTest:
    """Permutation test of whether z and x are samples of one distribution.

    The statistic is the unbiased squared MMD of z and x (`mmd`). Under the null hypothesis the n + m
    pooled points are exchangeable, so P random divisions of them into n and m give the statistic's
    distribution, and with k of those at or above the observed one

        p = (k + 1) / (P + 1)

    is a valid p-value: P(p <= alpha) <= alpha for every alpha, sample size and kernel. Divisions whose
    statistic is equal up to rounding, relative to what it is summed from, count as at or above. All
    kernel values are made once, in one pass
    over the pairs; memory is O((n + m) (d + P)), of which the labels take (n + m) P / 8 bytes.

    Args:
        z: samples (..., n, d), n >= 2, in float64, float32, bfloat16 or float16; any strides. Leading
            dimensions are independent tests and broadcast against those of x. They share the P
            divisions, so each p-value is valid, but those of equal data are equal.
        x: samples (..., m, d), m >= 2, on the device of z; or a distribution or a name, as the prior of
            `mmd`, of which as many samples are drawn as z has.
        kernel: `IMQ`, `RBF`, or `"imq"`, `"rbf"` for their defaults. `RBF("median")` takes the
            median of the distances between pooled samples that are not zero, which no permutation changes;
            where all of them are zero the statistic is 0 and p 1.
        permutations: P, at least 1; the smallest p-value possible is 1 / (P + 1).
        generator: source of the permutations, and of samples of x before them; None is torch's default
            generator. The same state gives the same permutations on one device type and backend.
        group: a torch.distributed process group: the test of the samples of all its ranks, which may have
            different n and m. Every rank returns the same bits. Permutations, and samples of x that is none, are
            those of the first rank's generator.
        backend: `"triton"`, `"native"` or `"reference"`; None takes the fastest that can run.

    Returns:
        A named tuple (statistic, p_value) of (...) tensors, float64 for float64 input, otherwise
        float32. NaN or Inf in the data makes both NaN. No gradient flows through either.

    Raises:
        TypeError: not a tensor, distribution, kernel, generator or integer; a dtype that is not floating
            point.
        ValueError: shapes that do not fit, devices that differ, n or m < 2, permutations < 1, an
            unknown name.
        RuntimeError: an explicit `backend` that cannot run here.

    Source: Gretton et al., A Kernel Two-Sample Test (2012), eq. 3 and sec. 8; the added ones: Phipson
    and Smyth, Permutation P-values Should Never Be Zero (2010).
    """
    if group is not None:
        return between_graphs(_of_group)(z, x, kernel, permutations, generator, group, backend)  # type: ignore[no-any-return]
    k, permutations, chosen = _check(z, x, kernel, permutations, generator, backend)
    _checks.samples("z", z, 2)
    if not isinstance(x, Tensor):
        x = sample_prior(x, z, generator, "x")
    _checks.samples("x", x, 2)
    _checks.same_space("z", z, "x", x)
    size = z.shape[-2] + x.shape[-2]
    labels = _draw(permutations, z.shape[-2], size, generator, z.device, chosen)
    return _test(z, x, labels, k, permutations, chosen)


def _check(
    z: Tensor,
    x: Prior,
    kernel: Kernel,
    permutations: int,
    generator: torch.Generator | None,
    backend: Backend | None,
) -> tuple[Any, int, Backend]:
    """The kernel, the permutations and the backend, whatever the number of samples."""
    k = resolve_kernel(kernel)
    _checks.samples("z", z)
    check_prior(x, "x")
    if isinstance(permutations, bool) or not isinstance(permutations, Integral):
        raise TypeError(f"permutations is {permutations!r}; it must be an integer of at least 1")
    permutations = int(permutations)
    if permutations < 1:
        raise ValueError(f"permutations is {permutations}; it must be at least 1")
    _checks.generator(generator, z.device)
    if isinstance(x, Tensor):
        _checks.samples("x", x)
        _checks.same_space("z", z, "x", x)
    return k, permutations, resolve(backend, z.device)


def _of_group(
    z: Tensor,
    x: Prior,
    kernel: Kernel,
    permutations: int,
    generator: torch.Generator | None,
    group: ProcessGroup,
    backend: Backend | None,
) -> TwoSampleTest:
    k, chosen = None, resolve("reference", torch.device("cpu"))

    def check() -> dict[str, Tensor]:
        nonlocal k, permutations, chosen
        k, permutations, chosen = _check(z, x, kernel, permutations, generator, backend)
        if isinstance(x, Tensor):
            return {"z": z.detach(), "x": x.detach()}
        if isinstance(x, Distribution):
            check_shapes(x, z, "x")
        return {"z": z.detach()}

    ranks = meet("mmd_test", group, check, kernel, permutations)
    z = ranks.gather("z", z.detach())
    _checks.samples("z", z, 2)
    if isinstance(x, Tensor):
        x = ranks.gather("x", x.detach())
    else:
        prior = x
        x = ranks.of_first(ranks.attempt(lambda: sample_prior(prior, z, generator, "x")))
    _checks.samples("x", x, 2)
    size = z.shape[-2] + x.shape[-2]
    labels = _draw(permutations, z.shape[-2], size, generator, z.device, chosen)
    found = _test(z, x, ranks.of_first(labels), k, permutations, chosen, ranks)
    return TwoSampleTest(*map(ranks.of_first, found))


def _test(
    z: Tensor,
    x: Tensor,
    labels: Tensor,
    k: Any,
    permutations: int,
    chosen: Backend,
    ranks: Ranks | None = None,
) -> TwoSampleTest:
    z, x = z.detach(), x.detach()
    batch = torch.broadcast_shapes(z.shape[:-2], x.shape[:-2])
    dtype = accumulator(z) if accumulator(z) == torch.float64 else accumulator(x)
    pooled = torch.cat([t.to(dtype).expand(*batch, *t.shape[-2:]) for t in (z, x)], -2)
    n, size = z.shape[-2], pooled.shape[-2]
    scales: tuple[float, ...]
    if isinstance(k, RBF) and k.bandwidth == "median":
        # A bandwidth per batch entry that no host ever sees, as in mmd.
        pooled, scales = median_unit(pooled, chosen, ranks).measure(pooled), (2.0,)
    else:
        scales = k.scales(pooled.shape[-1])

    order = _order(size, pooled.device, chosen)
    if order is not None:
        pooled = pooled[..., order, :]
    centre, deviation = _centre(pooled, k.family, scales)
    if chosen == "reference":
        values = reference.permuted_mmd(pooled, unpack(labels, size), k.family, scales)
    elif ranks is not None and ranks.divides(pooled, chosen):
        # Parts are of one sum only about one centre.
        config = ranks.of_first(centre), n, k.family, list(scales), ranks.rank, ranks.size
        values = ranks.sum(native_impl.permuted_mmd(pooled, labels, *config))
    else:
        values = _permuted_mmd(pooled, labels, centre, n, k.family, scales, chosen)
    observed = values[..., :1]
    # Two ways to the same sum differ by rounding, and ties of data that repeat themselves are ties. Rounding is
    # relative to what was summed: to what makes the statistic vary, and to what is in it and does not. Of a division
    # that is quadratic * size / sqrt(2) * deviation times the square of its largest weight (csrc/permutation).
    weight = reference.weights(n, size - n)
    summed = weight.quadratic * size * (1 + abs(weight.shift)) ** 2 * deviation
    eps = torch.finfo(dtype).eps
    spread = values[..., 1 : permutations + 1].square().mean(-1, keepdim=True).sqrt()
    tie = math.sqrt(eps) * spread + 128 * eps * summed[..., None]
    count = (values[..., 1 : permutations + 1] >= observed - tie).sum(-1)
    statistic = observed[..., 0]
    p = torch.where(statistic.isnan(), statistic, (count + 1) / (permutations + 1))
    return TwoSampleTest(statistic.to(dtype), p.to(dtype))


def _order(size: int, device: torch.device, backend: str) -> Tensor | None:
    """Of so many points on a GPU, one in which neighbours come from everywhere: by the multiples of the golden ratio.

    In one piece each, the samples would be summed up and rounded as no random division is.
    """
    if backend == "reference" or device.type == "cpu":
        return None
    places = torch.arange(size, device=device, dtype=torch.float64) * ((math.sqrt(5) - 1) / 2)
    return places.frac().argsort()


def _centre(x: Tensor, family: str, scales: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """About the mean kernel of two points, for the sums that follow to be small, and how far kernels are from it.

    Of a few points with all others. A negative mean is that of k - len(scales): kernels that are nearly 1 keep their
    digits so.
    """
    x_64 = x.double()
    places = torch.linspace(0, x.shape[-2] - 1, FEW, device=x.device).long()
    mode = "donot_use_mm_for_euclid_dist"
    s = torch.cdist(x_64[..., places, :], x_64, compute_mode=mode).square()
    others = places[:, None] != torch.arange(x.shape[-2], device=x.device)

    def mean(k: Tensor) -> Tensor:
        return (k * others).sum((-1, -2), keepdim=True) / others.sum()

    less = reference.less_one(s, family, scales)
    near = (mean(less) > -len(scales) / 2) & (mean(less) < -torch.finfo(x.dtype).tiny)
    k = less.where(near, kernel_of(s, family, scales))
    centre = mean(k)
    # What is left of kernels that are all alike is what the centre is rounded by.
    deviation = mean((k - centre).square()).sqrt() + torch.finfo(x.dtype).eps * centre.abs()
    return centre[..., 0, 0].to(x.dtype), deviation[..., 0, 0]


# Labels are bits: label j of a column is bit j % 32 of word j // 32, in int32 (words, columns). Column 0
# is the identity, in which the first n points are z; columns beyond the last permutation are padding.


def _draw(
    permutations: int,
    n: int,
    size: int,
    generator: torch.Generator | None,
    device: torch.device,
    backend: str,
) -> Tensor:
    """Labels of points in the order of the backend."""
    order = _order(size, device, backend)
    columns = -(-(permutations + 1) // COLUMNS) * COLUMNS
    # As a keyword torch.compile would not have a generator, not even None.
    source: Any = {} if generator is None else {"generator": generator}
    if backend == "native" and device.type == "cpu":
        most = torch.iinfo(torch.int64).max
        seeds = torch.randint(most, (permutations,), device=device, **source)
        return _draw_labels(seeds, size, n, columns)  # type: ignore[no-any-return]
    identity = torch.arange(size, device=device) < n
    if order is not None:
        identity = identity[order]
    packed = [pack(identity[None])]
    at_once = max(1, BLOCK // size)
    for done in range(0, permutations, at_once):
        count = min(at_once, permutations - done)
        # The ranks of random numbers are a random permutation; ties, if any, are broken by position.
        u = torch.rand(count, size, device=device, **source)
        first = u.argsort(-1) < n
        packed.append(pack(first if order is None else first[:, order]))
    labels = torch.cat(packed, -1)
    return torch.nn.functional.pad(labels, (0, columns - labels.shape[-1]))


def pack(first: Tensor) -> Tensor:
    """Labels bool (columns, N) as bits, int32 (words, columns)."""
    words = torch.nn.functional.pad(first, (0, -first.shape[-1] % 32)).unflatten(-1, (-1, 32))
    bits = torch.arange(32, device=first.device, dtype=torch.int32)
    return (words.int() << bits).sum(-1, dtype=torch.int32).mT.contiguous()  # type: ignore[no-any-return]


def unpack(labels: Tensor, size: int) -> Tensor:
    """Bits (..., words, columns) as labels bool (..., columns, N)."""
    bits = torch.arange(32, device=labels.device, dtype=torch.int32)
    return ((labels.mT.unsqueeze(-1) >> bits) & 1).bool().flatten(-2)[..., :size]


# The operations, shared by the backends.


def _fake(x: Tensor, labels: Tensor, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-2], labels.shape[-1], dtype=torch.float64)


def _vmap(info: Any, dims: Any, x: Tensor, labels: Tensor, centre: Tensor, *rest: Any) -> Any:
    size = info.batch_size
    x, centre = lead(x, dims[0], size), lead(centre, dims[2], size)
    if dims[1] is not None:
        # One set of labels for each entry of the batch, with dimensions for those of x in between.
        labels = labels.movedim(dims[1], 0)
        between = x.shape[1:-2]
        labels = labels.reshape(size, *[1] * (x.ndim - labels.ndim), *labels.shape[1:])
        labels = labels.expand(size, *between, *labels.shape[-2:])
    return _permuted_mmd.dispatched(x, labels, centre, *rest), 0  # type: ignore[attr-defined]


_permuted_mmd = operation(
    "_permuted_mmd(Tensor x, Tensor labels, Tensor centre, SymInt n, str family, float[] scales, "
    "str backend) -> Tensor",
    on_backend(__package__, "permuted_mmd"),
    _fake,
    tensors=3,
    vmap=_vmap,
)

_draw_labels = operation(
    "_draw_labels(Tensor seeds, SymInt size, SymInt n, SymInt columns) -> Tensor",
    native_impl.draw_labels,
    lambda seeds, size, n, columns: seeds.new_empty(
        *seeds.shape[:-1], (size + 31) // 32, columns, dtype=torch.int32
    ),
    tensors=1,
)
