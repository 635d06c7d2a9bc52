"""A rough MCP server by hand: it starts in no time, and misbehaves when asked to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

LOCK = threading.Lock()


def flood(text: str, fd: int = 1) -> str:
    while True:
        os.write(fd, text.encode() * 1000)


def wait(seconds: float) -> str:
    time.sleep(seconds)
    return "rested"


def ignore_the_end() -> str:
    """Start a child, and refuse to go."""
    signals.append(True)
    return str(subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).pid)


signals: list[bool] = []
TOOLS = {
    "add": lambda a, b=1: str(a + b),
    "die": lambda: os._exit(3),
    "flood": flood,
    "ignore_the_end": ignore_the_end,
    "pid": lambda: str(os.getpid()),
    "say": lambda length: "x" * length,
    "variable": lambda name: os.environ.get(name, "(unset)"),
    "wait": wait,
}


def result(method: str, params: dict[str, Any]) -> Any:
    if method == "initialize":
        version = params["protocolVersion"]
        return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": {"name": "r", "version": "0"}}
    if method == "tools/list":
        first = not params.get("cursor")
        names = list(TOOLS)[:3] if first else list(TOOLS)[3:]
        page = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in names]}
        return page | ({"nextCursor": "more"} if first else {})
    if method == "tools/call":
        return {"content": [{"type": "text", "text": TOOLS[params["name"]](**params["arguments"])}]}
    raise KeyError(method)


def answer(message: dict[str, Any]) -> None:
    reply = {"jsonrpc": "2.0", "id": message["id"]}
    try:
        reply["result"] = result(message["method"], message.get("params") or {})
    except Exception as error:
        reply["error"] = {"code": -32601, "message": f"no: {error}"}
    with LOCK:
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: None if signals else os._exit(0))
    for line in sys.stdin:
        message = json.loads(line)
        if "id" in message:
            threading.Thread(target=answer, args=(message,), daemon=True).start()
    while signals:
        time.sleep(1)


if __name__ == "__main__":
    main()
