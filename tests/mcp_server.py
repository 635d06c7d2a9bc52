"""An MCP server for tests: `python mcp_server.py [stdio|http]`."""

from __future__ import annotations

import asyncio
import socket
import sys

from mcp.server.mcpserver import Image, MCPServer

server = MCPServer("test")


@server.tool()
def add(a: int, b: int = 1) -> str:
    """Add two numbers."""
    return str(a + b)


@server.tool(name="read.file")
def read_file(path: str) -> str:
    """Read a file."""
    raise ValueError(f"there is no {path}")


@server.tool()
def picture() -> list:
    """Draw."""
    return ["a dot", Image(data=b"12345", format="png")]


@server.tool()
async def wait(seconds: float) -> str:
    """Take a while."""
    await asyncio.sleep(seconds)
    return "rested"


@server.tool()
def flood(length: int) -> str:
    """Say much."""
    return "x" * length


def serve_http() -> None:
    """Serve on a free port, which is the first line of the output."""
    import uvicorn

    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 0))
    sock.listen()
    print(sock.getsockname()[1], flush=True)  # noqa: T201
    uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="critical")).run(sockets=[sock])


if __name__ == "__main__":
    if sys.argv[1:2] == ["http"]:
        serve_http()
    else:
        server.run("stdio")
