"""mmd against what people run today: forward + backward, gradient to z, float32.

`python -m benchmarks.bench_mmd` times all providers interleaved and prints ratios (`--write` keeps the table);
`pytest benchmarks --benchmark-only` is the same problems under pytest-benchmark.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vimae_kernels as vk

from .harness import fma_ceiling, interleave, machine


@dataclass(frozen=True)
class Case:
    n: int
    d: int
    batch: int = 1
    scales: int = 1

    def __str__(self) -> str:
        name = f"({self.n}, {self.d})"
        if self.batch > 1:
            name = f"{self.batch} x {name}"
        return name + (f", {self.scales} scales" if self.scales > 1 else "")

    @property
    def kernel(self) -> vk.IMQ:
        return vk.IMQ.wae(self.d) if self.scales == 7 else vk.IMQ()

    @property
    def fmas(self) -> float:
        """Multiply-adds over coordinates that one pass needs: distances of n(n-1)/2 + n^2/2 + n^2 pairs, the
        gradient of both points in z's own pairs and of one in the cross term."""
        return self.batch * 4.0 * self.n * self.n * self.d


CASES = [
    Case(100, 8),
    Case(256, 64),
    Case(1024, 8),
    Case(1024, 64),
    Case(4096, 8),
    Case(4096, 64),
    Case(16384, 64),
    Case(100, 8, batch=64),
    Case(1024, 64, scales=7),
]


def from_kernel_sums(
    x: Tensor, y: Tensor, squared: Callable[[Tensor, Tensor], Tensor], scales: Sequence[float]
) -> Tensor:
    """The unbiased estimator as most people write it, on three kernel matrices."""

    def off_diagonal(a: Tensor) -> Tensor:
        s = squared(a, a)
        k = sum(c / (c + s) for c in scales)
        return (k.sum((-1, -2)) - k.diagonal(dim1=-2, dim2=-1).sum(-1)) / (
            a.shape[-2] * (a.shape[-2] - 1)
        )

    s = squared(x, y)
    cross = sum(c / (c + s) for c in scales).mean((-1, -2))
    return off_diagonal(x) + off_diagonal(y) - 2 * cross


def expanded(a: Tensor, b: Tensor) -> Tensor:
    return (a * a).sum(-1)[..., :, None] + (b * b).sum(-1)[..., None, :] - 2 * a @ b.mT


def by_cdist(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b).square()


class Blocked(torch.autograd.Function):
    """The best one gets without writing a kernel: row blocks and the closed-form gradient."""

    @staticmethod
    def forward(ctx, x, y, scales):
        n, m = x.shape[-2], y.shape[-2]
        value, gradient = x.new_zeros(x.shape[:-2]), torch.zeros_like(x)

        def term(a, b, weight, to):
            nonlocal value
            for i in range(0, a.shape[-2], 512):
                rows = a[..., i : i + 512, :]
                s = expanded(rows, b)
                total, w = 0.0, 0.0
                for c in scales:
                    k = c / (c + s)
                    total, w = total + k, w + k.square() / c
                value = value + weight * total.sum((-1, -2))
                if to is not None:
                    pull = rows * w.sum(-1, keepdim=True) - w @ b
                    to[..., i : i + 512, :] -= (2 * weight * (2 if a is b else 1)) * pull

        term(x, x, 1 / (n * (n - 1)), gradient)
        term(y, y, 1 / (m * (m - 1)), None)
        term(x, y, -2 / (n * m), gradient)
        ctx.save_for_backward(gradient)
        # The diagonals, which the sums above have in.
        return value - len(scales) * (1 / (n - 1) + 1 / (m - 1))

    @staticmethod
    def backward(ctx, g):
        return g[..., None, None] * ctx.saved_tensors[0], None, None


def by_keops(x: Tensor, y: Tensor, scales: Sequence[float]) -> Tensor:
    from pykeops.torch import LazyTensor

    def total(a: Tensor, b: Tensor) -> Tensor:
        s = ((LazyTensor(a[..., :, None, :]) - LazyTensor(b[..., None, :, :])) ** 2).sum(-1)
        k = 0
        for c in scales:
            k = k + c / (c + s)
        return k.sum(dim=a.ndim - 1).sum((-1, -2))  # over j, then over i

    n, m = x.shape[-2], y.shape[-2]
    own = (total(x, x) - n * len(scales)) / (n * (n - 1)) + (total(y, y) - m * len(scales)) / (
        m * (m - 1)
    )
    return own - 2 * total(x, y) / (n * m)


