"""Kernels compiled ahead of time, for GPUs that need not be here, and what their machine code says.

Shared by tests/test_triton_aot.py and benchmarks/gpu_static.py. Needs Triton and its disassembler.
"""

from __future__ import annotations

import importlib
import math
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import vimae_kernels
from vimae_kernels._triton import Launch, Loop

T = TypeVar("T")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
OPS = Path(vimae_kernels.__file__).parent / "ops"
# The family for which every configuration is compiled.
EVERY_CONFIGURATION = 90


class Architecture(NamedTuple):
    """Limits of one multiprocessor (CUDA C++ programming guide, table of compute capabilities)."""

    warps: int
    blocks: int
    shared: int  # bytes
    shared_per_block: int
    registers: int = 65_536


ARCHITECTURES = {
    80: Architecture(64, 32, 167_936, 166_912),
    90: Architecture(64, 32, 233_472, 232_448),
    100: Architecture(64, 32, 233_472, 232_448),
    120: Architecture(48, 24, 102_400, 101_376),
}


class Case(NamedTuple):
    """One compilation of a Triton kernel."""

    arch: int
    name: str
    launch: Launch
    types: dict[str, Any]
    loops: tuple[Loop, ...] = ()

    @property
    def warps(self) -> int:
        return int(self.launch.options["num_warps"])


def cases(architectures: Iterable[int] = tuple(ARCHITECTURES)) -> list[Case]:
    """What every ops/*/triton_impl.py ships."""
    shipped = [
        (path.parent.name, one)
        for path in sorted(OPS.glob("*/triton_impl.py"))
        for one in importlib.import_module(
            f"vimae_kernels.ops.{path.parent.name}.triton_impl"
        ).shipped()
    ]
    return [
        Case(arch, f"{op} {one.name}", one.launch, one.types, one.loops)
        for arch in architectures
        for op, one in shipped
        if one.everywhere or arch == EVERY_CONFIGURATION
    ]


def compiled(case: Case) -> Any:
    """As a launch compiles it: torch allocates at multiples of 16 bytes at least, and Triton looks for that.

    Of integers a launch says nothing: no kernel lets Triton specialize on them.
    """
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, kind in enumerate(case.types.values())
        if isinstance(kind, str) and kind.startswith("*")
    }
    source = ASTSource(case.launch.kernel, case.types, case.launch.constants, aligned)
    target = GPUTarget("cuda", case.arch, 32)
    return triton.compile(source, target=target, options=case.launch.options)


def _on_case(work: tuple[Callable[[Case], T], int, str]) -> T:
    function, arch, name = work
    return function(next(case for case in cases([arch]) if case.name == name))


def on_all_cores(function: Callable[[Case], T], wanted: Iterable[Case]) -> list[T]:
    """`function`, of a module, of each of them, in order.

    A worker is told a name: kernels do not travel between processes.
    """
    work = [(function, case.arch, case.name) for case in wanted]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_on_case, work))


def tool(name: str, *arguments: str | Path, folder: Path | None = None) -> str:
    command = [str(TOOLS / name), *map(str, arguments)]
    run = subprocess.run(command, text=True, capture_output=True, check=True, cwd=folder)
    return run.stdout


@dataclass
class Body:
    """A loop of the machine code: what it runs itself, and the loops inside."""

    own: list[str] = field(default_factory=list)
    inner: list[Body] = field(default_factory=list)


class Code(NamedTuple):
    """One kernel's machine code; stack and shared memory in bytes."""

    registers: int
    stack: int
    shared: int
    spills: int  # instructions that read or write local memory
    loops: list[Body]


