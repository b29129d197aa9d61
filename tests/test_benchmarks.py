"""The benchmarks still run. What they measure is not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

import vimae_kernels as vk
from benchmarks import bench_mmd, bench_training, gpu, gpu_static
from benchmarks.harness import interleave

native = pytest.mark.skipif(
    vk._backend.unavailable("native", "cpu") is not None, reason="the native core is not built"
)


def test_every_turn_begins_with_a_call_that_is_not_timed():
    called = []

    def provider(name, seconds):
        def run():
            first = called[-1:] != [name]
            called.append(name)
            time.sleep(0.05 if first else seconds)

        return run

    times = interleave({"a": provider("a", 0.02), "b": provider("b", 0.02)}, 0.01)
    assert called[6:] == list("aabb") * 3
    assert all(20 <= ms < 50 for ms in times.values())


@native
def test_mmd_at_a_tiny_size(monkeypatch):
    losses = bench_mmd.providers
    # torch.compile and KeOps take seconds to compile, at any size.
    monkeypatch.setattr(
        bench_mmd,
        "providers",
        lambda case: {k: f for k, f in losses(case).items() if k not in ("compile", "keops")},
    )
    for case in (bench_mmd.Case(20, 3), bench_mmd.Case(9, 2, batch=2, scales=7)):
        times, errors = bench_mmd.compare(case, 0.01)
        assert set(times) == set(errors) == {"vimae_kernels", "eager", "blocked"}
        assert all(ms > 0 for ms in times.values())
        assert all(error[0] < 1e-5 and error[1] < 1e-3 for error in errors.values())


@native
def test_a_wrong_result_is_not_timed(monkeypatch):
    monkeypatch.setattr(
        bench_mmd, "providers", lambda case: {"vimae_kernels": lambda x, y: 1.001 * vk.mmd(x, y)}
    )
    with pytest.raises(SystemExit, match="wrong"):
        bench_mmd.compare(bench_mmd.Case(20, 3), 0.01)


def test_gpu_dry_run(tmp_path):
    assert gpu.main(["--dry-run", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    timed = {row["provider"] for row in results["timings"]}
    assert timed >= {"reference", "eager"}
    assert all(row["ms"] > 0 for row in results["timings"])
    operations = {row["operation"] for row in results["operations"]}
    assert operations >= {
        "stein_gradient",
        "ksd",
        "total_correlation",
        "gumbel_softmax",
        "mmd_test",
    }
    assert all(row["ms"] > 0 for row in results["operations"])
    assert "not a measurement" in (tmp_path / "report.md").read_text()


def test_gpu_keeps_what_there_is_when_the_time_is_up(tmp_path):
    assert gpu.main(["--dry-run", "--seconds", "1", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["timings"] == [] and "the time is up" in results["notes"][0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_without_one_says_so():
    command = [sys.executable, "-m", "benchmarks.gpu"]
    out = subprocess.run(command, cwd=gpu.ROOT, capture_output=True, text=True)
    assert out.returncode == 1 and out.stdout == ""
    assert out.stderr.count("\n") == 1 and "needs a GPU" in out.stderr


def test_predictions_follow_from_the_kept_counts():
    kept = gpu_static.load()["kernels"]
    device = gpu_static.DEVICES["H100"]
    small, bound = gpu_static.predict(kept, device, "one side", 4096, 4096, 8)
    large, _ = gpu_static.predict(kept, device, "one side", 16384, 16384, 8)
    assert bound == "issue" and 15 < large / small <= 16.01
    # 24 of the instructions by hand are subtractions and multiply-adds; no prediction can be faster than those.
    pairs = gpu_static.pairs_of("one side", 4096, 4096)
    assert small > 1e3 * pairs * 24 / (device.sms * 128 * device.clock * 1e9)
    assert "D" not in gpu_static.record_for(kept, device, "one side", 64)["constants"]


def test_training_benchmark_times_the_loops_and_finds_the_operations(request):
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(1)
    assert min(bench_training.loops(n=600, epochs=1, rounds=1)) > 0
    operations = {"ae": set(), "vimae-l": {"mmd"}, "imae": {"gumbel_softmax", "latent_information"}}
    for name, expected in operations.items():
        called, times = bench_training.shares(name, batch=10, seconds=0.01)
        assert called == expected
        assert set(times) == ({"ours", "eager", "without"} if expected else set())
    assert vk.mmd.__name__ == "mmd"
