"""The command line: `icrl COMMAND …`. Commands are imported when they are called, so that `--help` is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from icrl.errors import ConfigError, IcrlError, nearest

__all__ = ["main"]

COMMANDS = {
    "run": ("icrl.commands.run", "answer a question and show every step"),
    "train": ("icrl.train.__main__", "train a model to use tools (the same as python -m icrl.train)"),
    "eval": ("icrl.commands.eval", "evaluate a model on questions with known answers"),
    "serve": ("icrl.commands.serve", "serve a model with its tools, for OpenAI clients and for people"),
    "serve-retriever": ("icrl.commands.serve_retriever", "serve a search index to other processes or machines"),
    "index": ("icrl.commands.index", "build a search index from a JSONL corpus"),
    "sglang": ("icrl.commands.sglang", "start an SGLang server for training, on GPUs or on a CPU"),
}
"""Name → module with a `main(argv)`, and what the command does."""

USAGE_ERROR = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments without the program's name; `sys.argv` if not given.

    Returns:
        The exit code: 0, 2 for a mistake of the user's, 130 for an interrupt.

    Example:
        >>> main(["--version"])
        icrl 0.1.0
        0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except IcrlError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        print("hint: --help explains the options; --debug shows where it happened", file=sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not complain when it flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        from icrl import __version__

        print(f"icrl {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise ConfigError(f"{name!r} is not a command ({', '.join(COMMANDS)}).{nearest(name, COMMANDS)}")
    import_module(COMMANDS[name][0]).main(rest)
    return 0


def _help() -> str:
    lines = [f"  {name:<16}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: icrl COMMAND [OPTIONS]",
            "",
            "An asyncio agent runtime with token-exact trajectories, and training of tool use on top of it.",
            "",
            *lines,
            "",
            "icrl COMMAND --help explains a command; --debug shows tracebacks.",
        ]
    )
