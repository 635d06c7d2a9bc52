"""Tools: what a model may call, and the decorator that makes one from a function."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypedDict, Unpack, overload, runtime_checkable

import msgspec

from icrl.errors import ConfigError, ToolError
from icrl.runtime.tools.signature import Signature
from icrl.runtime.tools.threads import Threads

__all__ = ["FunctionTool", "PolicySettings", "Tool", "ToolPolicy", "ToolSpec", "close", "tool"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_ENCODER = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """What a model is told about a tool.

    Raises:
        ConfigError: The name is not one that every dialect can write, the description is empty, or the schema is not
            that of an object.

    Example:
        >>> ToolSpec(name="now", description="Tell the time.", parameters={"type": "object", "properties": {}}).name
        'now'
    """

    name: str
    """What the model calls it: a letter, then up to 63 letters, digits, `_` or `-`."""
    description: str
    """What it does, for the model."""
    parameters: Mapping[str, Any]
    """JSON schema of the arguments: an object."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"ToolSpec.name: {self.name!r} must be a letter followed by up to 63 letters, digits, '_' or '-'"
            )
        if not self.description.strip():
            raise ConfigError(
                f"ToolSpec.description: tool {self.name!r} needs one (or a docstring); the model reads it"
            )
        if self.parameters.get("type") != "object":
            raise ConfigError(f'ToolSpec.parameters: tool {self.name!r} needs a schema with "type": "object"')


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolPolicy:
    """How a toolbox treats a tool.

    Example:
        >>> ToolPolicy(timeout_s=2.0).max_concurrency
        64
    """

    timeout_s: float = 30.0
    """Seconds for one call, waiting for a slot included."""
    max_concurrency: int = 64
    """Calls that run at once."""
    max_queue: int = 4096
    """Calls that may wait for a slot; further ones are refused with `ToolBusy`."""
    calls_per_s: float | None = None
    """Calls started in a second at most; `None` for no bound. A call waits for its turn within its timeout."""
    retries: int = 0
    """How often a call that raised `ToolUnavailable` is tried again, within its timeout."""
    repeatable: bool = False
    """Whether equal arguments give equal answers: identical calls in flight then share one run, and a toolbox with a
    cache answers from it. Such a tool has a `fingerprint`."""
    cache_ttl_s: float | None = None
    """Seconds that a cached answer of a repeatable tool stays good; `None` for as long as the cache lives."""

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s: must be > 0 seconds, not {self.timeout_s!r}")
        if self.max_concurrency < 1:
            raise ConfigError(f"max_concurrency: must be >= 1, not {self.max_concurrency!r}")
        if self.max_queue < 0:
            raise ConfigError(f"max_queue: must be >= 0, not {self.max_queue!r}")
        if self.calls_per_s is not None and not self.calls_per_s > 0:
            raise ConfigError(f"calls_per_s: must be > 0, not {self.calls_per_s!r}; use None for no bound")
        if self.retries < 0:
            raise ConfigError(f"retries: must be >= 0, not {self.retries!r}")
        if self.cache_ttl_s is not None and not self.cache_ttl_s > 0:
            raise ConfigError(f"cache_ttl_s: must be > 0 seconds, not {self.cache_ttl_s!r}; use None for no bound")
        if self.cache_ttl_s is not None and not self.repeatable:
            raise ConfigError("cache_ttl_s: only answers of a repeatable tool are cached; set repeatable=True too")


class PolicySettings(TypedDict, total=False):
    """The fields of `ToolPolicy`, as keywords."""

    timeout_s: float
    max_concurrency: int
    max_queue: int
    calls_per_s: float | None
    retries: int
    repeatable: bool
    cache_ttl_s: float | None


@runtime_checkable
class Tool(Protocol):
    """Something a model may call.

    A tool may also have `async def aclose(self) -> None`, which the toolbox awaits at its end. A closed tool that is
    called again has to open itself again, because toolboxes may share tools. It may have `async def end(self,
    session: str) -> None`, which is awaited when a trajectory that may have called it is over; and a repeatable one
    has `fingerprint: str`, which names whatever besides the arguments decides its answers, such as a corpus' hash.

    While a call runs, `icrl.runtime.tools.context.current()` tells its trajectory and its deadline.
    """

    @property
    def spec(self) -> ToolSpec:
        """What the model is told."""
        ...

    @property
    def policy(self) -> ToolPolicy:
        """How the toolbox treats it."""
        ...

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        """Answer one call.

        Args:
            arguments: JSON object as the model wrote it, not validated.

        Raises:
            ToolError: It did not work; the model reads the message.
            SandboxError: Isolation broke; the model is not told and the run ends.
        """
        ...


