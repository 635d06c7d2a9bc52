"""Several trainer processes: the same steps as one, and they stop together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.learning, pytest.mark.timeout(300)]

SMALL = [
    "--rollout.prompts=4",
    "--rollout.group-size=4",
    "--evaluation.tasks=4",
    "--evaluation.every-steps=1",
    "--evaluation.interim-tasks=2",
    "--deterministic",
]


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def launch(world, *arguments):
    """Start the processes of one run, as a launcher does."""
    port = str(free_port())
    shared = {**os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "icrl.train", *SMALL, *arguments]
    return [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def end(processes):
    """Wait for all; return what each printed and its exit code."""
    try:
        printed = [process.communicate(timeout=140)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return printed, [process.returncode for process in processes]


def steps(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_two_processes_make_the_same_steps_as_one(tmp_path):
    measured = []
    for world in (1, 2):
        run = tmp_path / str(world)
        printed, codes = end(launch(world, "--schedule=3:2", f"--output-dir={run}"))
        assert codes == [0] * world, printed
        measured.append(steps(run))
        assert (run / "model" / "model.safetensors").exists()
        assert len((run / "evaluations.jsonl").read_text().splitlines()) >= 3
    alone, together = measured
    assert [m["step"] for m in together] == [1, 2]
    for one, two in zip(alone, together, strict=True):
        assert one["sampled_tokens"] == two["sampled_tokens"]
        assert one["reward"] == two["reward"]
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-4)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-2)
    assert any(one["grad_norm"] > 0 for one in alone)


def test_ctrl_c_stops_all_processes_with_a_checkpoint_to_go_on_from(tmp_path):
    run = tmp_path / "run"
    processes = launch(2, "--schedule=3:500", f"--output-dir={run}")
    ends = time.monotonic() + 100
    while not ((run / "metrics.jsonl").exists() and len(steps(run)) >= 1):
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < ends
        time.sleep(0.05)
    for process in processes:
        process.send_signal(signal.SIGINT)
    printed, codes = end(processes)
    assert codes == [130, 0], printed
    assert f"next: python -m icrl.train --resume {run}" in printed[0]
    assert list((run / "checkpoints").glob("checkpoint-*/icrl.json"))


def test_rows_that_cannot_be_divided_are_refused(tmp_path):
    printed, codes = end(launch(3, f"--output-dir={tmp_path / 'run'}"))
    assert codes[0] == 2
    assert "loss.micro_batches: 1 on 3 processes does not divide the 16 rows" in printed[0]
