"""Logs survive kills, continue exactly, and say what is wrong with them."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import ConfigError, DataError
from icrl.train.metrics import Evaluation, EvaluationLog, EvaluationPoint, MetricsLog, StepMetrics
from icrl.wire import decode, encode


def step(number: int, **fields) -> StepMetrics:
    return StepMetrics(step=number, shots=3.0, reward=number / 10, components={"em": 0.5}, **fields)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(path, steps, **options):
    with MetricsLog(path, **options) as log:
        for number in steps:
            log.append(step(number))


def steps(path):
    return [metrics.step for metrics in MetricsLog.load(path)]


numbers = st.floats(0, 1e9)


@given(
    st.builds(
        StepMetrics,
        step=st.integers(1, 10**6),
        shots=numbers,
        reward=st.floats(allow_nan=False, allow_infinity=False),
        components=st.dictionaries(st.text(max_size=5), numbers, max_size=3),
        loss=st.none() | numbers,
        sampled_tokens=st.integers(0, 10**9),
        stop_reasons=st.dictionaries(st.text(max_size=5), st.integers(0, 99), max_size=3),
    )
)
def test_a_line_is_decoded_to_what_was_measured(metrics):
    assert decode(encode(metrics), StepMetrics) == metrics


def test_a_diverged_loss_is_kept_as_not_finite(path):
    with MetricsLog(path) as log:
        log.append(step(1, loss=float("nan"), grad_norm=float("inf")))
    (metrics,) = MetricsLog.load(path)
    assert (metrics.loss, metrics.grad_norm) == (None, None)


def test_derived_figures():
    assert step(1, generate_s=1.5, update_s=0.5).step_s == 2.0
    assert step(1).em == 0.5
    assert StepMetrics(step=1, shots=0.0, reward=1.0).em is None


def test_each_line_is_on_disk_before_the_next_step(path):
    log = MetricsLog(path)
    for number in (1, 2):
        log.append(step(number))
        assert steps(path) == list(range(1, number + 1))
    log.close()


def test_a_new_run_starts_anew(path):
    write(path, [1, 2, 3])
    write(path, [1])
    assert steps(path) == [1]


@given(done=st.integers(0, 6), at=st.integers(0, 8), torn=st.booleans())
def test_resuming_drops_what_came_after_the_checkpoint(tmp_path_factory, done, at, torn):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    write(path, range(1, done + 1))
    if torn:
        with path.open("ab") as file:
            file.write(b'{"step":99,"sho')
    kept = list(range(1, min(done, at) + 1))
    write(path, [at + 1], resume_at=at)
    assert steps(path) == [*kept, at + 1]
    assert [p.name for p in path.parent.iterdir()] == ["metrics.jsonl"]


def test_resuming_without_an_earlier_file_is_a_start(path):
    write(path, [5], resume_at=4)
    assert steps(path) == [5]


def test_an_absent_log_is_empty(path):
    assert MetricsLog.load(path) == ()


def test_a_torn_last_line_is_not_an_error_but_a_damaged_one_is(path):
    write(path, [1, 2])
    path.write_bytes(path.read_bytes() + b'{"step":3')
    assert steps(path) == [1, 2]
    path.write_bytes(path.read_bytes() + b"}\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl:3: StepMetrics: .*missing required field `shots`"):
        MetricsLog.load(path)


def test_an_unwritable_directory_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent/metrics\.jsonl: cannot write it: No such file or directory"):
        MetricsLog(tmp_path / "absent" / "metrics.jsonl")


def test_a_log_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot read it: Is a directory"):
        MetricsLog.load(tmp_path)


class FullDisk:
    """A file that takes five bytes, and then nothing more."""

    def __init__(self) -> None:
        self.taken = b""

    def write(self, data: bytes) -> int:
        if len(self.taken) >= 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.taken += data[:5]
        return 5

    def close(self) -> None:
        pass


def test_a_full_disk_is_reported_with_the_path_and_the_step(path):
    log = MetricsLog(path)
    log.close()
    log._file = FullDisk()
    with pytest.raises(DataError, match=r"metrics\.jsonl: cannot write step 7: No space left on device"):
        log.append(step(7))


def test_evaluations_are_kept_with_their_step(tmp_path):
    evaluation = Evaluation(
        tasks=4,
        samples=1,
        shots=0,
        em=0.5,
        em_interval=(0.1, 0.9),
        f1=0.6,
        f1_interval=(0.2, 0.8),
        format_rate=1.0,
        valid_call_rate=0.5,
        calls=1.0,
        response_tokens=20.0,
        errors=0,
        wall_s=0.1,
        stop_reasons={"answer": 4},
    )
    points = tuple(EvaluationPoint(step=number, evaluation=evaluation) for number in (0, 10, 20))
    path = tmp_path / "evaluations.jsonl"
    with EvaluationLog(path) as log:
        for point in points:
            log.append(point)
    EvaluationLog(path, resume_at=10).close()
    assert EvaluationLog.load(path) == points[:2]
