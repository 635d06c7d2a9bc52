"""The yardstick of the rollout benchmarks, and that the benchmark can be run at all."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load_ideal():
    spec = importlib.util.spec_from_file_location("rollouts_ideal", BENCHMARKS / "rollouts_ideal.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


ideal = load_ideal()


def course(tokens, latencies_s):
    return ideal.Course(tokens=tuple(tokens), latencies_s=tuple(latencies_s))


courses = st.lists(
    st.builds(
        course,
        st.lists(st.integers(1, 500), min_size=3, max_size=3),
        st.lists(st.floats(0, 20), min_size=2, max_size=2),
    ),
    min_size=1,
    max_size=20,
)
capacities = st.builds(ideal.Capacity, total=st.floats(100, 10_000), each=st.floats(10, 500))


def test_one_trajectory_takes_its_tokens_and_its_tools():
    alone = [course([400, 200], [2.5])]
    assert ideal.ideal_s(alone, ideal.Capacity(total=1000, each=400)) == pytest.approx(1.5 + 2.5)


def test_requests_share_the_engine_and_the_shorter_one_leaves_the_rest_to_the_other():
    # Both at 50 tokens a second until 2 s, then the second one, with 100 tokens left, at 100.
    both = [course([100], []), course([200], [])]
    assert ideal.ideal_s(both, ideal.Capacity(total=100, each=100)) == pytest.approx(3.0)


def test_a_request_that_arrives_later_slows_down_those_that_run():
    # From 1 s on both have 50 tokens a second: the second one ends at 2 s, when 149 of the first one's 200 are there.
    late = [course([200], []), course([1, 50], [0.98])]
    assert ideal.ideal_s(late, ideal.Capacity(total=100, each=100)) == pytest.approx(2.51)


@given(courses, capacities)
def test_nobody_beats_the_bound_and_barriers_never_help(batch, capacity):
    best = ideal.ideal_s(batch, capacity)
    assert ideal.bound_s(batch, capacity) <= best * (1 + 1e-9)
    longest = max(
        ideal.ideal_s([one], ideal.Capacity(total=capacity.total / len(batch), each=capacity.each)) for one in batch
    )
    assert best <= longest * (1 + 1e-9)  # nobody gets less than an equal share


@given(courses, capacities)
def test_without_tools_and_with_one_turn_lock_step_is_ideal(batch, capacity):
    single = [course(one.tokens[:1], []) for one in batch]
    assert ideal.lockstep_s(single, capacity) == pytest.approx(ideal.ideal_s(single, capacity))


def test_the_benchmark_runs_and_writes_its_figures(tmp_path):
    figures = tmp_path / "figures.json"
    settings = ("--stopping.groups", "4", "--stopping.epsilons", "0.2", "--stopping.mixtures", "1,1")
    command = [sys.executable, BENCHMARKS / "run.py", "rollouts", "--parts", "stopping", "--json", figures, *settings]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    rows = json.loads(figures.read_text(encoding="utf-8"))["stopping"]
    assert [row["epsilon"] for row in rows] == [None, 0.2]
    assert rows[0]["lost"] == rows[0]["saved"] == 0
