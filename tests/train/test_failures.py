"""Training runs whose engine fails: they end with the reason, and lose nothing that was learnt."""

import asyncio
import json
import os
import signal
from types import SimpleNamespace

import pytest

from icrl.cli import main
from icrl.errors import EngineError
from icrl.runtime.engines.local import LocalEngine
from icrl.testing import ScriptedEngine
from icrl.train.__main__ import main as train
from icrl.train.engine import Fate, _watch, require_some
from icrl.train.pipeline import Pipeline
from icrl.trajectory import Failure

SMALL = [
    "--rollout.prompts=2",
    "--rollout.group-size=2",
    "--limits.max-tokens=24",
    "--evaluation.tasks=2",
    "--evaluation.every-steps=0",
    "--weights.format=0.5",
]


def trajectories(run):
    return [json.loads(line) for line in (run / "trajectories.jsonl").read_text().splitlines()]


def steps(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def names(run):
    return sorted(t["id"] for t in trajectories(run))


def test_a_step_in_which_everything_fails_ends_the_run_and_the_steps_before_are_saved(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    original = LocalEngine.generate

    async def generate(self, *args, **kwargs):
        if kwargs["request_id"].startswith("3/"):
            raise EngineError("is on fire", engine="local")
        return await original(self, *args, **kwargs)

    monkeypatch.setattr(LocalEngine, "generate", generate)
    common = [*SMALL, "--schedule=3:4", "--save-every=0"]
    assert main(["train", *common, f"--output-dir={run}"]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "step 3: all 4 trajectories failed; the first with EngineError: local: is on fire" in printed
    assert f"step 2 is saved; continue with --resume {run}" in printed
    assert steps(run) == [1, 2]
    assert (run / "checkpoints" / "checkpoint-2" / "icrl.json").exists()
    monkeypatch.undo()
    train([f"--resume={run}"])
    assert steps(run) == [1, 2, 3, 4]
    assert names(run) == [f"{s}/{i}/{m}" for s in (1, 2, 3, 4) for i in (0, 1) for m in (0, 1)]
    assert not any(t.get("error") for t in trajectories(run))


def test_an_evaluation_in_which_everything_fails_is_no_evaluation(tmp_path, monkeypatch, capsys):
    async def generate(self, *args, **kwargs):
        raise EngineError("is on fire", engine="local")

    monkeypatch.setattr(LocalEngine, "generate", generate)
    assert main(["train", *SMALL, "--schedule=3:1", f"--output-dir={tmp_path / 'run'}"]) == 2
    assert "evaluation after step 0: all 2 trajectories failed" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "run" / "evaluations.jsonl").read_text() == ""


@pytest.mark.learning
@pytest.mark.parametrize("oversample", ["1", "2"])
def test_what_ran_ahead_of_ctrl_c_is_not_there_twice_after_a_resume(tmp_path, monkeypatch, oversample):
    run = tmp_path / "run"
    original = Pipeline.overlap

    def interrupted(self, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)  # what `overlap` begins comes after the stop
        original(self, step)

    monkeypatch.setattr(Pipeline, "overlap", interrupted)
    common = [*SMALL, "--schedule=3:4", "--rollout.staleness=1", f"--rollout.oversample={oversample}"]
    with pytest.raises(KeyboardInterrupt):
        train([*common, f"--output-dir={run}"])
    assert steps(run) == [1, 2]
    monkeypatch.undo()
    train([f"--resume={run}"])
    assert steps(run) == [1, 2, 3, 4]
    found = names(run)
    assert len(found) == len(set(found))
    assert {name.split("/")[0] for name in found} == {"1", "2", "3", "4"}


def failed(message):
    return SimpleNamespace(error=message and Failure(kind="EngineError", message=message))


def test_some_that_did_not_fail_are_enough():
    engine = ScriptedEngine([])
    for some in ([], [failed(None)], [failed("gone"), failed(None)]):
        require_some(some, "step 1", engine)
    with pytest.raises(EngineError, match="step 1: all 2 trajectories failed; the first with EngineError: gone"):
        require_some([failed("gone"), failed("too")], "step 1", engine)


async def test_the_end_of_a_server_that_was_started_for_the_run_gives_everybody_back():
    class Ended:
        address, log = "http://127.0.0.1:1", "run/server.log"

        async def ended(self):
            return 9

        async def tail(self):
            return "out of memory"

    closed = asyncio.Event()

    class Pool:
        async def aclose(self):
            closed.set()

    fate = Fate()
    fate.check()
    await _watch(Ended(), Pool(), fate)
    assert closed.is_set()
    with pytest.raises(EngineError, match=r"(?s)ended with code 9; its log is run/server.log, .*\nout of memory"):
        fate.check()