def read(cubin: Path) -> dict[str, Code]:
    """The kernels of a cubin by their symbols."""
    usage = re.findall(
        r"Function ([^\s:]+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)",
        tool("cuobjdump", "-res-usage", cubin),
    )
    section = re.compile(r"^\s*\.section\s+\.text\.([^\s,]+),.*$", re.M)
    parts = section.split(tool("nvdisasm", "-c", cubin))
    sass = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {
        name: Code(
            registers=int(registers),
            stack=int(stack) + int(local),
            shared=int(shared),
            spills=len(re.findall(r"\b(?:LDL|STL)\b", sass[name])),
            loops=loops(sass[name]),
        )
        for name, registers, stack, shared, local in usage
    }


def block_sizes(cubin: Path) -> dict[str, int]:
    """The most threads a block may have, of the kernels whose source says so."""
    info = re.split(r"^\.nv\.info\.(\S+)$", tool("cuobjdump", "-elf", cubin), flags=re.M)
    size = r"EIATTR_MAX_THREADS\s.*?Value:\s+0x(\w+) 0x(\w+) 0x(\w+)"
    return {
        name: math.prod(int(x, 16) for x in limit.groups())
        for name, text in zip(info[1::2], info[2::2], strict=True)
        if (limit := re.search(size, text, re.S))
    }


def code(kernel: Any) -> Code:
    """Of a compiled Triton kernel."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        (only,) = read(cubin).values()
    return only._replace(shared=kernel.metadata.shared)


def loops(sass: str) -> list[Body]:
    """The outermost loops, in the order of the code; those of two instructions are waits, not work.

    Without NOPs, which stand between float64 instructions where those have a small part of the rate.
    """
    labels: dict[str, int] = {}
    code: list[str] = []
    spans = set()
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?!NOP|\s)(.*?);", line):
            code.append(re.sub(r"^@!?U?P[\dT]+\s+", "", found[1]))
            jump = re.match(r"BRA.*(\.L_x_\d+)", code[-1])
            if jump and jump[1] in labels and len(code) - labels[jump[1]] > 2:
                spans.add((labels[jump[1]], len(code)))
    # Sorted so that a loop comes right after the one around it.
    nested = sorted(spans, key=lambda span: (span[0], -span[1]))
    every = [Body() for _ in nested]
    outermost: list[Body] = []
    for i, (start, stop) in enumerate(nested):
        around = [j for j in range(i) if nested[j][0] <= start and stop <= nested[j][1]]
        (every[around[-1]].inner if around else outermost).append(every[i])
    for at, instruction in enumerate(code):
        around = [i for i, (start, stop) in enumerate(nested) if start <= at < stop]
        if around:
            every[around[-1]].own.append(instruction.split()[0])
    return outermost


def flattened(bodies: Iterable[Body]) -> list[Body]:
    return [x for body in bodies for x in (body, *flattened(body.inner))]


def count(instructions: Iterable[str], marker: str) -> int:
    """How often: FFMA2 is two FFMAs, and DMMA, 8 x 8 x 4 multiply-adds of a warp, is 8 DFMAs of each thread."""
    worth = {marker: 1, f"{marker}2": 2, **({"DMMA": 8} if marker == "DFMA" else {})}
    return sum(worth.get(name.split(".")[0], 0) for name in instructions)


def matched(bodies: Sequence[Body], loops: Iterable[Loop]) -> list[tuple[Loop, Body, float]]:
    """Each loop with its machine code and the units of work in that; see `Loop`."""
    free = flattened(bodies)
    out = []
    for loop in loops:
        counts = [(count(b.own, loop.marker), b) for b in free if not count(b.own, loop.without)]
        most = max((n for n, _ in counts), default=0)
        if most < loop.per_unit:
            raise LookupError(f"{loop.name}: no loop with {loop.marker} is left")
        near = [(n, b) for n, b in counts if 2 * n >= most]
        most, best = max(near, key=lambda c: (not c[1].inner, c[0], len(c[1].own)))
        copies = [b for n, b in near if 2 * n * len(best.own) >= most * len(b.own)]
        free = [b for b in free if all(b is not copy for copy in copies)]
        out.append((loop, best, most / loop.per_unit))
    return out
