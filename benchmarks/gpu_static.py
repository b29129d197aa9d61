"""What the machine code of the GPU kernels says about their speed, without a GPU.

`python -m benchmarks.gpu_static` compiles every shipped Triton configuration for four families of GPUs, takes
the CUDA C++ kernels from the built module, disassembles all and counts; `--write FILE.md` keeps the report, and
the counts beside it as JSON, which tests/test_triton_aot.py and `python -m benchmarks.gpu` read.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import runpy
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # sass needs Triton; predictions from kept counts do not
    from vimae_kernels._triton import Loop

    from . import sass

RESULTS = Path(__file__).with_name("results") / "gpu-static.json"
CSRC = Path(__file__).parents[1] / "csrc"


class Device(NamedTuple):
    """Public data-sheet numbers. The clock is the one that gives the data sheet's float32 rate."""

    arch: int  # whose machine code it is judged by
    sms: int
    fp32: int  # multiply-adds per clock and multiprocessor
    fp64: int
    tflops: float  # float32, not on tensor cores
    hbm: float  # TB/s

    @property
    def clock(self) -> float:
        """GHz."""
        return 1e3 * self.tflops / (2 * self.fp32 * self.sms)


# NVIDIA's data sheets of the A100 80 GB SXM, H100 SXM, H200 SXM, HGX B200 (an eighth of it) and the GeForce pages;
# multiprocessors and lanes from the architecture white papers and the CUDA C++ programming guide.
DEVICES = {
    "A100": Device(80, 108, 64, 32, 19.5, 2.039),
    "H100": Device(90, 132, 128, 64, 67.0, 3.35),
    "H200": Device(90, 132, 128, 64, 67.0, 4.8),
    "B200": Device(100, 148, 128, 64, 75.0, 8.0),
    # Ada has the instruction set of sm_80, and like it runs half its float32 lanes on integers.
    "RTX 4090": Device(80, 128, 128, 2, 82.6, 1.008),
    "RTX 5090": Device(120, 170, 128, 2, 104.8, 1.792),
}
TYPICAL = {80: "A100", 90: "H100", 100: "B200", 120: "RTX 5090"}

# Per clock and multiprocessor, on all of them (CUDA C++ programming guide, arithmetic instruction throughput;
# 128 bytes from L1 or shared memory and 64 from L2 as in the A100 white paper).
ISSUE, ALU, MUFU, L1, L2 = 128, 64, 16, 128, 64

KINDS = ("fma", "float", "mufu", "memory", "other")
CONTROL = ("BRA", "BAR", "BSSY", "BSYNC", "WARPSYNC", "DEPBAR", "NOP", "CALL", "RET", "EXIT", "U")
FLOAT_ON_ALU = ("FSEL", "FSETP", "FMNMX", "FCHK")


def mix(instructions: Iterable[str]) -> Counter[str]:
    """Instructions by kind, and what they take of each resource, per thread."""
    out: Counter[str] = Counter()
    for name in instructions:
        operation, *rest = name.split(".")
        lanes = 2 if operation in ("FFMA2", "FADD2", "FMUL2") else 1
        out["issue"] += 1
        if operation.startswith(("FFMA", "DFMA", "DMMA")):
            out["fma"] += 1
            # 8 x 8 x 4 multiply-adds of a warp, at twice the rate of the others.
            out["fp64"] += 4 if operation == "DMMA" else int(operation == "DFMA")
            out["fp32"] += lanes if operation.startswith("F") else 0
        elif operation in ("FADD", "FMUL", "FADD2", "FMUL2"):
            out["float"] += 1
            out["fp32"] += lanes
        elif operation in ("DADD", "DMUL", "DSETP"):
            out["float"] += 1
            out["fp64"] += 1
        elif operation in FLOAT_ON_ALU:
            out["float"] += 1
            out["alu"] += 1
        elif operation == "MUFU":
            out["mufu"] += 1
        elif operation in (
            "LDG",
            "LDGSTS",
            "STG",
            "LDS",
            "STS",
            "LDSM",
            "STSM",
            "LDL",
            "STL",
            "SHFL",
            "LD",
            "ST",
        ):
            out["memory"] += 1
            wide = 4 if rest[-1:] == ["4"] else 2 if rest[-1:] == ["2"] or "64" in rest else 1
            out["l1"] += 4 * (4 if "128" in rest else wide)
        else:
            out["other"] += 1
            if operation.startswith(("IMAD", "HFMA2")):
                out["fp32"] += 1
            elif not operation.startswith(CONTROL):
                out["alu"] += 1
    return out


