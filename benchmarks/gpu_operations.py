"""The operations beside mmd, on a GPU, against eager PyTorch and torch.compile: part of benchmarks.gpu."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import vimae_kernels as vk

from . import bench_mmd_test, bench_stein, bench_total_correlation
from .bench_total_correlation import DATASET_SIZE


class Problem(NamedTuple):
    """One operation at one size. `ours` takes a backend; `eager` is what people write."""

    name: str
    size: str
    inputs: tuple[Tensor, ...]
    ours: Callable[..., Tensor]
    eager: Callable[..., Tensor]
    backward: bool  # of the sum of the result to all inputs
    limit: (
        float | None
    )  # on the relative error of the result against float64; None where it is random


def problems(device: str, tiny: bool) -> Iterator[Problem]:
    generator = torch.Generator().manual_seed(0)

    def samples(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(device)

    for n, d in [(50, 8)] if tiny else [(1024, 8), (4096, 64), (16384, 64)]:
        z, c = samples(n, d) + 0.3, 2.0 * d
        yield Problem(
            "stein_gradient", f"({n}, {d})", (z,), vk.stein_gradient,
            lambda z, c=c: bench_stein.closed_form(z, c), False, 1e-3,
        )  # fmt: skip
        yield Problem(
            "ksd", f"({n}, {d})", (z,), vk.ksd,
            lambda z, c=c: bench_stein.ksd_closed_form(z, c), True, 1e-2,
        )  # fmt: skip
    for n, d in [(40, 5)] if tiny else [(1024, 10), (4096, 10), (4096, 64)]:
        mean, log_var = samples(n, d), samples(n, d, scale=0.3) - 1
        z = mean + (0.5 * log_var).exp() * samples(n, d)
        yield Problem(
            "total_correlation", f"({n}, {d})", (z, mean, log_var),
            lambda *x, backend: vk.total_correlation(
                *x, weighting="mws", dataset_size=DATASET_SIZE, backend=backend
            ),
            bench_total_correlation.broadcast, True, 1e-3,
        )  # fmt: skip
    for n, k in [(30, 7)] if tiny else [(65536, 10), (4096, 1024), (16384, 4096)]:
        for hard in (False, True):
            yield Problem(
                "gumbel_softmax", f"({n}, {k}) {'hard' if hard else 'soft'}", (samples(n, k),),
                lambda x, backend, hard=hard: vk.gumbel_softmax(x, hard=hard, backend=backend),
                lambda x, hard=hard: torch.nn.functional.gumbel_softmax(x, hard=hard), True, None,
            )  # fmt: skip
    n, count = (40, 20) if tiny else (2000, 1000)
    labels = bench_mmd_test.by_loop(2 * n, n, count).to(device)
    yield Problem(
        "mmd_test", f"({n}, 8), {count} permutations", (samples(n, 8), samples(n, 8)),
        lambda z, x, backend: vk.mmd_test(z, x, permutations=count, backend=backend)[1],
        lambda z, x: bench_mmd_test.product(z, x, labels), False, None,
    )  # fmt: skip


def step(problem: Problem, run: Callable[..., Tensor]) -> Callable[[], Any]:
    """What is timed."""
    if not problem.backward:
        return lambda: run(*problem.inputs)
    inputs = [x.detach().requires_grad_() for x in problem.inputs]
    return lambda: torch.autograd.grad(run(*inputs).sum(), inputs)


def error(problem: Problem, run: Callable[..., Tensor]) -> float | None:
    """Of the result against eager's in float64, relative."""
    if problem.limit is None:
        return None
    want = problem.eager(*(x.double() for x in problem.inputs))
    return float((run(*problem.inputs) - want).norm() / want.norm())


def table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    names = list(dict.fromkeys(r["provider"] for r in rows))
    lines = [
        "",
        "## The other operations",
        "",
        "float32, median ms; forward + backward but for stein_gradient and mmd_test (its eager peer is given labels).",
        "",
        "| operation | size | "
        + " | ".join(names)
        + " | fastest other / fastest of ours | error |",
        "|---" * (len(names) + 4) + "|",
    ]
    for key in dict.fromkeys((r["operation"], r["size"]) for r in rows):
        at = {r["provider"]: r for r in rows if (r["operation"], r["size"]) == key}
        cells = [at[n].get("problem") or f"{at[n]['ms']:.3g}" if n in at else "" for n in names]
        ours = [at[n]["ms"] for n in ("triton", "native") if at.get(n, {}).get("ms")]
        others = [at[n]["ms"] for n in ("eager", "compile") if at.get(n, {}).get("ms")]
        ratio = f"{min(others) / min(ours):.1f}" if ours and others else ""
        worst = max((r["error"] for r in at.values() if r.get("error") is not None), default=None)
        error = "" if worst is None else f"{worst:.0e}"
        lines.append(f"| {key[0]} | {key[1]} | {' | '.join(cells)} | {ratio} | {error} |")
    return lines
