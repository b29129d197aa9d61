"""What the machine code of the GPU kernels says about their speed, without a GPU.

`python -m benchmarks.gpu_static` compiles every shipped Triton configuration for four families of GPUs, takes
the CUDA C++ kernels from the built module, disassembles all and counts; `--write FILE.md` keeps the report, and
the counts beside it as JSON, which tests/test_triton_aot.py and `python -m benchmarks.gpu` read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # sass needs Triton; predictions from kept counts do not
    from . import sass

RESULTS = Path(__file__).with_name("results") / "gpu-static.json"


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

# Of use only while a loop is being recognised.
COUNTED_FOR_US = ("subtractions", "multiply-adds")
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
            out["multiply-adds"] += 8 if operation == "DMMA" else lanes
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
        if operation in ("FADD", "FADD2", "DADD"):
            out["subtractions"] += lanes
    return out


def scaled(counts: Mapping[str, float], factor: float) -> dict[str, float]:
    return {k: round(v * factor, 3) for k, v in counts.items() if k not in COUNTED_FOR_US}


def total(*parts: Mapping[str, float]) -> dict[str, float]:
    out: defaultdict[str, float] = defaultdict(float)
    for part in parts:
        for key, value in part.items():
            out[key] += value
    return out


def sweeps(case: sass.Case, loops: list[sass.Loop]) -> list[dict[str, dict[str, float]]]:
    """What a pair costs in each of a kernel's sweeps over columns, most work first.

    `pair` is per pair, `coordinate` per pair and coordinate, `sweep` per pair of a tile that is the only one of
    its sweep: what is done once per sweep. Kernels that unroll all d coordinates have no `coordinate`.
    """
    constants = case.launch.constants
    hessian = constants.get("ORDER") == 2
    # Every coordinate of a pair is one subtraction, two for a Hessian: so the code says how far it is unrolled.
    per_coordinate = case.pairs * (2 if hessian else 1)
    found = []

    def coordinates(loop: sass.Loop) -> int:
        return int(mix(loop.own)["subtractions"] / per_coordinate)

    def visit(loop: sass.Loop, around: sass.Loop | None) -> None:
        for inner in loop.inner:
            visit(inner, loop)
        # The tiled kernel takes coordinates by four; its second loop, which applies weights, subtracts fewer.
        at_once = constants.get("D", 4 if "DEPTH" in constants else 1)
        unrolled = coordinates(loop) // at_once
        if around is None or loop.inner or not unrolled:
            return
        here = mix(loop.own)
        if "D" in constants:
            cost = {
                "pair": scaled(here, 1 / (case.pairs * unrolled)),
                "sweep": scaled(mix(around.own), 1 / case.pairs),
            }
        else:
            coordinate = total(scaled(here, 1 / (case.pairs * unrolled * at_once)))
            for product in around.inner:
                if product is not loop:
                    work = mix(product.own)
                    depth = case.pairs * constants["DEPTH"]
                    assert work["multiply-adds"] >= depth, case.name
                    coordinate = total(coordinate, scaled(work, 1 / depth))
            cost = {
                "pair": scaled(mix(around.own), 1 / case.pairs),
                "coordinate": scaled(coordinate, 1),
            }
        if cost not in found:
            found.append(cost)

    if case.pairs:
        for loop in loops:
            visit(loop, None)
        assert found, f"no loop over pairs was recognised in {case.name}, sm_{case.arch}"
    return sorted(found, key=lambda cost: -per_pair(cost, 64)["issue"])


def per_pair(
    sweep: Mapping[str, Mapping[str, float]], d: int, tiles: float = 128
) -> dict[str, float]:
    """The cost of a pair in d dimensions, where a sweep has so many tiles."""
    return total(
        sweep["pair"],
        scaled(sweep.get("coordinate", {}), d),
        scaled(sweep.get("sweep", {}), 1 / tiles),
    )


def minimum(d: int, order: int) -> int:
    """Instructions of a pair by hand: subtractions, multiply-adds, a reciprocal or exponential, and two more."""
    return (2 * d, 3 * d, 6 * d)[order] + 3


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


def pairs_of(side: str, n: int, m: int) -> list[float]:
    """Pairs that each sweep of a launch visits, in the order of `sweeps` (ops/mmd/triton_impl.py)."""
    value = (n * n + m * m) / 2 + n * m
    return {
        "value": [value],
        "one side": [float(n * (n + m)), m * m / 2],
        "both": [float((n + m) ** 2)],
        "hessian": [float((n + m) ** 2)],
    }[side]


def clocks(cost: Mapping[str, float], device: Device) -> dict[str, float]:
    """What a pair's cost keeps each resource of a multiprocessor busy for, in clocks."""
    return {
        "issue": cost["issue"] / ISSUE,
        "fp32": cost["fp32"] / device.fp32,
        "fp64": cost["fp64"] / device.fp64,
        "integer": cost["alu"] / ALU,
        "mufu": cost["mufu"] / MUFU,
        "L1/shared": cost["l1"] / L1,
        "L2": cost["l2"] / L2,
    }


