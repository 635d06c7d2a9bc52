from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest

from icrl.commands import serve as module
from icrl.commands.serve import main
from icrl.errors import ConfigError, MissingExtraError
from icrl.serve import server
from icrl.tiny import BASE_DIR
from icrl.train.config import EMBEDDED_LIMITS


@pytest.fixture
def served(monkeypatch):
    """What would be served; nothing listens."""
    monkeypatch.delenv("ICRL_API_KEY", raising=False)
    calls = []

    async def run_until_signalled(config, open_agent, lines):
        logging.getLogger("icrl.serve").warning("a line of the log")
        calls.append((config, open_agent, lines))

    monkeypatch.setattr(server, "run_until_signalled", run_until_signalled)
    return calls


async def prompt_of(agent):
    async with agent:
        return agent.model, agent.start("Who?", seed=0)


def test_without_arguments_it_is_the_embedded_model_on_loopback(served, cache_home):
    main([])
    ((config, open_agent, _),) = served
    assert (config.model, config.host, config.port, config.tools, config.shots) == (None, "127.0.0.1", 8000, None, 0)
    model, run = asyncio.run(prompt_of(open_agent()))
    assert [spec.name for spec in model.toolbox.specs] == ["search"]
    assert run.shots == 0


def test_a_run_directory_is_served_with_tools_shots_and_limits_of_choice(served, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "model").symlink_to(BASE_DIR)
    demos = tmp_path / "one.yaml"
    demos.write_text("- question: Who?\n  answer: him\n  steps: [{tool: search, arguments: {query: x}, result: y}]\n")
    options = ["--tools", "tools_of_a_user:search", "--shots", "1", "--demos", str(demos), "--name", "mine"]
    main([str(tmp_path / "first"), *options, "--limits.max-turns", "2"])
    ((config, open_agent, _),) = served
    assert config.name == "mine"
    model, run = asyncio.run(prompt_of(open_agent()))
    assert [spec.name for spec in model.toolbox.specs] == ["search"]
    assert (run.shots, run.limits) == (1, replace(EMBEDDED_LIMITS, max_turns=2))


def test_log_records_go_where_lines_go_and_only_while_it_runs(served, capfd):
    before = list(logging.getLogger().handlers)
    main(["--port", "0"])
    assert "WARNING icrl.serve: a line of the log" in capfd.readouterr().err
    assert logging.getLogger().handlers == before
    ((_, _, lines),) = served
    assert lines.dropped == 0


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--prot", "1"], "unknown option --prot. Did you mean --port?"),
        (["--port", "70000"], "port: must be from 0 to 65535, not 70000"),
        (["--host", "0.0.0.0"], "host: 0.0.0.0 serves other machines"),
        (["--grace-s", "0"], "grace_s: must be > 0 seconds, not 0"),
        (["--admission.max-running", "0"], "admission.max_running: must be > 0"),
        (["--limits.max-turns", "0"], "limits.max_turns: must be >= 1, not 0"),
        (["--shots", "-1"], "shots: must be >= 0, not -1"),
        (["--demos", "nowhere.yaml", "--shots", "1"], "nowhere.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_found_before_anything_is_served(served, argv, problem):
    with pytest.raises(Exception, match=problem.replace("?", r"\?")) as refused:
        main(argv)
    assert isinstance(refused.value, ConfigError | ValueError)
    assert served == []


def test_without_the_extra_the_command_to_install_it_is_named(served, monkeypatch):
    def missing(*packages, extra):
        raise MissingExtraError(packages[0], extra=extra)

    monkeypatch.setattr(module, "require", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'icrl\[serve\]'"):
        main([])
