"""The two ends of a chat endpoint: ids as messages, and a streamed reply as text."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from icrl.errors import EngineError
from icrl.runtime.engines.text_tokenizer import END, ROLES, token_bytes

__all__ = ["Events", "StopText", "messages_of"]

DATA = b"data:"
DONE = b"[DONE]"


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    error: msgspec.Raw = msgspec.Raw(b"")


def messages_of(ids: Sequence[int], *, engine: str) -> list[dict[str, str]]:
    """Cut a sequence into messages; what `TextTokenizer` rendered comes back as it was.

    Args:
        ids: The sequence; it ends with the mark that opens an assistant's turn.
        engine: For messages.

    Raises:
        EngineError: It was rendered by something else, or ends within a turn.

    Example:
        >>> from icrl.runtime.engines.text_tokenizer import TextTokenizer
        >>> from icrl.types import Message
        >>> (rendered,) = TextTokenizer().render([Message(role="user", content="Hi")])
        >>> messages_of(TextTokenizer().encode(rendered), engine="e")
        [{'role': 'user', 'content': 'Hi'}]
    """
    turns: list[tuple[str, bytearray]] = []
    is_open = False
    for token in ids:
        if token in ROLES and not is_open:
            turns.append((ROLES[token], bytearray()))
            is_open = True
        elif token == END and is_open:
            is_open = False
        elif token > max(ROLES) and is_open:
            turns[-1][1].extend(token_bytes(token))
        else:
            raise EngineError("the prompt was not rendered by the engine's own tokenizer", engine=engine)
    if not is_open or turns[-1][0] != "assistant" or turns[-1][1]:
        raise EngineError(
            "a chat endpoint cannot continue a turn that was begun; with the results of a client's calls use the "
            "dialect 'hermes', which writes them as turns of their own",
            engine=engine,
        )
    return [{"role": role, "content": text.decode("utf-8", "replace")} for role, text in turns[:-1]]


class StopText:
    """Finds where some strings are complete in text that arrives bit by bit.

    Example:
        >>> stop = StopText(("</a>",))
        >>> [stop.cut(piece) for piece in ("x </", "a> y")]
        [None, 2]
    """

    def __init__(self, strings: tuple[str, ...]) -> None:
        self._strings = strings
        self._longest = max(map(len, strings), default=1)
        self._tail = ""

    def cut(self, piece: str) -> int | None:
        """Take more text; return how much of it belongs to the reply, or `None` for all of it."""
        text = self._tail + piece
        ends = [at + len(string) for string in self._strings if (at := text.find(string)) >= 0]
        if ends:
            return min(ends) - len(self._tail)
        self._tail = text[len(text) - self._longest + 1 :] if self._longest <= len(text) else text
        return None


class Events:
    r"""Takes a streamed reply apart.

    Args:
        engine: For messages.

    Example:
        >>> events = Events(engine="e")
        >>> events.feed(b'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\ndata: {"choi'), events.finish
        (['Hi'], None)
        >>> events.feed(b'ces": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'), events.finish
        ([], 'stop')
    """

    def __init__(self, *, engine: str) -> None:
        self._engine = engine
        self._rest = b""
        self._decoder = msgspec.json.Decoder(_Event)
        self.finish: str | None = None
        """Why the reply ended, once it did."""

    def feed(self, data: bytes) -> list[str]:
        """Take more bytes and return the new pieces of text.

        Raises:
            EngineError: The endpoint reports an error, or what it says is no event.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [text for line in lines if line.startswith(DATA) for text in self._read(line[len(DATA) :].strip())]

    def _read(self, data: bytes) -> list[str]:
        if data == DONE:
            return []
        try:
            event = self._decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EngineError(f"an event of the reply is malformed: {error}", engine=self._engine) from error
        if bytes(event.error) not in (b"", b"null"):
            raise EngineError(f"broke off: {bytes(event.error).decode('utf-8', 'replace')}", engine=self._engine)
        if not event.choices:
            return []
        choice = event.choices[0]
        self.finish = choice.finish_reason or self.finish
        text = None if choice.delta is None else choice.delta.content
        return [text] if text else []
