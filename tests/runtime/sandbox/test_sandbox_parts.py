"""The parts of the sandbox that need no process: verdicts, reports, pipes."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given
from runtime.sandbox.confinement import eventually

from icrl.errors import ConfigError, SandboxError
from icrl.runtime.sandbox import report
from icrl.runtime.sandbox.cell import NOT_LOCKED
from icrl.runtime.sandbox.child import Answer
from icrl.runtime.sandbox.language import Refused
from icrl.runtime.sandbox.messages import Ended, Forked, Ready, Reply, Request, decode_notice, encode
from icrl.runtime.sandbox.pipes import CappedOutput, LineReader
from icrl.runtime.sandbox.program import Program
from icrl.runtime.sandbox.sharing import collapse_memory
from icrl.runtime.sandbox.verdict import judge


def reply(**changes) -> bytes:
    said = {"run": 1, "status": "ok", "value": "2", "error": None, "truncated": False, "cpu_s": 0.5, "max_rss_mb": 9.0}
    return msgspec.json.encode(said | changes)


def answer(*, line=None, status=0, killed=None, overflowed=False, output="out", ended=True) -> Answer:
    end = Ended(child=1, status=status, cpu_s=0.25, max_rss_mb=20.0) if ended else None
    return Answer(line=line, ended=end, killed=killed, output=output, overflowed=overflowed, wall_s=0.1)


def judged(**what) -> tuple[str, str | None]:
    result = judge(answer(**what), run=1, timeout_s=2.0)
    assert result.stdout == "out"
    return result.status, result.error


def test_the_kernels_figures_replace_those_of_the_child():
    result = judge(answer(line=reply()), run=1, timeout_s=2.0)
    assert (result.status, result.value, result.cpu_s, result.max_rss_mb) == ("ok", "2", 0.25, 20.0)
    running = judge(answer(line=reply(), ended=False), run=1, timeout_s=2.0)
    assert (running.cpu_s, running.max_rss_mb) == (0.5, 9.0)


@pytest.mark.parametrize(
    ("what", "status", "told"),
    [
        ({"status": 9, "killed": "timeout"}, "timeout", "stopped: the program was not done after 2 s"),
        ({"status": int(signal.SIGXCPU)}, "timeout", "stopped: the program was not done after 2 s"),
        ({"status": 9, "killed": "output_limit", "overflowed": True}, "output_limit", "more than 200000 bytes"),
        ({"status": 0, "overflowed": True}, "output_limit", "more than 200000 bytes"),
        ({"status": 9}, "memory", "most likely because memory ran out"),
        ({"status": 9, "killed": "abandoned"}, "crashed", "the sandbox was closed"),
        ({"status": 11}, "crashed", "ended by SIGSEGV"),
        ({"status": 40}, "crashed", "ended by signal 40"),
        ({"status": 3 << 8}, "crashed", "with status 3"),
        ({"status": 0}, "crashed", "before its result could be told"),
        ({"status": 9, "killed": "breach"}, "crashed", "broke into the conversation"),
    ],
)
def test_what_we_did_and_the_kernel_says_outweighs_the_child(what, status, told):
    for line in (None, reply(), reply(status="error")):
        if what == {"status": 0} and line is not None:
            continue
        ended, error = judged(line=line, **what)
        assert ended == status
        assert told in error


def test_a_deadline_that_came_too_late_to_kill_is_no_timeout():
    assert judged(line=reply(), status=0, killed="timeout") == ("ok", None)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe",
        b"{}",
        b"[1]",
        b'{"run": 1}',
        reply(status="timeout"),
        reply(run=2),
        reply(run="1"),
        reply(value=2),
        reply(extra=1),
        reply(truncated="no"),
        reply()[:-1],
        b"[" * 100_000,
    ],
)
def test_a_reply_that_is_not_one_of_ours_is_not_believed(line):
    assert judged(line=line)[0] == "crashed"


@given(st.binary(max_size=200))
def test_no_bytes_of_a_child_raise(line):
    assert judge(answer(line=line), run=1, timeout_s=1.0).status == "crashed"


def test_a_child_that_could_not_be_locked_is_an_error_and_never_a_result():
    with pytest.raises(SandboxError, match="could not be locked: no Landlock"):
        judged(line=b'{"reason": "no Landlock"}', status=int(NOT_LOCKED))
    with pytest.raises(SandboxError, match="did not say why"):
        judged(line=b"\xff", status=int(NOT_LOCKED))


def test_messages_come_back_as_they_were():
    for notice in (Ready(address_space_mb=1.5, layers=["seccomp"]), Forked(child=3)):
        assert decode_notice(encode(notice)) == notice
    request = Request(run=1, code="x\n\u2028", stdin="", last=True)
    assert b"\n" not in encode(request)
    assert msgspec.json.decode(Program(code="x\n\u2028").request(1, last=True), type=Request) == request
    assert msgspec.json.decode(reply(), type=Reply).value == "2"


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("inf"), float("nan")])
def test_deadlines_are_positive_and_finite(timeout_s):
    with pytest.raises(ConfigError, match="timeout_s: must be > 0 seconds"):
        Program(code="", timeout_s=timeout_s)


class Scripted:
    """A language whose programs are Python functions."""

    def __init__(self, act):
        self.act = act

    def execute(self, code, namespace):
        return self.act()


def performed(act) -> dict:
    return report.perform(Scripted(act), {}, "x", first=True)


def test_every_end_has_its_words():
    def refuse():
        raise Refused("no \ud800 way")

    def leave():
        raise SystemExit(0)

    class Odd(Exception):
        def __str__(self):
            raise ValueError

    def odd():
        raise Odd

    assert performed(lambda: None)["value"] is None
    assert performed(lambda: [1])["value"] == "[1]"
    assert performed(refuse) == {"status": "denied", "value": None, "error": "no \\ud800 way", "truncated": False}
    assert performed(leave)["status"] == "ok"
    assert performed(odd)["error"].endswith("Odd: <exception str() failed>")
    with pytest.raises(MemoryError):
        performed(lambda: [0] * 10**18)


def test_deep_tracebacks_keep_both_ends():
    code = "def f(n):\n    return f(n - 1) if n else 1 / 0\nf(50)"
    try:
        exec(compile(code, "<snippet>", "exec"), {})
    except ZeroDivisionError as error:
        told = report.describe(error, code).splitlines()
    assert told[1:3] == ['  File "<snippet>", line 3, in <module>', "    f(50)"]
    assert "  [40 more frames]" in told
    assert told[-1] == "ZeroDivisionError: division by zero"
    assert len(told) == 1 + 2 * 12 + 1 + 1


@given(st.text(max_size=60), st.integers(4, 50))
def test_what_is_shown_fits_and_can_be_written(text, most):
    shown = report._clean(text, most)
    shown.encode()
    if len(text) <= most:
        assert shown == text.encode("utf-8", "backslashreplace").decode()


async def test_output_is_read_in_pieces_and_cut_at_the_cap():
    told = []
    near, far = os.pipe()
    os.set_blocking(near, False)
    output = CappedOutput(near, cap=10, on_overflow=lambda: told.append("over"))
    os.write(far, "abc\u2603".encode()[:4])
    await asyncio.sleep(0.03)
    os.write(far, "abc\u2603".encode()[4:])
    assert output.take() == "abc\u2603"
    assert output.take() == ""
    os.write(far, b"x" * 11)
    await eventually(lambda: output.overflowed)
    assert output.take() == "x" * 10
    assert told == ["over"]
    os.close(far)
    output.close()


async def test_a_breach_of_the_conversation_is_noticed():
    async def lines_of(*chunks: bytes, expected: bool = True) -> list:
        near, far = socket.socketpair()
        near.setblocking(False)
        heard: list = []
        reader = LineReader(near, heard.append)
        if expected:
            reader.expect(now=True)
        for chunk in chunks:
            far.sendall(chunk)
            await asyncio.sleep(0.005)
        far.close()
        await asyncio.sleep(0.005)
        reader.drain()
        reader.close()
        return heard

    assert await lines_of(b"one\n") == [b"one"]
    assert await lines_of(b"on", b"e\n") == [b"one"]
    assert await lines_of(b"one\ntwo\n") == [None]
    assert await lines_of(b"one\n", b"t") == [b"one", None]
    assert await lines_of(b"x", expected=False) == [None]
    assert await lines_of(b"one") == []
    assert await lines_of(*[b"x" * 60_000] * 6) == [None]


def test_memory_is_collapsed_without_changing():
    kept = [bytes([n % 256]) * 1000 for n in range(5000)]
    collapse_memory()
    assert all(piece == bytes([n % 256]) * 1000 for n, piece in enumerate(kept))
    gc.collect()
