"""Several processes train as one: by `--devices`, by torchrun, and when one of them is killed."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from vimae_models import distributed, runs
from vimae_models.cli import run as run_cli
from vimae_models.systems import build, names

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
SMALL = ["--width", "0.03", "--images", "240", "--batch-size", "60", "--precision", "64"]
WITHOUT_BN = ["--model", "vimae-l", "--bank", "100", *SMALL]
# Batch normalisation, virtual adversarial training, categories and statistics of the batch at once.
WITH_BN = ["--model", "imae", "--network", "imae", "--sync-batchnorm", *SMALL]
KILLS = int(os.environ.get("VIMAE_KILLS", "2"))
"""How often a process is killed at a random moment."""

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available() or torch.cuda.is_available(),
    reason="for the processes of a CPU",
)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def vimae(*arguments):
    return run_cli([str(a) for a in arguments])


def cases():
    for name in names():
        yield name, {}
    yield "infovae", {"divergence": "kl", "alpha": 0.5}
    yield "infovae", {"divergence": "stein"}
    yield "vimae-l", {"bank": 20}
    yield "vimae-n", {"bank": 5, "kernel": "median"}
    yield "imae", {"weighting": "mss", "dataset_size": 100}
    yield "vae", {"network": "dcgan"}
    yield "aae", {"network": "dcgan"}
    yield "vmi-vae", {"network": "dcgan"}
    yield "vmi-joint-vae", {"network": "imae"}
    yield "vae", {"network": "pixelcnn++"}  # dropout


def two_steps(model, x):
    """Terms and gradients of all objectives of a model, the second time."""
    found = {}
    for objective in (["auxiliary_loss"] if model.auxiliary is not None else []) + ["loss"]:
        for _ in range(2):  # so that banks hold something
            model.zero_grad()
            terms = getattr(model, objective)(x)
            terms["loss"].backward()
        found |= {f"{objective} {name}": value.detach() for name, value in terms.items()}
        found |= {
            f"{objective} gradient of {name}": parameter.grad.clone()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }
    return found


def objectives_of(x, together=True):
    for name, options in cases():
        torch.manual_seed(0)
        model = build(name, data_shape=(1, 8, 8), width=0.03, **options).double()
        if together:
            with distributed.normalised_together(model):
                found = two_steps(model, x)
        else:
            found = two_steps(model, x)
        buffers = {key: value.clone() for key, value in model.named_buffers()}
        yield f"{name} {options}", found, buffers, torch.rand(())


def batch():
    g = torch.Generator().manual_seed(3)
    return torch.rand(8, 1, 8, 8, dtype=torch.float64, generator=g)


def work(rank, world, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    x = batch().chunk(world)[rank]
    found = list(objectives_of(x))
    for _, terms_and_gradients, _, _ in found:
        for value in terms_and_gradients.values():  # as DDP does, and `Module.means`
            dist.all_reduce(value)
            value /= world
    alone = list(objectives_of(x, together=False))
    torch.save((found, alone), folder / f"{rank}.pt")
    # Agreement, and errors of one process.
    assert distributed.of_first(lambda: 7 if rank == 0 else 1 / 0) == 7
    with pytest.raises(OSError, match="of process 1"):
        distributed.agreed(lambda: open_of_process_1(rank))
    with pytest.raises(
        ValueError, match=r"shape is \(1, 5\) in process 1; in process 0 it is \(0, 5\)"
    ):
        distributed.check_equal(shape=(rank, 5))
    dist.destroy_process_group()


def open_of_process_1(rank):
    if rank == 1:
        raise OSError("of process 1")


def test_every_system_in_two_processes_is_that_of_one(tmp_path):
    """Terms, gradients, buffers and the state of the generator."""
    multiprocessing.spawn(work, (2, tmp_path), nprocs=2)
    per_rank = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    for rank in range(2):
        for one, many in zip(objectives_of(batch()), per_rank[rank][0], strict=True):
            assert one[0] == many[0]
            for part in (1, 2):
                assert one[part].keys() == many[part].keys()
                for key, value in one[part].items():
                    torch.testing.assert_close(
                        many[part][key], value, rtol=1e-8, atol=1e-9, msg=f"{one[0]}: {key}"
                    )
            assert torch.equal(one[3], many[3])
    # Without --sync-batchnorm each process normalises by itself.
    alone = {name: buffers for name, _, buffers, _ in per_rank[0][1]}
    key = "vae {'network': 'dcgan'}", "encoder.2.running_mean"
    other = {name: buffers for name, _, buffers, _ in per_rank[1][1]}
    assert not torch.allclose(alone[key[0]][key[1]], other[key[0]][key[1]])


def weights(run):
    return runs.read_checkpoint(Path(run))["state_dict"]


def assert_equal_runs(run, other):
    of_other = weights(other)
    for key, value in weights(run).items():
        torch.testing.assert_close(value, of_other[key], rtol=1e-9, atol=1e-10, msg=key)
    rows = [runs.read_checkpoint(Path(r))["run"]["history"] for r in (run, other)]
    for row, theirs in zip(*rows, strict=True):
        assert row == pytest.approx(theirs, rel=1e-8)


def finished(command, status=0, **options):
    done = subprocess.run(
        [str(a) for a in command],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def free_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


def agents(port):
    """Two agents of torchrun, as on two machines, with one process each."""
    return [
        *TORCHRUN, 1, "--nnodes", 2, "--rdzv-backend", "c10d", "--rdzv-id", "vimae",
        "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1",
    ]  # fmt: skip


def test_devices_torchrun_and_two_machines_train_as_one_process():
    train = ["train", *WITHOUT_BN, "--epochs", 2, "--output"]
    assert vimae(*train, "one") == 0
    assert vimae(*train, "devices", "--devices", 2) == 0
    printed = finished([*TORCHRUN, 2, "-m", "vimae_models", *train, "torchrun"]).stdout
    assert printed.count("run folder") == printed.count("all measures") == 1
    command = [str(a) for a in [*agents(free_port()), "-m", "vimae_models", *train, "machines"]]
    started = [subprocess.Popen(command, env=ENVIRONMENT) for _ in range(2)]
    assert [agent.wait(timeout=120) for agent in started] == [0, 0]
    for run in ("devices", "torchrun", "machines"):
        assert_equal_runs("one", run)
        assert runs.read_config(Path(run))["devices"] == 2


def test_a_run_goes_on_with_another_number_of_processes():
    train = ["train", *WITH_BN]
    assert vimae(*train, "--epochs", 3, "--output", "whole") == 0
    assert vimae(*train, "--epochs", 1, "--output", "parts") == 0
    assert vimae("train", "--resume", "parts", "--epochs", 2, "--devices", 2) == 0
    assert runs.read_config(Path("parts"))["devices"] == 2
    assert vimae("train", "--resume", "parts", "--epochs", 3, "--devices", 1) == 0
    assert_equal_runs("whole", "parts")


def test_what_batch_normalisation_is_over_is_said(capsys):
    train = ["train", *WITH_BN, "--epochs", 1, "--devices", 2, "--output"]
    train.remove("--sync-batchnorm")
    assert vimae(*train, "run") == 0
    assert capsys.readouterr().out.count("--sync-batchnorm takes it over those of all") == 1


DIFFERENT = """
import os, sys
from vimae_models import training
from vimae_models.cli import run
rank = int(os.environ["RANK"])
arguments = sys.argv[2:]
if sys.argv[1] == "shape":
    arguments += ["--images", str(240 - rank)]
