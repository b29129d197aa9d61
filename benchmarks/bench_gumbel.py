"""gumbel_softmax against torch's, as it is and compiled: forward + backward, float32.

`python -m benchmarks.bench_gumbel` times all providers interleaved and prints ratios (`--write` keeps the table);
`pytest benchmarks/bench_gumbel.py --benchmark-only` is the same problems under pytest-benchmark.
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
from vimae_kernels.ops.gumbel import op, reference

from .harness import interleave, machine


@dataclass(frozen=True)
class Case:
    rows: int
    k: int
    hard: bool
    tau: float = 1.0

    def __str__(self) -> str:
        name = f"({self.rows}, {self.k}) {'hard' if self.hard else 'soft'}"
        return name if self.tau == 1 else f"{name}, tau {self.tau}"


SHAPES = [(128, 10), (4096, 10), (65536, 10), (4096, 1024), (16384, 4096)]
CASES = [Case(*shape, hard) for shape in SHAPES for hard in (False, True)]
CASES += [Case(4096, 1024, False, 0.5)]


def providers(case: Case) -> dict[str, Callable[[Tensor], Tensor]]:
    def eager(x: Tensor) -> Tensor:
        return torch.nn.functional.gumbel_softmax(x, case.tau, case.hard)

    return {
        "vimae_kernels": lambda x: vk.gumbel_softmax(x, case.tau, case.hard),
        "eager": eager,
        "compile": torch.compile(eager, dynamic=False, fullgraph=True),
    }


def problem(case: Case) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(case.rows, case.k, generator=generator) for _ in range(2))
    return x.requires_grad_(), g


def step(sample: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Callable[[], None]:
    def run() -> None:
        x.grad = None
        sample(x).backward(g)

    return run


def check(case: Case) -> None:
    """Ours is not timed if it is wrong."""
    x, g = problem(Case(min(case.rows, 512), case.k, case.hard, case.tau))
    seed = torch.tensor(1)
    y = op.sample(x, seed, case.tau, case.hard, "native")
    (got,) = torch.autograd.grad(y, x, g)
    exact = x.detach().double().requires_grad_()
    want = reference.gumbel_softmax(exact, seed, case.tau, case.hard)
    (slope,) = torch.autograd.grad(want, exact, g.double())
    if not ((y - want).norm() < 1e-5 * want.norm() and (got - slope).norm() < 1e-5 * slope.norm()):
        raise SystemExit(f"vimae_kernels is wrong at {case}")


def compare(case: Case, seconds: float) -> dict[str, float]:
    """Median ms per provider."""
    torch._dynamo.reset()
    check(case)
    x, g = problem(case)
    return interleave({name: step(f, x, g) for name, f in providers(case).items()}, seconds)


@pytest.mark.parametrize("case", CASES[:6], ids=str)
@pytest.mark.parametrize("provider", ["vimae_kernels", "eager", "compile"])
def test_gumbel(benchmark, case, provider):
    benchmark.group = f"gumbel_softmax {case}"
    run = step(providers(case)[provider], *problem(case))
    run()
    benchmark(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=8.0, help="per case, over all providers")
    parser.add_argument(
        "--most", type=int, default=2**26, help="leave out cases with more elements"
    )
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    names = ["vimae_kernels", "eager", "compile"]
    lines = [
        f"`python -m benchmarks.bench_gumbel` on {machine()}. Forward + backward, float32, median ms, providers "
        "interleaved.",
        "",
        "| (rows, K) | " + " | ".join(names) + " | times the fastest other | elements per second |",
        "|---" * (len(names) + 3) + "|",
    ]
    print("\n".join(lines))
    for case in CASES:
        if case.rows * case.k > args.most:
            continue
        times = compare(case, args.seconds)
        ours = times["vimae_kernels"]
        best = min(names[1:], key=times.__getitem__)
        rate = case.rows * case.k / ours * 1e-6
        lines.append(
            f"| {case} | {' | '.join(f'{times[name]:.3g}' for name in names)} | "
            f"**{times[best] / ours:.1f}** ({best}) | {rate:.2g} G |"
        )
        print(lines[-1], flush=True)
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
