"""What an operation is: a schema, the code that runs it, the shape of its results, and its derivative.

Whatever torch does to an operation, it asks its dispatcher: differentiate in either mode, map, trace, compile, and any
of these inside another. So the rules stand there, once for all: no public function asks which transform is active.
Eager calls that no transform watches go straight to the code, for the dispatcher would cost them 4 microseconds.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.autograd.function import _SingleLevelFunction
from torch.utils._pytree import tree_map_only

from ._autograd import accumulator

Run = Callable[..., Any]


def _library() -> tuple[str, torch.library.Library]:
    """A namespace of the dispatcher's; a package imported a second time in one process has its own."""
    for i in itertools.count(1):
        name = "vimae_kernels" if i == 1 else f"vimae_kernels_{i}"
        try:
            return name, torch.library.Library(name, "DEF")
        except RuntimeError:
            if i == 100:
                raise
    raise AssertionError  # for mypy: count never ends


_NAMESPACE, _LIBRARY = _library()
# A module that is loaded again keeps its globals: what older functions refer to must not go.
_LIBRARIES = [*globals().get("_LIBRARIES", []), _LIBRARY]


def implementation(package: str | None, backend: str) -> ModuleType:
    """The module of a kernel's folder that runs on `backend`, imported when first needed."""
    return importlib.import_module(f"{package}.{backend}_impl")


def on_backend(package: str | None, function: str) -> Run:
    """`function` of the module of the backend that the last argument names."""

    def run(*args: Any) -> Any:
        return getattr(implementation(package, args[-1]), function)(*args[:-1])

    return run


def plain(*tensors: Tensor | None) -> bool:
    """Nothing traces, wraps or watches."""
    if (
        torch.compiler.is_compiling()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
    ):
        return False
    for t in tensors:
        if t is not None and (
            type(t) not in (Tensor, torch.nn.Parameter)
            or t.is_neg()
            or t._is_zerotensor()
            or torch._C._functorch.is_legacy_batchedtensor(t)
            # One that a transform left behind: the dispatcher knows what is in it.
            or torch._C._functorch.is_functorch_wrapped_tensor(t)
        ):
            return False
    return True


class Derivative:
    """How an operation is differentiated once, by operations and torch functions that can be differentiated in turn.

    `inputs` are its tensors, `config` the other arguments, `outputs` a tuple. Tangents and gradients are of the
    same shapes; the second outputs onwards of a `saved_gradient` have none.
    """

    def save(self, ctx: Any, inputs: Sequence[Any], config: Sequence[Any], outputs: Any) -> None:
        raise NotImplementedError

    def backward(self, ctx: Any, *gradients: Any) -> Sequence[Tensor | None]:
        """Of the inputs."""
        raise NotImplementedError

    def jvp(self, ctx: Any, saved: Sequence[Any], *tangents: Any) -> Any:
        """Of the outputs. `saved` are the tensors of `save`, without the tangents that are asked about here."""
        raise NotImplementedError


