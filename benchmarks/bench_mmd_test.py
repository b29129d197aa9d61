"""mmd_test against the fast way to write it: one kernel matrix, one product with the labels of all permutations.

`python -m benchmarks.bench_mmd_test` times both interleaved and prints ratios. Both draw their permutations anew:
ours from seeds in C++, eager by sorting random numbers (or with `randperm` in a loop, which is faster on few cores).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vimae_kernels as vk

from .harness import interleave, machine


@dataclass(frozen=True)
class Case:
    n: int
    d: int
    permutations: int = 1000

    def __str__(self) -> str:
        return f"({self.n}, {self.d}), {self.permutations} permutations"


CASES = [Case(200, 8), Case(2000, 8), Case(2000, 64)]


def problem(case: Case) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(case.n, case.d, generator=g)
    return z, torch.randn(case.n, case.d, generator=g)


def by_loop(size: int, n: int, permutations: int) -> Tensor:
    """Labels (N, columns), each from a `randperm`."""
    labels = torch.zeros(permutations + 1, size)
    labels[0, :n] = 1
    for row in labels[1:]:
        row[torch.randperm(size)[:n]] = 1
    return labels.T


def by_sorting(size: int, n: int, permutations: int) -> Tensor:
    drawn = torch.rand(permutations, size).argsort(-1) < n
    return torch.cat([torch.arange(size)[None] < n, drawn]).T.float()


def eager(
    z: Tensor, x: Tensor, permutations: int, draw: Callable[[int, int, int], Tensor]
) -> Tensor:
    """The p-value by one expanded kernel matrix K and the product K A; n = m."""
    pooled, n = torch.cat([z, x]), len(z)
    c = 2.0 * z.shape[1]
    norms = pooled.square().sum(1)
    k = c / (c + (norms[:, None] + norms - 2 * pooled @ pooled.T).clamp_(0))
    k.fill_diagonal_(0)
    labels = draw(2 * n, n, permutations)
    to_first, to_all = k @ labels, k.sum(1)
    zz = (to_first * labels).sum(0)
    zx = to_first.sum(0) - zz
    xx = to_all.sum() - zz - 2 * zx
    values = (zz + xx) / (n * (n - 1)) - 2 * zx / n**2
    return (values >= values[0]).float().mean()


def product(z: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """Eager's kernel matrix and product alone, with labels that somebody else drew."""
    return eager(z, x, labels.shape[1] - 1, lambda *_: labels)


def providers(case: Case) -> dict[str, Callable[[], object]]:
    z, x = problem(case)
    labels = by_loop(2 * case.n, case.n, case.permutations)
    return {
        "vimae_kernels": lambda: vk.mmd_test(z, x, permutations=case.permutations),
        "eager, randperm": lambda: eager(z, x, case.permutations, by_loop),
        "eager, argsort": lambda: eager(z, x, case.permutations, by_sorting),
        "eager, labels given": lambda: product(z, x, labels),
    }


@pytest.mark.parametrize("case", CASES[:1], ids=str)
@pytest.mark.parametrize("provider", ["vimae_kernels", "eager, randperm"])
def test_mmd_test(benchmark, case, provider):
    benchmark.group = f"mmd_test {case}"
    benchmark(providers(case)[provider])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=8.0, help="per case, over all providers")
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = list(providers(CASES[0]))
    lines = [
        f"`python -m benchmarks.bench_mmd_test` on {machine()}; float32, IMQ, median ms, providers interleaved.",
        "",
        f"| (n = m, d) | {' | '.join(names)} | times the fastest other |",
        "|---" * (len(names) + 2) + "|",
    ]
    print("\n".join(lines))
    for case in CASES:
        z, x = problem(case)
        ours, truth = vk.mmd_test(z, x), vk.mmd(z.double(), x.double(), backend="native")
        if abs(ours.statistic - truth) > 1e-6:
            raise SystemExit(f"vimae_kernels is wrong at {case}: {ours.statistic} for {truth}")
        times = interleave(providers(case), args.seconds)
        best = min(names[1:], key=times.__getitem__)
        cells = " | ".join(f"{times[name]:.3g}" for name in names)
        lines.append(f"| {case} | {cells} | **{times[best] / times[names[0]]:.1f}** ({best}) |")
        print(lines[-1], flush=True)
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
