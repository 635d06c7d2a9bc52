"""Settings from flags and YAML: precedence, round trip, and messages that a person can act on."""

from __future__ import annotations

import dataclasses
import enum
import subprocess
import sys
from pathlib import Path
from typing import Literal

import hypothesis
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from icrl import config, configfile
from icrl.errors import ConfigError


class Loss(enum.StrEnum):
    GRPO = "grpo"
    DAPO = "dr-grpo"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """How to update."""

    learning_rate: float = 3e-4
    """Step size."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Averages."""
    clip: float | None = 1.0
    """Gradient norm."""

    def __post_init__(self) -> None:
        if self.learning_rate < 0:
            raise ConfigError(f"learning_rate: must be >= 0, not {self.learning_rate}")
        if self.clip == 0:
            raise ConfigError("optimizer.clip: must not be 0")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of it."""

    model: str | None = None
    """Which model."""
    schedule: str = "3:40"
    """Stages."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where."""
    loss: Loss = Loss.GRPO
    """Which loss."""
    steps: int = 3
    """How many."""
    verbose: bool = False
    """Say more."""
    tools: tuple[str, ...] = ()
    """Which tools."""
    output_dir: Path | None = None
    """Where to write."""
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    """The optimizer."""

    def __post_init__(self) -> None:
        if self.schedule == "never":
            raise ConfigError("schedule: never is not now")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strict:
    """One setting without a default."""

    model: str
    """Which model."""
    steps: int = 1
    """How many."""


def load(*argv: str, cls: type = Settings):
    return config.load(cls, list(argv), prog="demo", description="A demo.")


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "c.yaml"

    def write(text: str) -> str:
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_defaults():
    assert load() == Settings()


def test_flags_of_every_kind():
    got = load(
        *("--model", "m", "--device", "cuda", "--loss", "dr-grpo", "--steps=5", "--verbose", "--tools", "a", "b"),
        *("--output-dir", "runs/x", "--optimizer.betas", "0.1", "0.2", "--optimizer.clip", "None"),
    )
    assert got == Settings(
        model="m",
        device="cuda",
        loss=Loss.DAPO,
        steps=5,
        verbose=True,
        tools=("a", "b"),
        output_dir=Path("runs/x"),
        optimizer=Optimizer(betas=(0.1, 0.2), clip=None),
    )


@pytest.mark.parametrize("before", [True, False])
def test_the_command_line_wins_over_the_file_wherever_it_stands(written, before):
    path = written("steps: 7\ndevice: cuda\noptimizer:\n  learning-rate: 1e-5\n")
    flags = ["--steps", "9"]
    got = load(*flags, "--config", path) if before else load(f"--config={path}", *flags)
    assert got == Settings(steps=9, device="cuda", optimizer=Optimizer(learning_rate=1e-5))


def test_a_flag_can_undo_what_the_file_says(written):
    path = written("verbose: true\nmodel: m\ntools: [a]\noptimizer: {clip: 2}\n")
    got = load("--config", path, "--no-verbose", "--model", "None", "--tools", "--optimizer.clip", "None")
    assert got == Settings(optimizer=Optimizer(clip=None))


def test_text_stays_text_and_numbers_become_numbers(written):
    got = load("--config", written("schedule: 3:40\nmodel: 'null'\ntools: [no, 1.50, -x, --y]\nsteps: 1_000\n"))
    assert (got.schedule, got.model, got.tools, got.steps) == ("3:40", "null", ("no", "1.50", "-x", "--y"), 1000)


def test_an_empty_file_changes_nothing(written):
    assert load("--config", written("# nothing\n")) == Settings()


few = hypothesis.settings(max_examples=40, deadline=None)

text = st.text(st.characters(codec="utf-8"), max_size=12)
finite = st.floats(allow_nan=False)
optimizers = st.builds(
    Optimizer,
    learning_rate=st.floats(0, allow_nan=False),
    betas=st.tuples(finite, finite),
    clip=st.none() | finite.filter(bool),
)
everything = st.builds(
    Settings,
    model=st.none() | text,
    schedule=text,
    device=st.sampled_from(["cpu", "cuda"]),
    loss=st.sampled_from(Loss),
    steps=st.integers(),
    verbose=st.booleans(),
    tools=st.lists(text, max_size=3).map(tuple),
    output_dir=st.none() | st.just(Path("a b/ü: c")),
    optimizer=optimizers,
)


@few
@example(Settings(model="None", schedule="0:60", tools=("\x85", "~", "- a", "''", "a: b #c", " ", "1e3")))
@given(everything)
def test_dump_then_load_is_the_identity(tmp_path_factory, instance):
    path = tmp_path_factory.mktemp("config") / "c.yaml"
    config.dump(instance, path)
    assert load("--config", str(path)) == instance