def operation(
    schema: str,
    run: Run,
    fake: Run,
    *,
    tensors: int,
    derivative: Derivative | None = None,
    differentiated: Run | None = None,
    eager: Run | None = None,
    refused: Sequence[int] = (),
    refusal: str = "",
    vmap: Run | None = None,
) -> Run:
    """Register an operation and return what calls it.

    Args:
        schema: as of torch.library. An argument of type `float[]` is a tuple for callers and for `run`; traced code has
            a tensor of the host in its place, so that new numbers need no new graph.
        run: on real tensors.
        fake: what `run` gives, in shape and dtype.
        tensors: how many of the first arguments are data; they, and no others, may be mapped over.
        derivative: how it is differentiated.
        differentiated: what is called in its place where it is differentiated, instead of a derivative.
        eager: the same for eager calls that nothing watches, where microseconds count.
        refused: inputs in which the derivative is not defined; `refusal` is what is raised if somebody needs it.
        vmap: its rule, where the mapped dimension does not simply lead all data and results.
    """
    name, arguments = schema.split(")")[0].split("(")
    types = [argument.split()[0] for argument in arguments.split(",")]
    numbers = types.index("float[]") if "float[]" in types else None
    schema = schema.replace("float[]", "Tensor")

    def kernel(*args: Any) -> Any:
        if numbers is not None and isinstance(args[numbers], Tensor):
            args = (*args[:numbers], tuple(args[numbers].tolist()), *args[numbers + 1 :])
        return run(*args)

    def map_over(info: Any, dims: Any, *args: Any) -> Any:
        # What is not needed is None or of shape (0,), and has no batch.
        data = (
            x if x is None or x.shape == (0,) else lead(x, dim, info.batch_size)
            for x, dim in zip(args[:tensors], dims, strict=False)
        )
        out = dispatched(*data, *args[tensors:])
        return out, tree_map_only(Tensor, lambda t: None if t.shape == (0,) else 0, out)

    _LIBRARY.define(schema)
    qualified = f"{_NAMESPACE}::{name}"
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    torch.library.register_vmap(qualified, vmap or map_over, lib=_LIBRARY)
    dispatched = getattr(getattr(torch.ops, _NAMESPACE), name).default

    def below(*args: Any) -> Any:
        with _as_seen_from_outside():
            return dispatched(*args)

    def differentiate(run: Run, *args: Any) -> Any:
        if refused:
            args = (*map(refuse, itertools.count(), args),)
        return node.apply(run, *args)

    def refuse(i: int, x: Any) -> Any:
        if i not in refused or x is None:
            return x
        return _Refused.apply(x, refusal)  # type: ignore[attr-defined]

    node: Any = None if derivative is None else _node(name, derivative, tensors)

    if derivative is not None or differentiated is not None:

        def autograd(*args: Any) -> Any:
            if any(_is_differentiated(t) for t in args[:tensors]):
                if differentiated is not None:
                    return differentiated(*args)
                # At the level of one transform; the dispatcher sees to the others.
                with enable_single_level_autograd_function():
                    return differentiate(below, *args)
            with torch._C._AutoDispatchBelowAutograd():
                return dispatched(*args)

        _LIBRARY.impl(name, autograd, "Autograd")

    if eager is None:
        eager = differentiated
    if eager is None and derivative is not None:

        def eager(*args: Any) -> Any:
            return differentiate(kernel, *args)

    def call(*args: Any) -> Any:
        data = args[:tensors]
        if plain(*data):
            if eager is not None and torch.is_grad_enabled():
                for t in data:
                    if t is not None and t.requires_grad:
                        return eager(*args)
            return kernel(*args)
        if numbers is not None and not isinstance(args[numbers], Tensor):
            args = (*args[:numbers], as_tensor(args[numbers]), *args[numbers + 1 :])
        return dispatched(*args)

    call.dispatched, call.eager = dispatched, eager  # type: ignore[attr-defined]
    return call


def as_tensor(values: Sequence[float]) -> Tensor:
    """Numbers of the host, in float64; of compiled code, in a form in which they may change without a new graph."""
    one = torch.ones((), dtype=torch.float64)
    return torch.stack([one * value for value in values]) if values else one.new_empty(0)


def lead(x: Tensor, dim: int | None, size: int) -> Tensor:
    """`x` with the dimension vmap runs over in front."""
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _is_differentiated(x: Tensor | None) -> bool:
    """At the level of the innermost transform."""
    if x is None:
        return False
    return (torch.is_grad_enabled() and x.requires_grad) or _dual(x)[1] is not None


def _dual(x: Tensor) -> Any:
    return torch._VF._unpack_dual(x, level=0)  # type: ignore[attr-defined]


def _node(name: str, derivative: Derivative, tensors: int) -> Any:
    class Node(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, run: Run, *args: Any) -> Any:
            out = run(*args)
            ctx.rest = (None,) * (len(args) - tensors)
            derivative.save(ctx, args[:tensors], args[tensors:], out)
            return out

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return None, *derivative.backward(ctx, *gradients), *ctx.rest

        @staticmethod
        def jvp(ctx: Any, _: Any, *tangents: Any) -> Any:
            saved = [None if t is None else _dual(t)[0] for t in ctx.saved_tensors]
            # torch turns forward mode off here, and with it that of transforms further out.
            with _set_fwd_grad_enabled(True):
                return derivative.jvp(ctx, saved, *tangents[:tensors])

    return type(Node)(name, (Node,), {})  # type: ignore[misc]


