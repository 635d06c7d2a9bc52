"""Environments that look as if SGLang were in them."""

from __future__ import annotations

import sys
from pathlib import Path

FAKE = Path(__file__).parent / "fake_sglang.py"


def fake_environment(directory: Path, *, python: str | None = None) -> Path:
    """Make an environment whose interpreter is a fake server, whatever it is told to run."""
    (directory / "bin").mkdir(parents=True, exist_ok=True)
    script = directory / "bin" / "python"
    script.write_text(python or f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    (directory / "lib" / "python3.11" / "site-packages" / "sglang-0.5.23.dist-info").mkdir(parents=True, exist_ok=True)
    return directory
