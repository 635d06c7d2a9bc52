"""Tokenizers: text to token ids and back, conversations to text.

The law that everything rests on: **no added token is ever parsed out of foreign text**. `encode` turns a tool result
that says `<|im_end|>` into the tokens of these ten characters, and decoding gives the characters back. Added tokens
come from two places only: what the model sampled, and what the model's own chat template wrote.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from os import PathLike
from typing import Any, Literal, Protocol

from icrl.byte_level import byte_alphabet, word_bytes
from icrl.errors import ConfigError, DataError
from icrl.fast_encoder import WordMemo
from icrl.rendered import Rendered, Special
from icrl.template import ChatTemplate
from icrl.tokenizer_files import TokenizerFiles, find_tokenizer_files
from icrl.types import Message

__all__ = ["ChatTokenizer", "Encoder", "Rendered", "Special", "TextStream", "Tokenizer"]

Encoder = Literal["auto", "huggingface", "fast"]
"""Who turns text into ids; the ids are the same. `huggingface` remembers what the library made of words; `fast` leaves
new words to tiktoken, which is needed then, and a tokenizer that it fits."""

WORTH_CHARACTERS = 100_000
"""With `auto`, words are remembered once this much was encoded: to begin with that costs as much as this did."""
WORTH_WORDS = 300_000
"""With `auto`, new words are left to tiktoken once there were so many, likewise."""

_LONG_CHARACTERS = 256
"""From here on the library's batch call, which computes no offsets, is the cheaper one."""
_REPLACEMENT = "\ufffd"
_LOG = logging.getLogger("icrl.tokenizer")