def providers(case: Case) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Name to loss; those whose memory or time would be out of hand at this size are left out."""
    kernel = case.kernel
    scales = kernel.scales(case.d)
    found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "vimae_kernels": lambda x, y: vk.mmd(x, y, kernel)
    }
    if case.n <= 4096:
        found["eager"] = lambda x, y: from_kernel_sums(x, y, expanded, scales)
    found["compile"] = torch.compile(
        lambda x, y: from_kernel_sums(x, y, by_cdist, scales), dynamic=False, fullgraph=True
    )
    found["blocked"] = lambda x, y: Blocked.apply(x, y, scales)
    if importlib.util.find_spec("pykeops") and case.n <= 4096 and case.scales == 1:
        found["keops"] = lambda x, y: by_keops(x, y, scales)
    return found


def problem(case: Case) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch = (case.batch,) if case.batch > 1 else ()
    z = 0.8 * torch.randn(*batch, case.n, case.d, generator=generator) + 0.2
    return z.requires_grad_(), torch.randn(*batch, case.n, case.d, generator=generator)


def step(loss: Callable[[Tensor, Tensor], Tensor], z: Tensor, p: Tensor) -> Callable[[], None]:
    def run() -> None:
        z.grad = None
        value = loss(z, p)
        (value.sum() if value.ndim else value).backward()

    return run


def errors(
    case: Case, loss: Callable[[Tensor, Tensor], Tensor], truth: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    """Of the loss (absolute) and of the gradient (relative) against float64."""
    z, p = problem(case)
    value = loss(z, p)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    return (
        float((value.detach() - truth[0]).abs().max()),
        float((gradient - truth[1]).norm() / truth[1].norm()),
    )


def float64_truth(case: Case) -> tuple[Tensor, Tensor]:
    z, p = problem(case)
    z = z.detach().double().requires_grad_()
    value = Blocked.apply(z, p.double(), case.kernel.scales(case.d))
    return value.detach(), torch.autograd.grad(value.sum(), z)[0]


def compare(case: Case, seconds: float) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Median ms and errors per provider. Ours is not timed if it is wrong."""
    torch._dynamo.reset()
    truth = float64_truth(case)
    losses = providers(case)
    error = {name: errors(case, loss, truth) for name, loss in losses.items()}
    if not (error["vimae_kernels"][0] < 2e-6 * case.scales and error["vimae_kernels"][1] < 2e-4):
        raise SystemExit(f"vimae_kernels is wrong at {case}: errors {error['vimae_kernels']}")
    z, p = problem(case)
    return interleave({name: step(loss, z, p) for name, loss in losses.items()}, seconds), error


@pytest.mark.parametrize("case", CASES[:4] + CASES[-2:], ids=str)
@pytest.mark.parametrize("provider", ["vimae_kernels", "eager", "compile", "blocked"])
def test_mmd(benchmark, case, provider):
    benchmark.group = f"mmd {case}"
    z, p = problem(case)
    run = step(providers(case)[provider], z, p)
    run()
    benchmark(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=8.0, help="per case, over all providers")
    parser.add_argument("--most", type=int, default=16384, help="leave out cases with more points")
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    ceiling = fma_ceiling(args.threads)
    names = ["vimae_kernels", "eager", "compile", "blocked", "keops"]
    lines = [
        f"`python -m benchmarks.bench_mmd` on {machine()}. Forward + backward, float32, IMQ, median ms, providers "
        "interleaved.",
        "",
        f"FMA ceiling measured in the same run: {ceiling or float('nan'):.0f} GFLOP/s.",
        "",
        "| (n, d) | "
        + " | ".join(names)
        + " | times the fastest other | of the FMA ceiling | gradient error, ours / theirs |",
        "|---" * (len(names) + 4) + "|",
    ]
    print("\n".join(lines))
    for case in CASES:
        if case.n > args.most:
            continue
        times, error = compare(case, args.seconds)
        ours = times["vimae_kernels"]
        best = min((name for name in times if name != "vimae_kernels"), key=times.__getitem__)
        reached = 2 * case.fmas / (ours * 1e6) / ceiling if ceiling else float("nan")
        cells = [f"{times[name]:.3g}" if name in times else "" for name in names]
        lines.append(
            f"| {case} | {' | '.join(cells)} | **{times[best] / ours:.1f}** ({best}) | {reached:.0%} | "
            f"{error['vimae_kernels'][1]:.0e} / {error[best][1]:.0e} |"
        )
        print(lines[-1], flush=True)
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
