"""Statistics over the samples of all ranks of a process group.

Every rank gathers the samples of all and computes the same statistic. So its gradient with respect to a
rank's own samples is complete on that rank: backward takes the rank's part, without a factor and without
talking to the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def check_group(group: object) -> None:
    """`group` must be None or a process group that this process is in."""
    if group is None:
        return
    if not torch.distributed.is_available() or not isinstance(
        group, torch.distributed.ProcessGroup
    ):
        raise TypeError(
            f"group is of type {type(group).__name__}; it must be a torch.distributed process group "
            "(torch.distributed.group.WORLD after init_process_group), or None"
        )


def gather(name: str, x: Tensor, group: ProcessGroup) -> Tensor:
    """The samples (..., n, d) of all ranks along n, in the order of the ranks, which may have different n."""
    return _Gather.apply(name, x, group)  # type: ignore[no-any-return]


def from_first(x: Tensor, group: ProcessGroup) -> Tensor:
    """What the group's first rank has as x, on every rank."""
    x = x.contiguous()
    torch.distributed.broadcast(x, torch.distributed.get_global_rank(group, 0), group=group)
    return x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, x: Tensor, group: ProcessGroup) -> Tensor:
        rank = torch.distributed.get_rank(group)
        counts = _counts(name, x, group)
        ctx.rows = sum(counts[:rank]), counts[rank]
        # Collectives want one shape: ranks with fewer samples fill up to the most.
        x = x.movedim(-2, 0)
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in counts]
        torch.distributed.all_gather(parts, padded, group=group)
        whole = torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])
        return whole.movedim(0, -2)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return None, _OwnRows.apply(g, *ctx.rows), None


class _OwnRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, first: int, count: int) -> Tensor:
        return g.narrow(-2, first, count).contiguous()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        raise RuntimeError(
            "a statistic with group= has first derivatives only: the second would need the other ranks' "
            "directions"
        )


def _counts(name: str, x: Tensor, group: ProcessGroup) -> list[int]:
    """Every rank's number of samples; raises on all ranks where the rest of their shapes or dtypes differ."""
    known = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    rest = [*x.shape[:-2], x.shape[-1]]
    # Of one length for every shape: what does not fit into it is told apart by a hash.
    mine = [x.shape[-2], known.index(x.dtype), x.ndim, hash(tuple(rest)) % 2**31]
    here = torch.tensor(mine, device=x.device)
    all_ranks = [torch.empty_like(here) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(all_ranks, here, group=group)
    found = torch.stack(all_ranks).tolist()
    different = [rank for rank, (_, *theirs) in enumerate(found) if theirs != found[0][1:]]
    if different:
        raise ValueError(
            f"{name} is {x.dtype} of shape {tuple(x.shape)} here; ranks {different} of the group differ from "
            "rank 0 in its dtype or in more than the number of samples"
        )
    return [n for n, *_ in found]
