"""Something that is started like an SGLang server, and behaves as FAKE_SGLANG says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODE = os.environ.get("FAKE_SGLANG", "good")


def flag(name: str) -> str | None:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else None


KEY = None if flag("--config") is None else json.loads(Path(flag("--config")).read_text())["api-key"]


class Handler(BaseHTTPRequestHandler):
    def answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer(503 if MODE == "never" else 200)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if KEY is not None and self.headers["Authorization"] != f"Bearer {KEY}":
            self.answer(401, b"Unauthorized")
            return
        self.answer(200, json.dumps({"output_ids": [1], "argv": sys.argv, "variables": dict(os.environ)}).encode())
        if MODE == "dies":
            os._exit(7)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    sys.stdout.write(f"server_args: {sys.argv} key: {KEY}\n")
    sys.stdout.flush()
    if MODE == "fails":
        sys.stderr.write("no such model\n")
        sys.exit(3)
    if MODE == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if MODE in ("children", "stubborn"):
        # A child of a session of its own, whose parent is gone, and which ignores what it is asked.
        ignoring = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
        orphaning = (
            f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {ignoring!r}], start_new_session=True)"
        )
        subprocess.run([sys.executable, "-c", orphaning], check=True)
        subprocess.Popen([sys.executable, "-c", ignoring])
    if MODE == "late":
        time.sleep(0.5)
    ThreadingHTTPServer((flag("--host"), int(flag("--port"))), Handler).serve_forever()


main()
