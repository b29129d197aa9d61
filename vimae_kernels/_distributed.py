"""Statistics over the samples of all ranks of a process group.

A rank's derivative is that of the sum of all ranks' losses. Where every rank adds the statistic to its loss, that is
the single process's times the number of ranks, so that the average over ranks, which is what DDP and FSDP make of
parameter gradients, is the single process's; and beside a mean over a rank's own samples, which those average too,
the weight of the statistic is the same on any number of ranks. `torch.distributed.nn.functional` does likewise.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
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


def between_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which torch.compile does not look into: ranks tell each other sizes that no graph could know."""
    if torch.compiler.is_dynamo_compiling():
        return torch.compiler.disable(function, reason="group= runs between graphs, not in one")  # type: ignore[no-any-return]
    return function


class Ranks:
    """The ranks of a group, once they have found that they call the same operation with data that fit together."""

    def __init__(self, operation: str, group: ProcessGroup, rows: dict[str, list[int]]) -> None:
        self.operation = operation
        self.group = group
        self.rank = torch.distributed.get_rank(group)
        self.size = torch.distributed.get_world_size(group)
        self.rows = rows  # of every tensor, on every rank

    def total(self, name: str) -> int:
        """How many samples all ranks have together."""
        return sum(self.rows[name])

    def share(self, name: str) -> float:
        """Of these, the fraction that is this rank's."""
        return self.rows[name][self.rank] / self.total(name)

    def own(self, name: str) -> slice:
        """Which of these are this rank's."""
        first = sum(self.rows[name][: self.rank])
        return slice(first, first + self.rows[name][self.rank])

    def divides(self, x: Tensor, backend: str) -> bool:
        """Whether ranks divide the pairs of x, which all have: other code for GPUs meets them all, on every rank."""
        return backend == "reference" or (backend == "native" and x.device.type == "cpu")

    def attempt(self, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives, of the caller's own code; what it raises on one rank is raised on all."""
        error, made = None, None
        try:
            made = make()
        except Exception as raised:
            error = raised
        failed = [bool(flag) for (flag,) in _exchange([error is not None], self.group)]
        _raise_on_all(self.operation, self.group, error, failed)
        assert made is not None
        return made

    def gather(self, name: str, x: Tensor) -> Tensor:
        """The samples (..., n, d) of all ranks along n, in the order of the ranks.

        Every rank must go on to compute the same number of them: its gradient is then complete on this rank, and
        backward takes the rank's part, times the number of ranks, without talking to the others.
        """
        return _Gather.apply(x, self, name)  # type: ignore[no-any-return]

    def gather_for_own(self, name: str, x: Tensor) -> Tensor:
        """The same, where every rank computes something of its own: backward adds up what all ranks want of x."""
        return _GatherForOwn.apply(x, self, name)  # type: ignore[no-any-return]

    def enter(self, x: Tensor) -> Tensor:
        """x, of which only first derivatives leave this rank."""
        return _Enter.apply(x)  # type: ignore[no-any-return]

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x in float64, with the same bits on all of them and from run to run."""
        return _Sum.apply(x, self)  # type: ignore[no-any-return]

    def of_first(self, x: Tensor) -> Tensor:
        """What the first rank has as x, on every rank."""
        x = x.detach().contiguous()
        first = torch.distributed.get_global_rank(self.group, 0)
        torch.distributed.broadcast(x, first, group=self.group)
        return x

    def parts(self, name: str, x: Tensor) -> list[Tensor]:
        """Each rank's x, with the rows in front."""
        counts = self.rows[name]
        # Collectives want one shape: ranks with fewer samples fill up to the most.
        x = x.detach().movedim(-2, 0)
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x
        found = [torch.empty_like(padded) for _ in counts]
        torch.distributed.all_gather(found, padded, group=self.group)
        return [part[:n] for part, n in zip(found, counts, strict=True)]


def meet(
    operation: str,
    group: ProcessGroup,
    check: Callable[[], dict[str, Tensor]],
    *config: object,
) -> Ranks:
    """Bring all ranks together before anything else is sent.

    Args:
        operation: the public function, for messages.
        group: checked here.
        check: raises for what is wrong on this rank; returns its tensors (..., n, d) by name, at most 3.
        config: what else must be the same on all ranks.

    Raises on every rank where it raises on one, and where operations, config, dtypes or shapes differ in more than n.
    """
    check_group(group)
    error = None
    tensors: dict[str, Tensor] = {}
    try:
        tensors = check()
        _refuse_transforms(operation, tensors)
        shapes = (
            f"{name} {str(x.dtype).removeprefix('torch.')} "
            f"({''.join(f'{size}, ' for size in x.shape[:-2])}n, {x.shape[-1]})"
            for name, x in tensors.items()
        )
        mine = f"{operation}({', '.join([*shapes, *map(str, config)])})"
    except Exception as raised:
        error, mine = raised, ""
    rows = [x.shape[-2] for x in tensors.values()]
    # Of one length for every operation: what does not fit into it is told apart by a hash.
    found = _exchange(
        [error is not None, zlib.crc32(mine.encode()), *rows, *[0] * (3 - len(rows))], group
    )
    _raise_on_all(operation, group, error, [bool(failed) for failed, *_ in found])
    if any(hashed != found[0][1] for _, hashed, *_ in found):
        every = _exchange_words(mine, group)
        other = next(rank for rank, (_, hashed, *_) in enumerate(found) if hashed != found[0][1])
        raise ValueError(
            f"vimae_kernels.{operation} with group=: ranks differ in more than the number of samples: rank 0 has "
            f"{every[0]}, rank {other} has {every[other]}"
        )
    return Ranks(
        operation, group, {name: [row[2 + i] for row in found] for i, name in enumerate(tensors)}
    )


def _raise_on_all(
    operation: str, group: ProcessGroup, error: Exception | None, failed: list[bool]
) -> None:
    """Raise this rank's error, or what another has raised, if any rank failed."""
    if not any(failed):
        return
    every = _exchange_words(f"{type(error).__name__}: {error}", group)
    if error is not None:
        raise error
    first = failed.index(True)
    raise RuntimeError(f"vimae_kernels.{operation} with group=: rank {first} raised {every[first]}")


def _exchange_words(words: str, group: ProcessGroup) -> list[str]:
    """Every rank's words."""
    every: list[Any] = [None] * torch.distributed.get_world_size(group)
    with torch._C._DisableFuncTorch():
        torch.distributed.all_gather_object(every, words, group=group)
    return every


def _exchange(numbers: list[int], group: ProcessGroup) -> list[list[int]]:
    """Every rank's numbers."""
    device = torch.distributed.distributed_c10d._get_object_coll_device(group)
    with torch._C._DisableFuncTorch():  # whose wrappers hold no numbers
        here = torch.tensor(numbers, dtype=torch.int64, device=device)
        found = [torch.empty_like(here) for _ in range(torch.distributed.get_world_size(group))]
        torch.distributed.all_gather(found, here, group=group)
        return torch.stack(found).tolist()  # type: ignore[no-any-return]


def _refuse_transforms(operation: str, tensors: dict[str, Tensor]) -> None:
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            f"vimae_kernels.{operation} with group= runs inside no transform of torch.func (grad, vmap, ...): use "
            "backward() or torch.autograd.grad"
        )
    forward = torch.autograd.forward_ad
    if forward._current_level >= 0 and any(
        forward.unpack_dual(x).tangent is not None for x in tensors.values()
    ):
        raise RuntimeError(
            f"vimae_kernels.{operation} with group= has no forward-mode derivative: use backward()"
        )


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, name: str) -> Tensor:
        ctx.ranks, ctx.name = ranks, name
        return torch.cat(ranks.parts(name, x)).movedim(0, -2)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        own = ctx.ranks.own(ctx.name)
        # Not g times the number: the rest of g is of no use.
        return _OnlyFirst.apply(g[..., own, :] * ctx.ranks.size), None, None


