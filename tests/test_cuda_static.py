"""The machine code of the CUDA C++ kernels, from the module that was built: nothing here needs a GPU."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")  # its package has the disassembler

from benchmarks import gpu_static
from vimae_kernels import _native

ARCHITECTURES = _native.build_report().get("cuda_architectures", "")

pytestmark = pytest.mark.skipif(
    _native._C is None or not ARCHITECTURES, reason="the native core was built without nvcc"
)


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
def test_cuda_kernels(arch):
    """No spills, shared memory that needs no asking for, and few instructions over those by hand."""
    if str(arch) not in ARCHITECTURES:
        pytest.skip(f"the native core was built for {ARCHITECTURES}")
    records = gpu_static.native_records(arch)
    operations = {record["name"].split()[0] for record in records}
    assert operations == {path.parent.name for path in gpu_static.CSRC.glob("*/*_cuda.cu")}
    for record in records:
        assert not record["spills"] and not record["stack"], record["name"]
        assert record["shared"] <= 48 * 1024, record["name"]
        for loop in record["loops"]:
            assert gpu_static.ratio(loop) <= loop["limit"], (record["name"], loop)
