"""The configurations of the Triton kernels, compiled for GPU families without a GPU.

Their machine code is held against the counts in benchmarks/results/gpu-static.json. After a change that is meant,
`python -m benchmarks.gpu_static --write benchmarks/results/gpu-static.md` writes them anew.
"""

from __future__ import annotations

import pytest

triton = pytest.importorskip("triton")

if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: nothing is compiled", allow_module_level=True)

from benchmarks import gpu_static, sass  # noqa: E402
from vimae_kernels._triton import Loop  # noqa: E402

# Of one scale: for one family all in float32 and one of every kernel in float64, for the others the kernels for d = 8.
# The report compiles the rest, and is held to the same limits.
CASES = [
    case
    for case in sass.cases()
    if "7 scales" not in case.name
    and (
        " d=8 fp32" in case.name
        or (case.arch == 90 and not ("fp64" in case.name and "rbf" in case.name))
    )
]
KEPT = gpu_static.load()
BEFORE = {(kept["arch"], kept["name"]): kept for kept in KEPT["kernels"]}
# Other versions of Triton bring another ptxas, which schedules differently.
TOLERANCE = 1.02 if KEPT["triton"] == triton.__version__ else 1.15


@pytest.fixture(scope="module")
def records(request):
    """Those that are asked for, compiled and counted on all cores."""
    items = [item for item in request.session.items if item.path == request.path]
    cases = [item.callspec.params["case"] for item in items if hasattr(item, "callspec")]
    found = sass.on_all_cores(gpu_static.describe, cases)
    return {(record["arch"], record["name"]): record for record in found}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"sm_{case.arch} {case.name}")
def test_configuration(case, records):
    record = records[case.arch, case.name]
    limits = sass.ARCHITECTURES[case.arch]
    assert record["spills"] == 0 and record["stack"] == 0
    assert record["registers"] * 32 * case.warps <= limits.registers
    assert record["shared"] <= limits.shared_per_block
    assert record["occupancy"] > 0
    assert list(case.types) == case.launch.kernel.arg_names
    before = BEFORE.get((case.arch, case.name), {"loops": []})
    then = {loop["name"]: loop["unit"]["issue"] for loop in before["loops"]}
    for loop in record["loops"]:
        now = loop["unit"]["issue"]
        print(f"{loop['name']}: {now:.2f} instructions, {loop['plain']} by hand")
        if loop["plain"] is not None:
            assert gpu_static.ratio(loop) <= loop["limit"]
        assert now <= TOLERANCE * then.get(loop["name"], now)


def test_counts_are_kept_for_every_configuration_and_no_other():
    assert set(BEFORE) == {(case.arch, case.name) for case in sass.cases()}


def test_the_report_holds_for_every_family():
    """What the tests above do not compile was compiled for the report."""
    for kept in KEPT["kernels"]:
        where = kept["arch"], kept["name"]
        assert gpu_static.fits(kept), where
        for loop in kept["loops"]:
            if loop["plain"] is not None:
                assert gpu_static.ratio(loop) <= loop["limit"], (where, loop)


SASS = """
	.section	.text.k,"ax",@progbits
.L_x_0:
        /*0000*/                   FADD R0, R1, -R2 ;
.L_x_1:
        /*0010*/              @!P0 LDG.E.64 R4, desc[UR4][R2.64] ;
        /*0020*/                   FFMA R0, R1, R1, R0 ;
        /*0028*/                   NOP ;
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


def test_two_loops_of_a_kernel_are_told_apart():
    distances = sass.Body(["FADD", "FFMA", "FFMA", "LDS"] * 8)
    remainder = sass.Body(["FADD", "FFMA", "FFMA", "LDS"] * 5)
    gradient = sass.Body(["FFMA"] * 12 + ["FFMA2"])
    around = sass.Body(["MUFU"] * 4 + ["FADD"] * 99, [remainder, distances, gradient])
    wanted = Loop("k", "MUFU", 1, None), Loop("d", "FADD", 1, 3), Loop("g", "FFMA", 2, 2)
    found = sass.matched([around], wanted)
    assert [(body, units) for _, body, units in found] == [
        (around, 4),
        (distances, 8),
        (gradient, 7),
    ]
    with pytest.raises(LookupError, match="no loop with DADD"):
        sass.matched([around], [Loop("e", "DADD", 1, 1)])
