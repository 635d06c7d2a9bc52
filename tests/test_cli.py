from __future__ import annotations

import subprocess
import sys

import pytest

import icrl
from icrl import cli
from icrl.errors import ConfigError
from icrl.testing import ScriptedEngine

COMMANDS = ["run", "train", "eval", "serve", "serve-retriever", "index", "sglang"]


def test_help_lists_every_command(capsys):
    for argv in ([], ["-h"], ["--help"]):
        assert cli.main(argv) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        assert all(f"\n  {name} " in printed.out for name in COMMANDS)
    assert list(cli.COMMANDS) == COMMANDS


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"icrl {icrl.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_a_misspelt_command_is_one_line_and_a_hint(capsys):
    assert cli.main(["trian"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    error, hint = printed.err.splitlines()
    assert error == f"error: 'trian' is not a command ({', '.join(COMMANDS)}). Did you mean 'train'?"
    assert hint.startswith("hint: ")


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["run", "q", "--modle", "x"], "unknown option --modle. Did you mean --model?"),
        (["run", "q", "--model", "./nowhere"], "model: './nowhere' holds no model"),
        (["eval", "./nowhere"], "model: './nowhere' holds no model"),
        (["index", "nowhere.jsonl", "out"], "nowhere.jsonl"),
        (["train", "--sede", "1"], "Did you mean --seed?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_without_traceback(argv, problem, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == cli.USAGE_ERROR == 2
    printed = capsys.readouterr()
    error, hint = printed.err.splitlines()
    assert error.startswith("error: ")
    assert problem in error
    assert "--debug" in hint
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_where_it_happened():
    with pytest.raises(ConfigError, match="'trian'"):
        cli.main(["trian", "--debug"])
    with pytest.raises(ConfigError, match="holds no model"):
        cli.main(["--debug", "run", "q", "--model", "./nowhere"])


def test_an_interrupt_ends_quietly(monkeypatch, capsys):
    def interrupted(ids):
        raise KeyboardInterrupt

    engine = ScriptedEngine(interrupted)
    monkeypatch.setattr("icrl.commands.run.Agent", lambda model, **options: icrl.Agent(engine, **options))
    assert cli.main(["run", "q"]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")


def test_mistakes_in_the_program_are_not_dressed_up(monkeypatch):
    def wrong(ids):
        raise TypeError("a bug")

    engine = ScriptedEngine(wrong)
    monkeypatch.setattr("icrl.commands.run.Agent", lambda model, **options: icrl.Agent(engine, **options))
    with pytest.raises(TypeError, match="a bug"):
        cli.main(["run", "q"])


def test_help_loads_no_command():
    script = "import sys; from icrl.cli import main; main(['--help']); print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    names = set(loaded.splitlines()[-1].split())
    assert names.isdisjoint({"torch", "numpy", "rich", "tyro", "yaml", "msgspec", "tokenizers", "jinja2"})
    assert not [name for name in names if name.startswith(("icrl.commands", "icrl.runtime", "icrl.train"))]


def test_the_package_is_the_command_too():
    done = subprocess.run([sys.executable, "-m", "icrl", "evla"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Did you mean 'eval'?" in done.stderr
    assert "Traceback" not in done.stderr