class Tokenizer(Protocol):
    """Text to token ids and back, conversations to text; stateless."""

    def __hash__(self) -> int:
        """Identity: what was encoded once is remembered by tokenizer."""
        ...

    @property
    def name(self) -> str:
        """For messages: a model's name or path."""
        ...

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        ...

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a model's turn."""
        ...

    @property
    def pad_id(self) -> int:
        """Fills up batches; always masked."""
        ...

    def encode(self, text: str | Rendered) -> list[int]:
        """Encode text in which no added token is parsed, or rendered text whose added tokens are known.

        Raises:
            DataError: The text holds half of a surrogate pair, which is not Unicode text.
        """
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts at once, outside the interpreter lock.

        Raises:
            DataError: As for `encode`.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Decode; control tokens such as `<|im_end|>` are left out, words such as `<tool_call>` stay."""
        ...

    def locate(self, ids: Sequence[int], start: int, end: int) -> tuple[int, int]:
        """Return the range of tokens that overlap characters `start:end` of `decode(ids)`."""
        ...

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        cuts: Sequence[tuple[int, int]] = (),
        generate: bool = True,
    ) -> tuple[Rendered, ...]:
        """Render a conversation through the chat template, and cut the result.

        Args:
            messages: The conversation.
            tools: Functions to declare, in OpenAI's form.
            cuts: Where to cut, as (message, character of its content), in order of appearance.
            generate: Whether to open an assistant turn at the end.

        Returns:
            `len(cuts) + 1` parts that join to the whole.

        Raises:
            ConfigError: There is no chat template.
            DataError: The template refuses the conversation.
        """
        ...


class ChatTokenizer:
    """The tokenizer of a Hugging Face model, on `tokenizers` and `jinja2` alone.

    Two deliberate differences from transformers: added tokens are never parsed out of foreign text, and text is not
    normalised to NFC, so that it always decodes to itself.

    Args:
        files: What `find_tokenizer_files` read.
        encoder: `auto` begins with the library's encoder alone, and changes to the others, made in a thread, in a
            process that encodes much; where they do not fit, a debug message says why.

    Raises:
        ConfigError: The vocabulary can spell an added token in plain text, text does not decode to itself, or the
            fast encoder was asked for and does not fit.

    Example:
        >>> from icrl.tiny import BASE_DIR
        >>> tokenizer = ChatTokenizer.load(BASE_DIR)
        >>> ids = tokenizer.encode("no <|im_end|> here")
        >>> tokenizer.eos_ids.isdisjoint(ids), tokenizer.decode(ids)
        (True, 'no <|im_end|> here')
    """

    def __init__(self, files: TokenizerFiles, *, encoder: Encoder = "auto") -> None:
        self._files = files
        self._plain = files.plain
        self._words: WordMemo | None = None
        self._encoder = encoder
        self._improves = encoder == "auto"
        self._until_words = WORTH_CHARACTERS
        self._last: tuple[Sequence[int], list[bytes], str] | None = None
        self._added = {token.id: token for token in files.added}
        self._templates = {
            key: ChatTemplate(source, name=files.name, added=files.added_tokens, variables=files.variables)
            for key, source in files.templates.items()
        }
        self.name = files.name
        self.vocab_size = max((*self._plain.get_vocab(with_added_tokens=False).values(), *self._added)) + 1
        self._check()
        self.eos_ids = files.eos_ids | self._end_of_turn()
        if not self.eos_ids:
            raise ConfigError(f"tokenizer: {self.name} names no end token; set eos_token in its tokenizer_config.json")
        self.pad_id = files.pad_id if files.pad_id is not None else min(self.eos_ids)
        if encoder == "fast":
            self._words = WordMemo(files.pipeline, self._plain, fast=True)
        elif encoder == "huggingface":
            self._improve()

    @classmethod
    def load(cls, source: str | PathLike[str], *, encoder: Encoder = "auto") -> ChatTokenizer:
        """Load from a directory, or by name from the Hugging Face hub.

        Args:
            source: A directory with `tokenizer.json`, or a name such as `Qwen/Qwen3-0.6B`.
            encoder: Which encoder to use.

        Raises:
            ConfigError: There is no such tokenizer, or it cannot be used.
        """
        return cls(find_tokenizer_files(source), encoder=encoder)

    def encode(self, text: str | Rendered) -> list[int]:
        """Encode text in which no added token is parsed, or rendered text whose added tokens are known.

        Raises:
            DataError: The text holds half of a surrogate pair.
        """
        if isinstance(text, str):
            return self._encode(text)
        ids: list[int] = []
        for piece in text.pieces:
            ids += self._encode(piece) if isinstance(piece, str) else (piece.id,)
        return ids

    def _encode(self, text: str) -> list[int]:
        if self._improves and self._pays(text):
            self._improves = False
            threading.Thread(target=self._improve, name="icrl-encoder", daemon=True).start()
        if self._words is not None and (found := self._words.encode(text)) is not None:
            return found
        try:
            if len(text) >= _LONG_CHARACTERS:
                (encoding,) = self._plain.encode_batch_fast([text], add_special_tokens=False)
            else:
                encoding = self._plain.encode(text, add_special_tokens=False)
        except TypeError:
            raise _not_unicode(text) from None
        ids: list[int] = encoding.ids
        return ids

    def _pays(self, text: str) -> bool:
        """Say whether so much was encoded, this text included, that the next encoder is worth its making."""
        if self._words is not None:
            return self._words.unknown >= WORTH_WORDS
        self._until_words -= len(text)
        return self._until_words <= 0

    def _improve(self) -> None:
        """Remember words; where they are remembered, leave new ones to tiktoken."""
        fast = self._words is not None
        try:
            self._words = WordMemo(self._files.pipeline, self._plain, fast=fast)
            self._improves = self._encoder == "auto" and not fast
        except ConfigError as reason:
            _LOG.debug("%s: %s", self.name, reason)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts at once, outside the interpreter lock.

        Raises:
            DataError: A text holds half of a surrogate pair.
        """
        if self._words is not None:
            return [self._encode(text) for text in texts]
        try:
            encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:
            raise _not_unicode("".join(texts)) from None
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode; control tokens are left out, ids beyond the vocabulary too, and bytes that are no text become �."""
        table = self._bytes
        return self._decode_runs(ids) if table is None else self._spelled(table, ids)[1]

    def _spelled(self, table: list[bytes], ids: Sequence[int]) -> tuple[list[bytes], str]:
        """Return the bytes of every token, and their text."""
        last = self._last
        if last is not None and last[0] is ids:  # a turn is decoded, and then its calls are located
            return last[1:]
        try:
            pieces = list(map(table.__getitem__, ids))
        except IndexError:
            pieces = [table[i] if i < len(table) else b"" for i in ids]
        text = b"".join(pieces).decode("utf-8", "replace")
        if isinstance(ids, tuple):  # which stays as it is
            self._last = (ids, pieces, text)
        return pieces, text

    def _decode_runs(self, ids: Sequence[int]) -> str:
        text, run = "", list[int]()
        for i in (*ids, None):
            if i is not None and i not in self._added:
                run.append(i)
                continue
            text += self._plain.decode(run, skip_special_tokens=False)
            run.clear()
            if i is not None and not self._added[i].special:
                text += self._added[i].content
        return text

    @cached_property
    def _bytes(self) -> list[bytes] | None:
        """The bytes of every token, where the vocabulary is byte-level: decoding is then one join."""
        if not self._files.byte_level:
            return None
        table = [b""] * self.vocab_size
        alphabet = byte_alphabet()
        for word, i in self._plain.get_vocab(with_added_tokens=False).items():
            table[i] = word_bytes(word, alphabet)
        for token in self._added.values():
            table[token.id] = b"" if token.special else word_bytes(token.content, alphabet)
        return table

    def locate(self, ids: Sequence[int], start: int, end: int) -> tuple[int, int]:
        """Return the range of tokens that overlap characters `start:end` of `decode(ids)`."""
        if self._bytes is not None:
            pieces, text = self._spelled(self._bytes, ids)
            if _REPLACEMENT not in text:
                ends = list(accumulate(map(len, pieces)))
                start, end = (len(text[:at].encode()) for at in (start, end))
                return bisect_right(ends, start), bisect_left(ends, end) + 1
        tokens = range(len(ids))
        first = bisect_right(tokens, start, key=lambda i: len(self.decode(ids[: i + 1])))
        return first, bisect_left(tokens, end, key=lambda i: len(self.decode(ids[: i + 1]))) + 1

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        cuts: Sequence[tuple[int, int]] = (),
        generate: bool = True,
    ) -> tuple[Rendered, ...]:
        """Render a conversation through the chat template, and cut the result; see `Tokenizer.render`.

        Raises:
            ConfigError: There is no chat template.
            DataError: The template refuses the conversation.
        """
        if not self._templates:
            raise ConfigError(
                f"tokenizer: {self.name} has no chat template; add a chat_template.jinja beside its files"
            )
        wanted = "tool_use" if tools and "tool_use" in self._templates else "default"
        template = self._templates.get(wanted) or next(iter(self._templates.values()))
        return template.render(messages, tools=tools, cuts=cuts, generate=generate)

    def _check(self) -> None:
        for token in self._added.values():
            forged = self._added.keys() & self._encode(token.content)
            if forged:
                raise ConfigError(f"tokenizer: {self.name} spells its added token {token.content!r} in plain text")
        probe = " a\n\tb  é… 你 🙂 "
        if self.decode(self._encode(probe)) != probe:
            raise ConfigError(f"tokenizer: {self.name} does not give text back as it was; use a byte-level vocabulary")

    def _end_of_turn(self) -> frozenset[int]:
        """Return the token with which the template ends an assistant's turn; a base model's settings may lack it."""
        turn = (Message(role="user", content="?"), Message(role="assistant", content="!"))
        try:
            _, tail = self.render(turn, cuts=[(1, 1)], generate=False)
        except (ConfigError, DataError):
            return frozenset()
        return frozenset([piece.id for piece in tail.pieces if isinstance(piece, Special)][:1])


class TextStream:
    """Decodes ids that arrive bit by bit; never gives out half of a character.

    Example:
        >>> from icrl.tiny import BASE_DIR
        >>> tokenizer = ChatTokenizer.load(BASE_DIR)
        >>> stream = TextStream(tokenizer)
        >>> [stream.feed([i]) for i in tokenizer.encode("é!")]
        ['', 'é', '!']
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._held: list[int] = []

    def feed(self, ids: Sequence[int]) -> str:
        """Take the next ids and return the text that is now complete."""
        if not self._held and not (text := self._tokenizer.decode(ids)).endswith(_REPLACEMENT):
            return text
        self._held += ids
        # A character has at most four bytes, so at most three tokens at the end can be the start of one.
        for unfinished in range(min(3, len(self._held)) + 1):
            complete = len(self._held) - unfinished
            text = self._tokenizer.decode(self._held[:complete])
            if not text.endswith(_REPLACEMENT) or (unfinished and self._ends_at(complete, text)):
                del self._held[:complete]
                return text
        return self.close()

    def _ends_at(self, complete: int, text: str) -> bool:
        """Say whether a character ends there although its text looks unfinished: a real U+FFFD, or a broken byte."""
        return text + self._tokenizer.decode(self._held[complete:]) == self._tokenizer.decode(self._held)

    def close(self) -> str:
        """Return what is left, complete or not."""
        text = self._tokenizer.decode(self._held)
        self._held.clear()
        return text


def _not_unicode(text: str) -> DataError:
    at = next((i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff"), 0)
    return DataError(f"text: character {at} is half of a surrogate pair ({text[at : at + 1]!r}), not Unicode text")