def loops_of(bodies: list[sass.Body], loops: Iterable[Loop]) -> list[dict[str, Any]]:
    """Inner loops: what a unit of work takes of each resource, beside the instructions by hand."""
    from . import sass

    return [
        {
            "name": loop.name,
            "plain": loop.plain,
            "limit": loop.limit,
            "unit": {kind: round(n / units, 3) for kind, n in mix(body.own).items()},
        }
        for loop, body, units in sass.matched(bodies, loops)
    ]


def ratio(loop: Mapping[str, Any]) -> float:
    """Instructions over those by hand."""
    return float(loop["unit"]["issue"] / loop["plain"])


def occupancy(code: sass.Code, arch: int, warps: int) -> tuple[int, str]:
    """Warps that a multiprocessor holds at once, and what keeps it from more."""
    from .sass import ARCHITECTURES

    limits = ARCHITECTURES[arch]
    # Registers are given out to warps by 256, shared memory to blocks by 128 after 1 KB for the system.
    per_warp = -(-32 * code.registers // 256) * 256
    shared = -(-(code.shared + 1024) // 128) * 128
    blocks = {
        "warps": limits.warps // warps,
        "blocks": limits.blocks,
        "registers": limits.registers // (per_warp * warps),
        "shared": limits.shared // shared,
    }
    least = min(blocks, key=blocks.__getitem__)
    return blocks[least] * warps, least


def busy(loop: Mapping[str, Any], device: Device) -> dict[str, float]:
    """What a unit of work keeps each resource of a multiprocessor busy for, in clocks."""
    unit: defaultdict[str, float] = defaultdict(float, loop["unit"])
    return {
        "issue": unit["issue"] / ISSUE,
        "fp32": unit["fp32"] / device.fp32,
        "fp64": unit["fp64"] / device.fp64,
        "integer": unit["alu"] / ALU,
        "mufu": unit["mufu"] / MUFU,
        "L1/shared": unit["l1"] / L1,
    }


# Times are predicted for mmd in float32 with one IMQ scale.


def record_for(
    records: Iterable[dict[str, Any]], device: Device, side: str, d: int
) -> dict[str, Any]:
    """The configuration that a call at this d takes."""
    names = [
        f"mmd d={limit} fp32 {side} imq" for limit in (8, 16, "any") if limit == "any" or d <= limit
    ]
    found = {r["name"]: r for r in records if r["arch"] == device.arch}
    return next(found[name] for name in names if name in found)


def pairs_of(side: str, n: int, m: int) -> float:
    """Pairs that a launch visits (ops/mmd/triton_impl.py)."""
    return (
        (n * n + m * m) / 2 + n * m
        if side == "value"
        else (n + m) * (n if side == "one side" else n + m)
    )


def predict(
    records: list[dict[str, Any]], device: Device, side: str, n: int, m: int, d: int
) -> tuple[float, str]:
    """Milliseconds of a launch and the resource that takes the longest."""
    clocks: defaultdict[str, float] = defaultdict(float)
    # With the gradient of one side, the other sample's own pairs are visited for their value alone.
    parts = [(side, pairs_of(side, n, m))] + [("value", m * m / 2)] * (side == "one side")
    for part, pairs in parts:
        record = record_for(records, device, part, d)
        constants = record["constants"]
        for loop in record["loops"]:
            units = d if loop["name"] in ("distances", "gradient") else 1
            # A loop over unrolled coordinates costs what its d asks for.
            units *= d / constants["D"] if "D" in constants else 1
            for resource, clock in busy(loop, device).items():
                clocks[resource] += pairs * units * clock
        tile = constants["ROWS"] * constants["COLUMNS"]
        clocks["L2"] += pairs * tile_bytes(constants, d) / (tile * L2)
    out = {
        resource: clock / (device.sms * device.clock * 1e6) for resource, clock in clocks.items()
    }
    # Points read and gradients written once.
    out["HBM"] = 2 * (n + m) * d * 4 / (device.hbm * 1e9)
    bound = max(out, key=out.__getitem__)
    return out[bound], bound


def tile_bytes(constants: Mapping[str, int], d: int) -> int:
    """What a program asks of L2 for a tile: the columns, and what does not stay in registers."""
    tiled = "D" not in constants
    points = constants["COLUMNS"] + (constants["ROWS"] if tiled else 0)
    gradient = 2 * constants["ROWS"] if tiled and constants["ORDER"] else 0
    return 4 * d * (points * (2 if constants["ORDER"] == 2 else 1) + gradient)


def record_of(
    arch: int, name: str, warps: int, code: sass.Code, loops: Iterable[Loop]
) -> dict[str, Any]:
    held, limit = occupancy(code, arch, warps)
    return {
        "arch": arch,
        "name": name,
        "warps": warps,
        "registers": code.registers,
        "spills": code.spills,
        "stack": code.stack,
        "shared": code.shared,
        "occupancy": held,
        "limit": limit,
        "loops": loops_of(code.loops, loops),
    }


def describe(case: sass.Case) -> dict[str, Any]:
    """One configuration of a Triton kernel, compiled and counted."""
    from . import sass

    code = sass.code(sass.compiled(case))
    record = record_of(case.arch, case.name, case.warps, code, case.loops)
    return {**record, "constants": case.launch.constants}


def native_module() -> Path | None:
    from vimae_kernels import _native

    return None if _native._C is None else Path(_native._C.__file__)


def native_records(architecture: int = 90) -> list[dict[str, Any]]:
    """The CUDA C++ kernels of the built module; empty where it has none."""
    from . import sass

    module = native_module()
    if module is None:
        return []
    found: dict[str, tuple[int, sass.Code]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            sass.tool("cuobjdump", "-xelf", f"sm_{architecture}", module, folder=folder)
        except subprocess.CalledProcessError:  # no device code at all
            return []
        for cubin in sorted(folder.glob("*.cubin")):
            threads = sass.block_sizes(cubin)
            for symbol, code in sass.read(cubin).items():
                found[symbol] = threads.get(symbol, 1024) // 32, code
    # c++filt comes with every compiler that could have built the module.
    plain = subprocess.run(
        ["c++filt"], input="\n".join(found), text=True, capture_output=True, check=True
    ).stdout.splitlines()
    out = []
    for (symbol, (warps, code)), readable in zip(found.items(), plain, strict=True):
        # The compiler names an anonymous namespace after its file.
        op = re.search(r"_GLOBAL__N__\w+?_\d+_(\w+?)_cuda_cu_", symbol)
        assert op, symbol
        kernel = short(readable)
        out.append(
            record_of(architecture, f"{op[1]} {kernel}", warps, code, native_loops(op[1], kernel))
        )
    return sorted(out, key=lambda r: str(r["name"]))


def native_loops(op: str, kernel: str) -> tuple[Loop, ...]:
    """Its inner loops, by `loops` of csrc/<op>/<op>_cuda_loops.py."""
    path = CSRC / op / f"{op}_cuda_loops.py"
    return cached(path)["loops"](kernel) if path.exists() else ()


@functools.cache
def cached(path: Path) -> dict[str, Any]:
    return runpy.run_path(str(path))


def short(symbol: str) -> str:
    """A demangled kernel without namespaces, casts and arguments."""
    name = (
        symbol.removeprefix("void ").replace("vimae::", "").replace("(anonymous namespace)::", "")
    )
    return name.split(">(")[0] + ">" if ">(" in name else name.split("(")[0]


def fits(record: Mapping[str, Any]) -> bool:
    """No spills, and a block that a multiprocessor can hold."""
    return not record["spills"] and not record["stack"] and record["occupancy"] > 0


def prediction_table(records: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| n = m | d | computes | " + " | ".join(DEVICES) + " |",
        "|---" * (3 + len(DEVICES)) + "|",
    ]
    for n in (4096, 16384):
        for d in (8, 64):
            for side in ("value", "one side", "both", "hessian"):
                cells = []
                for device in DEVICES.values():
                    ms, bound = predict(records, device, side, n, n, d)
                    cells.append(f"{ms:.3g} ({bound})")
                lines.append(f"| {n} | {d} | {side} | {' | '.join(cells)} |")
    return lines


def kernel_table(records: list[dict[str, Any]], arch: int) -> list[str]:
    lines = [
        "| kernel | registers | spills | stack | shared | warps per SM (limited by) | loop | FMA "
        "| other float | MUFU | memory | integer, control | instructions per unit | by hand | **ratio** | bound by |",
        "|---" * 16 + "|",
    ]
    for r in records:
        if r["arch"] != arch:
            continue
        cells = [f"`{r['name']}`", r["registers"], r["spills"], r["stack"], r["shared"]]
        cells.append(f"{r['occupancy']} ({r['limit']})" + ("" if fits(r) else " DOES NOT FIT"))
        # A line per loop, the kernel on the first.
        for loop in r["loops"] or [None]:
            work = [""] * 10
            if loop:
                clocks = busy(loop, DEVICES[TYPICAL[arch]])
                work = [loop["name"], *(f"{loop['unit'].get(kind, 0):.2f}" for kind in KINDS)]
                work += [f"{loop['unit']['issue']:.2f}"]
                work += (
                    ["", ""]
                    if loop["plain"] is None
                    else [f"{loop['plain']:g}", f"**{ratio(loop):.2f}**"]
                )
                work += [max(clocks, key=clocks.__getitem__)]
            lines.append("| " + " | ".join(map(str, [*cells, *work])) + " |")
            cells = [""] * 6
    return lines


def family_table(records: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| configuration | " + " | ".join(f"sm_{a}" for a in TYPICAL) + " |",
        "|---" * (1 + len(TYPICAL)) + "|",
    ]
    found = {(r["name"], r["arch"]): r for r in records}
    for name in dict.fromkeys(r["name"] for r in records if r["arch"] != 90):
        cells = []
        for arch in TYPICAL:
            r = found[name, arch]
            ratios = [f"**{ratio(loop):.2f}**" for loop in r["loops"] if loop["plain"] is not None]
            cells.append(
                ", ".join([str(r["registers"]), str(r["occupancy"]), *ratios])
                + ("" if fits(r) else " DOES NOT FIT")
            )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def report(records: list[dict[str, Any]], native: list[dict[str, Any]], versions: str) -> str:
    devices = "; ".join(
        f"{name}: {d.sms} SMs, {d.clock:.2f} GHz, {d.fp32} float32 and {d.fp64} float64 multiply-adds "
        f"per clock and SM, {d.hbm:g} TB/s, code of sm_{d.arch}"
        for name, d in DEVICES.items()
    )
    lines = [
        "# The GPU kernels, read and not run",
        "",
        f"`python -m benchmarks.gpu_static --write benchmarks/results/gpu-static.md`, {versions}. "
        "**Nothing here was run on a GPU.**",
        "",
        "Every configuration of the Triton kernels was compiled ahead of time and disassembled, the CUDA C++ kernels "
        "were taken from the built module. Of an inner loop, the instructions were counted by kind and divided by its "
        "units of work: a pair where all coordinates are unrolled; a pair and coordinate in loops called distances and "
        "gradient. By hand a unit is its subtractions, multiply-adds, reciprocals and exponentials, nothing else.",
        "",
        "How the times were predicted. For each resource of a multiprocessor (128 issue slots, the float32 and "
        "float64 lanes, 64 integer lanes, 16 special functions, 128 bytes from L1 or shared memory, 64 bytes from "
        "L2, all per clock) and for device memory, the cost of all pairs over the device's rate is a time; the "
        "longest is the prediction, named with its resource. Rates are public data-sheet numbers. Left out, and "
        "all of it makes a real run slower: latency that the resident warps do not hide, launch overhead and the "
        "finishing kernel, what a program does outside its inner loops, tail effects of an uneven last wave, bank "
        "conflicts, two resources that wait for each other, clocks below the data sheet's. One thing makes it "
        "faster: loads are counted as if every lane of a warp had its own data, so L1 times are too long where "
        "the hardware serves lanes that share it at once. A prediction is there to be compared with a measurement "
        "(`python -m benchmarks.gpu` does), no more.",
        "",
        f"Devices: {devices}.",
        "",
        "## Predicted ms of mmd, Triton, float32, IMQ",
        "",
        "`one side` is forward + backward with the gradient to z; `both` has that of the prior as well.",
        "",
        *prediction_table(records),
        "",
        "## Every Triton configuration on sm_90",
        "",
        f"Stack and shared memory in bytes; bound on the {TYPICAL[90]}.",
        "",
        *kernel_table(records, 90),
        "",
        "## The same on other families",
        "",
        "Registers, warps per multiprocessor, **ratio** of each inner loop.",
        "",
        *family_table(records),
        "",
        "## CUDA C++, sm_90",
        "",
    ]
    if native:
        lines += kernel_table(native, 90)
    else:
        lines += ["The built module has no CUDA code: there is nothing to read."]
    return "\n".join(lines) + "\n"


def load(path: Path = RESULTS) -> dict[str, Any]:
    """What --write kept."""
    kept: dict[str, Any] = json.loads(path.read_text())
    return kept


def save(path: Path, triton: str, records: list[dict[str, Any]]) -> None:
    # A line per configuration: a change shows as one in the difference.
    rows = ",\n".join(json.dumps(r) for r in records)
    path.write_text(f'{{"triton": {json.dumps(triton)}, "kernels": [\n{rows}\n]}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "only", nargs="?", help="print the table of the kernels whose name contains this, no more"
    )
    parser.add_argument(
        "--write", type=Path, help="keep the report here, and the counts beside it as .json"
    )
    args = parser.parse_args()

    import triton

    from . import sass

    if args.only:
        cases = [case for case in sass.cases([90]) if args.only in case.name]
        native = [record for record in native_records() if args.only in record["name"]]
        print("\n".join(kernel_table(sass.on_all_cores(describe, cases) + native, 90)))
        return
    records = sass.on_all_cores(describe, sass.cases())
    assembler = sass.tool("ptxas", "--version").split("release ")[1].split(",")[0]
    text = report(records, native_records(), f"Triton {triton.__version__}, ptxas {assembler}")
    print(text)
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text(text)
        save(args.write.with_suffix(".json"), triton.__version__, records)


if __name__ == "__main__":
    main()
