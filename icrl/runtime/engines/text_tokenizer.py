"""A tokenizer for engines that take text: no vocabulary, exact, and with turns that no text can forge."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from icrl.errors import DataError
from icrl.rendered import AddedToken, AddedTokens, Rendered
from icrl.template import ChatTemplate
from icrl.types import Message

__all__ = ["END", "ROLES", "TextTokenizer"]

END = 0
"""Ends every turn."""
ROLES = {1: "system", 2: "user", 3: "assistant"}
"""Marks that open a turn."""

_FIRST = 256
_BYTES = 3
_ADDED = AddedTokens(
    [AddedToken(id=END, content="<|end|>"), *(AddedToken(id=i, content=f"<|{role}|>") for i, role in ROLES.items())]
)
_TEMPLATE = """\
{%- set own = messages[0].content if messages[0].role == 'system' else '' -%}
{%- if own or tools -%}<|system|>{{ own }}
{%- if tools -%}
{{ '\n\n' if own else '' }}You can call these functions, each described as JSON on a line:
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
To call one, write <tool_call>{"name": …, "arguments": {…}}</tool_call>. You are then told its result in \
<tool_response></tool_response>. When you need no further call, answer in plain text.
{%- endif -%}<|end|>{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{%- if messages[loop.index0 - 1].role == 'tool' -%}{{ '\n' }}{%- else -%}<|user|>{%- endif -%}
{{ '<tool_response>\n' }}{{ message.content }}{{ '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}<|end|>{%- endif -%}
{%- elif not (loop.first and message.role == 'system') -%}<|{{ message.role }}|>{{ message.content }}
{%- for call in message.tool_calls or [] -%}
{{ '\n<tool_call>\n' }}{{ call.function | tojson }}{{ '\n</tool_call>' }}
{%- endfor -%}<|end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""


class TextTokenizer:
    """Text as tokens of up to three bytes, and four marks: one for each role that opens a turn, and one that ends it.

    What is between two marks is a message, exactly, so that a sequence of ids can be cut into the messages of a chat
    endpoint and back. Ids are numbers of bytes, not entries of a table; a token is about as long as a model's.

    Example:
        >>> tokenizer = TextTokenizer()
        >>> tokenizer.decode(tokenizer.encode("né <|end|>"))
        'né <|end|>'
        >>> END in tokenizer.encode("<|end|>")
        False
        >>> (rendered,) = tokenizer.render([Message(role="user", content="Hi")])
        >>> rendered.text
        '<|user|>Hi<|end|><|assistant|>'
    """

    name = "text"
    vocab_size = 1 << (8 * _BYTES + 1)
    eos_ids = frozenset({END})
    pad_id = END

    def __init__(self) -> None:
        self._template = ChatTemplate(_TEMPLATE, name=self.name, added=_ADDED, variables={})

    def encode(self, text: str | Rendered) -> list[int]:
        """Encode text, in which no mark is parsed, or rendered text with its marks.

        Raises:
            DataError: The text holds half of a surrogate pair.
        """
        pieces = (text,) if isinstance(text, str) else text.pieces
        return [i for piece in pieces for i in (_encode(piece) if isinstance(piece, str) else (piece.id,))]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts.

        Raises:
            DataError: As for `encode`.
        """
        return [_encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode; marks are left out."""
        return b"".join(map(token_bytes, ids)).decode("utf-8", "replace")

    def locate(self, ids: Sequence[int], start: int, end: int) -> tuple[int, int]:
        """Return the range of tokens that overlap characters `start:end` of `decode(ids)`."""
        pieces = [token_bytes(i) for i in ids]
        text = b"".join(pieces).decode("utf-8", "replace")
        ends = list(accumulate(map(len, pieces)))
        first, last = (len(text[:at].encode()) for at in (start, end))
        return bisect_right(ends, first), bisect_left(ends, last) + (end > start)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        cuts: Sequence[tuple[int, int]] = (),
        generate: bool = True,
    ) -> tuple[Rendered, ...]:
        """Render a conversation, tools and calls as JSON in tags; see `icrl.tokenizer.Tokenizer.render`.

        Raises:
            DataError: A message that is to be cut is not rendered.
        """
        return self._template.render(messages, tools=tools, cuts=cuts, generate=generate)


def token_bytes(token: int) -> bytes:
    """Return the bytes that a token stands for; none for a mark.

    Example:
        >>> token_bytes(TextTokenizer().encode("abcd")[0]), token_bytes(END)
        (b'abc', b'')
    """
    return token.to_bytes(4).lstrip(b"\0")[1:] if token >= _FIRST else b""


def _encode(text: str) -> list[int]:
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"text: character {error.start} is half of a surrogate pair, not Unicode text") from error
    ids, at = list[int](), 0
    while at < len(data):
        end = min(at + _BYTES, len(data))
        while end < len(data) and end > at and _continues(data[end]):
            end -= 1  # no token ends within a character, but for one of four bytes
        end = end if end > at else at + _BYTES
        ids.append(int.from_bytes(b"\1" + data[at:end]))  # the leading one keeps the number of bytes
        at = end
    return ids


def _continues(byte: int) -> bool:
    return byte & 0xC0 == 0x80
