"""The main job with rollouts from a real SGLang server: minutes, and the same result."""

import json
import os
import subprocess
import sys

import pytest

from icrl.train.metrics import MetricsLog

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(1500)]


def train(run, *arguments):
    command = [sys.executable, "-m", "icrl.train", f"--output-dir={run}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((run / "report.json").read_text()), MetricsLog.load(run / "metrics.jsonl")


def test_training_on_a_server_that_is_started_for_it_reaches_the_same_exact_match(tmp_path, sglang_address):
    report, steps = train(tmp_path / "run", "--engine=sglang")
    assert report["held_out_tasks"] >= 400
    assert report["zero_shot_em_before"] <= 0.02
    assert report["zero_shot_em"] >= 0.95
    gaps = [step.logprob_gap for step in steps if step.logprob_gap is not None]
    assert len(gaps) > len(steps) / 2
    assert max(gaps) < 0.01
    assert all(step.sync_s > 0 for step in steps)