class _GatherForOwn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, name: str) -> Tensor:
        ctx.ranks, ctx.name = ranks, name
        return torch.cat(ranks.parts(name, x)).movedim(0, -2)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _SumOfOwn.apply(g, ctx.ranks, ctx.name), None, None


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _OnlyFirst.apply(g)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.size, ctx.dtype = ranks.size, x.dtype
        x = x.detach().double().contiguous()
        found = [torch.empty_like(x) for _ in range(ranks.size)]
        torch.distributed.all_gather(found, x, group=ranks.group)
        return sum(found[1:], found[0])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return (g * ctx.size).to(ctx.dtype), None


class _First(torch.autograd.Function):
    """A gradient, of which there is no derivative."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        raise RuntimeError(
            "a statistic with group= has first derivatives only: the second would need the other ranks' "
            "directions"
        )


class _OnlyFirst(_First):
    @staticmethod
    def forward(ctx: Any, g: Tensor) -> Tensor:
        return g.contiguous()


class _SumOfOwn(_First):
    """Every rank's gradient of this rank's samples, added up in the order of the ranks."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, ranks: Ranks, name: str) -> Tensor:
        counts = ranks.rows[name]
        own = counts[ranks.rank]
        sent = g.movedim(-2, 0).contiguous()
        received = sent.new_empty(ranks.size * own, *sent.shape[1:])
        torch.distributed.all_to_all_single(
            received, sent, [own] * ranks.size, counts, group=ranks.group
        )
        every = received.view(ranks.size, own, *sent.shape[1:])
        return every.sum(0, dtype=torch.float64).to(g.dtype).movedim(0, -2).contiguous()
