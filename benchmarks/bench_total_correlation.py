"""Minibatch-weighted total correlation against what people run today: forward + backward, float32.

`python -m benchmarks.bench_total_correlation` times all providers interleaved and prints ratios (`--write` keeps
the table); `pytest benchmarks --benchmark-only` is the same problems under pytest-benchmark.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vimae_kernels as vk

from .harness import interleave, machine

DATASET_SIZE = 50_000
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    B: int
    d: int

    def __str__(self) -> str:
        return f"({self.B}, {self.d})"


CASES = [Case(64, 10), Case(256, 10), Case(256, 64), Case(1024, 10), Case(1024, 64)]
CASES += [Case(4096, 10), Case(4096, 64)]


def ours(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return vk.total_correlation(z, mean, log_var, weighting="mws", dataset_size=DATASET_SIZE)


def log_normal(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    squared = (z[:, None] - mean).square()
    return -0.5 * (math.log(2 * math.pi) + log_var + squared * torch.exp(-log_var))


def broadcast(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """The (B, B, d) array of all public implementations."""
    each = log_normal(z, mean, log_var)
    log_weight = math.log(len(mean) * DATASET_SIZE)
    joint = torch.logsumexp(each.sum(-1), 1) - log_weight
    return (joint - (torch.logsumexp(each, 1) - log_weight).sum(-1)).mean()


class Blocked(torch.autograd.Function):
    """The best one gets without writing a kernel: row blocks and the closed-form gradient."""

    @staticmethod
    def forward(ctx, z, mean, log_var):
        n, d = z.shape
        rows = max(1, min(n, 4_000_000 // (n * d)))
        dz, dmean, dlog_var = torch.empty_like(z), torch.zeros_like(mean), torch.zeros_like(mean)
        inverse, total = torch.exp(-log_var), z.new_zeros(())
        for i in range(0, n, rows):
            each = log_normal(z[i : i + rows], mean, log_var)
            joint = each.sum(-1)
            p, marginal = torch.softmax(joint, 1), torch.logsumexp(each, 1)
            total = total + torch.logsumexp(joint, 1).sum() - marginal.sum()
            # exp in place of each: what every pair pulls with.
            r = p[..., None] - each.sub_(marginal[:, None]).exp_()
            diff = z[i : i + rows, None] - mean
            t = diff * inverse
            force = r * t
            dz[i : i + rows] = -force.sum(1)
            dmean += force.sum(0)
            dlog_var += (force * diff - r).sum(0) / 2
        ctx.save_for_backward(dz, dmean, dlog_var)
        return total / n + (d - 1) * math.log(n * DATASET_SIZE)

    @staticmethod
    def backward(ctx, g):
        n = len(ctx.saved_tensors[0])
        return tuple(g / n * x for x in ctx.saved_tensors)


def by_keops(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    from pykeops.torch import LazyTensor

    def densities(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        squared = (LazyTensor(z[:, None]) - LazyTensor(mean[None])) ** 2
        each = squared * LazyTensor(torch.exp(-log_var)[None]) + LazyTensor(log_var[None])
        return (-0.5 * (each + math.log(2 * math.pi)).sum(-1)).logsumexp(dim=1)[:, 0]

    log_weight = math.log(len(mean) * DATASET_SIZE)
    value = densities(z, mean, log_var) - log_weight
    for k in range(z.shape[1]):
        one = (x[:, k : k + 1].contiguous() for x in (z, mean, log_var))
        value = value - (densities(*one) - log_weight)
    return value.mean()


def providers(case: Case) -> dict[str, Loss]:
    """Name to loss; those whose memory or time would be out of hand at this size are left out."""
    found: dict[str, Loss] = {"vimae_kernels": ours}
    if case.B * case.B * case.d <= 2**28:
        found["eager"] = broadcast
    found["compile"] = torch.compile(broadcast, dynamic=False, fullgraph=True)
    found["blocked"] = Blocked.apply
    if importlib.util.find_spec("pykeops") and case.d <= 10:
        found["keops"] = by_keops
    return found


def problem(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mean, noise, spread = (torch.randn(case.B, case.d, generator=generator) for _ in range(3))
    log_var = 0.3 * spread - 1
    z = mean + torch.exp(log_var / 2) * noise
    return z.requires_grad_(), mean.requires_grad_(), log_var.requires_grad_()


def step(loss: Loss, inputs: tuple[Tensor, ...]) -> Callable[[], None]:
    def run() -> None:
        for x in inputs:
            x.grad = None
        loss(*inputs).backward()

    return run


def value_and_gradients(loss: Loss, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    value = loss(*inputs)
    return value.detach(), *torch.autograd.grad(value, inputs)


def errors(got: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> tuple[float, float]:
    """Of the value (relative) and of the gradients (relative, the worst) against float64."""
    relative = [float((a - b).norm() / b.norm()) for a, b in zip(got, truth, strict=True)]
    return relative[0], max(relative[1:])


def compare(case: Case, seconds: float) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Median ms and errors per provider. Ours is not timed if it is wrong."""
    torch._dynamo.reset()
    inputs = problem(case)
    exact = tuple(x.detach().double().requires_grad_() for x in inputs)
    truth = value_and_gradients(Blocked.apply, exact)
    losses = providers(case)
    error = {n: errors(value_and_gradients(f, inputs), truth) for n, f in losses.items()}
    if not (error["vimae_kernels"][0] < 1e-5 and error["vimae_kernels"][1] < 1e-4):
        raise SystemExit(f"vimae_kernels is wrong at {case}: errors {error['vimae_kernels']}")
    return interleave({name: step(loss, inputs) for name, loss in losses.items()}, seconds), error


@pytest.mark.parametrize("case", CASES[:4], ids=str)
@pytest.mark.parametrize("provider", ["vimae_kernels", "eager", "compile", "blocked"])
def test_total_correlation(benchmark, case, provider):
    benchmark.group = f"total_correlation {case}"
    run = step(providers(case)[provider], problem(case))
    run()
    benchmark(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=8.0, help="per case, over all providers")
    parser.add_argument("--most", type=int, default=4096, help="leave out larger batches")
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    names = ["vimae_kernels", "eager", "compile", "blocked", "keops"]
    lines = [
        f"`python -m benchmarks.bench_total_correlation` on {machine()}. Forward + backward to z, mean and log_var, "
        "float32, minibatch-weighted, median ms, providers interleaved.",
        "",
        "| (B, d) | "
        + " | ".join(names)
        + " | times the fastest other | G exp/s | gradient error, ours / theirs |",
        "|---" * (len(names) + 4) + "|",
    ]
    print("\n".join(lines))
    for case in CASES:
        if args.most < case.B:
            continue
        times, error = compare(case, args.seconds)
        ours = times["vimae_kernels"]
        best = min((name for name in times if name != "vimae_kernels"), key=times.__getitem__)
        # Of every coordinate of every pair, and of every pair: value and gradients share them.
        exponentials = case.B * case.B * (case.d + 1) / (ours * 1e6)
        cells = [f"{times[name]:.3g}" if name in times else "" for name in names]
        lines.append(
            f"| {case} | {' | '.join(cells)} | **{times[best] / ours:.1f}** ({best}) | {exponentials:.1f} | "
            f"{error['vimae_kernels'][1]:.0e} / {error[best][1]:.0e} |"
        )
        print(lines[-1], flush=True)
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