def record_for(
    records: Iterable[dict[str, Any]], device: Device, side: str, d: int
) -> dict[str, Any]:
    """The float32 IMQ configuration that a call at this d takes."""
    found = [
        r
        for r in records
        if r["arch"] == device.arch
        and r["side"] == side
        and r["family"] == "imq"
        and r["dtype"] == "fp32"
    ]
    fitting = [r for r in found if r["d"] is not None and d <= r["d"]]
    if fitting:
        return min(fitting, key=lambda r: r["d"])
    return next(r for r in found if r["d"] is None)


def predict(record: dict[str, Any], device: Device, n: int, m: int, d: int) -> tuple[float, str]:
    """Milliseconds of a launch and the resource that takes the longest."""
    from vimae_kernels.ops.mmd.triton_impl import _splits

    rows, columns, size = record["rows"], record["columns"], 8 if record["dtype"] == "fp64" else 4
    blocks = -(-n // rows) + -(-m // rows)
    tiles = min(128.0, max(n, m) / (_splits(blocks, max(n, m), columns) * columns))
    busy: defaultdict[str, float] = defaultdict(float)
    for pairs, sweep in zip(pairs_of(record["side"], n, m), record["sweeps"], strict=True):
        cost = per_pair(sweep, d, tiles)
        cost["l2"] = tile_bytes(record, d) / (rows * columns)
        for resource, clock in clocks(cost, device).items():
            busy[resource] += pairs * clock / (device.sms * device.clock * 1e6)
    # Points read and gradients written once.
    busy["HBM"] = 2 * (n + m) * d * size / (device.hbm * 1e9)
    bound = max(busy, key=busy.__getitem__)
    return busy[bound], bound


def tile_bytes(record: Mapping[str, Any], d: int) -> int:
    """What a program asks of L2 for a tile: the columns, and what does not stay in registers."""
    size = 8 if record["dtype"] == "fp64" else 4
    points = record["columns"] + (record["rows"] if record["d"] is None else 0)
    vectors = 2 if record["side"] == "hessian" else 1
    gradient = (
        2 * record["rows"]
        if record["d"] is None and record["side"] not in ("value", "median")
        else 0
    )
    return int(size * d * (points * vectors + gradient))


def describe(case: sass.Case) -> dict[str, Any]:
    """One configuration, compiled and counted."""
    from . import sass

    code = sass.code(sass.compiled(case))
    held, limit = occupancy(code, case.arch, case.warps)
    constants = case.launch.constants
    order = constants.get("ORDER")
    side = "median" if order is None else ("value", "one side", "hessian")[order]
    return {
        "arch": case.arch,
        "name": case.name,
        "family": "imq" if constants.get("IMQ") else "rbf" if "IMQ" in constants else "median",
        "side": "both" if side == "one side" and constants["BOTH"] else side,
        "dtype": case.types.get("x", case.types.get("out", "*fp32"))[1:],
        "d": constants.get("D"),
        "rows": constants.get("ROWS", 0),
        "columns": constants.get("COLUMNS", 0),
        "warps": case.warps,
        "registers": code.registers,
        "spills": code.spills,
        "stack": code.stack,
        "shared": code.shared,
        "occupancy": held,
        "limit": limit,
        "sweeps": sweeps(case, code.loops),
    }


def native_module() -> Path | None:
    from vimae_kernels import _native

    return None if _native._C is None else Path(_native._C.__file__)


def native_records(architecture: int = 90) -> list[dict[str, Any]]:
    """The CUDA C++ kernels of the built module; empty where it has none."""
    from . import sass

    module = native_module()
    out: list[dict[str, Any]] = []
    if module is None:
        return out
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            sass.tool("cuobjdump", "-xelf", f"sm_{architecture}", module, folder=folder)
        except subprocess.CalledProcessError:  # no device code at all
            return out
        for cubin in sorted(folder.glob("*.cubin")):
            threads = sass.block_sizes(cubin)
            for symbol, code in sass.read(cubin).items():
                warps = threads.get(symbol, 1024) // 32
                held, limit = occupancy(code, architecture, warps)
                hot = [mix(loop.own) for loop in flattened(code.loops)]
                out.append(
                    {
                        "arch": architecture,
                        "name": symbol,
                        "registers": code.registers,
                        "spills": code.spills,
                        "stack": code.stack,
                        "shared": code.shared,
                        "occupancy": held,
                        "limit": limit,
                        "loops": [work for work in hot if work["multiply-adds"] >= 8],
                    }
                )
    names = "\n".join(r["name"] for r in out)
    # c++filt comes with every compiler that could have built the module.
    plain = subprocess.run(["c++filt"], input=names, text=True, capture_output=True, check=True)
    for record, readable in zip(out, plain.stdout.splitlines(), strict=True):
        record["name"] = short(readable)
    return sorted(out, key=lambda r: str(r["name"]))


def short(symbol: str) -> str:
    """A demangled kernel without namespaces, casts and arguments."""
    name = (
        symbol.removeprefix("void ").replace("vimae::", "").replace("(anonymous namespace)::", "")
    )
    return name.split(">(")[0] + ">" if ">(" in name else name.split("(")[0]


def flattened(loops: list[sass.Loop]) -> list[sass.Loop]:
    return [x for loop in loops for x in (loop, *flattened(loop.inner))]


def fits(record: Mapping[str, Any]) -> bool:
    """No spills, and a block that a multiprocessor can hold."""
    return not record["spills"] and not record["stack"] and record["occupancy"] > 0


def instructions(record: Mapping[str, Any]) -> float | None:
    """Of a pair, in the sweep with the most work, at the configuration's d or at 64."""
    if not record["sweeps"]:
        return None
    return per_pair(record["sweeps"][0], record["d"] or 64)["issue"]


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
                    ms, bound = predict(record_for(records, device, side, d), device, n, n, d)
                    cells.append(f"{ms:.3g} ({bound})")
                lines.append(f"| {n} | {d} | {side} | {' | '.join(cells)} |")
    return lines


def kernel_table(records: list[dict[str, Any]], arch: int) -> list[str]:
    lines = [
        "| configuration | registers | spills | stack | shared | warps per SM (limited by) | d | FMA "
        "| other float | MUFU | memory | integer, control | **instructions per pair** | by hand "
        "| bytes per tile | bound by |",
        "|---" * 16 + "|",
    ]
    for r in records:
        if r["arch"] != arch:
            continue
        cells = [r["name"], r["registers"], r["spills"], r["stack"], r["shared"]]
        cells.append(f"{r['occupancy']} ({r['limit']})")
        if r["sweeps"]:
            d = r["d"] or 64
            cost = per_pair(r["sweeps"][0], d)
            cost["l2"] = tile_bytes(r, d) / (r["rows"] * r["columns"])
            busy = clocks(cost, DEVICES[TYPICAL[arch]])
            order = {"value": 0, "median": 0, "one side": 1, "both": 1, "hessian": 2}[r["side"]]
            cells += [d, *(f"{cost[kind]:.1f}" for kind in KINDS), f"**{cost['issue']:.1f}**"]
            cells += [minimum(d, order), tile_bytes(r, d), max(busy, key=busy.__getitem__)]
        else:
            cells += [""] * 10
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def family_table(records: list[dict[str, Any]]) -> list[str]:
    architectures = list(TYPICAL)
    lines = [
        "| configuration | " + " | ".join(f"sm_{a}" for a in architectures) + " |",
        "|---" * (1 + len(architectures)) + "|",
    ]
    for name in dict.fromkeys(r["name"] for r in records):
        cells = []
        for arch in architectures:
            r = next(r for r in records if r["arch"] == arch and r["name"] == name)
            count = instructions(r)
            cells.append(
                f"{r['registers']}, {r['occupancy']}"
                + (f", **{count:.1f}**" if count else "")
                + ("" if fits(r) else " DOES NOT FIT")
            )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def by_dimension(d: int, family: str) -> float:
    """Instructions per pair of Triton's value and gradient of both sides in float32 on sm_90."""
    import torch

    from vimae_kernels.ops.mmd import triton_impl as mmd

    from . import sass

    launch = mmd.configuration(d, torch.float32, mmd.GRADIENT, True, family, 1)
    shipped = next(
        case
        for case in sass.cases(1, [90])
        if case.launch.kernel is launch.kernel and case.name.endswith(f"fp32 both {family}")
    )
    case = shipped._replace(name=f"d={d}", launch=launch)
    loops = sass.code(sass.compiled(case)).loops
    if "D" not in launch.constants:
        return per_pair(sweeps(case, loops)[0], d)["issue"]
    # Coordinates are unrolled: one reciprocal or exponential is one pair.
    innermost = [mix(loop.own) for loop in flattened(loops) if not loop.inner]
    inner = max(innermost, key=lambda work: work["multiply-adds"])
    return inner["issue"] / inner["mufu"]


def register_kernel_cost(records: Iterable[dict[str, Any]], d: int, family: str) -> float | None:
    """The same of the CUDA C++ kernel for d <= 16, in its inner loop; None where there is none."""
    padded = next((size for size in (2, 4, 8, 16) if d <= size), None)
    rows, index = 4 if d <= 8 else 1, ("imq", "rbf").index(family)
    name = f"register_kernel<{padded}, {rows}, (Family){index}, true, true>"
    for record in records:
        if record["name"] == name:
            loop = max(record["loops"], key=lambda work: work["multiply-adds"])
            return float(loop["issue"] / loop["mufu"])
    return None


def dimension_table(native: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| d | by hand | Triton, IMQ | Triton, RBF | CUDA C++, IMQ | CUDA C++, RBF |",
        "|---" * 6 + "|",
    ]
    for d in (2, 4, 8, 16, 32, 64):
        costs = [by_dimension(d, family) for family in ("imq", "rbf")]
        costs += [register_kernel_cost(native, d, family) for family in ("imq", "rbf")]  # type: ignore[misc]
        cells = ["" if cost is None else f"{cost:.1f}" for cost in costs]
        lines.append(f"| {d} | {minimum(d, 1)} | {' | '.join(cells)} |")
    return lines


def native_table(records: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| kernel | registers | spills | stack | shared | warps per SM (limited by) "
        "| loops: instructions per FMA (per MUFU) |",
        "|---" * 7 + "|",
    ]
    for r in records:
        loops: Counter[str] = Counter()
        for work in r["loops"]:
            text = f"{work['issue'] / work['multiply-adds']:.2f}"
            if work["mufu"]:
                text += f" ({work['issue'] / work['mufu']:.1f})"
            loops[text] += 1
        cells = [f"`{r['name']}`", r["registers"], r["spills"], r["stack"], r["shared"]]
        cells += [
            f"{r['occupancy']} ({r['limit']})",
            ", ".join(f"{n} x {text}" if n > 1 else text for text, n in loops.items()),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
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
        "How the times were predicted. Every configuration was compiled ahead of time and disassembled. "
        "The instructions of each loop over pairs were counted by kind; a pair's cost is what its tile runs "
        "divided by the tile's pairs, with what is done once per sweep spread over it. For each resource of "
        "a multiprocessor (128 issue slots, the float32 and float64 lanes, 64 integer lanes, 16 special "
        "functions, 128 bytes from L1 or shared memory, 64 bytes from L2, all per clock) and for device "
        "memory, the cost of all pairs over the device's rate is a time; the longest is the prediction, "
        "named with its resource. Rates are public data-sheet numbers. Left out, and all of it makes a real "
        "run slower: latency that the resident warps do not hide, launch overhead and the finishing kernel, "
        "what a program does before and after its sweeps, tail effects of an uneven last wave, bank "
        "conflicts, two resources that wait for each other, clocks below the data sheet's. One thing makes "
        "it faster: loads are counted as if every lane of a warp had its own data, so L1 times are too long "
        "where the hardware serves lanes that share it at once. A prediction is there to be compared with a "
        "measurement (`python -m benchmarks.gpu` does), no more.",
        "",
        f"Devices: {devices}.",
        "",
        "## Predicted ms, Triton, float32, IMQ",
        "",
        "`one side` is forward + backward with the gradient to z; `both` has that of the prior as well.",
        "",
        *prediction_table(records),
        "",
        "## Instructions per pair by dimension, sm_90",
        "",
        "Value and gradient, float32, one scale; up to d = 16 in the inner loop. Beyond, Triton's tiled kernel is "
        "counted whole, and the loops of that in CUDA C++ are in the last table.",
        "",
        *dimension_table(native),
        "",
        "## Every Triton configuration on sm_90",
        "",
        "Stack, shared memory and tiles in bytes. Counts are per pair, of the sweep with the most work; "
        "`d=any` is taken at d = 64. By hand: d subtractions, d multiply-adds for the distance, d for the "
        "gradient of one side (a Hessian has d and 2 d more), one reciprocal or exponential, two more. "
        f"Bound on the {TYPICAL[90]}.",
        "",
        *kernel_table(records, 90),
        "",
        "## The same on other families",
        "",
        "Registers, warps per multiprocessor, **instructions per pair**.",
        "",
        *family_table(records),
        "",
        "## CUDA C++, sm_90",
        "",
    ]
    if native:
        lines += [
            "Of every loop with at least eight multiply-adds of its own. With one scale and float32, a MUFU is a pair.",
            "",
            *native_table(native),
        ]
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
        "--write", type=Path, help="keep the report here, and the counts beside it as .json"
    )
    args = parser.parse_args()

    import triton

    from . import sass

    records = sass.on_all_cores(describe, [(1, arch) for arch in sass.ARCHITECTURES])
    assembler = sass.tool("ptxas", "--version").split("release ")[1].split(",")[0]
    text = report(records, native_records(), f"Triton {triton.__version__}, ptxas {assembler}")
    print(text)
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text(text)
        save(args.write.with_suffix(".json"), triton.__version__, records)


if __name__ == "__main__":
    main()
