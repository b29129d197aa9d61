"""Pairs computed and bytes received by each rank, counted, at several numbers of ranks: `python -m benchmarks.scaling`.

Processes of gloo on one machine. What is counted does not depend on how fast they run.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor

import vimae_kernels as vk
from vimae_kernels import _native

TILE = 64  # P of csrc/common/tiles.h
COLLECTIVES = ("all_gather", "all_to_all_single", "broadcast")

STATISTICS: dict[str, Callable[..., Any]] = {
    "mmd": lambda z, p, m, v, **o: vk.mmd(z, p, **o),
    "mmd to a fixed sample": lambda z, p, m, v, **o: vk.mmd(z, p.detach(), **o),
    "mmd of a name": lambda z, p, m, v, **o: vk.mmd(z, "normal", **o),
    "mmd closed_form": lambda z, p, m, v, **o: vk.mmd(z, "normal", estimator="closed_form", **o),
    "mmd median": lambda z, p, m, v, **o: vk.mmd(z, p, vk.RBF("median"), **o),
    "mmd_test": lambda z, p, m, v, **o: vk.mmd_test(z, p, permutations=31, **o),
    "stein_loss": lambda z, p, m, v, **o: vk.stein_loss(z, **o),
    "ksd": lambda z, p, m, v, **o: vk.ksd(z, **o),
    "aggregate_log_density": lambda z, p, m, v, **o: vk.aggregate_log_density(z, m, v, **o).joint,
    "latent_information": lambda z, p, m, v, **o: vk.latent_information(z, m, v, **o).joint_entropy,
    "total_correlation": lambda z, p, m, v, **o: vk.total_correlation(z, m, v, **o),
}


class Counts:
    """Of this process."""

    def __init__(self) -> None:
        self.pairs = self.bytes = 0


def _pairs(kernel: str, arguments: tuple[Any, ...]) -> int:
    """The pairs of points that a call of the core meets; a symmetric pair once, one of the median once per pass."""
    if kernel == "mmd":
        n, m, within = arguments[7], arguments[8], arguments[-1] is None or arguments[8] == 0
        return n * m + within * (n * (n - 1) // 2 + m * (m - 1) // 2)
    if kernel in ("aggregate", "aggregate_gradient", "total_correlation"):
        return arguments[7] * arguments[8]  # type: ignore[no-any-return]
    points = next(a for a in arguments if isinstance(a, Tensor))
    n = points.shape[-2]
    if kernel == "median_counts":
        return of_part(n, *arguments[5:7])
    if kernel == "permutation":
        return of_part(n, *arguments[9:11])
    return n * (n - 1) // 2


def of_part(n: int, part: int, parts: int) -> int:
    """The pairs of n points in a part: the core deals out pairs of panels of TILE points in turn."""
    sides = [min(TILE, n - first) for first in range(0, n, TILE)]
    tiles = [
        a * (a - 1) // 2 if i == j else a * b
        for i, a in enumerate(sides)
        for j, b in enumerate(sides)
        if j >= i
    ]
    return sum(tiles[part::parts])


@contextmanager
def counted() -> Iterator[Counts]:
    """Counts the pairs that the core meets and what collectives bring to this process from the others."""
    counts = Counts()
    call = _native.call

    def counting_call(kernel: str, x: Tensor, *arguments: Any) -> None:
        if kernel != "draw":
            counts.pairs += _pairs(kernel, arguments)
        call(kernel, x, *arguments)

    def counting(collective: Callable[..., Any]) -> Callable[..., Any]:
        def run(out: Any, *arguments: Any, **rest: Any) -> Any:
            world = dist.get_world_size()
            whole = out if isinstance(out, Tensor) else torch.stack(out)
            received = whole.numel() * whole.element_size()
            if collective.__name__ != "broadcast":
                received = received * (world - 1) // world
            elif world == 1 or dist.get_rank() == 0:
                received = 0
            counts.bytes += received
            return collective(out, *arguments, **rest)

        return run

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(_native, "call", counting_call))
        for name in COLLECTIVES:
            stack.enter_context(mock.patch.object(dist, name, counting(getattr(dist, name))))
        yield counts


def count(n: int, d: int) -> dict[str, tuple[int, int]]:
    """Pairs and bytes of a training step, value and gradient, of every statistic on this rank, which has n samples."""
    found = {}
    for name, statistic in STATISTICS.items():
        tensors = [torch.randn(n, d, requires_grad=True) for _ in range(4)]
        with counted() as counts:
            value = statistic(*tensors, group=dist.group.WORLD)
            if isinstance(value, Tensor):
                value.sum().backward()
        found[name] = counts.pairs, counts.bytes
    return found


def _work(rank: int, world: int, folder: str, n: int, d: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    torch.save(count(n, d), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def measure(world: int, n: int, d: int) -> list[dict[str, tuple[int, int]]]:
    """What `count` finds on each rank."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_work, (world, folder, n, d), nprocs=world)
        return [torch.load(f"{folder}/{rank}.pt") for rank in range(world)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=256, help="samples of a rank")
    parser.add_argument("--d", type=int, default=16, help="their dimension")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    args = parser.parse_args()
    most = {
        world: {
            name: tuple(max(rank[name][i] for rank in found) for i in (0, 1)) for name in STATISTICS
        }
        for world in args.ranks
        for found in [measure(world, args.n, args.d)]
    }
    print(
        f"n = {args.n} samples a rank, d = {args.d}, float32: pairs and bytes received, of the busiest rank\n"
    )
    heads = [f"{what}, W = {world}" for what in ("pairs", "bytes") for world in args.ranks]
    print("| statistic | " + " | ".join(heads) + " |")
    print("|---|" + "---:|" * len(heads))
    for name in STATISTICS:
        cells = [f"{most[world][name][i]:,}" for i in (0, 1) for world in args.ranks]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
