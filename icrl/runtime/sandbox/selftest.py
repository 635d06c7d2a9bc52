"""Proof, before any program is run, that the children of a zygote can do nothing they should not."""

from __future__ import annotations

import os
import signal

import msgspec

from icrl.errors import SandboxError
from icrl.runtime.sandbox.child import Answer, Stuck
from icrl.runtime.sandbox.messages import Probed, Unlocked
from icrl.runtime.sandbox.probes import FATAL, PROBES
from icrl.runtime.sandbox.process import ZygoteProcess

__all__ = ["attempt", "check"]

_TIMEOUT_S = 20.0
_CPU_S = 10
_HEADROOM_MB = 64
_MAX_TOLD = 3
_PROBED = msgspec.json.Decoder(Probed)
_UNLOCKED = msgspec.json.Decoder(Unlocked)


async def check(zygote: ZygoteProcess) -> None:
    """Make every attempt of `icrl.runtime.sandbox.probes` in a child of a zygote.

    Raises:
        SandboxError: One succeeded, or no child could be locked.
    """
    found = await attempt(zygote)
    if found:
        told = [f"{name}: {what}" for name, what in sorted(found.items())]
        more = f"; {len(told) - _MAX_TOLD} more" if len(told) > _MAX_TOLD else ""
        raise SandboxError(f"its layers did not stop a locked child: {'; '.join(told[:_MAX_TOLD])}{more}")


async def attempt(zygote: ZygoteProcess) -> dict[str, str]:
    """Make every attempt, and return what those achieved that were not stopped.

    Raises:
        SandboxError: No child could be locked, or none answered.
    """
    answer = await _ask(zygote, list(PROBES))
    try:
        found = dict(_PROBED.decode(answer.line or b"").found)
    except msgspec.DecodeError:
        raise SandboxError(f"a child of the sandbox could not be locked: {_reason(answer)}") from None
    last = await _ask(zygote, [FATAL])
    if last.ended and os.WIFSIGNALED(last.ended.status) and os.WTERMSIG(last.ended.status) == signal.SIGSYS:
        return found
    return found | _PROBED.decode(last.line or b'{"found":{"foreign calls":"no answer"}}').found


async def _ask(zygote: ZygoteProcess, names: list[str]) -> Answer:
    try:
        child = await zygote.fork(cpu_s=_CPU_S, memory_mb=int(zygote.address_space_mb) + _HEADROOM_MB)
        try:
            request = msgspec.json.encode({"probe": names, "last": True}) + b"\n"
            return await child.ask(request, last=True, timeout_s=_TIMEOUT_S)
        finally:
            await child.end()
    except Stuck as stuck:
        raise SandboxError(f"a process of the sandbox does not fork: {stuck}") from stuck


def _reason(answer: Answer) -> str:
    try:
        return _UNLOCKED.decode(answer.line or b"").reason
    except msgspec.DecodeError:
        return f"it ended with status {answer.ended.status if answer.ended else 'unknown'}"
