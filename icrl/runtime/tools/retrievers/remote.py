r"""A retriever on another machine: the `/retrieve` protocol of Search-R1.

POST /retrieve  {"queries": ["…"], "topk": 3, "return_scores": true}
200             {"result": [[{"document": {"id": "…", "contents": "\"Title\"\nText"}, "score": 1.5}, …], …]}
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from icrl.errors import ConfigError, ToolError, ToolUnavailable
from icrl.runtime.tools.corpus import Hit, split_contents
from icrl.runtime.tools.index_meta import digest
from icrl.runtime.tools.retrievers.rounds import Rounds

__all__ = ["MAX_REPLY_BYTES", "HttpRetriever", "as_document"]

MAX_REPLY_BYTES = 64 * 2**20
CONNECTIONS = 8
TRANSIENT = frozenset({408, 425, 429, *range(500, 600)})


class _Document(msgspec.Struct):
    contents: str | None = None
    text: str | None = None
    title: str | None = None
    id: str | int | None = None


class _Found(msgspec.Struct):
    document: _Document
    score: float = 0.0


class _Reply(msgspec.Struct):
    result: list[list[_Found]]


_DECODER = msgspec.json.Decoder(_Reply)


class HttpRetriever:
    """Asks a server that speaks the `/retrieve` protocol; `icrl serve-retriever` is one.

    Queries that wait are sent together, over 8 connections at most. Redirects are not followed.

    Args:
        url: The server's address, with or without `/retrieve`.
        api_key: Sent as a bearer token.
        timeout_s: Seconds for one request.
        fingerprint: Names the corpus and the ranking behind the server; its address, if not given.

    Raises:
        ConfigError: The address is not one.

    Example:
        >>> HttpRetriever("http://127.0.0.1:8000").url
        'http://127.0.0.1:8000/retrieve'
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = 30.0, fingerprint: str | None = None
    ) -> None:
        self.url = str(_address(url))
        """Where requests go."""
        self.fingerprint = fingerprint or digest("http", self.url)
        """Names whatever decides what a search finds."""
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._timeout_s = timeout_s
        self._rounds = Rounds(self._answer, slots=CONNECTIONS)
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Find at most `k` documents for each query, best first.

        Raises:
            ConfigError: `k` is less than 1.
            ToolUnavailable: The server does not answer, not in time, or with something else.
            ToolError: The server refuses the request.
        """
        return await self._rounds.search(queries, k)

    async def aclose(self) -> None:
        """Cancel whatever is asked and close the connections; a later search opens new ones."""
        await self._rounds.aclose()
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _answer(self, queries: list[str], k: int) -> list[list[Hit]]:
        body = msgspec.json.encode({"queries": queries, "topk": k, "return_scores": True})
        try:
            async with asyncio.timeout(self._timeout_s):
                data = await self._post(body)
        except TimeoutError:
            raise ToolUnavailable(f"{self.url}: no answer within {self._timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ToolUnavailable(f"{self.url}: {error or type(error).__name__}") from error
        try:
            result = _DECODER.decode(data).result
            hits = [[_hit(found) for found in one[:k]] for one in result]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise ToolUnavailable(f"{self.url}: the answer is not of the /retrieve protocol ({error})") from error
        if len(hits) != len(queries):
            raise ToolUnavailable(f"{self.url}: {len(hits)} answers to {len(queries)} queries")
        return hits

    async def _post(self, body: bytes) -> bytes:
        session = await self._open()
        headers = {"Content-Type": "application/json", **self._headers}
        async with session.post(self.url, data=BytesIO(body), headers=headers, allow_redirects=False) as response:
            data = bytearray()
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > MAX_REPLY_BYTES:
                    raise ToolUnavailable(f"{self.url}: the answer has more than {MAX_REPLY_BYTES} bytes")
            if response.status != 200:
                raise _refusal(self.url, response.status, response.headers, bytes(data))
        return bytes(data)

    async def _open(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._session is not None and self._loop is not loop:
            await self._session.close()
            self._session = None
        if self._session is None:
            # The rounds bound the connections; a second queue in front of them would only delay the timeout.
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
            self._loop = loop
        return self._session


def _address(url: str) -> URL:
    try:
        address = URL(url)
    except ValueError as error:
        raise ConfigError(f"index: {url!r} is not an address ({error})") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise ConfigError(f"index: {url!r} is not an address; write http://HOST:PORT")
    if address.path.rstrip("/").endswith("/retrieve"):
        return address
    return address / "retrieve"


def _refusal(url: str, status: int, headers: Mapping[str, str], data: bytes) -> ToolError:
    said = data[:300].decode("utf-8", "replace").strip()
    message = f"{url}: answered with status {status}{f': {said}' if said else ''}"
    if status not in TRANSIENT:
        return ToolError(message)
    after = headers.get("Retry-After", "")
    return ToolUnavailable(message, retry_after_s=float(after) if after.isdecimal() else None)


def _hit(found: _Found) -> Hit:
    document = found.document
    title, text = document.title, document.text
    if text is None:
        if document.contents is None:
            raise ValueError("a document has neither `contents` nor `text`")
        first, text = split_contents(document.contents)
        title = title or first
    return Hit(id="" if document.id is None else str(document.id), title=title or "", text=text, score=found.score)


def as_document(hit: Hit) -> dict[str, Any]:
    """Write a hit as the protocol's document; `title` and `text` tell apart what `contents` joins."""
    contents = f'"{hit.title}"\n{hit.text}' if hit.title else hit.text
    return {"id": hit.id, "contents": contents, "title": hit.title, "text": hit.text}
