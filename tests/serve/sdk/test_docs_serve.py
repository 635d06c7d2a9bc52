"""The examples of docs/serve.md, run as they stand, against a server that the page's first command starts."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

for package in ("openai", "agents", "langchain_openai"):
    pytest.importorskip(package, reason=f"{package} is not installed")
pytestmark = [pytest.mark.sdk, pytest.mark.filterwarnings("default")]

TEXT = (Path(__file__).parents[3] / "docs" / "serve.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^<!-- skip: [^\n]*-->\n```python\n(.*?)^```$", TEXT, re.M | re.S)
CURL = [line for block in re.findall(r"^```bash\n(.*?)^```$", TEXT, re.M | re.S) for line in block.splitlines()]
CURL = [line for line in CURL if line.startswith("curl ")]
WRITTEN = "127.0.0.1:8000"


@pytest.fixture(scope="module")
def netloc(tmp_path_factory):
    """Where the server listens that the page's quick start begins with."""
    (command,) = re.findall(r"^icrl (serve --shots 3)$", TEXT, re.M)
    arguments = [sys.executable, "-m", "icrl", *command.split(), "--port", "0"]
    cache = str(tmp_path_factory.mktemp("cache"))
    environment = {**os.environ, "XDG_CACHE_HOME": cache, "ICRL_API_KEY": ""}
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment) as server:
        address = ""
        for line in server.stderr:
            address = address or "".join(re.findall(r"listening on (\S+),", line))
            if line.startswith("ready"):
                break
        yield urlsplit(address).netloc
        server.terminate()
        server.stderr.read()
        assert server.wait(30) == 0


def run(netloc, code):
    """Run an example in a process of its own, as its reader would."""
    code = code.replace(WRITTEN, netloc)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=False)


def test_the_page_has_examples_of_every_client():
    assert len(PYTHON) == 5
    assert len(CURL) == 3
    for client in ("OpenAI(", "AsyncOpenAI(", "Runner.run(", "ChatOpenAI("):
        assert any(client in code for code in PYTHON), client


# The second example goes on where the first one ends.
@pytest.mark.parametrize("code", [PYTHON[0] + PYTHON[1], *PYTHON[2:]], ids=["openai", "async", "agents", "langchain"])
def test_python(netloc, code):
    done = run(netloc, code)
    assert done.returncode == 0, done.stderr
    assert "Torix" in done.stdout, done.stdout + done.stderr
    if "mcp_call" in code:
        assert "search {" in done.stdout


@pytest.mark.parametrize("command", CURL)
def test_curl(netloc, command):
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    words = shlex.split(command.replace(WRITTEN, netloc))
    told = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    if '"stream": true' in command:
        assert "event: response.completed\n" in told
    else:
        assert "Torix" in told
