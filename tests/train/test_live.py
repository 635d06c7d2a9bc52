"""Watching a run: plain lines without a terminal, a panel with one."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from icrl.runtime.engines.meter import EngineUse
from icrl.train.curriculum import Stages
from icrl.train.live import LiveView, sparkline
from icrl.train.metrics import Evaluation, StepMetrics

EVALUATION = Evaluation(
    tasks=40,
    samples=1,
    shots=0,
    em=0.9,
    em_interval=(0.8, 0.95),
    f1=0.9,
    f1_interval=(0.9, 0.9),
    format_rate=0.75,
    valid_call_rate=0.5,
    calls=1.0,
    response_tokens=20.0,
    errors=0,
    wall_s=1.0,
)
USE = EngineUse(busy=0.834, requests=4.2, tokens_per_s=812.5)


def step(number: int, **fields) -> StepMetrics:
    fields = {"components": {"em": 0.25}, "valid_call_rate": 0.75, "generate_s": 1.0, "update_s": 0.5, **fields}
    return StepMetrics(step=number, shots=3.0, reward=0.5, **fields)


@pytest.fixture
def watch():
    def watch(*, terminal: bool, width: int = 100):
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=width, color_system=None)
        return file, LiveView(Stages("3:40,0:40"), console=console)

    return watch


def test_without_a_terminal_every_message_is_one_plain_line(watch):
    file, view = watch(terminal=False, width=20)
    with view:
        view.step(step(1))
        view.step(step(2, components={}, engine=USE))
        view.evaluation(2, EVALUATION)
        view.warn("reward [bold]x[/bold] is flat")
    assert file.getvalue().splitlines() == [
        "step 1 | 3 shots | reward 0.500 | em 0.250 | valid calls 0.75 | 1.5 s",
        "step 2 | 3 shots | reward 0.500 | valid calls 0.75 | engine busy 0.83 | 1.5 s",
        "after step 2: 0-shot exact match 0.900 [0.800, 0.950] on 40 held-out tasks, form 0.75, valid calls 0.50",
        "warning: reward [bold]x[/bold] is flat",
    ]


@pytest.mark.parametrize("width", [50, 80, 140])
def test_a_terminal_gets_a_panel_that_fits(watch, width):
    file, view = watch(terminal=True, width=width)
    with view:
        view.warn("before any step")
        for number in range(1, 200):
            view.step(step(number, stage=1, loss=0.125, engine=USE))
        view.evaluation(199, EVALUATION)
    last = file.getvalue()[file.getvalue().rindex("╭") :]
    assert "step 199 · stage 2 · 3 shots" in last
    assert "exact match" in last
    assert "▃" in last
    assert "busy 83%" in last
    assert "at most 80 steps left, 2 min 0 s" in last
    assert "0-shot exact match 0.900" in last
    assert max(map(len, last.splitlines())) <= width


def test_a_reward_without_exact_match_has_a_panel_too(watch):
    file, view = watch(terminal=True)
    with view:
        view.step(step(1, components={}))
    assert "exact match" not in file.getvalue()
    assert "valid calls" in file.getvalue()


def test_the_panel_is_taken_down_when_the_run_fails(watch):
    file, view = watch(terminal=True)

    def fail():
        with view:
            view.step(step(1))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert file.getvalue().rstrip().endswith("\x1b[?25h"), "the cursor must come back"


@given(st.lists(st.floats(-1, 2), max_size=40), st.integers(1, 30))
def test_a_sparkline_has_one_block_a_value_until_it_is_full(values, width):
    line = sparkline(values, width)
    assert len(line) == min(len(values), width)
    assert set(line) <= set("▁▂▃▄▅▆▇█")


def test_a_sparkline_shows_the_extremes():
    assert sparkline([0, 0, 1, 1], 2) == "▁█"
    assert sparkline([], 5) == ""
