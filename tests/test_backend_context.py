"""use_backend is of the running thread or task, for eager and compiled code, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import vimae_kernels as vk
from vimae_kernels import _backend


@pytest.fixture(params=["eager", "compiled"])
def backend_in_use(request: pytest.FixtureRequest) -> Callable[[], str]:
    """Tells which backend an operation called there and then runs on."""

    def mark(x: Tensor) -> Tensor:
        chosen = _backend.resolve(None, x.device)
        return x + (10 if chosen == "reference" else 20)

    torch._dynamo.reset()
    run = mark if request.param == "eager" else torch.compile(mark, fullgraph=True, backend="eager")
    return lambda: "reference" if run(torch.zeros(())).item() == 10 else "native"


needs_core = pytest.mark.skipif(
    _backend.unavailable("native", "cpu") is not None, reason="the native core was not built"
)


def graphs() -> tuple[list[int], Callable[..., object]]:
    count = [0]

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        count[0] += 1
        return graph.forward

    return count, backend


@needs_core
def test_overlapping_blocks_of_two_threads(backend_in_use):
    assert backend_in_use() == "native"
    first_in, second_in, first_out = (threading.Event() for _ in range(3))
    seen: dict[str, str] = {}

    def first():
        with vk.use_backend("reference"):
            first_in.set()
            second_in.wait(60)
            seen["first"] = backend_in_use()
        first_out.set()
        seen["first, after"] = backend_in_use()

    def second():
        first_in.wait(60)
        seen["second, before"] = backend_in_use()
        with vk.use_backend("reference"):
            second_in.set()
            first_out.wait(60)
            seen["second"] = backend_in_use()
        seen["second, after"] = backend_in_use()

    threads = [threading.Thread(target=f) for f in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert seen == {
        "first": "reference",
        "first, after": "native",
        "second, before": "native",
        "second": "reference",
        "second, after": "native",
    }
    assert backend_in_use() == "native"


@needs_core
def test_overlapping_blocks_of_two_tasks(backend_in_use):
    async def task(backend: str, turns: int) -> list[str]:
        seen = []
        with vk.use_backend(backend):
            for _ in range(turns):
                await asyncio.sleep(0)
                seen.append(backend_in_use())
        await asyncio.sleep(0)
        return [*seen, backend_in_use()]

    async def both() -> list[list[str]]:
        return await asyncio.gather(task("reference", 2), task("native", 3), task("reference", 5))

    a, b, c = asyncio.run(both())
    assert a == ["reference"] * 2 + ["native"]
    assert b == ["native"] * 4
    assert c == ["reference"] * 5 + ["native"]
    assert backend_in_use() == "native"


@needs_core
def test_nested_blocks_and_exceptions(backend_in_use):
    with vk.use_backend("reference"):
        with contextlib.suppress(ZeroDivisionError), vk.use_backend("native"):
            assert backend_in_use() == "native"
            raise ZeroDivisionError
        assert backend_in_use() == "reference"
        with vk.use_backend("native"):
            assert backend_in_use() == "native"
        assert backend_in_use() == "reference"
    assert backend_in_use() == "native"
    with (
        pytest.raises(ValueError, match="backend is 'gpu'; known backends are"),
        vk.use_backend("gpu"),
    ):
        raise AssertionError
    assert backend_in_use() == "native"


@needs_core
def test_blocks_of_generators_end_in_any_order(backend_in_use):
    def values() -> Iterator[str]:
        with vk.use_backend("reference"):
            yield backend_in_use()
            yield backend_in_use()

    made = values()
    assert next(made) == "reference"
    with vk.use_backend("native"):
        assert backend_in_use() == "native"
        made.close()  # outside its own block's order: the native block stays
        assert backend_in_use() == "native"
    assert backend_in_use() == "native"

    elsewhere = contextvars.copy_context()
    other = values()
    assert elsewhere.run(next, other) == "reference"
    assert backend_in_use() == "native"
    other.close()  # in another context than it began in
    assert backend_in_use() == "native"


@needs_core
def test_a_decorated_function_and_work_handed_to_a_thread(backend_in_use):
    assert vk.use_backend("reference")(backend_in_use)() == "reference"

    async def handed() -> str:
        with vk.use_backend("reference"):
            return await asyncio.to_thread(backend_in_use)

    assert asyncio.run(handed()) == "reference"
    assert backend_in_use() == "native"


@needs_core
def test_graphs_of_compiled_code_are_kept_by_backend():
    torch._dynamo.reset()
    count, backend = graphs()
    z, p = torch.randn(5, 2), torch.randn(4, 2)
    compiled = torch.compile(lambda z: vk.mmd(z, p), fullgraph=True, backend=backend)
    for _ in range(3):
        compiled(z)
        with vk.use_backend("reference"):
            compiled(z)
        with vk.use_backend("native"):
            compiled(z)
    # One without a choice, and one for each of the two.
    assert count == [3]


@needs_core
def test_a_block_inside_compiled_code():
    torch._dynamo.reset()
    count, backend = graphs()
    z = torch.zeros(())

    def mark(z: Tensor) -> Tensor:
        return z + (10 if _backend.resolve(None, z.device) == "reference" else 20)

    def nested(z: Tensor) -> tuple[Tensor, ...]:
        before = mark(z)
        with vk.use_backend("reference"):
            inside = mark(z)
            with vk.use_backend("native"):
                deeper = mark(z)
            again = mark(z)
        return before, inside, deeper, again, mark(z)

    compiled = torch.compile(nested, fullgraph=True, backend=backend)
    want = [20, 10, 20, 10, 20]
    assert [t.item() for t in nested(z)] == want
    for _ in range(2):
        assert [t.item() for t in compiled(z)] == want
        assert _backend._traced is None
    with vk.use_backend("reference"):
        assert [t.item() for t in compiled(z)] == [10, 10, 20, 10, 10]
    assert [t.item() for t in compiled(z)] == want
    assert count == [2]


@needs_core
def test_a_block_of_compiled_code_with_a_graph_break_or_an_exception():
    torch._dynamo.reset()

    def mark(z: Tensor) -> Tensor:
        return z + (10 if _backend.resolve(None, z.device) == "reference" else 20)

    def broken(z: Tensor, fail: bool) -> tuple[Tensor, Tensor]:
        with vk.use_backend("reference"):
            first = mark(z)
            torch._dynamo.graph_break()
            if fail:
                raise ZeroDivisionError
            return first, mark(z)

    compiled = torch.compile(broken, backend="eager")
    assert [t.item() for t in compiled(torch.zeros(()), False)] == [10, 10]
    with pytest.raises(ZeroDivisionError):
        compiled(torch.zeros(()), True)
    assert _backend._traced is None and _backend.chosen is None
    assert mark(torch.zeros(())) == 20


def test_the_values_are_those_of_the_backend():
    torch._dynamo.reset()
    z, p = torch.randn(40, 3), torch.randn(30, 3)
    compiled = torch.compile(vk.mmd, fullgraph=True, backend="eager")
    for backend in ("reference", None):
        with vk.use_backend(backend) if backend else contextlib.nullcontext():
            assert torch.equal(compiled(z, p), vk.mmd(z, p))