elif rank == 1:
    steps = training.Module.training_step
    def broken(self, batch, index):
        if self.total_steps == 5:
            raise OSError("no file on process 1")
        steps(self, batch, index)
    training.Module.training_step = broken
sys.exit(run(arguments))
"""


@pytest.mark.parametrize(
    "what, words",
    [
        ("shape", "images is (239, 1, 8, 8) in process 1; in process 0 it is (240, 1, 8, 8)"),
        ("error", "no file on process 1"),
    ],
)
def test_processes_that_differ_or_raise_end_all_with_one_line(what, words):
    Path("different.py").write_text(DIFFERENT)
    begun = time.monotonic()
    train = ["train", *WITHOUT_BN, "--epochs", 1000, "--output", "run"]
    printed = finished([*TORCHRUN, 2, "different.py", what, *train], 1).stderr
    assert time.monotonic() - begun < 60
    told = [line for line in printed.splitlines() if line.startswith("vimae train: error: ")]
    assert told == [f"vimae train: error: {words}"]


def test_errors_of_options_are_told_once():
    printed = finished([*TORCHRUN, 2, "-m", "vimae_models", "train", "--nonsense"], 1).stderr
    assert printed.count("vimae train: error: ") == 1 and not Path("runs").exists()


def processes_that_train(parent):
    """The ids of those a command started to train."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_text()
            except OSError:
                continue
            if "resource_tracker" not in command:
                parents[int(folder.name)] = int(fields[1])
    inside = {parent}
    for _ in range(3):
        inside |= {child for child, its in parents.items() if its in inside}
    return [child for child in inside if child not in parents.values()]


