"""The machine code of the CUDA C++ kernels, from the module that was built: nothing here needs a GPU."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")  # its package has the disassembler

from benchmarks import gpu_static
from vimae_kernels import _native

pytestmark = pytest.mark.skipif(
    _native._C is None or not _native.build_report().get("cuda_architectures"),
    reason="the native core was built without nvcc",
)

# Value and gradient of a pair, float32, one scale, counted with nvcc 13.0; by hand it is 3 d + 3.
PER_PAIR = {
    "imq": {2: 9.44, 4: 15.56, 8: 27.81, 16: 56.25},
    "rbf": {2: 10.44, 4: 16.56, 8: 28.81, 16: 57.25},
}


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
def test_no_cuda_kernel_spills(arch):
    records = gpu_static.native_records(arch)
    names = {record["name"].split("<")[0] for record in records}
    assert {"register_kernel", "tiled_kernel", "finish_value", "count_below"} <= names
    for record in records:
        assert not record["spills"] and not record["stack"], record["name"]
        assert record["shared"] <= 48 * 1024, record["name"]


def test_instructions_per_pair_do_not_rise():
    records = gpu_static.native_records(90)
    for family, kept in PER_PAIR.items():
        for d, count in kept.items():
            assert gpu_static.register_kernel_cost(records, d, family) <= 1.03 * count, (family, d)
