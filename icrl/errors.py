"""Everything icrl raises on purpose.

Two audiences are kept apart: a `ToolError` is read by the *model* (its message becomes an observation and the
run goes on); everything else is read by *people*.

    IcrlError
      ConfigError(ValueError)         a setting is wrong: field, value, choices, nearest spelling
      DataError(ValueError)           a file or record is wrong: where and what
      EngineError                     an engine failed: which one, status, whether a retry may help
      ToolError                       a tool failed: the model reads the message
        ToolTimeout                   it exceeded its deadline
        ToolNotFound                  the model named a tool that is not there
        ToolArgumentError             the model's arguments do not fit the schema
        ToolBusy                      the tool's queue is full
        ToolUnavailable               what it depends on does not answer now; the same call may succeed later
      SandboxError                    isolation broke: never shown to the model, never trained on
      RewardError                     a reward function failed or returned something that is not a finite number
      CheckpointError                 a checkpoint is missing, damaged or from another run
      WeightSyncError                 engine and trainer no longer hold the same weights
      MissingExtraError(ImportError)  an optional dependency is absent: prints the pip command

Limits (turns, tokens, deadlines) are not errors but `icrl.trajectory.StopReason` members.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EngineError",
    "IcrlError",
    "MissingExtraError",
    "RewardError",
    "SandboxError",
    "ToolArgumentError",
    "ToolBusy",
    "ToolError",
    "ToolNotFound",
    "ToolTimeout",
    "ToolUnavailable",
    "WeightSyncError",
    "nearest",
]


class IcrlError(Exception):
    """The root of everything icrl raises on purpose."""


class ConfigError(IcrlError, ValueError):
    """A setting is wrong; the message names the field, the value and the fix."""


class DataError(IcrlError, ValueError):
    """A file or record is wrong; the message names the place and the field."""


class EngineError(IcrlError):
    """An engine could not serve a request.

    Args:
        message: What happened, for a person.
        engine: The engine's name, such as `"local"` or a server's address.
        status: HTTP status where there is one.
        retryable: Whether the same request may succeed later.

    Example:
        >>> EngineError("no answer", engine="http://127.0.0.1:30000", status=503, retryable=True)
        EngineError('http://127.0.0.1:30000: no answer (status 503)')
    """

    def __init__(
        self, message: str, *, engine: str = "engine", status: int | None = None, retryable: bool = False
    ) -> None:
        suffix = "" if status is None else f" (status {status})"
        super().__init__(f"{engine}: {message}{suffix}")
        self.message = message
        self.engine = engine
        self.status = status
        self.retryable = retryable

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the error picklable although its constructor takes keywords."""
        return _rebuild_engine_error, (self.message, self.engine, self.status, self.retryable)


def _rebuild_engine_error(message: str, engine: str, status: int | None, retryable: bool) -> EngineError:
    return EngineError(message, engine=engine, status=status, retryable=retryable)


class ToolError(IcrlError):
    """A tool failed; raise it from a tool to tell the model what went wrong."""


class ToolTimeout(ToolError):
    """A tool exceeded its deadline and was cancelled."""


class ToolNotFound(ToolError):
    """The model called a tool that does not exist."""


class ToolArgumentError(ToolError):
    """The model's arguments do not fit the tool's schema."""


class ToolBusy(ToolError):
    """A tool's queue is full; the call was refused at once instead of waiting."""


class ToolUnavailable(ToolError):
    """What a tool depends on does not answer now; the same call may succeed later.

    Args:
        message: What the model reads.
        retry_after_s: Seconds after which trying again makes sense, where the other side said so.

    Example:
        >>> ToolUnavailable("the search service is down", retry_after_s=2.0).retry_after_s
        2.0
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SandboxError(IcrlError):
    """Isolation broke; the trajectory leaves training and the model is never told."""


class RewardError(IcrlError):
    """A reward function raised, or returned something that is not a finite number."""


class CheckpointError(IcrlError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class WeightSyncError(IcrlError):
    """Engine and trainer no longer hold the same weights."""


class MissingExtraError(IcrlError, ImportError):
    """An optional dependency is absent.

    Example:
        >>> MissingExtraError("bm25s", extra="search")
        MissingExtraError("bm25s is not installed; run: pip install 'icrl[search]'")
    """

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'icrl[{extra}]'")
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the error picklable although its constructor takes keywords."""
        return _rebuild_missing_extra, (self.package, self.extra)


def _rebuild_missing_extra(package: str, extra: str) -> MissingExtraError:
    return MissingExtraError(package, extra=extra)


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the choice closest to `name`, or an empty string.

    Example:
        >>> nearest("temprature", ["temperature", "top_p"])
        " Did you mean 'temperature'?"
    """
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
