"""Choosing and seeing backends."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

import vimae_kernels as vk
from vimae_kernels import _backend, _native


def grad_fn(backend=None):
    z = torch.randn(5, 2, requires_grad=True)
    return type(vk.mmd(z, torch.randn(4, 2), backend=backend).grad_fn).__name__


@pytest.mark.skipif(_backend.unavailable("native", "cpu") is not None, reason="no native core")
def test_choice_of_backend():
    assert _backend.resolve(None, torch.device("cpu")) == "native"
    assert grad_fn() == "_mmdBackward"
    with vk.use_backend("reference"):
        assert grad_fn() != "_mmdBackward"
        assert grad_fn("native") == "_mmdBackward"
        with vk.use_backend("native"):
            assert grad_fn() == "_mmdBackward"
        assert grad_fn() != "_mmdBackward"
    assert grad_fn() == "_mmdBackward"


def test_the_block_ends_with_an_error():
    with pytest.raises(ZeroDivisionError), vk.use_backend("reference"):
        1 / 0  # noqa: B018
    assert _backend._chosen() is None


def test_without_the_native_core(monkeypatch, capsys):
    monkeypatch.setattr(_backend._native, "_C", None)
    monkeypatch.setattr(
        _backend._native, "build_report", lambda: {"error": "no C++ compiler was found"}
    )
    monkeypatch.setattr(_backend, "_reasons", {})
    assert _backend.resolve(None, torch.device("cpu")) == "reference"
    with pytest.raises(
        RuntimeError, match="'native' cannot run on cpu .*no C\\+\\+ compiler was found"
    ):
        vk.mmd(torch.randn(3, 2), "normal", backend="native")
    vk.info()
    out = capsys.readouterr().out
    assert "no C++ compiler was found" in out and "n x m" in out


@pytest.mark.parametrize(
    ("architectures", "available", "capability", "reason"),
    [
        ("", True, (9, 0), "the native core was built without nvcc"),
        ("75-real;120", False, (9, 0), "torch sees no CUDA device or driver"),
        (
            "75-real;120",
            True,
            (7, 0),
            "the native core was built for 75-real;120; this device has 70",
        ),
        ("75-real;120", True, (7, 5), None),
        ("75-real;120", True, (13, 0), None),
    ],
)
def test_cuda_tensors_and_the_native_core(
    monkeypatch, architectures, available, capability, reason
):
    native = _backend._native
    monkeypatch.setattr(native, "_C", object())
    monkeypatch.setattr(native, "build_report", lambda: {"cuda_architectures": architectures})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(_backend, "_reasons", {})
    if reason is None:
        assert _backend.resolve("native", torch.device("cuda")) == "native"
        return
    assert native.unavailable("cuda").startswith(reason)
    with pytest.raises(
        RuntimeError, match="'native' cannot run on cuda tensors here: .*" + reason[:30]
    ):
        _backend.resolve("native", torch.device("cuda"))


def test_info_names_everything():
    out = subprocess.run(
        [sys.executable, "-m", "vimae_kernels"], capture_output=True, text=True, check=True
    ).stdout
    for word in (
        "torch",
        "triton",
        "native",
        "reference",
        "compiler",
        "SIMD",
        "threads",
        "CUDA architectures",
    ):
        assert word in out
    facts = vk.info()
    assert facts["default"]["cpu"] in ("native", "reference")
    # Every operation runs on every backend.
    assert {"aggregate", "gumbel", "ksd", "mmd", "permutation", "stein"} <= facts[
        "operations"
    ].keys()
    for name, found in facts["operations"].items():
        assert found == list(_backend.BACKENDS), name
        assert name in out


@pytest.mark.skipif(_native._C is None, reason="the native core was not built")
def test_a_core_of_older_sources_says_so():
    x = torch.zeros(1)
    with pytest.raises(RuntimeError, match="no nothing_cpu_float32: .* older sources; pip install"):
        _native.call("nothing", x)


def test_import_is_light():
    code = (
        "import sys, vimae_kernels; "
        "print([m for m in ('triton', 'torch._dynamo', 'lightning') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_kernels_are_values():
    assert vk.IMQ(2) == vk.IMQ(2.0) and hash(vk.IMQ([1, 2])) == hash(vk.IMQ((1.0, 2.0)))
    assert vk.IMQ.wae(8).scales(8) == (1.6, 3.2, 8.0, 16.0, 32.0, 80.0, 160.0)
    assert vk.IMQ().scales(8) == (16.0,) and vk.RBF().scales(8) == (16.0,)
    # exp(-s / d^2), with s = ||x - y||^2
    assert vk.RBF.mmd_vae(6).scales(6) == pytest.approx((36.0,))
    with pytest.raises(AttributeError):
        vk.IMQ(2).c = 3


def test_a_choice_is_of_its_thread():
    seen = []
    with vk.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(_backend._chosen()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_compiled_code_follows_the_choice():
    torch._dynamo.reset()
    z, p = torch.randn(5, 2), torch.randn(4, 2)
    compiled = torch.compile(lambda z: vk.mmd(z, p), fullgraph=True, backend="eager")
    compiled(z)
    with vk.use_backend("triton"), pytest.raises(Exception, match="cannot run on cpu tensors"):
        compiled(z)
    compiled(z)


def test_an_interrupted_look_at_a_backend_decides_nothing(monkeypatch):
    def interrupted(device_type):
        raise KeyboardInterrupt

    monkeypatch.setattr(_backend, "_reasons", {})
    for name in ("_triton_unavailable", "_native.unavailable"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"vimae_kernels._backend.{name}", interrupted)
            _backend.resolve(None, torch.device("cpu"))
    assert _backend.resolve(None, torch.device("cpu")) in ("native", "reference")
