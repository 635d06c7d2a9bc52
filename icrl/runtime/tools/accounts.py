"""What a tool was asked, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Account", "ToolAccount"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolAccount:
    """One tool's account since its toolbox was made; every number only grows.

    Every call that has ended was answered, with or without an error, or cancelled.

    Example:
        >>> ToolAccount(calls=3, answered=2, errors={"ToolTimeout": 1}).timeouts
        1
    """

    calls: int = 0
    """Calls that were made."""
    answered: int = 0
    """Calls that got an answer, errors included."""
    cancelled: int = 0
    """Calls whose caller stopped waiting."""
    cache_hits: int = 0
    """Calls answered from the cache."""
    shared: int = 0
    """Calls that waited for an equal call's run instead of starting one."""
    runs: int = 0
    """How often the tool itself was run."""
    retries: int = 0
    """How many of the runs repeated one that found the tool unavailable."""
    waited_s: float = 0.0
    """Seconds that runs waited for a slot or for the rate limit."""
    run_s: float = 0.0
    """Seconds that runs took."""
    bytes_out: int = 0
    """Bytes of the answers, cut to what is shown."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """Answers that were errors, by class name."""

    @property
    def timeouts(self) -> int:
        """Calls without an answer in time."""
        return self.errors.get("ToolTimeout", 0)

    @property
    def busy(self) -> int:
        """Calls refused because too many waited."""
        return self.errors.get("ToolBusy", 0)


@dataclass(slots=True, eq=False)
class Account:
    """An account that is being kept; `snapshot` gives the one to show."""

    calls: int = 0
    answered: int = 0
    cancelled: int = 0
    cache_hits: int = 0
    shared: int = 0
    runs: int = 0
    retries: int = 0
    waited_s: float = 0.0
    run_s: float = 0.0
    bytes_out: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    def answer(self, text: str, error: str | None) -> None:
        """Enter an answer."""
        self.answered += 1
        self.bytes_out += len(text) if text.isascii() else len(text.encode())
        if error is not None:
            self.errors[error] = self.errors.get(error, 0) + 1

    def snapshot(self) -> ToolAccount:
        """Copy the account as it is now."""
        return ToolAccount(
            calls=self.calls,
            answered=self.answered,
            cancelled=self.cancelled,
            cache_hits=self.cache_hits,
            shared=self.shared,
            runs=self.runs,
            retries=self.retries,
            waited_s=self.waited_s,
            run_s=self.run_s,
            bytes_out=self.bytes_out,
            errors=dict(self.errors),
        )
