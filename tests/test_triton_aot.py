"""Every shipped configuration of the Triton kernels, compiled for each GPU family without a GPU.

Their machine code is held against the counts in benchmarks/results/gpu-static.json. After a change that is meant,
`python -m benchmarks.gpu_static --write benchmarks/results/gpu-static.md` writes them anew.
"""

from __future__ import annotations

import pytest

triton = pytest.importorskip("triton")

if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: nothing is compiled", allow_module_level=True)

from benchmarks import gpu_static, sass  # noqa: E402

# The default kernels on every family, seven scales on one: the loop over scales needs no shared memory, and
# registers are the same everywhere.
WANTED = [*((1, arch) for arch in sass.ARCHITECTURES), (7, 90)]
CASES = [case for scales, arch in WANTED for case in sass.cases(scales, [arch])]
KEPT = gpu_static.load()
BEFORE = {(kept["arch"], kept["name"]): kept for kept in KEPT["kernels"]}
# Other versions of Triton bring another ptxas, which schedules differently.
TOLERANCE = 1.02 if KEPT["triton"] == triton.__version__ else 1.15


@pytest.fixture(scope="module")
def records():
    """All of them, compiled and counted on all cores."""
    found = sass.on_all_cores(gpu_static.describe, WANTED)
    return {(record["arch"], record["name"]): record for record in found}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"sm_{case.arch} {case.name}")
def test_configuration(case, records):
    record = records[case.arch, case.name]
    limits = sass.ARCHITECTURES[case.arch]
    assert record["spills"] == record["stack"] == 0
    assert record["registers"] * 32 * case.warps <= limits.registers
    assert record["shared"] <= limits.shared_per_block
    assert record["occupancy"] > 0
    assert list(case.types) == case.launch.kernel.arg_names
    before = BEFORE.get((case.arch, case.name))
    if before is not None and before["sweeps"]:
        now, then = gpu_static.instructions(record), gpu_static.instructions(before)
        print(f"{now:.1f} instructions per pair, {then:.1f} before")
        assert now <= TOLERANCE * then


def test_counts_are_kept_for_every_configuration_and_no_other():
    assert set(BEFORE) == {(case.arch, case.name) for case in sass.cases()}


# sm_100 spends moves on pairing operands for its two-wide FMA, and fewer issue slots on the FMAs.
@pytest.mark.parametrize(("arch", "limit"), [(80, 1.2), (90, 1.2), (100, 1.3), (120, 1.2)])
def test_instructions_per_pair(arch, limit, records):
    """Value and gradient at d = 8 in float32: 27 by hand, with 8 subtractions and 16 FMAs."""
    record = records[arch, "d=8 fp32 both imq"]
    cost = gpu_static.per_pair(record["sweeps"][0], 8)
    print(cost)
    assert cost["issue"] <= limit * gpu_static.minimum(8, 1)
    assert cost["mufu"] < 1.02


SASS = """
	.section	.text.k,"ax",@progbits
.L_x_0:
        /*0000*/                   FADD R0, R1, -R2 ;
.L_x_1:
        /*0010*/              @!P0 LDG.E.64 R4, desc[UR4][R2.64] ;
        /*0020*/                   FFMA R0, R1, R1, R0 ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
        /*0040*/               @P1 BRA `(.L_x_0) ;
.L_x_2:
        /*0050*/                   BRA `(.L_x_2) ;
"""


def test_loops_are_found():
    (outer,) = sass.loops(SASS)
    (inner,) = outer.inner
    assert inner.own == ["LDG.E.64", "FFMA", "BRA"]
    assert outer.own == ["FADD", "BRA"]
    counts = gpu_static.mix(inner.own)
    assert (counts["issue"], counts["fma"], counts["memory"], counts["l1"]) == (3, 1, 1, 8)
