"""The tools of MCP servers."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from icrl.errors import ConfigError, ToolError, ToolUnavailable
from icrl.imports import require
from icrl.runtime.tools.mcp_connection import Connect, Connection
from icrl.runtime.tools.mcp_text import text_of
from icrl.runtime.tools.tool import ToolPolicy, ToolSpec

if TYPE_CHECKING:
    from mcp import Client

__all__ = ["McpServer", "McpTool", "open_mcp"]

MAX_PAGES = 100
"""Pages of a listing of tools that are asked for."""

_UNFIT = re.compile(r"[^A-Za-z0-9_-]")


class McpServer:
    """A connection to an MCP server, made when it is first needed and again after it broke.

    Use `stdio` or `http` to make one, and close it with `aclose`, `async with`, or through the toolbox that has its
    tools.

    Example:
        >>> server = McpServer.stdio("uvx", ["mcp-server-time"], env={"TZ": "UTC"}, prefix="time_")
        >>> server
        <MCP server uvx mcp-server-time>
    """

    def __init__(
        self,
        connect: Connect,
        *,
        name: str,
        prefix: str,
        policy: ToolPolicy | None,
        connect_timeout_s: float,
    ) -> None:
        self._connect = connect
        self._name = name
        self._prefix = prefix
        self._policy = policy or ToolPolicy()
        self._connect_timeout_s = connect_timeout_s
        self._connection: Connection | None = None
        self._old: set[Connection] = set()

    def __repr__(self) -> str:
        return f"<MCP server {self._name}>"

    @classmethod
    def stdio(
        cls,
        command: str,
        args: Sequence[str] = (),
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        prefix: str = "",
        policy: ToolPolicy | None = None,
        connect_timeout_s: float = 30.0,
    ) -> Self:
        """Describe a server that is a program, spoken to through its standard input and output.

        Args:
            command: The program.
            args: Its arguments.
            env: Variables for it. Of ours it gets only what programs need to run (`PATH`, `HOME`, the locale).
            cwd: Where it runs.
            prefix: Put before its tools' names.
            policy: How a toolbox treats its tools.
            connect_timeout_s: Seconds until it must have answered the first message.
        """

        def connect(stderr: bytearray) -> AbstractAsyncContextManager[Any]:
            from icrl.runtime.tools.mcp_stdio import stdio_transport

            return stdio_transport([command, *args], env=env or {}, cwd=cwd, stderr=stderr)

        name = shlex.join([command, *args])
        return cls(connect, name=name, prefix=prefix, policy=policy, connect_timeout_s=connect_timeout_s)

    @classmethod
    def http(
        cls,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        prefix: str = "",
        policy: ToolPolicy | None = None,
        connect_timeout_s: float = 30.0,
    ) -> Self:
        """Describe a server at an address, spoken to by streamable HTTP.

        Args:
            url: Its endpoint.
            headers: Sent with every request, for example for authorisation.
            prefix: Put before its tools' names.
            policy: How a toolbox treats its tools.
            connect_timeout_s: Seconds until it must have answered the first message.
        """

        def connect(stderr: bytearray) -> AbstractAsyncContextManager[Any]:
            from icrl.runtime.tools.mcp_http import http_transport

            return http_transport(url, headers=headers or {})

        # What else an address may carry is nobody's business.
        parts = urlsplit(url)
        name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        return cls(connect, name=name, prefix=prefix, policy=policy, connect_timeout_s=connect_timeout_s)

    async def __aenter__(self) -> Self:
        """Connect lazily."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        await self.aclose()

    async def tools(self) -> list[McpTool]:
        """Ask the server what tools it has.

        Characters that dialects cannot write in a name become `_`.

        Raises:
            ConfigError: It cannot be reached, or a tool cannot be described.
            MissingExtraError: The `mcp` package is not installed.
        """
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                return await self._list(await self.client())
        except ToolUnavailable as error:
            raise ConfigError(f"tools: {' '.join(error.__notes__)}") from error
        except TimeoutError:
            within_s = f"{self._connect_timeout_s:.3g} s"
            raise ConfigError(f"tools: MCP server {self._name} did not list its tools within {within_s}") from None

    async def _list(self, client: Client) -> list[McpTool]:
        found: list[McpTool] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            found += [self._tool(tool.name, tool.description, tool.input_schema) for tool in page.tools]
            cursor = page.next_cursor
            if cursor is None:
                break
        return found

    def _tool(self, name: str, description: str | None, schema: Mapping[str, Any]) -> McpTool:
        shown = (self._prefix + _UNFIT.sub("_", name))[:64]
        described = description if description and description.strip() else f"The tool {name} of an MCP server."
        spec = ToolSpec(name=shown, description=described, parameters={"type": "object", "properties": {}, **schema})
        return McpTool(server=self, name=name, spec=spec, policy=self._policy)

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool by the server's own name for it.

        Raises:
            ToolError: The tool or the server says that it failed.
            ToolUnavailable: The server cannot be reached, or went away; the next call connects again.
        """
        client = await self.client()
        connection = self._connection
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED

        try:
            result = await client.call_tool(name, dict(arguments))
        except MCPError as error:
            if error.code == CONNECTION_CLOSED or error.message == "Session terminated":
                if connection is not None:
                    connection.lost = True
                raise ToolUnavailable("the MCP server went away while it was asked") from error
            raise ToolError(error.message) from error
        text = text_of(result)
        if result.is_error:
            raise ToolError(text)
        return text

    async def client(self) -> Client:
        """Return the open client; connect where there is none.

        Raises:
            ToolUnavailable: The server cannot be reached.
            MissingExtraError: The `mcp` package is not installed.
        """
        require("mcp", extra="mcp")
        if self._connection is None or self._connection.lost:
            if self._connection is not None:
                self._connection.stop()
                self._old.add(self._connection)
            self._old = {old for old in self._old if not old.ended}
            self._connection = Connection(self._connect, self._name, self._connect_timeout_s)
        return await self._connection.client()

    async def aclose(self) -> None:
        """Leave the server; one that is a program has ended then. The next call connects again."""
        closing = {*self._old, *([] if self._connection is None else [self._connection])}
        self._connection, self._old = None, set()
        for connection in closing:
            connection.stop()
        await asyncio.gather(*(connection.wait() for connection in closing))


class McpTool:
    """One tool of an MCP server; `McpServer.tools` makes them."""

    def __init__(self, *, server: McpServer, name: str, spec: ToolSpec, policy: ToolPolicy) -> None:
        self._server = server
        self._name = name
        self.spec = spec
        self.policy = policy

    def __repr__(self) -> str:
        return f"<tool {self.spec.name} of {self._server!r}>"

    @property
    def fingerprint(self) -> str:
        """Where the answers come from."""
        return repr(self._server)

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        """Ask the server.

        Raises:
            ToolError: The tool failed.
            ToolUnavailable: The server cannot be reached.
        """
        return await self._server.call(self._name, arguments)

    async def aclose(self) -> None:
        """Leave the server, which all of its tools share."""
        await self._server.aclose()


async def open_mcp(spec: str, *, policy: ToolPolicy | None = None) -> list[McpTool]:
    """Return the tools of a server.

    Args:
        spec: An address (`https://…`), or a command line that starts the server.
        policy: How a toolbox treats the tools.

    Raises:
        ConfigError: There is no such server, or it has no tools.
        MissingExtraError: The `mcp` package is not installed.
    """
    if spec.startswith(("http://", "https://")):
        server = McpServer.http(spec, policy=policy)
    else:
        command, *args = shlex.split(spec) or [""]
        server = McpServer.stdio(command, args, policy=policy)
    try:
        tools = await server.tools()
        if not tools:
            raise ConfigError(f"tools: MCP server {spec!r} has no tools")
    except BaseException:
        await server.aclose()
        raise
    return tools
