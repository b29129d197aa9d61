"""Transforms of torch.func in every order, over every operation: right or refused, as tests/operations.py says."""

from __future__ import annotations

import pytest
import torch
from operations import OPERATIONS, inputs_of
from transforms import CHAINS, TRANSFORMS, apply, expected, function, outcome, point

import vimae_kernels as vk
from vimae_kernels import _backend

WHERE = [("cpu", "native"), ("cuda", "native"), ("cuda", "triton")]


@pytest.fixture(params=WHERE, ids=" ".join)
def where(request):
    device, backend = request.param
    reason = _backend.unavailable(backend, device)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    return device, backend


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_every_transform_and_every_pair_of_them(operation, where):
    device, backend = where
    found = {chain: outcome(operation, chain, backend, device) for chain in CHAINS}
    assert found == {chain: expected(operation, chain) for chain in CHAINS}


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("in_dims", [0, 1, -1, 2, "mixed"])
def test_vmap_over_any_dimension(operation, in_dims, where):
    device, backend = where
    inputs = inputs_of(operation, 6, 3, torch.float64, device, batch=(4,))
    # Of "mixed" inputs one alone is mapped over, in its turn.
    for mapped in range(len(inputs)) if in_dims == "mixed" else [None]:
        dims = [
            (None if i != mapped else 0) if in_dims == "mixed" else in_dims
            for i in range(len(inputs))
        ]
        given = [
            t[0] if dim is None else t.movedim(0, dim) for t, dim in zip(inputs, dims, strict=True)
        ]
        plain = [
            t[:1].expand_as(t) if dim is None else t for t, dim in zip(inputs, dims, strict=True)
        ]

        def run(*inputs):
            return operation.seeded(*inputs, backend=backend)

        got = torch.func.vmap(run, tuple(dims), randomness="same")(*given)
        for i in range(4):
            want = run(*(t[i] for t in plain))
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a[i], b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_transforms_inside_compiled_code(operation, where):
    """In one graph; what is refused is refused by name."""
    device, backend = where
    for name in TRANSFORMS:
        if operation.random and name != "grad":
            continue  # torch.compile takes no generator, and maps nothing random
        torch._dynamo.reset()
        transformed = apply((name,), seedless(operation, backend, device))
        compiled = torch.compile(transformed, fullgraph=True, backend="aot_eager")
        if expected(operation, (name,)) == "refused":
            with pytest.raises(
                Exception, match=f"vimae_kernels.{operation.name.split(',')[0]} has "
            ):
                compiled(point(device))
            continue
        torch.manual_seed(0)
        got = compiled(point(device))
        torch.manual_seed(0)
        torch.testing.assert_close(got, transformed(point(device)), rtol=1e-10, atol=1e-12)


def seedless(operation, backend, device):
    if not operation.random:
        return function(operation, backend, device)
    inputs = inputs_of(operation, 5, 2, torch.float64, device)
    return lambda x: operation.run(*(t + x for t in inputs), backend=backend)[0].double().sum()


def test_three_transforms():
    z, p = torch.randn(5, 2).double(), torch.randn(4, 2).double()

    def f(z):
        return vk.mmd(z, p).exp()

    grad, vmap, jvp = torch.func.grad, torch.func.vmap, torch.func.jvp
    nested = [
        vmap(grad(lambda z: jvp(f, (z,), (z.cos(),))[1])),
        lambda z: jvp(vmap(lambda z: jvp(f, (z,), (z.sin(),))[1]), (z,), (z.cos(),))[1],
        lambda z: grad(lambda z: vmap(grad(f))(z).square().sum())(z),
        vmap(vmap(f, in_dims=1), in_dims=1),
    ]
    z = torch.stack([z, 2 * z, -z])
    for g in nested[:3]:
        with vk.use_backend("reference"):
            want = g(z)
        torch.testing.assert_close(g(z), want)
    z = torch.stack([z, z + 1])
    with vk.use_backend("reference"):
        want = nested[3](z)
    torch.testing.assert_close(nested[3](z), want)


def test_a_tensor_left_behind_by_a_transform():
    left = []
    torch.func.grad(lambda z: (left.append(z), z.sum())[1])(torch.randn(5, 2))
    z = torch.randn(4, 2)
    torch.testing.assert_close(vk.mmd(left[0], z), vk.mmd(left[0] + 0, z))
