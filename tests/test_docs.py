"""The documentation is true: its examples run and print what they say, its commands parse, its lists are complete."""

import ast
import asyncio
import contextlib
import doctest
import importlib
import io
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import icrl
from icrl import cli, config, configfile
from icrl.runtime.toolset import open_tools
from icrl.tiny import BASE_DIR, HELD_OUT
from icrl.train.config import TrainConfig
from icrl.train.data import load_data
from icrl.train.tasks import load_tasks

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

SETTINGS = {
    *("RunCommand", "EvalCommand", "IndexCommand", "TrainConfig", "PretrainConfig"),
    *("ServeConfig", "ServeRetrieverCommand", "SGLangCommand"),
}

FENCE = re.compile(
    r"^(?:<!-- (?P<note>.*?) -->\n)?```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
INLINE = re.compile(r"`([^`\n]+)`")
ICRL = re.compile(r"(?:\S*/)?icrl |(?:\S*/)?python3? (?:-m icrl|benchmarks/run.py)")


@dataclass(frozen=True)
class Block:
    page: Path
    note: str
    language: str
    title: str
    code: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            found["note"] or "",
            found["language"],
            found["title"] or "",
            found["code"],
            text[: found.start("code")].count("\n"),
        )
        for found in FENCE.finditer(text)
    ]


def run_python(block: Block, module: ModuleType) -> str:
    """Run a block at the lines where it stands in its page."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * block.line + block.code, block.page, "exec", dont_inherit=True), module.__dict__)
    return printed.getvalue()


@pytest.fixture
def reader(tmp_path, monkeypatch) -> Path:
    """The directory of somebody who follows a page; the embedded base stands in for a model trained before."""
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "model").symlink_to(BASE_DIR)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def write_files(page: Path, directory: Path) -> None:
    for block in blocks_of(page):
        if block.title:
            (directory / block.title).write_text(block.code, encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run_and_print_what_the_page_says(page, reader, monkeypatch):
    write_files(page, reader)
    module = ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    printed = None
    for block in blocks_of(page):
        if block.note == "output":
            assert printed == block.code, f"{page.name}:{block.line}"
        if block.language == "python" and not block.note.startswith("skip: "):
            printed = run_python(block, module)


def commands_of(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield every command of ours that a page shows, in blocks and between backticks: its name and arguments."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in blocks_of(page) if block.language == "bash" for line in block.code.splitlines()]
    inline = [code for code in INLINE.findall(FENCE.sub("", text)) if ICRL.match(code)]
    for line in [*lines, *inline]:
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            if not ICRL.match(part):
                continue
            if Path(words[0]).name == "icrl":
                words = words[1:]
            elif "-m" in words:
                words = words[words.index("-m") + 1 :]
            yield words[0], words[1:]


def settings_of(command: str, arguments: list[str]) -> tuple[type | None, list[str]]:
    """Find the dataclass behind a command, and the arguments that are its flags."""
    if arguments[:1] == ["benchmarks/run.py"]:
        assert set(arguments[1:2]) <= benchmark_cases(), arguments
        return None, []
    command = {"icrl.train": "train"}.get(command, command)
    assert command in cli.COMMANDS or command.startswith("icrl."), f"icrl {command} is not a command"
    module = importlib.import_module(cli.COMMANDS[command][0] if command in cli.COMMANDS else command)
    own = [value for value in vars(module).values() if isinstance(value, type) and is_dataclass(value)]
    classes = [kind for kind in own if kind.__name__ in SETTINGS]
    return classes[0] if classes else None, arguments


def benchmark_cases() -> set[str]:
    tree = ast.parse((ROOT / "benchmarks" / "run.py").read_text(encoding="utf-8"))
    values = {n.targets[0].id: n.value for n in tree.body if isinstance(n, ast.Assign)}
    return set(ast.literal_eval(values["CASES"]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page, reader):
    write_files(page, reader)
    for command, arguments in commands_of(page):
        settings, flags = settings_of(command, arguments)
        if settings is not None and flags not in ([], ["--help"]):
            config.load(settings, flags, prog=command, description="")


def test_flags_named_in_the_text_exist():
    known = {"--config", "--help", "--debug", "--version", "--jobs", "--seeds"}
    for command in cli.COMMANDS:
        settings, _ = settings_of(command, [])
        known |= {f"--{name.replace('_', '-')}" for name in configfile.names(settings)}
    settings, _ = settings_of("icrl.tiny.pretrain", [])
    known |= {f"--{name.replace('_', '-')}" for name in configfile.names(settings)}
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for code in INLINE.findall(text):
            flag = re.match(r"--[\w.-]+", code)
            assert flag is None or flag[0] in known, f"{page.name}: {code}"


def test_the_five_files_of_a_task_fit_together(reader):
    page = ROOT / "docs" / "training.md"
    write_files(page, reader)
    commands = list(commands_of(page))
    (index,) = [arguments for command, arguments in commands if command == "index"]
    assert cli.main(["index", *index]) == 0
    (own,) = [arguments for command, arguments in commands if "train.yaml" in arguments]
    settings = config.load(TrainConfig, own, prog="icrl train", description="")
    data = load_data(settings)
    assert (len(data.train), len(data.held_out), len(data.demonstrations)) == (2, 1, 3)
    (search,) = asyncio.run(open_tools(("search",), settings.settings()))
    assert "Gulin" in asyncio.run(search({"query": data.train[-1].query}))
    asyncio.run(search.aclose())


def light_modules() -> list[str]:
    """Modules with examples that need no torch, by reading them: importing torch costs seconds."""
    paths = [path for path in (ROOT / "icrl").rglob("*.py") if path.name != "__main__.py"]
    heavy = re.compile(r"^(?:import|from) (?:torch|trl|transformers)\b", re.MULTILINE)
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    found = [path for path, text in texts.items() if ">>>" in text and not heavy.search(text)]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in found)


@pytest.mark.parametrize("name", light_modules())
def test_docstring_examples_print_what_they_say(name, reader):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(str(error))
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(module, optionflags=flags)
    assert result.attempted, name
    assert not result.failed, f"{result.failed} of {result.attempted} examples of {name}"


def test_the_api_page_lists_the_public_names():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert sorted(name.removeprefix("icrl.") for name in listed if name.count(".") == 1) == sorted(icrl.__all__)
    for name in listed:
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__, name


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(re.findall(r"[\w-]+\.md", str(nav))) == sorted(page.name for page in PAGES[1:])


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_pages_say_what_they_are_for_before_they_show_code(page):
    opening = page.read_text(encoding="utf-8").partition("```")[0].split()
    if any(block.language == "python" for block in blocks_of(page)):
        assert 40 < len(opening) < 500


def test_the_answer_that_the_quickstart_shows_is_right():
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    answers = {task.id: task.answers for task in load_tasks(HELD_OUT)}
    (asked,) = {tuple(words) for words in re.findall(r"What is the (\w+) of (\w+)\?", page)}
    (answer,) = re.findall(r"^answer: (\w+)$", page, re.MULTILINE)
    assert answers.get(f"{asked[1].lower()}-{asked[0]}") == (answer,), (
        "run the page's commands and paste what they print"
    )


def test_the_benchmarks_page_lists_the_cases():
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == benchmark_cases()


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target
