"""The package in a process: imported again, and by name."""

from __future__ import annotations

import subprocess
import sys

AGAIN = """
import importlib, sys, torch
import vimae_kernels as first
z, p = torch.randn(9, 2, requires_grad=True), torch.randn(8, 2)
want = first.mmd(z, p)
{again}
import vimae_kernels as second
for vk in (first, second):
    assert torch.equal(vk.mmd(z, p), want)
    compiled = torch.compile(lambda z: vk.mmd(z, p), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z), want)
    torch.func.hessian(lambda z: vk.mmd(z, p))(z.detach())
print("ok")
"""
WAYS = {
    "forgotten": "for name in [n for n in sys.modules if n.startswith('vimae_kernels')]: del sys.modules[name]",
    "reloaded": "for name in sorted(n for n in sys.modules if n.startswith('vimae_kernels') "
    "and not n.endswith('_C')): importlib.reload(sys.modules[name])",
}


def test_a_second_import_in_one_process():
    for way in WAYS.values():
        code = AGAIN.format(again=way)
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.stdout == "ok\n", run.stderr
