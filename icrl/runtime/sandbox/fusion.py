r"""SandboxFusion, a service on another machine, behind the interface of the sandbox.

POST /run_code  {"code": "print(1)", "language": "python", "run_timeout": 5.0, …}
200             {"status": "Success", "run_result": {"status": "Finished", "return_code": 0, "stdout": "1\n", …}, …}
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from io import BytesIO
from typing import Final, Literal, NoReturn

import aiohttp
import msgspec
from yarl import URL

from icrl.errors import ConfigError, SandboxError
from icrl.runtime.sandbox.excerpt import MAX_ERROR, excerpt
from icrl.runtime.sandbox.program import Program
from icrl.runtime.sandbox.result import Executor, SandboxResult, Status

__all__ = ["MAX_OUTPUT_BYTES", "MAX_REPLY_BYTES", "FusionExecutor"]

MAX_REPLY_BYTES: Final = 16 * 2**20
"""Bytes of an answer that are read; the service itself keeps 1 MiB of each stream of a program."""
MAX_OUTPUT_BYTES: Final = 200_000
"""Bytes that are kept of what a program printed."""
_MAX_SAID: Final = 300
_FIRST_SIGNAL, _LAST_SIGNAL = 129, 159


class _Ran(msgspec.Struct):
    status: Literal["Finished", "Error", "TimeLimitExceeded"]
    return_code: int | None = None
    stdout: str | None = None
    stderr: str | None = None


class _Reply(msgspec.Struct):
    status: Literal["Success", "Failed", "SandboxError"]
    message: str | None = None
    run_result: _Ran | None = None


_DECODER = msgspec.json.Decoder(_Reply)


class FusionExecutor:
    """Runs programs in a SandboxFusion service.

    The service says what a program printed and how it ended, and nothing of a last bare expression, of processor time
    and of memory: `value` is always `None`, `cpu_s` and `max_rss_mb` are 0. Whether programs are isolated, and whether
    the bound on memory holds, depends on how the service was set up.

    Args:
        url: The service's address, with or without `/run_code`.
        margin_s: Seconds beyond a program's own that the service has for an answer.
        max_concurrency: Programs that are sent at once; others wait here, before their deadline begins.
        fingerprint: Names the service's interpreter and packages; its address, if not given.

    Raises:
        ConfigError: The address is not one, or a bound is not positive.

    Example:
        >>> FusionExecutor("http://127.0.0.1:8080").url
        'http://127.0.0.1:8080/run_code'
    """

    def __init__(
        self, url: str, *, margin_s: float = 10.0, max_concurrency: int = 32, fingerprint: str | None = None
    ) -> None:
        for name, bound in (("margin_s", margin_s), ("max_concurrency", max_concurrency)):
            if not bound > 0:
                raise ConfigError(f"{name}: must be > 0, not {bound!r}")
        self._address = _address(url)
        self.url = str(self._address.with_user(None))
        """Where programs are sent, without a password."""
        self.fingerprint = fingerprint or f"SandboxFusion {self.url}"
        """Names what besides a program decides its output."""
        self._margin_s = margin_s
        self._max_concurrency = max_concurrency
        self._client: _Client | None = None

    async def run(self, code: str, *, timeout_s: float = 5.0, memory_mb: int = 1024, stdin: str = "") -> SandboxResult:
        """Run a program to its end. If this is cancelled, the service stops the program only when its time is up.

        Args:
            code: Python source, up to 64 KiB.
            timeout_s: Wall-clock seconds until the service kills it.
            memory_mb: MiB of address space.
            stdin: What it reads from standard input.

        Raises:
            ConfigError: A bound is out of range.
            SandboxError: The service failed, does not answer in time, or answers with something else.
        """
        program = Program(code=code, timeout_s=timeout_s, memory_mb=memory_mb, stdin=stdin)
        refusal = program.refusal()
        if refusal is not None:
            return refusal
        client = self._open()
        async with client.turns:
            started = time.perf_counter()
            reply = await self._ask(client, program)
            return self._judged(reply, program, wall_s=time.perf_counter() - started)

    def session(self) -> AbstractAsyncContextManager[Executor]:
        """Refuse: the service keeps nothing from one program to the next.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("SandboxFusion keeps no variables from one program to the next; use Sandbox for sessions")

    async def aclose(self) -> None:
        """Close the connections; programs under way fail with `SandboxError`, and a later one opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.http.close()

    def _open(self) -> _Client:
        if self._client is None or self._client.loop is not asyncio.get_running_loop():
            self._client = _Client(self._max_concurrency)
        return self._client

    async def _ask(self, client: _Client, program: Program) -> _Reply:
        limit_s = program.timeout_s + self._margin_s
        try:
            async with asyncio.timeout(limit_s):
                data = await self._post(client, _request(program))
        except TimeoutError:
            self._fail(f"no answer within {limit_s:g} s")
        except (aiohttp.ClientError, OSError, RuntimeError) as error:  # RuntimeError: closed meanwhile
            self._fail(str(error) or type(error).__name__, error)
        try:
            return _DECODER.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._fail(f"the answer is not of SandboxFusion ({error})", error)

    async def _post(self, client: _Client, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        async with client.http.post(
            self._address, data=BytesIO(body), headers=headers, allow_redirects=False
        ) as response:
            data = bytearray()
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > MAX_REPLY_BYTES:
                    response.close()
                    self._fail(f"the answer has more than {MAX_REPLY_BYTES} bytes")
            if response.status != 200:
                said = excerpt(data[:_MAX_SAID].decode("utf-8", "replace").strip(), _MAX_SAID)
                self._fail(f"answered with status {response.status}{said and f': {said}'}")
        return bytes(data)

    def _judged(self, reply: _Reply, program: Program, *, wall_s: float) -> SandboxResult:
        ran = reply.run_result
        if reply.status == "SandboxError" or ran is None or ran.status == "Error":
            said = reply.message or (ran and ran.stderr) or "no reason given"
            self._fail(f"could not run the program: {excerpt(said, _MAX_SAID)}")
        status, error = _ending(ran, timeout_s=program.timeout_s)
        told_apart = error is not None and error is ran.stderr
        printed, cut = _kept(ran.stdout or "", "" if told_apart else ran.stderr or "")
        return SandboxResult(
            status=status,
            stdout=printed,
            error=error and excerpt(error.rstrip("\n"), MAX_ERROR),
            wall_s=wall_s,
            truncated=cut,
        )

    def _fail(self, reason: str, cause: BaseException | None = None) -> NoReturn:
        raise SandboxError(f"{self.url}: {reason}") from cause


class _Client:
    """The connections of one event loop, without proxies, cookies and credentials from the environment."""

    def __init__(self, max_concurrency: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.turns = asyncio.Semaphore(max_concurrency)
        self.http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # the turns bound them
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            trust_env=False,
        )


def _address(url: str) -> URL:
    try:
        address = URL(url)
    except ValueError as error:
        raise ConfigError(f"url: {url!r} is not an address ({error})") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise ConfigError(f"url: {url!r} is not an address; write http://HOST:PORT")
    return address if address.path.rstrip("/").endswith("/run_code") else address / "run_code"


def _request(program: Program) -> bytes:
    return msgspec.json.encode(
        {
            "code": program.code,
            "language": "python",
            "run_timeout": program.timeout_s,
            "compile_timeout": program.timeout_s,
            "memory_limit_MB": program.memory_mb,
            "stdin": program.stdin.encode("utf-8", "replace").decode(),
            "files": {},
            "fetch_files": [],
        }
    )


def _ending(ran: _Ran, *, timeout_s: float) -> tuple[Status, str | None]:
    """Return how a program ended and why; a shell before it reports signal 9 as status 137."""
    if ran.status == "TimeLimitExceeded":
        return "timeout", f"stopped: the program was not done after {timeout_s:g} s"
    code = ran.return_code
    if code == 0:
        return "ok", None
    if code is not None and (code < 0 or _FIRST_SIGNAL <= code <= _LAST_SIGNAL):
        return "crashed", f"the interpreter was ended by signal {-code if code < 0 else code - _FIRST_SIGNAL + 1}"
    told = ran.stderr if ran.stderr and ran.stderr.strip() else f"the program ended with status {code}"
    last = told.rstrip().rpartition("\n")[2]
    return ("memory" if last.startswith("MemoryError") else "error"), told


def _kept(stdout: str, stderr: str) -> tuple[str, bool]:
    """Return what is kept of the output, and whether that is less than all."""
    data = (stdout + stderr).encode("utf-8", "replace")
    return data[:MAX_OUTPUT_BYTES].decode("utf-8", "ignore"), len(data) > MAX_OUTPUT_BYTES
