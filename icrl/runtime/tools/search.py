"""Search as a tool, with any retriever behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

from icrl.errors import ToolArgumentError
from icrl.runtime.tools.corpus import Hit
from icrl.runtime.tools.index_meta import digest
from icrl.runtime.tools.retrievers.protocol import Retriever, check_k, fingerprint_of
from icrl.runtime.tools.signature import Signature
from icrl.runtime.tools.tool import ToolPolicy, ToolSpec, close

__all__ = ["Hit", "Retriever", "SearchTool"]


def _form(query: str) -> None:
    """Describe what the model sends.

    Args:
        query: Words to look for.
    """


_SIGNATURE = Signature.of(_form)


@dataclass(frozen=True, slots=True)
class SearchTool:
    """Looks up one query and shows the documents found.

    A document is shown as its title, if it has one, and its text on the next line.

    Example:
        >>> import asyncio
        >>> from collections.abc import Sequence
        >>> class Everywhere:
        ...     async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        ...         return [[Hit(id="0", title="", text=f"{query} is here.", score=1.0)] for query in queries]
        >>> asyncio.run(SearchTool(Everywhere(), separator=" ")({"query": "Rikor"}))
        'Rikor is here.'
    """

    retriever: Retriever
    """Where to look."""
    _: KW_ONLY
    k: int = 3
    """Documents to show at most."""
    name: str = "search"
    """What the model calls it."""
    description: str = "Search a collection of documents for words and return the passages that fit best."
    """What the model is told."""
    separator: str = "\n"
    """Stands between two documents."""
    empty: str = "no result."
    """The answer when nothing was found."""
    policy: ToolPolicy = field(default_factory=lambda: ToolPolicy(max_concurrency=1024, repeatable=True))
    """How a toolbox treats it; many calls at once make large rounds. A retriever without a fingerprint is not taken to
    be repeatable, whatever this says."""

    def __post_init__(self) -> None:
        check_k(self.k)
        if self.policy.repeatable and fingerprint_of(self.retriever) is None:
            object.__setattr__(self, "policy", replace(self.policy, repeatable=False))

    @property
    def spec(self) -> ToolSpec:
        """What the model is told."""
        return ToolSpec(name=self.name, description=self.description, parameters=_SIGNATURE.schema)

    @property
    def fingerprint(self) -> str:
        """Names whatever besides the query decides the answer: corpus, ranking, and how hits are shown."""
        return digest(fingerprint_of(self.retriever), self.k, self.separator, self.empty)

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        """Search.

        Raises:
            ToolArgumentError: There is no query, or it is blank.
        """
        query = _SIGNATURE.bind(arguments)["query"]
        if not query.strip():
            raise ToolArgumentError("argument 'query' is empty; write the words to look for")
        (hits,) = await self.retriever.search([query], self.k)
        return self.separator.join(map(_show, hits)) or self.empty

    async def aclose(self) -> None:
        """Close the retriever."""
        await close(self.retriever)


def _show(hit: Hit) -> str:
    return f"{hit.title}\n{hit.text}" if hit.title else hit.text
