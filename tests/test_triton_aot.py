"""Every shipped configuration of the Triton kernels, compiled for each GPU family without a GPU."""

from __future__ import annotations

import multiprocessing
import re
import subprocess
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: nothing is compiled", allow_module_level=True)

from vimae_kernels.ops.median import triton_impl as median  # noqa: E402
from vimae_kernels.ops.mmd import triton_impl as mmd  # noqa: E402

# Shared memory that one program may take, in bytes.
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448, 120: 101_376}

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
IMQ = list(mmd.shipped("imq", 1))
# The default kernels on every family, seven scales on one: the loop over scales needs no shared memory, and
# registers are the same everywhere.
CASES = [
    *((arch, f"{name} imq", *rest) for arch in SHARED_LIMIT for name, *rest in IMQ),
    *(
        (arch, f"{name} rbf", *rest)
        for arch in SHARED_LIMIT
        for name, *rest in mmd.shipped("rbf", 1)
    ),
    *((arch, f"{name} median", *rest) for arch in SHARED_LIMIT for name, *rest in median.shipped()),
    *((90, f"{name} imq, 7 scales", *rest) for name, *rest in mmd.shipped("imq", 7)),
    *((90, f"{name} rbf, 7 scales", *rest) for name, *rest in mmd.shipped("rbf", 7)),
]


def compiled(arch, launch, types):
    source = ASTSource(launch.kernel, types, launch.constants)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)


def compile_case(index):
    arch, _, launch, types = CASES[index]
    compiled(arch, launch, types)


@pytest.fixture(scope="module", autouse=True)
def all_cores():
    """Fill Triton's cache on all cores: the tests below then find their kernels compiled."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(compile_case, range(len(CASES))):
            pass


def tool(name, *arguments):
    command = [TOOLS / name, *arguments]
    return subprocess.run(command, text=True, capture_output=True, check=True).stdout


def resources(kernel, tmp_path):
    """Registers per thread and bytes of stack, as the cubin declares them."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    usage = re.search(
        r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", tool("cuobjdump", "-res-usage", cubin)
    )
    registers, stack, local = map(int, usage.groups())
    return registers, stack + local, tool("nvdisasm", "-c", cubin)


def loops(sass):
    """The instructions of every innermost loop, as lists of operation names."""
    labels, code, bodies = {}, [], []
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            code.append(re.sub(r"^@!?U?P[\dT]+\s+", "", instruction[1]))
            jump = re.match(r"BRA.*(\.L_x_\d+)", code[-1])
            if jump and jump[1] in labels:
                bodies.append((labels[jump[1]], len(code)))
    inner = [a for a in bodies if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in bodies)]
    return [[i.split()[0] for i in code[start:stop]] for start, stop in inner if stop - start > 2]


@pytest.mark.parametrize(
    ("arch", "launch", "types"),
    [pytest.param(arch, *rest, id=f"sm_{arch} {name}") for arch, name, *rest in CASES],
)
def test_no_configuration_spills(arch, launch, types, tmp_path):
    kernel = compiled(arch, launch, types)
    registers, memory, sass = resources(kernel, tmp_path)
    print(f"{registers} registers, {kernel.metadata.shared} bytes shared")
    assert memory == 0
    assert not re.search(r"\b(LDL|STL)\b", sass)
    assert registers * 32 * launch.options["num_warps"] <= 65_536
    assert kernel.metadata.shared <= SHARED_LIMIT[arch]


# sm_100 spends moves on pairing operands for its two-wide FMA, and fewer issue slots on the FMAs.
@pytest.mark.parametrize(("arch", "limit"), [(80, 1.2), (90, 1.2), (100, 1.3)])
def test_instructions_per_pair(arch, limit, tmp_path):
    """Value and gradient at d = 8 in float32: 27 by hand, with 8 subtractions and 16 FMAs."""
    name, launch, types = next(c for c in IMQ if c[0] == "d=8 fp32 both")
    _, _, sass = resources(compiled(arch, launch, types), tmp_path)
    pairs = (
        launch.constants["ROWS"] * launch.constants["COLUMNS"] / (32 * launch.options["num_warps"])
    )
    (body,) = loops(sass)
    print(f"{name}, sm_{arch}: {len(body) / pairs} per pair", Counter(body).most_common())
    assert len(body) <= limit * 27 * pairs


def test_argument_types_name_every_argument():
    for _, _, launch, types in CASES:
        assert list(types) == launch.kernel.arg_names
