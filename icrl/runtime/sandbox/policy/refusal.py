"""How a refusal reaches the model: as an exception that ordinary `except` clauses understand."""

from __future__ import annotations

from icrl.runtime.sandbox.language import Refused

__all__ = ["RefusedAttribute", "RefusedImport"]


class RefusedImport(Refused, ImportError):
    """A module or name that may not be imported; a program's `except ImportError` sees it."""


class RefusedAttribute(Refused, AttributeError):
    """An attribute that may not be read or written; a program's `except AttributeError` and `hasattr` see it."""