@contextlib.contextmanager
def _as_seen_from_outside() -> Iterator[None]:
    """Inside an autograd function, which turns derivatives off: those of transforms further out are still wanted."""
    with (
        torch.enable_grad(),
        _set_fwd_grad_enabled(True),
        torch._C._AutoDispatchBelowAutograd(),
    ):
        yield


class _Refused(_SingleLevelFunction):
    """x, where a derivative in it is refused: not where it is differentiated, but where somebody needs the result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, message: str) -> Tensor:
        ctx.message = message
        with _as_seen_from_outside():
            return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        raise RuntimeError(ctx.message)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(ctx.message)


def no_forward_mode(operation: str) -> str:
    return (
        f"vimae_kernels.{operation} has no forward-mode derivative: use reverse mode (backward, "
        "torch.func.grad, jacrev), or backend='reference'"
    )


def no_second(operation: str) -> str:
    return (
        f"vimae_kernels.{operation} has a first derivative, not a second: use backend='reference', which plain "
        "autograd differentiates any number of times"
    )


def saved_gradient(
    name: str,
    inputs: str,
    config: str,
    run: Run,
    run_with_gradient: Run,
    *,
    hessian: Run | None = None,
) -> Run:
    """A number for each problem whose gradient is made in the same pass as its value, and saved.

    Args:
        name: of the public function.
        inputs: in the form of a schema; the first is a tensor (..., n, d), and the batch of the result is its own.
            An input may be None.
        config: the other arguments, in the form of a schema.
        run: (inputs, config) -> the value (...), in the accumulator's dtype.
        run_with_gradient: (inputs, need, config) -> the value and a gradient for each input in the accumulator's
            dtype, of shape (0,) where `need` (a bool for each) says that it is not needed.
        hessian: (inputs, vectors, config) -> the Hessian's product, if there is one; otherwise a second derivative
            is refused.
    """
    count = inputs.count("Tensor")
    names = [argument.split()[-1] for argument in inputs.split(",")]
    slopes = ", ".join(f"Tensor d{n}" for n in names)
    tensors = f"({', '.join(['Tensor'] * count)})"

    def split(tensors: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
        return tensors[:count], tensors[count : 2 * count], tensors[2 * count :]

    def fake(*args: Any) -> Any:
        return args[0].new_empty(args[0].shape[:-2], dtype=accumulator(args[0]))

    def fake_with_gradient(*args: Any) -> Any:
        x = args[0]
        return (
            fake(x),
            *(
                x.new_empty(t.shape if needed else (0,), dtype=accumulator(x))
                for t, needed in zip(args[:count], args[count], strict=True)
            ),
        )

    def run_scaled(*args: Any) -> Any:
        x, dx, (g, *_) = split(args)
        if g.ndim:
            g = g[..., None, None]
        # Multiplied before rounding to a half type: a gradient of size 1/n would underflow there.
        return tuple(
            d.new_empty(0) if d.ndim == 1 else (d * g).to(t.dtype)
            for t, d in zip(x, dx, strict=True)
        )

    def fake_scaled(*args: Any) -> Any:
        x, dx, _ = split(args)
        return tuple(
            d.new_empty(0) if d.ndim == 1 else t.new_empty(t.shape)
            for t, d in zip(x, dx, strict=True)
        )

    def along(x: Any, dx: Any, vectors: Any, config: Any) -> Tensor:
        """The derivative along `vectors`, as a function of x too, which dx by itself is not."""
        dtype = accumulator(x[0])
        x = [None if t is None else t.to(dtype) for t in x]
        gradients = scaled(*x, *dx, dx[0].new_ones(x[0].shape[:-2]), *config)
        terms = [
            (v.to(dtype) * g).sum((-1, -2))
            for v, g in zip(vectors, gradients, strict=True)
            if v is not None and g.ndim > 1
        ]
        return torch.stack(terms).sum(0)

    class WithGradient(Derivative):
        def save(self, ctx: Any, inputs: Any, config: Any, outputs: Any) -> None:
            gradients = outputs[1:]
            ctx.mark_non_differentiable(*gradients)
            ctx.save_for_backward(*inputs, *gradients)
            ctx.save_for_forward(*inputs, *gradients)
            ctx.config = config[1:]

        def backward(self, ctx: Any, g: Tensor, *_: Any) -> Any:
            gradients = scaled(*ctx.saved_tensors, g, *ctx.config)
            return tuple(None if t.ndim == 1 else t for t in gradients)

        def jvp(self, ctx: Any, saved: Any, *vectors: Any) -> Any:
            x, dx, _ = split(saved)
            return along(x, dx, vectors, ctx.config), *[None] * count

    class Scaled(Derivative):
        """g times the gradient, as a function of the inputs and g: its derivative is a product with the Hessian."""

        def save(self, ctx: Any, inputs: Any, config: Any, outputs: Any) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)
            ctx.config = config

        def backward(self, ctx: Any, *vectors: Any) -> Any:
            x, dx, (g,) = split(ctx.saved_tensors)
            dg = along(
                x,
                dx,
                [v if d.ndim > 1 else None for v, d in zip(vectors, dx, strict=True)],
                ctx.config,
            )
            return *self.second(x, dx, vectors, g, ctx.config), *[None] * count, dg

        def jvp(self, ctx: Any, saved: Any, *tangents: Any) -> Any:
            x, dx, (g,) = split(saved)
            vectors, _, (vg,) = split(tangents)
            first = scaled(*x, *dx, vg, *ctx.config)
            second = self.second(x, dx, vectors, g, ctx.config)
            return tuple(
                a if b is None or a.ndim == 1 else a + b for a, b in zip(first, second, strict=True)
            )

        def second(self, x: Any, dx: Any, vectors: Any, g: Tensor, config: Any) -> Any:
            if hessian is None:
                # Refused before they come here: what they are is of no matter.
                return [None if t is None else torch.zeros_like(t) for t in x]
            dtype = accumulator(x[0])
            vectors = [
                torch.zeros_like(t, dtype=dtype) if d.ndim == 1 or v is None else v.to(dtype)
                for t, d, v in zip(x, dx, vectors, strict=True)
            ]
            product = hessian(*x, *vectors, *config)
            return [(g[..., None, None] * h).to(t.dtype) for t, h in zip(x, product, strict=True)]

    scaled = operation(
        f"_{name}_scaled({inputs}, {slopes}, Tensor g, {config}) -> {tensors}",
        run_scaled,
        fake_scaled,
        tensors=2 * count + 1,
        derivative=Scaled(),
        refused=range(count) if hessian is None else (),
        refusal=no_second(name),
    )
    with_gradient = operation(
        f"_{name}_grad({inputs}, bool[] need, {config}) -> (Tensor, {tensors[1:]}",
        run_with_gradient,
        fake_with_gradient,
        tensors=count,
        derivative=WithGradient(),
    )

    class Eager(_SingleLevelFunction):
        """Of the three operations what an eager call needs."""

        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            inputs, ctx.config = args[:count], args[count:]
            need = ctx.needs_input_grad[:count]
            value, *gradients = run_with_gradient(*inputs, need, *ctx.config)
            ctx.save_for_backward(*inputs, *gradients)
            return value

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            if torch.is_grad_enabled():  # create_graph
                gradients = scaled(*ctx.saved_tensors, g, *ctx.config)
            else:
                gradients = run_scaled(*ctx.saved_tensors, g)
            return *(None if t.ndim == 1 else t for t in gradients), *[None] * len(ctx.config)

    Eager = type(Eager)(f"_{name}", (Eager,), {})  # type: ignore[assignment, misc]

    def differentiated(*args: Any) -> Any:
        need = [t is not None and _is_differentiated(t) for t in args[:count]]
        return with_gradient(*args[:count], need, *args[count:])[0]

    value = operation(
        f"_{name}({inputs}, {config}) -> Tensor",
        run,
        fake,
        tensors=count,
        differentiated=differentiated,
        eager=Eager.apply,  # type: ignore[attr-defined]
    )
    value.with_gradient, value.scaled = with_gradient, scaled  # type: ignore[attr-defined]
    return value
