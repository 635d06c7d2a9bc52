"""From what is known of a child that ran a program to the result of the program."""

from __future__ import annotations

import os
import signal

import msgspec

from icrl.errors import SandboxError
from icrl.runtime.sandbox.child import OUTPUT_CAP, Answer
from icrl.runtime.sandbox.messages import Reply, Unlocked
from icrl.runtime.sandbox.result import SandboxResult, Status

__all__ = ["judge"]

_REPLY = msgspec.json.Decoder(Reply)
_UNLOCKED = msgspec.json.Decoder(Unlocked)
_NOT_LOCKED = signal.SIGUSR1


def judge(answer: Answer, *, run: int, timeout_s: float) -> SandboxResult:
    """Return the result of a program.

    What we did and what the kernel says outweigh what the child says.

    Args:
        answer: What came of the request.
        run: Its number; a reply to another one is a forgery.
        timeout_s: The program's deadline, for the message.

    Raises:
        SandboxError: The child could not lock itself.
    """
    status, error = _end(answer, timeout_s)
    reply = None
    if status == "ok":
        reply = _decode(answer.line, run)
        if reply is None:
            status, error = "crashed", "the program ended the interpreter before its result could be told"
        else:
            status, error = reply.status, reply.error
    usage = answer.ended or reply
    return SandboxResult(
        status=status,
        stdout=answer.output,
        value=reply.value if reply else None,
        error=error,
        wall_s=answer.wall_s,
        cpu_s=usage.cpu_s if usage else 0.0,
        max_rss_mb=usage.max_rss_mb if usage else 0.0,
        truncated=answer.overflowed or bool(reply and reply.truncated),
    )


def _end(answer: Answer, timeout_s: float) -> tuple[Status, str | None]:
    """Return how the child ended; `ok` if it did so of its own accord, or goes on."""
    if answer.overflowed:
        return "output_limit", f"stopped: the program printed more than {OUTPUT_CAP} bytes"
    if answer.killed == "abandoned":
        return "crashed", "stopped: the sandbox was closed"
    number = os.WTERMSIG(answer.ended.status) if answer.ended and os.WIFSIGNALED(answer.ended.status) else None
    if answer.killed == "breach":
        return "crashed", "the program broke into the conversation of its interpreter"
    if number == signal.SIGXCPU or (number == signal.SIGKILL and answer.killed == "timeout"):
        return "timeout", f"stopped: the program was not done after {timeout_s:g} s"
    if number == _NOT_LOCKED:
        raise SandboxError(f"a child of the sandbox could not be locked: {_reason(answer.line)}")
    if number == signal.SIGKILL:
        return "memory", "killed by the system, most likely because memory ran out"
    if number is not None:
        return "crashed", f"the interpreter was ended by {_name(number)}"
    if answer.ended and answer.ended.status:
        return "crashed", f"the program ended the interpreter with status {os.WEXITSTATUS(answer.ended.status)}"
    return "ok", None


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _decode(line: bytes | None, run: int) -> Reply | None:
    try:
        reply = _REPLY.decode(line or b"")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return reply if reply.run == run else None


def _reason(line: bytes | None) -> str:
    try:
        return _UNLOCKED.decode(line or b"").reason
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "it did not say why"
