"""Whole training runs, small: what they leave behind, and that nothing is lost when they are stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from icrl.cli import main
from icrl.errors import ConfigError, DataError
from icrl.tiny import BASE_DIR, HELD_OUT
from icrl.train.__main__ import main as train
from icrl.train.config import LossConfig, TrainConfig
from icrl.train.metrics import MetricsLog
from icrl.train.tasks import load_tasks

QUESTION = load_tasks(HELD_OUT)[0].query
SMALL = [
    "--rollout.prompts=4",
    "--rollout.group-size=4",
    "--limits.max-tokens=96",
    "--evaluation.tasks=4",
    "--evaluation.every-steps=2",
    "--evaluation.interim-tasks=2",
    "--optimizer.learning-rate=1e-3",
    "--weights.format=0.5",
]


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def history(run):
    """Everything measured that is not a time."""
    timed = {"generate_s", "sync_s", "tool_s", "update_s", "tokens_per_s", "engine"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


def learned(run):
    """Whether the weights have moved at all: some group taught something."""
    return any(m["informative_groups"] and m["grad_norm"] for m in history(run))


def sequences(run):
    lines = (run / "trajectories.jsonl").read_text().splitlines()
    return sorted((t["id"], [i for s in t["segments"] for i in s["ids"]]) for t in map(json.loads, lines))


def test_a_run_leaves_everything_behind_and_its_model_answers(tmp_path, capsys):
    run = tmp_path / "run"
    train([*SMALL, "--schedule=3:2", "--save-every=1", f"--output-dir={run}"])
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "evaluations.jsonl",
        "trajectories.jsonl",
        "checkpoints",
        "model",
        "curve.png",
        "report.md",
        "report.json",
    }
    report = json.loads((run / "report.json").read_text())
    assert (report["steps"], report["seed"], report["finished"]) == (2, 0, True)
    assert 0 <= report["zero_shot_em_interval"][0] <= report["zero_shot_em"] <= report["zero_shot_em_interval"][1]
    assert report["wall_s"] > sum(m.step_s for m in MetricsLog.load(run / "metrics.jsonl"))
    assert len(sequences(run)) == 2 * 4 * 4
    uses = [m.engine for m in MetricsLog.load(run / "metrics.jsonl")]
    assert all(0 < use.busy < 1 and use.busy <= use.requests <= 16 and 0 < use.cache_hit_rate < 1 for use in uses)
    gaps = [m["logprob_gap"] for m in history(run) if m["logprob_gap"] is not None]
    assert gaps
    assert all(gap < 1e-3 for gap in gaps)
    assert "next: icrl run" in capsys.readouterr().err
    assert main(["run", "--model", str(run), QUESTION]) == 0
    assert "answer:" in capsys.readouterr().out


@pytest.mark.learning
def test_a_deterministic_run_that_is_killed_and_resumed_ends_equal_to_the_bit(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    common = [*SMALL, "--schedule=3:4,0:2", "--deterministic", "--save-every=2"]
    train([*common, f"--output-dir={whole}"])
    command = [sys.executable, "-m", "icrl.train", *common, f"--output-dir={broken}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(history(broken)) >= 3 if (broken / "metrics.jsonl").exists() else False, process)
    process.kill()
    process.wait()
    train([f"--resume={broken}"])
    assert history(broken) == history(whole)
    assert sequences(broken) == sequences(whole)
    assert learned(whole)
    ours, theirs = weights(broken), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def wait_for(condition, process, timeout_s=100):
    ends = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.mark.learning
def test_ctrl_c_saves_and_says_how_to_resume(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "icrl.train", *SMALL, "--schedule=3:500", "--save-every=0"]
    process = subprocess.Popen([*command, f"--output-dir={run}"], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(history(run)) >= 2 if (run / "metrics.jsonl").exists() else False, process)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"next: python -m icrl.train --resume {run}" in printed
    assert "Traceback" not in printed
    done = len(history(run))
    assert (run / "checkpoints" / f"checkpoint-{done}" / "icrl.json").exists()


def test_an_interrupt_while_rolling_out_drops_the_step(tmp_path, monkeypatch):
    from icrl.train.source import RolloutSource

    run = tmp_path / "run"
    original = RolloutSource._plans

    def interrupt_in_step_three(self, step, stage):
        if step == 3 and not self.interrupted:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, step, stage)

    monkeypatch.setattr(RolloutSource, "_plans", interrupt_in_step_three)
    common = [*SMALL, "--schedule=3:4", "--deterministic"]
    with pytest.raises(KeyboardInterrupt):
        train([*common, f"--output-dir={run}"])
    assert [m["step"] for m in history(run)] == [1, 2]
    monkeypatch.undo()
    train([f"--resume={run}"])
    train([*common, f"--output-dir={tmp_path / 'whole'}"])
    assert history(run) == history(tmp_path / "whole")
    assert learned(run)


def test_the_users_own_task_with_a_random_qwen3_and_the_hermes_dialect(tmp_path, model_directory):
    model = random_qwen3(tmp_path / "model", model_directory("qwen3"))
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"The number of fact {i} is {i * i}."}) + "\n" for i in range(30)))
    tasks = tmp_path / "tasks.jsonl"
    lines = [{"question": f"What is the number of fact {i}?", "answers": [str(i * i)]} for i in range(20)]
    tasks.write_text("".join(json.dumps(line) + "\n" for line in lines))
    demos = tmp_path / "demos.yaml"
    demos.write_text(
        "- question: What is the number of fact 3?\n  answer: '9'\n  steps:\n"
        "  - {tool: search, arguments: {query: number of fact 3}, result: The number of fact 3 is 9.}\n"
    )
    assert main(["index", str(corpus), str(tmp_path / "index")]) == 0
    run = tmp_path / "run"
    train(
        [
            *SMALL,
            "--schedule=1:1,0:1",
            f"--model={model}",
            f"--tasks={tasks}",
            f"--demos={demos}",
            f"--index={tmp_path / 'index'}",
            "--dialect=hermes",
            "--reward=rewards_of_a_user:length",
            "--loss.advantage=std",
            f"--output-dir={run}",
        ]
    )
    measured = history(run)
    assert [m["shots"] for m in measured] == [1.0, 0.0]
    assert all(m["informative_groups"] > 0 for m in measured)
    assert all(m["logprob_gap"] < 1e-3 for m in measured)
    before, after = load_file(model / "model.safetensors"), weights(run)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert json.loads((run / "model" / "icrl.json").read_text())["dialect"] == "hermes"


def random_qwen3(path, tokenizer_directory):
    import shutil

    from transformers import Qwen3Config, Qwen3ForCausalLM

    from icrl.tokenizer import ChatTokenizer

    shutil.copytree(tokenizer_directory, path)
    vocab = ChatTokenizer.load(path).vocab_size
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=sorted(ChatTokenizer.load(path).eos_ids)[0],
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sede=1"], "unknown option --sede. Did you mean --seed?"),
        (["--model=no/such/dir/here"], "model: 'no/such/dir/here'"),
        (["--engine=sglnag"], "engine: 'sglnag' is neither local nor sglang nor an address"),
        (["--deterministic", "--rollout.staleness=1"], "rollout.staleness, rollout.oversample"),
        (["--rollout.oversample=0.5"], "rollout.oversample: must be >= 1"),
        (["--sync.max-logprob-gap=0"], "sync.max_logprob_gap: must be > 0 nats or null"),
        (["--schedule=3-40"], "schedule: '3-40'"),
        (["--schedule=9:4"], "shows up to 9 demonstrations"),
        (["--loss.micro-batches=3"], "loss.micro_batches: 3 does not divide"),
        (["--rollout.group-size=1"], "rollout.group_size: must be >= 2"),
        (["--tools=serach"], "tools: 'serach' is not one of search"),
        (["--deterministic", "--precision=bfloat16"], "precision: deterministic runs need float32"),
        (["--resume=/no/such/run"], "is not a run directory"),
        (["--reward=nowhere:at_all"], "reward: cannot import 'nowhere'"),
    ],
)
def test_mistakes_are_one_line_that_names_the_setting(tmp_path, capsys, arguments, message):
    extra = [] if "--resume" in arguments[0] else [f"--output-dir={tmp_path / 'run'}"]
    assert main(["train", *arguments, *extra]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert printed.splitlines()[-1].startswith("hint:")


def test_own_tasks_need_an_index_and_answers(tmp_path):
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"question": "q", "answers": ["a"]}\n')
    with pytest.raises(ConfigError, match="index: your own --tasks"):
        train([f"--tasks={tasks}", f"--output-dir={tmp_path / 'run'}"])
    tasks.write_text('{"question": "q"}\n')
    with pytest.raises(DataError, match=r"tasks\.jsonl:1: answers: is missing"):
        train([f"--tasks={tasks}", "--index=out", f"--output-dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


def test_a_directory_with_a_run_is_not_overwritten(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match="holds a run already; continue it with --resume"):
        train([f"--output-dir={tmp_path}"])


def test_dry_run_prints_the_settings_and_writes_nothing(tmp_path, capfd):
    train(["--dry-run", "--seed=7", f"--output-dir={tmp_path / 'run'}"])
    assert "seed: 7" in capfd.readouterr().out
    assert not (tmp_path / "run").exists()


def test_shipped_settings_are_those_of_the_default_run():
    from icrl.runtime.settings import AgentSettings

    assert AgentSettings.load(BASE_DIR) == TrainConfig().settings()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"instruction": "Use {tags}."}, None),
        ({"instruction": "Answer the question."}, "instruction: it does not name the tags"),
        ({"loss": LossConfig(advantage="std")}, "loss.advantage: dividing"),
        ({"model": "some/model"}, "limits: 96 response tokens"),
    ],
)
def test_known_traps_are_warned_about(changes, words):
    warnings = TrainConfig(**changes).warnings()
    assert warnings == [] if words is None else any(w.startswith(words) for w in warnings)


def test_an_interrupt_during_an_interim_evaluation_starts_no_further_step(tmp_path, monkeypatch):
    from icrl.train.session import Session

    run = tmp_path / "run"
    original = Session.evaluate

    def interrupted(self, tasks):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, tasks)

    monkeypatch.setattr(Session, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train([*SMALL, "--schedule=3:4", f"--output-dir={run}"])
    assert {name.split("/")[0] for name, _ in sequences(run)} == {"1", "2"}
    assert (run / "checkpoints" / "checkpoint-2" / "icrl.json").exists()


def test_rollouts_may_overlap_updates_by_the_staleness_that_is_allowed(tmp_path):
    run = tmp_path / "run"
    train([*SMALL, "--schedule=3:5", "--rollout.staleness=1", f"--output-dir={run}"])
    assert [m["step"] for m in history(run)] == [1, 2, 3, 4, 5]
    assert learned(run)
    assert all(0 <= m["staleness"] <= 1 for m in history(run))
    oldest = {}
    for line in (run / "trajectories.jsonl").read_text().splitlines():
        trajectory = json.loads(line)
        versions = [span["version"] for s in trajectory["segments"] for span in s.get("versions", ())]
        step = int(trajectory["id"].split("/")[0])
        oldest[step] = min([*versions, oldest.get(step, step)])
    assert oldest[1] == 0
    assert all(step - 2 <= version <= step - 1 for step, version in oldest.items())
    assert any(version == step - 2 for step, version in oldest.items())


def test_an_engine_that_samples_from_something_else_stops_the_run(tmp_path, capsys):
    run = tmp_path / "run"
    arguments = [*SMALL, "--schedule=3:3", "--engine-dtype=bfloat16", "--sync.max-logprob-gap=1e-9"]
    assert main(["train", *arguments, f"--output-dir={run}"]) == 2
    printed = capsys.readouterr().err
    assert "step 1: the engine's log-probabilities differ from the trainer's" in printed
    assert "sync.max_logprob_gap = 1e-09" in printed
    assert len(history(run)) == 1
