"""The process's age includes what happened before the clock was imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from icrl.train import clock


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs a Linux /proc")
def test_time_before_the_import_counts():
    program = "import time; time.sleep(0.3); from icrl.train.clock import process_age_s; print(process_age_s())"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    # A tick of the kernel's clock is 10 ms.
    assert 0.29 <= float(done.stdout) < 60


def test_it_grows():
    assert clock.process_age_s() <= clock.process_age_s()


def test_without_proc_the_import_is_the_start(monkeypatch):
    def absent(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", absent)
    assert 0 <= clock.process_age_s() < 3600
