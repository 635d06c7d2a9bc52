"""How a model was trained to be asked: stored beside its weights, so that every later use asks in the same way."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from icrl.errors import DataError
from icrl.types import Limits
from icrl.wire import decode, encode

__all__ = ["EMBEDDED", "FILE_NAME", "AgentSettings"]

FILE_NAME = "icrl.json"
EMBEDDED = "embedded"
"""Index name of the corpus that comes with the package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """The part of an agent that must not change between training, evaluation and serving.

    Example:
        >>> AgentSettings(tools=("search",), index=EMBEDDED).dialect
        'xml'
    """

    dialect: str = "xml"
    """`xml`, `hermes` or `fence`."""
    instruction: str | None = None
    """Replaces the dialect's instruction."""
    tools: tuple[str, ...] = ()
    """`search`, or `module:attribute` of a tool."""
    index: str | None = None
    """Directory of the search index, or `embedded`."""
    hits: int = 3
    """Documents that a search shows."""
    hit_separator: str = "\n"
    """What stands between them."""
    limits: Limits = field(default_factory=Limits)
    """When a run has to end."""

    def save(self, model_directory: Path) -> None:
        """Write the settings beside a model's weights.

        Raises:
            DataError: The file cannot be written.
        """
        path = model_directory / FILE_NAME
        try:
            path.write_bytes(encode(self) + b"\n")
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror})") from error

    @classmethod
    def load(cls, model_directory: Path) -> AgentSettings | None:
        """Read the settings beside a model's weights; `None` where the model has none.

        Raises:
            DataError: The file is damaged or cannot be read.
        """
        path = model_directory / FILE_NAME
        try:
            return decode(path.read_bytes(), cls)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
