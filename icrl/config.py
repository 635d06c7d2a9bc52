"""Settings: a frozen dataclass becomes command-line flags and a YAML file.

tyro parses the command line. A file given with `--config` (see `icrl.configfile`) sets the defaults that the flags then
override. Every mistake, in either place, is one line that names the setting.

    load    command line (and file) → instance
    dump    instance → file, the inverse of `load`
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from icrl.configfile import dump, hints, names, read, suggest
from icrl.errors import ConfigError

__all__ = ["dump", "load"]

T = TypeVar("T")


def load(cls: type[T], argv: Sequence[str], *, prog: str, description: str) -> T:
    """Build an instance of a settings class from command-line arguments.

    `--config FILE.yaml` reads defaults from a file; the other arguments win over it wherever they stand.

    Args:
        cls: A frozen dataclass whose fields are scalars, paths, literals, enums, tuples of those, optional forms of
            those, or such dataclasses again.
        argv: The arguments, without the program's name.
        prog: Name for the help page.
        description: First paragraph of the help page.

    Raises:
        ConfigError: A flag, key or value is wrong; one line that names it.
        SystemExit: `--help` was asked for and printed (code 0).

    Example:
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class Sampling:
        ...     temperature: float = 1.0
        >>> load(Sampling, ["--temperature", "0.5"], prog="demo", description="A demo.").temperature
        0.5
        >>> load(Sampling, ["--temprature", "0.5"], prog="demo", description="A demo.")
        Traceback (most recent call last):
        icrl.errors.ConfigError: unknown option --temprature. Did you mean --temperature?
    """
    path, rest = _split_config(argv)
    values = {} if path is None else read(path, cls)
    _refuse_unknown_flags(cls, rest)
    default: T = _unchecked(cls, values)
    try:
        return _parse(cls, rest, default, prog, description)
    except ConfigError as error:
        if path is not None and _fails_alike(cls, default, prog, str(error)):
            raise ConfigError(f"{path}: {error}") from None
        raise


def _split_config(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Take `--config FILE` out of the arguments."""
    paths, rest, arguments = [], [], iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag != "--config":
            rest.append(argument)
        elif not (file := value if equals else next(arguments, "")):
            raise ConfigError("--config: name a YAML file")
        else:
            paths.append(Path(file))
    if len(paths) > 1:
        raise ConfigError(f"--config: given twice, {paths[0]} and {paths[1]}; put all settings into one file")
    return (paths[0] if paths else None), rest


def _parse(cls: type[T], argv: list[str], default: T, prog: str, description: str) -> T:
    """Run tyro, and turn the box it prints on an error into one line."""
    import tyro

    def run() -> T:
        config = (tyro.conf.EnumChoicesFromValues,)
        note = f"{description} Settings can also come from a file: --config FILE.yaml."
        return tyro.cli(cls, args=argv, default=default, prog=prog, description=note, config=config)

    if {"-h", "--help"} & set(argv):
        return run()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), _wide_terminal():
            return run()
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_one_line(printed.getvalue(), cls.__name__)) from None


@contextlib.contextmanager
def _wide_terminal() -> Iterator[None]:
    """Keep tyro from wrapping its message, which would cut long values apart."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "10000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _one_line(box: str, root: str) -> str:
    """Read the message out of tyro's box: what stands between its title and its first rule."""
    lines = [line.strip("│| \t") for line in box.splitlines() if not line.startswith(("╭", "╰", "+"))]
    if not box.startswith(("╭", "+")):  # a terminal without a cursor gets a title and a rule instead of a frame
        lines = lines[2:]
    rule = next((i for i, line in enumerate(lines) if line and not line.strip("─-")), len(lines))
    message = " ".join(line for line in lines[:rule] if line)
    message = re.sub(r"\[/?bold\]", "", message).removeprefix("Error parsing ").removeprefix(f"{root}: ")
    # A check may name its field in full already, where tyro adds the group's name.
    return re.sub(r"^([\w.]+): (?=\1\.)", "", message)


def _fails_alike(cls: type[Any], default: Any, prog: str, message: str) -> bool:
    """Whether the file's settings alone are refused for the same reason."""
    try:
        _parse(cls, [], default, prog, "")
    except ConfigError as error:
        return str(error) == message
    return False


def _refuse_unknown_flags(cls: type[Any], argv: Sequence[str]) -> None:
    known = set(names(cls))
    switches = {".".join([*parts, f"no_{last}"]) for *parts, last in (name.split(".") for name in known)}
    for argument in argv:
        flag = argument.partition("=")[0]
        name = flag.removeprefix("--").replace("-", "_")
        ours = not argument.startswith("--") or name.startswith(("help", "tyro_")) or name in known | switches
        if not ours:
            close = suggest(name, sorted(known))
            hint = f" Did you mean --{close.replace('_', '-')}?" if close else ""
            raise ConfigError(f"unknown option {flag}.{hint}")


def _unchecked(cls: Any, values: Mapping[str, Any], base: Any = dataclasses.MISSING) -> Any:
    """Build an instance without running its checks: flags may still mend it, and tyro constructs the final one."""
    import tyro

    instance = object.__new__(cls)
    kinds = hints(cls)
    for field in dataclasses.fields(cls):
        fallback = _default(field) if base is dataclasses.MISSING else getattr(base, field.name)
        value: Any = values.get(field.name, fallback)
        if dataclasses.is_dataclass(kinds[field.name]):
            value = _unchecked(kinds[field.name], values.get(field.name, {}), fallback)
        object.__setattr__(instance, field.name, tyro.MISSING if value is dataclasses.MISSING else value)
    return instance


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