STARTERS = {
    "devices": [sys.executable, "-m", "vimae_models", "train", "--devices", "2"],
    "torchrun": [*TORCHRUN, "2", "-m", "vimae_models", "train"],
}


def training(starter):
    """A run without an end, once it has written a checkpoint."""
    command = [*STARTERS[starter], *WITHOUT_BN, "--epochs", "1000000", "--output", "run"]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    begun = time.monotonic()
    while not Path("run/checkpoint.ckpt").exists():
        assert process.poll() is None and time.monotonic() - begun < 100
        time.sleep(0.05)
    return process


def assert_goes_on(processes):
    done = len(runs.read_checkpoint(Path("run"))["run"]["history"])
    assert done >= 1
    more = ["--epochs", done + 1, "--devices", processes]
    assert vimae("train", "--resume", "run", *more) == 0
    assert len(runs.read_checkpoint(Path("run"))["run"]["history"]) == done + 1


@pytest.mark.parametrize("time_of_kill", range(KILLS))
def test_a_killed_process_ends_all_and_the_run_goes_on(time_of_kill):
    chance = random.Random()
    process = training(["devices", "torchrun"][time_of_kill % 2])
    time.sleep(chance.uniform(0, 2))
    trained = processes_that_train(process.pid)
    assert len(trained) == 2
    os.kill(chance.choice(trained), signal.SIGKILL)
    begun = time.monotonic()
    printed, _ = process.communicate(timeout=60)
    print(f"ended after {time.monotonic() - begun:.1f} s")
    assert process.returncode == 1
    told = [line for line in printed.splitlines() if line.startswith("vimae train: error: ")]
    # Where torchrun ends the other process before that has noticed, its own report is what is told.
    by_torchrun = time_of_kill % 2 == 1 and not told and "Root Cause" in printed
    assert len(told) == 1 or by_torchrun, printed
    assert not any(Path(f"/proc/{pid}").exists() for pid in trained)
    assert_goes_on(1 + time_of_kill // 2 % 2)


def test_ctrl_c_under_torchrun_leaves_a_checkpoint():
    process = training("torchrun")
    before = Path("run/checkpoint.ckpt").stat().st_mtime_ns
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    printed, _ = process.communicate(timeout=60)
    assert printed.count("vimae train --resume run") == 1, printed
    assert "vimae train: error" not in printed
    assert Path("run/checkpoint.ckpt").stat().st_mtime_ns > before
    assert_goes_on(1)
