"""stein_gradient and ksd against what people run today: RBF and forward, IMQ and forward + backward, float32.

`python -m benchmarks.bench_stein` times all providers interleaved and prints ratios (`--write` keeps the tables).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import vimae_kernels as vk

from .harness import interleave, machine

CASES = [(100, 8), (256, 64), (1024, 8), (1024, 64), (4096, 8), (4096, 64)]

Function = Callable[[Tensor], Tensor]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return (x * x).sum(-1)[:, None] + (y * y).sum(-1)[None, :] - 2 * x @ y.mT


def by_autograd(z: Tensor, c: float) -> Tensor:
    """As in most public code: grad k from autograd, the second argument held fixed."""
    x, y = z.detach().requires_grad_(), z.detach()
    k = (squared_distances(x, y) / -c).exp()
    (repulsion,) = torch.autograd.grad(k.sum(), x)
    return (k.detach() @ -y - repulsion) / len(z)


def closed_form(z: Tensor, c: float) -> Tensor:
    k = (squared_distances(z, z) / -c).exp()
    return (z * (k.sum(-1, keepdim=True) * (2 / c)) - (1 + 2 / c) * (k @ z)) / len(z)


def blocked(z: Tensor, c: float) -> Tensor:
    """The best one gets without writing a kernel: row blocks of the closed form, in place."""
    phi, norms = torch.empty_like(z), (z * z).sum(-1)
    for i in range(0, len(z), 512):
        rows = z[i : i + 512]
        k = torch.addmm(norms[i : i + 512, None] + norms, rows, z.mT, alpha=-2)
        k.mul_(-1 / c).exp_()
        pull = rows * (k.sum(-1, keepdim=True) * (2 / c)) - (1 + 2 / c) * (k @ z)
        phi[i : i + 512] = pull / len(z)
    return phi


def stein_providers(n: int, d: int) -> dict[str, Function]:
    c = 2.0 * d
    compiled = torch.compile(closed_form, dynamic=False, fullgraph=True)
    return {
        "vimae_kernels": lambda z: vk.stein_gradient(z),
        "vimae_kernels, a score": lambda z: vk.stein_gradient(z, score=-z),
        "autograd": lambda z: by_autograd(z, c),
        "eager": lambda z: closed_form(z, c),
        "compile": lambda z: compiled(z, c),
        "blocked": lambda z: blocked(z, c),
    }


def ksd_closed_form(z: Tensor, c: float) -> Tensor:
    """The unbiased estimator on n x n matrices, IMQ, standard normal."""
    n, d = z.shape
    p, s = z @ z.mT, squared_distances(z, z)
    f = c / (c + s)
    u = p * f - 2 * f * f / c * (s - d) - 8 * f**3 / c**2 * s
    return (u.sum() - u.diagonal().sum()) / (n * (n - 1))


def with_gradient(loss: Function) -> Function:
    def run(z: Tensor) -> Tensor:
        x = z.detach().requires_grad_()
        (g,) = torch.autograd.grad(loss(x), x)
        return g

    return run


def ksd_providers(n: int, d: int) -> dict[str, Function]:
    c = 2.0 * d
    compiled = torch.compile(ksd_closed_form, dynamic=False, fullgraph=True)
    losses: dict[str, Function] = {
        "vimae_kernels": lambda z: vk.ksd(z),
        "eager": lambda z: ksd_closed_form(z, c),
        "compile": lambda z: compiled(z, c),
    }
    return {name: with_gradient(loss) for name, loss in losses.items()}


def compare(
    providers: dict[str, Function], n: int, d: int, seconds: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Median ms of each provider, and its error against our float64. Ours is not timed if it is wrong."""
    torch._dynamo.reset()
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(0)) + 0.3
    truth = providers["vimae_kernels"](z.double())
    peer = providers["eager"](z.double())
    if not (truth - peer).norm() < 1e-9 * peer.norm():
        raise SystemExit(f"vimae_kernels is wrong at ({n}, {d}) in float64")
    error = {name: float((f(z) - truth).norm() / truth.norm()) for name, f in providers.items()}
    if not error["vimae_kernels"] < 2e-5:
        raise SystemExit(f"vimae_kernels is wrong at ({n}, {d}): error {error['vimae_kernels']}")
    return interleave({name: lambda f=f: f(z) for name, f in providers.items()}, seconds), error


def table(
    title: str, make: Callable[[int, int], dict[str, Function]], seconds: float, most: int
) -> list[str]:
    names = list(make(2, 1))
    columns = ["(n, d)", *names, "times the fastest other", "error, ours / theirs"]
    lines = [title, "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    print("\n".join(lines))
    for n, d in CASES:
        if n > most:
            continue
        times, error = compare(make(n, d), n, d, seconds)
        others = [name for name in times if not name.startswith("vimae_kernels")]
        best = min(others, key=times.__getitem__)
        cells = [f"({n}, {d})", *(f"{times[name]:.3g}" for name in names)]
        cells.append(f"**{times[best] / times['vimae_kernels']:.1f}** ({best})")
        cells.append(f"{error['vimae_kernels']:.0e} / {error[best]:.0e}")
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=6.0, help="per case, over all providers")
    parser.add_argument("--most", type=int, default=4096, help="leave out cases with more points")
    parser.add_argument("--write", type=Path, help="also write the tables to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    lines = [
        f"`python -m benchmarks.bench_stein` on {machine()}. Median ms, providers interleaved.",
        "",
    ]
    print("\n".join(lines))
    for title, make in (
        ("Stein gradient towards the standard normal, RBF, float32, forward:", stein_providers),
        ("KSD to the standard normal, IMQ, float32, forward + backward:", ksd_providers),
    ):
        lines += table(title, make, args.seconds, args.most)
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