@few
@given(everything)
def test_flags_after_a_dumped_file_change_only_what_they_name(tmp_path_factory, instance):
    path = tmp_path_factory.mktemp("config") / "c.yaml"
    config.dump(instance, path)
    got = load("--config", str(path), "--steps", "12", "--optimizer.learning_rate", "0.5")
    optimizer = dataclasses.replace(instance.optimizer, learning_rate=0.5)
    assert got == dataclasses.replace(instance, steps=12, optimizer=optimizer)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--modle", "m"], "unknown option --modle. Did you mean --model?"),
        (["--learning-rat=1"], "unknown option --learning-rat. Did you mean --optimizer.learning-rate?"),
        (["--optimiser.clip", "1"], "unknown option --optimiser.clip. Did you mean --optimizer.clip?"),
        (["--qqqqqq"], "unknown option --qqqqqq."),
        (["--steps", "x"], "--steps: invalid literal for int() with base 10: 'x'"),
        (["--device", "tpu"], "invalid choice 'tpu' for argument '--device'. Expected one of ('cpu', 'cuda')."),
        (["--loss", "ppo"], "invalid choice 'ppo' for argument '--loss'. Expected one of ('grpo', 'dr-grpo')."),
        (["--optimizer.learning-rate", "-1"], "optimizer: learning_rate: must be >= 0, not -1.0"),
        (["--optimizer.clip", "0"], "optimizer.clip: must not be 0"),
        (["--schedule", "never"], "schedule: never is not now"),
        (["stray"], "Unrecognized options: stray"),
        (["--steps"], "Missing value for argument '--steps'. Expected 1 values."),
        (["--config"], "--config: name a YAML file"),
        (["--config", "a", "--config", "b"], "--config: given twice, a and b; put all settings into one file"),
    ],
)
def test_mistakes_on_the_command_line(argv, message):
    with pytest.raises(ConfigError) as raised:
        load(*argv)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("steps: 1\nmodle: m\n", ":2: unknown setting 'modle'. Did you mean 'model'?"),
        ("optimizer:\n  klip: 1\n", ":2: optimizer: unknown setting 'klip'. Did you mean 'optimizer.clip'?"),
        ("learning_rate: 1\n", ":1: unknown setting 'learning_rate'. Did you mean 'optimizer.learning_rate'?"),
        ("steps: many\n", ":1: steps: 'many' is not a whole number"),
        ("steps:\n", ":1: steps: needs a whole number"),
        ("steps: [1]\n", ":1: steps: needs a whole number"),
        ("device: tpu\n", ":1: device: 'tpu' is not one of 'cpu', 'cuda'"),
        ("loss: ppo\n", ":1: loss: 'ppo' is not one of 'grpo', 'dr-grpo'"),
        ("verbose: maybe\n", ":1: verbose: 'maybe' is not true or false"),
        ("tools: search\n", ":1: tools: needs a list, such as [a, b]"),
        ("optimizer:\n  betas: [1]\n", ":2: optimizer.betas: needs 2 values, not 1"),
        ("optimizer: fast\n", ":1: optimizer: needs settings, one `name: value` a line"),
        ("steps: 1\nsteps: 2\n", ":2: steps: is set twice"),
        ("- a\n", ":1: needs settings, one `name: value` a line"),
        ("steps: 1\n a: [\n", ":2: not valid YAML: mapping values are not allowed here"),
    ],
)
def test_mistakes_in_the_file_name_file_line_and_key(written, yaml, message):
    path = written(yaml)
    with pytest.raises(ConfigError) as raised:
        load("--config", path)
    assert str(raised.value) == path + message


def test_a_check_that_fails_because_of_the_file_names_the_file(written):
    path = written("optimizer: {learning_rate: -1}\n")
    with pytest.raises(ConfigError) as raised:
        load("--config", path, "--steps", "4")
    assert str(raised.value) == f"{path}: optimizer: learning_rate: must be >= 0, not -1.0"
    assert load("--config", path, "--optimizer.learning-rate", "2").optimizer.learning_rate == 2


def test_a_long_value_is_not_torn_apart_by_line_breaks():
    long = "x" * 190
    with pytest.raises(ConfigError, match=long):
        load("--steps", long)


def test_required_settings(written):
    assert load("--config", written("model: m\n"), cls=Strict) == Strict(model="m")
    with pytest.raises(ConfigError, match="--model"):
        load("--config", written("steps: 4\n"), cls=Strict)


@pytest.mark.parametrize("operation", ["read", "write"])
def test_unusable_files_are_named(tmp_path, operation):
    path = tmp_path / "absent" / "c.yaml"
    with pytest.raises(ConfigError, match=r"c\.yaml: cannot .* the settings: No such file or directory"):
        load("--config", str(path)) if operation == "read" else config.dump(Settings(), path)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"c\.yaml: cannot read the settings"):
        load("--config", str(path))


def test_a_union_of_two_types_cannot_be_a_setting(written):
    Odd = dataclasses.make_dataclass("Odd", [("value", int | str, 1)], frozen=True)
    with pytest.raises(TypeError, match="cannot be a setting"):
        configfile.read(Path(written("value: 3\n")), Odd)


def test_help_lists_the_settings_and_the_file(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        load("--help")
    assert not stop.value.code
    page = capsys.readouterr().out
    assert "A demo." in page
    assert "--config" in page
    assert "--optimizer.learning-rate" in page
    assert "Step size." in page
    assert "dr-grpo" in page
    assert max(map(len, page.splitlines())) <= 80


def test_the_module_is_light_to_import():
    program = "import sys, icrl.config; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tyro", "torch", "numpy"} & set(loaded)
