"""Runs tests/interpreted in processes that start with Triton's interpreter switched on, or off on a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent / "interpreted"

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="triton is not installed"
    ),
    pytest.mark.parametrize("cases", sorted(file.name for file in FOLDER.glob("*_cases.py"))),
]


def run(cases, **environment):
    """The cases of one file; their report is the message if one fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", FOLDER / cases]
    result = subprocess.run(
        command, env={**os.environ, **environment}, text=True, capture_output=True
    )
    print(result.stdout)
    summary = result.stdout.strip().rsplit("\n", 1)[-1]
    assert result.returncode == 0, f"{summary}\n{result.stdout}\n{result.stderr}"
    assert " passed" in summary
    assert "skipped" not in summary


def test_interpreted(cases):
    run(cases, TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(cases):
    run(cases, TRITON_INTERPRET="0")
