"""`vimae reproduce`: it can be stopped anywhere, and what it finds is always the same."""

import base64
import io
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console
from scipy import stats
from tiny_target import STRUCK, Tiny

from vimae_models import cli, runs
from vimae_models.reproduce import engine, report, targets
from vimae_models.reproduce.report import Page
from vimae_models.reproduce.statistics import all_hold, difference
from vimae_models.training import Interrupted


def reproduce(target, folder, **options):
    """One process at a time, so that all have the same number of threads; returns what it told."""
    told = io.StringIO()
    engine.reproduce(target, "smoke", folder, jobs=1, console=Console(file=told), **options)
    return told.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted reproduction."""
    folder = tmp_path_factory.mktemp("tiny") / "finished"
    reproduce(Tiny(), folder)
    return folder


def copy_but_one(finished, folder):
    """The reproduction without its page, and without the run that is going to be stopped."""
    left_out = shutil.ignore_patterns(STRUCK)
    shutil.copytree(finished / "runs", folder / "runs", ignore=left_out, dirs_exist_ok=True)


def assert_same_findings(folder, other):
    assert (folder / "results.csv").read_text() == (other / "results.csv").read_text()
    first, second = (json.loads((f / "results.json").read_text()) for f in (folder, other))
    for key in ("tables", "claims", "runs"):
        assert first[key] == second[key]


def contents(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_a_finished_run_is_not_trained_again(finished, monkeypatch):
    before = contents(finished / "runs")
    found = (finished / "results.csv").read_text()
    monkeypatch.setattr(engine, "_run_all", None)
    reproduce(Tiny(), finished)
    assert contents(finished / "runs") == before
    assert (finished / "results.csv").read_text() == found
    rows = found.splitlines()
    assert rows[0] == "run,label,seed,measure,value"
    assert len(rows) == 1 + 4 * 2


_KILLED = """
import sys
from pathlib import Path
from tiny_target import Tiny
from vimae_models.reproduce import engine
engine.reproduce(Tiny("kill"), "smoke", Path(sys.argv[1]), jobs=1)
"""


def test_killed_and_started_again_finds_the_same(finished, tmp_path):
    copy_but_one(finished, tmp_path)
    paths = os.pathsep.join(path for path in sys.path if path)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": paths},
        start_new_session=True,
        timeout=240,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "runs" / STRUCK / engine.MEASURES).exists()
    assert len(runs.read_checkpoint(tmp_path / "runs" / STRUCK)["run"]["history"]) == 2
    reproduce(Tiny(), tmp_path)
    assert_same_findings(tmp_path, finished)


@pytest.mark.parametrize("strike, epochs", [("interrupt", 2), ("interrupt measuring", 3)])
def test_interrupted_and_started_again_finds_the_same(finished, tmp_path, strike, epochs):
    copy_but_one(finished, tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    start = time.monotonic()
    with pytest.raises(Interrupted):
        reproduce(Tiny(strike), tmp_path)
    assert time.monotonic() - start < 300  # the measuring would take ten minutes
    assert signal.getsignal(signal.SIGINT) is handler
    assert not multiprocessing.active_children()
    checkpoint = runs.read_checkpoint(tmp_path / "runs" / STRUCK)
    assert len(checkpoint["run"]["history"]) == epochs
    assert not (tmp_path / engine.REPORT).exists()
    reproduce(Tiny(), tmp_path)
    assert_same_findings(tmp_path, finished)


def test_killed_between_the_last_checkpoint_and_the_note_of_its_time(finished, tmp_path):
    copy_but_one(finished, tmp_path)
    shutil.copytree(finished / "runs" / STRUCK, tmp_path / "runs" / STRUCK)
    for name in (engine.MEASURES, engine.TRAINING):
        (tmp_path / "runs" / STRUCK / name).unlink()
    reproduce(Tiny(), tmp_path)
    assert_same_findings(tmp_path, finished)


def test_a_second_command_in_the_folder_is_refused(finished, monkeypatch):
    before = contents(finished)
    monkeypatch.setattr(engine, "_run_all", None)
    with (
        FileLock(finished / engine.LOCK),
        pytest.raises(
            runs.RunError, match=f"another command is at work in {re.escape(str(finished))}"
        ),
    ):
        reproduce(Tiny(), finished)
    assert contents(finished) == before
    reproduce(Tiny(), finished)


def _start_and_leave(pid):
    def work():
        pid.value = os.getpid()
        engine._end_with_parent()

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    while not pid.value:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def test_no_process_is_left_when_the_command_is_killed():
    context = multiprocessing.get_context("fork")
    pid = context.Value("i", 0)
    command = context.Process(target=_start_and_leave, args=(pid,))
    command.start()
    command.join()
    status = Path(f"/proc/{pid.value}/status")
    for _ in range(500):
        if not status.exists() or "\nState:\tZ" in status.read_text():
            return
        time.sleep(0.01)
    os.kill(pid.value, signal.SIGKILL)
    raise AssertionError("it went on")


@pytest.mark.parametrize(
    "strike, why", [("raise", "ValueError: no such measure"), ("die", "it ended with status -9")]
)
def test_a_run_that_fails_is_named_and_the_others_are_kept(finished, tmp_path, strike, why):
    for name in ("vae-seed-0", STRUCK):
        shutil.copytree(finished / "runs" / name, tmp_path / "runs" / name)
        (tmp_path / "runs" / name / engine.MEASURES).unlink()
    told = io.StringIO()
    with pytest.raises(runs.RunError, match=f"^1 of 2 runs failed.* {STRUCK}: {why}$"):
        console = Console(file=told, width=200)
        engine.reproduce(Tiny(strike), "smoke", tmp_path, seeds=1, jobs=1, console=console)
    assert "1 of 2: vae-seed-0" in told.getvalue()
    assert f"{STRUCK} failed: {why}" in told.getvalue()
    assert [p.parent.name for p in tmp_path.glob("runs/*/measures.json")] == ["vae-seed-0"]


def test_the_bar_has_the_time_left_and_counts_what_was_done_before(finished, tmp_path):
    run = tmp_path / "runs" / "vae-seed-0"
    shutil.copytree(finished / "runs" / "vae-seed-0", run)
    (run / engine.MEASURES).unlink()
    told = io.StringIO()
    console = Console(file=told, width=120, force_terminal=True)
    engine.reproduce(Tiny(), "smoke", tmp_path, seeds=1, jobs=1, console=console)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", told.getvalue())
    bars = re.findall(r"tiny: (.*?) *[━╸╺]+ +(\d+) % (\S+) (\S+)", text)
    # The first of two is trained, and may be measured before the bar is drawn.
    assert bars[0][1] in ("45", "50")
    assert bars[-1][1] == "100"
    assert bars[-1][3] == "0:00:00"


def test_a_folder_with_other_settings_is_refused_before_any_work(finished, monkeypatch):
    before = contents(finished)
    monkeypatch.setattr(engine, "_run_all", None)
    for changes, why in (
        ({"epochs": 4}, "epochs 3, which is now 4"),
        ({"images": None}, "images 200, which is now None"),
        ({"noise": 0.02}, "noise 0.01, which is now 0.02"),
    ):
        target = Tiny(**changes)
        if "noise" in changes:
            target.configs = lambda scale: {"vimae-n": Tiny(noise=0.02).configs(scale)["vimae-n"]}
        with pytest.raises(runs.RunError, match=f"was made with {why}: give another --output"):
            reproduce(target, finished)
    assert contents(finished) == before


def test_fewer_seeds_are_reported_alone(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    reproduce(Tiny(), tmp_path, seeds=1)
    text = (tmp_path / engine.REPORT).read_text()
    assert (
        "--scale smoke --seeds 1`" in text and "--seeds" not in (finished / "report.md").read_text()
    )
    assert "one seed" in text and "±" not in text and "**undecided**" in text
    assert "±" in (finished / engine.REPORT).read_text()
    planned = engine.plan(Tiny(), "smoke", tmp_path, 3)
    assert [(r.label, r.seed) for r in planned] == [
        (label, seed) for seed in range(3) for label in ("vae", "vimae-n")
    ]
    assert planned[0].data is planned[1].data


def test_what_was_not_measured_is_one_line(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "runs" / STRUCK / engine.MEASURES
    path.write_text(json.dumps({"values": {"of": {"mmd": 1.0}}}))
    with pytest.raises(runs.RunError, match=f"{STRUCK}.* has no of/reconstruction: .*remove that"):
        reproduce(Tiny(), tmp_path)


def test_command_line(tmp_path, capsys, monkeypatch):
    assert cli.run(["reproduce"]) == 0
    told = capsys.readouterr().out
    for name in targets.names():
        assert f"{name} " in told and targets.target(name).title in told
    monkeypatch.delenv("VIMAE_DATA", raising=False)
    output = tmp_path / "output"
    for arguments, why in (
        (["vimae-mnst"], "did you mean vimae-mnist?"),
        (["vimae-mnist", "--scale", "tiny"], "must be one of ['smoke', 'small', 'paper']"),
        (["vimae-mnist", "--data-dir", str(tmp_path)], "train-images-idx3-ubyte"),
        (["vimae-mnist"], "--data-dir or the environment variable VIMAE_DATA"),
        (["summary", "--output", str(tmp_path)], "has no folders of reports"),
    ):
        if "summary" not in arguments:
            arguments += ["--output", str(output)]
        assert cli.run(["reproduce", *arguments]) == 1
        error = capsys.readouterr().err
        assert why in error and error.count("\n") == 1
    assert not output.exists()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "reproduce", interrupted)
    assert cli.run(["reproduce", "vimae-mnist", "--output", str(output)]) == 130
    assert "the same command goes on from here" in capsys.readouterr().out


def test_summary_has_every_claim(finished):
    found = json.loads((finished / "results.json").read_text())
    (claim,) = found["claims"]
    page = report.summary(finished.parent, [found["target"], "another"])
    text = page.read_text()
    counts = [str(int(claim["verdict"] == verdict)) for verdict in report._VERDICTS.values()]
    assert f"]({finished.name}/report.md) | {found['scale']} | 2 | {' | '.join(counts)} |" in text
    assert "Without a report here: another." in text
    assert page.name == "README.md"
    assert "[Tiny & quick](finished/report.md)" in text
    assert f"| {claim['claim']} | **{claim['verdict']}** | {claim['evidence']} |" in text


def test_page(finished):
    text = (finished / "report.md").read_text()
    found = json.loads((finished / "results.json").read_text())
    values = [run["values"]["of"]["mmd"] for run in found["runs"].values() if run["label"] == "vae"]
    cell = f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f} / 0.5"
    assert f"| vae | {cell} |" in text
    assert re.search(r"\| vimae-n \| \S+ ± \S+ / - \|", text)
    assert "**Scale: smoke.**" in text
    assert "| images | all | 200 | all |" in text and "| epochs | 80 | 3 | all |" in text
    for run in found["runs"]:
        copied = (finished / "configs" / f"{run}.yaml").read_bytes()
        assert copied == (finished / "runs" / run / "config.yaml").read_bytes()


def test_html_is_one_file(tmp_path):
    page = Page(tmp_path)
    with page.figure("grid", "a <caption>", 1, 1, (2, 1)) as axis:
        axis.imshow([[0, 1]])
    with page.figure("curve", "another", 1, 1, (2, 1)) as axis:
        axis.plot([0, 1])
    page.table("KL(q(z|x))", ("what|which", "nats"), [("p(z|x)", "1.5")])
    html = page._html("A & B", "\n\n".join(page.parts))
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert [base64.b64decode(p) for p in pictures] == [
        (tmp_path / "figures" / f"{name}.png").read_bytes() for name in ("grid", "curve")
    ]
    assert "figures/" not in html
    assert "<title>A &amp; B</title>" in html
    assert "<th>what|which</th>" in html and "<td>p(z|x)</td>" in html
    assert "a &lt;caption&gt;" in html


def test_every_change_of_a_preset_is_on_the_page():
    preset = runs.DEFAULTS | runs.preset("vimae-l/mnist")
    assert report._changes(preset | {"seed": 7, "noise": 0.01}) == []
    changes = {"lr": 1e-4, "images": 500, "lam": 200.0, "noise": 0.02, "kernel": "wae"}
    assert sorted(report._changes(preset | changes)) == [
        ("images", "all", "500"),
        ("kernel", "imq", "wae"),
        ("lam", "10", "200"),
        ("lr", "0.001", "0.0001"),
        ("noise", "0.01", "0.02"),
    ]


def test_difference_is_welchs_test():
    a, b = [0.91, 0.93, 0.90], [0.85, 0.89, 0.80, 0.84]
    # Welch (1947), by hand.
    s, t = statistics.variance(a) / 3, statistics.variance(b) / 4
    freedom = (s + t) ** 2 / (s**2 / 2 + t**2 / 3)
    reach = stats.t.ppf(0.95, freedom) * math.sqrt(s + t)
    mean = statistics.fmean(a) - statistics.fmean(b)
    gap = difference(a, b)
    assert (gap.mean, gap.low, gap.high) == pytest.approx((mean, mean - reach, mean + reach))
    assert gap.above() is True
    assert gap.above(mean) is None
    assert gap.above(mean + 2 * reach) is False
    # The bound of a one-sided test at 5 %.
    shifted = [x - gap.low for x in a]
    p = stats.ttest_ind(shifted, b, equal_var=False, alternative="greater").pvalue
    assert p == pytest.approx(0.05)


@pytest.mark.parametrize(
    "verdicts, together",
    [
        ([True, True], True),
        ([True, None], None),
        ([None, False, True], False),
        ([False], False),
        ([None], None),
    ],
)
def test_all_hold(verdicts, together):
    assert all_hold(verdicts) is together


def test_difference_of_single_or_equal_values():
    one = difference([2.0], [1.0, 1.5])
    assert (one.mean, one.low, one.high) == (0.75, -math.inf, math.inf)
    assert one.above(-100.0) is None and "one seed" in str(one)
    same = difference([2.0, 2.0], [1.0, 1.0])
    assert same.low == same.high == same.mean == 1.0 and same.above(0.999) is True
    assert difference([math.nan, 1.0], [1.0, 2.0]).above() is None
