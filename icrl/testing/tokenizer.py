"""A tokenizer that needs no files."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any

from icrl.errors import DataError
from icrl.rendered import AddedToken, AddedTokens, Rendered
from icrl.template import ChatTemplate
from icrl.types import Message

__all__ = ["ByteTokenizer"]

_END_OF_TEXT, _START, _END = 256, 257, 258
_ADDED = AddedTokens(
    [
        AddedToken(id=_END_OF_TEXT, content="<|endoftext|>"),
        AddedToken(id=_START, content="<|im_start|>"),
        AddedToken(id=_END, content="<|im_end|>"),
    ]
)
_TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}Functions:
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
Call one with <tool_call>{"name": ..., "arguments": ...}</tool_call>.<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% elif not (tools and loop.first and message.role == 'system') %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{{ call.function | tojson }}
</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


class ByteTokenizer:
    r"""A tokenizer without a vocabulary file: every byte of UTF-8 is a token, and three control tokens follow.

    Example:
        >>> tokenizer = ByteTokenizer()
        >>> tokenizer.encode("hé")
        [104, 195, 169]
        >>> tokenizer.decode([104, 195, 169, 258])
        'hé'
        >>> tokenizer.render([Message(role="user", content="Hi")])[0].text
        '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
    """

    name = "bytes"
    vocab_size = 259
    eos_ids = frozenset({_END_OF_TEXT, _END})
    pad_id = _END_OF_TEXT

    def __init__(self) -> None:
        self._template = ChatTemplate(_TEMPLATE, name=self.name, added=_ADDED, variables={})

    def encode(self, text: str | Rendered) -> list[int]:
        """Encode text as its bytes, and rendered text with its control tokens.

        Raises:
            DataError: The text holds half of a surrogate pair.
        """
        pieces = (text,) if isinstance(text, str) else text.pieces
        try:
            return [i for piece in pieces for i in (piece.encode() if isinstance(piece, str) else (piece.id,))]
        except UnicodeEncodeError as error:
            raise DataError(f"text: character {error.start} is half of a surrogate pair, not Unicode text") from error

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts.

        Raises:
            DataError: As for `encode`.
        """
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode; control tokens are left out."""
        try:
            data = bytes([*ids])  # not the bytes of an array
        except ValueError:  # there are control tokens
            data = bytes(i for i in ids if i < _END_OF_TEXT)
        return data.decode("utf-8", "replace")

    def locate(self, ids: Sequence[int], start: int, end: int) -> tuple[int, int]:
        """Return the range of tokens that make up characters `start:end` of `decode(ids)`."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        owners: list[tuple[int, int]] = []
        first = 0
        for position, i in enumerate(ids):
            if i >= _END_OF_TEXT:
                continue
            first = first if decoder.getstate()[0] else position
            owners += [(first, position + 1)] * len(decoder.decode(bytes([i])))
        owners += [(first, len(ids))] * (end - len(owners))
        if start == end:
            edge = owners[start][0] if start < len(owners) else len(ids)
            return edge, edge
        return owners[start][0], owners[end - 1][1]

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        cuts: Sequence[tuple[int, int]] = (),
        generate: bool = True,
    ) -> tuple[Rendered, ...]:
        """Render a conversation as ChatML, tools and calls as JSON in tags; see `icrl.tokenizer.Tokenizer.render`.

        Raises:
            DataError: A message that is to be cut is not rendered.
        """
        return self._template.render(messages, tools=tools, cuts=cuts, generate=generate)