class FunctionTool:
    """A function as a tool; made by `tool`.

    A plain function runs in one of the tool's own threads. A thread cannot be killed: when such a call misses its
    deadline its result is dropped, and the thread counts as `busy` until the function returns.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        policy: ToolPolicy,
        name: str | None,
        description: str | None,
        fingerprint: str,
    ) -> None:
        self._function = function
        self._signature = Signature.of(function)
        self._is_async = inspect.iscoroutinefunction(function)
        self._threads: Threads | None = None
        self.policy = policy
        self.fingerprint = fingerprint
        self.spec = ToolSpec(
            name=name or function.__name__,
            description=description or self._signature.description,
            parameters=self._signature.schema,
        )

    def __repr__(self) -> str:
        return f"<tool {self.spec.name}>"

    @property
    def busy(self) -> int:
        """Threads that a plain function occupies now, calls that nobody waits for any more included."""
        return 0 if self._threads is None else self._threads.busy

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        """Validate the arguments, run the function, and turn what it returns into text.

        Raises:
            ToolArgumentError: The arguments do not fit the signature.
            ToolError: The function returned bytes, or raised this itself.
        """
        values = self._signature.bind(arguments)
        if self._is_async:
            return _to_text(await self._function(**values))
        if self._threads is None:
            self._threads = Threads(name=f"tool-{self.spec.name}", limit=self.policy.max_concurrency)
        return _to_text(await self._threads.run(partial(self._function, **values)))

    async def aclose(self) -> None:
        """Let the threads end; the next call starts new ones."""
        threads, self._threads = self._threads, None
        if threads is not None:
            await threads.aclose()


def _to_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        raise ToolError(f"the tool returned {type(value).__name__}, which is not text")
    return _ENCODER.encode(value).decode()


@overload
def tool(function: Callable[..., Any], /) -> FunctionTool: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    fingerprint: str = "",
    **policy: Unpack[PolicySettings],
) -> Callable[[Callable[..., Any]], FunctionTool]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    fingerprint: str = "",
    **policy: Unpack[PolicySettings],
) -> FunctionTool | Callable[[Callable[..., Any]], FunctionTool]:
    """Make a tool from a function.

    The annotations become the JSON schema, the docstring (Google style) the descriptions. Arguments are converted to
    the annotated types before the function runs. What it returns is shown to the model: a string as it is, anything
    else as JSON. Raise `ToolError` to tell the model what went wrong.

    Args:
        function: The function, plain or async; plain ones run in threads, never on the event loop.
        name: What the model calls the tool; the function's name if not given.
        description: What the model reads; the docstring up to its first section if not given.
        fingerprint: What decides the answers besides the arguments, such as a version; part of a cache's keys.
        policy: Fields of `ToolPolicy`: `timeout_s`, `max_concurrency`, `max_queue`, `calls_per_s`, `retries`,
            `repeatable`, `cache_ttl_s`.

    Raises:
        ConfigError: A setting is out of bounds, a parameter's type cannot be described, or there is nothing to tell
            the model.

    Example:
        >>> @tool(timeout_s=2.0)
        ... def add(a: int, b: int = 1) -> int:
        ...     '''Add two numbers.
        ...
        ...     Args:
        ...         a: The first number.
        ...         b: The second number.
        ...     '''
        ...     return a + b
        >>> add.spec.parameters["properties"]["a"]
        {'type': 'integer', 'description': 'The first number.'}
        >>> import asyncio
        >>> asyncio.run(add({"a": 2, "b": 3}))
        '5'
    """

    def wrap(wrapped: Callable[..., Any]) -> FunctionTool:
        return FunctionTool(
            wrapped, policy=ToolPolicy(**policy), name=name, description=description, fingerprint=fingerprint
        )

    return wrap if function is None else wrap(function)


async def close(resource: object) -> None:
    """Await `resource.aclose()` where it has one."""
    aclose = getattr(resource, "aclose", None)
    if aclose is not None:
        await aclose()
