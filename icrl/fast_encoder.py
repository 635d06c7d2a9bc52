"""Encoders that give the ids of a Hugging Face tokenizer at a fraction of its time, where that is certain.

`WordMemo` is that tokenizer itself, asked for each word of ASCII text only once. `FastEncoder` is `tiktoken`, given the
merges and the pre-tokenisation of a `tokenizer.json`. The two libraries merge by different rules: the original knows
pairs, tiktoken knows the bytes that a pair makes, and looks a whole word up first. They agree where every vocabulary
entry is what its own bytes are merged to. For suppose that two neighbouring pieces could make an entry by bytes but
not as a pair. What is merged within a stretch of text does not depend on its surroundings as long as nothing is
merged across its ends, so that the entry's bytes alone would be merged to these two pieces, too, and not to the
entry. This is checked for every entry, and the forms of the rest are known ones; a few hundred texts
are compared besides. Whatever is in doubt is left to the original: an unknown form, a long text, a character that
two versions of Unicode may sort differently.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer as Plain

from icrl.byte_level import byte_alphabet, word_bytes
from icrl.errors import ConfigError

if TYPE_CHECKING:
    from tiktoken import Encoding

__all__ = ["FastEncoder", "WordMemo"]

LONGEST = 100_000
"""Characters of the longest text that it takes; a run of a million spaces overflows tiktoken's stack."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LARGE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_EMBEDDED = r" ?(?:```|</|\[/|\{/|<<|>>|\[\[|\]\]|##|==|--|->|\*\*|//)| ?[A-Za-z]+| ?[0-9]|\n\n|\n| ?[^\sA-Za-z0-9]|\s+"
_PATTERNS = frozenset({_GPT2, _LARGE % "", _LARGE % "{1,3}", _EMBEDDED})
"""Pre-tokenisations that both libraries' regular expressions understand alike, and that match every character."""

MOST_WORDS = 1 << 16
"""Words that are remembered."""


class WordMemo:
    """Remembers what the original makes of words, and parts ASCII text into words itself.

    Args:
        pipeline: Contents of `tokenizer.json`.
        plain: The tokenizer made of it, without its added tokens and its normalisation.

    Raises:
        ConfigError: It is not certain that text is parted into the same words.

    Example:
        >>> from icrl.tiny import BASE_DIR
        >>> from icrl.tokenizer_files import find_tokenizer_files
        >>> files = find_tokenizer_files(BASE_DIR)
        >>> WordMemo(files.pipeline, files.plain).encode("a word") == files.plain.encode("a word").ids
        True
    """

    def __init__(self, pipeline: Mapping[str, Any], plain: Plain) -> None:
        pattern = _pattern(pipeline).replace(r"\p{L}\p{N}", "a-zA-Z0-9")
        self._parts = re.compile(pattern.replace(r"\p{L}", "[a-zA-Z]").replace(r"\p{N}", "[0-9]"), re.ASCII).findall
        self._spelling = {byte: character for character, byte in byte_alphabet().items()}
        self._tokenize = plain.model.tokenize
        self._known: dict[str, tuple[int, ...]] = {}
        _compare(self.encode, plain)

    def encode(self, text: str) -> list[int] | None:
        """Encode ASCII text in which no added token is parsed; `None` for other text."""
        if not text.isascii():
            return None
        known, ids = self._known, list[int]()
        for word in self._parts(text):
            ids += known.get(word) or self._learn(word)
        return ids

    def _learn(self, word: str) -> tuple[int, ...]:
        ids = tuple(token.id for token in self._tokenize(word.translate(self._spelling)))
        if len(self._known) < MOST_WORDS:
            self._known[word] = ids
        return ids


class FastEncoder:
    """Encodes most texts, and says of the others that it does not.

    Args:
        pipeline: Contents of `tokenizer.json`.
        plain: The tokenizer made of it, without its added tokens and its normalisation.

    Raises:
        ConfigError: tiktoken is not installed, or it is not certain that the ids would be the same.

    Example:
        >>> from icrl.tiny import BASE_DIR
        >>> from icrl.tokenizer_files import find_tokenizer_files
        >>> files = find_tokenizer_files(BASE_DIR)
        >>> encoder = FastEncoder(files.pipeline, files.plain)
        >>> encoder.encode("the mayor of Rikor") == files.plain.encode("the mayor of Rikor").ids
        True
    """

    def __init__(self, pipeline: Mapping[str, Any], plain: Plain) -> None:
        pattern = _pattern(pipeline)
        ranks, ids = _ranks(pipeline["model"])
        self._encoding = _encoding(pattern, ranks)
        self._ids = None if ids == list(range(len(ids))) else ids
        _check_entries(pipeline["model"], plain)
        _compare(self.encode, plain)

    def encode(self, text: str) -> list[int] | None:
        """Encode text in which no added token is parsed; `None` where the original has to."""
        if len(text) > LONGEST or not (text.isascii() or all(map(_is_settled, set(text)))):
            return None
        found = self._encoding.encode_ordinary(text)
        return found if self._ids is None else [self._ids[i] for i in found]


@lru_cache(maxsize=1 << 16)
def _is_settled(character: str) -> bool:
    """Say whether a character is a letter, a number, a space or neither in all versions of Unicode since 3.2.

    Halves of surrogate pairs are never settled, as they are not text.
    """
    now = unicodedata.category(character)
    return now not in ("Cn", "Cs") and _sort(now) == _sort(unicodedata.ucd_3_2_0.category(character))


def _sort(category: str) -> str:
    return category[0] if category[0] in "LNZ" else ""


def _pattern(pipeline: Mapping[str, Any]) -> str:
    """Return the regular expression that parts text into words.

    Raises:
        ConfigError: The pipeline has another form.
    """
    model = pipeline["model"]
    plain = not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    if model.get("type") != "BPE" or not plain:
        raise _unsuited("it is no plain BPE")
    if (pipeline.get("normalizer") or {"type": "NFC"}).get("type") != "NFC":
        raise _unsuited("it normalises text")
    before = pipeline.get("pre_tokenizer") or {}
    match before.get("pretokenizers", [before]):
        case [{"type": "ByteLevel", "add_prefix_space": False} as level] if level.get("use_regex", True):
            return _GPT2
        case [
            {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ] if pattern in _PATTERNS:
            return pattern
    raise _unsuited("it parts text into words in a way that is not known here")


def _ranks(model: Mapping[str, Any]) -> tuple[dict[bytes, int], list[int]]:
    """Number the bytes, and what merges make in the order of the merges.

    Returns:
        The number of each, and the id of each number.

    Raises:
        ConfigError: A byte is missing, or merges to one entry do not follow each other.
    """
    alphabet, vocabulary = byte_alphabet(), model["vocab"]
    if not alphabet.keys() <= vocabulary.keys():
        raise _unsuited("a byte has no id")
    ranks = {bytes((byte,)): rank for rank, byte in enumerate(alphabet.values())}
    ids = [vocabulary[character] for character in alphabet]
    last = ""
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        word = left + right
        if word != last:
            spelled = word_bytes(word, alphabet)
            if spelled in ranks:
                raise _unsuited(f"it has several ranks for {word!r}")
            ranks[spelled] = len(ids)
            ids.append(vocabulary[word])
        last = word
    return ranks, ids


def _encoding(pattern: str, ranks: dict[bytes, int]) -> Encoding:
    try:
        import tiktoken
    except ImportError as error:
        raise ConfigError("encoder: the fast one needs tiktoken: pip install 'icrl[fast]'") from error
    return tiktoken.Encoding("icrl", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def _check_entries(model: Mapping[str, Any], plain: Plain) -> None:
    """Make sure that every entry is what its bytes are merged to.

    Raises:
        ConfigError: One is not.
    """
    alphabet, tokenize = frozenset(byte_alphabet()), plain.model.tokenize
    made = {merge.replace(" ", "", 1) if isinstance(merge, str) else merge[0] + merge[1] for merge in model["merges"]}
    for word in model["vocab"]:
        known = word in made or word in alphabet
        if len(tokenize(word)) != 1 if known else model.get("ignore_merges", False):
            raise _unsuited(f"its entry {word!r} is not what these characters are merged to")
    plain.model._clear_cache()  # the words of texts belong there, and it takes no more once it is full


def _compare(encode: Callable[[str], list[int] | None], plain: Plain) -> None:
    """Compare a few hundred texts.

    Raises:
        ConfigError: One gets other ids.
    """
    for text in _probes():
        if encode(text) not in (None, plain.encode(text, add_special_tokens=False).ids):
            raise _unsuited(f"{text!r} would get other ids")


def _probes() -> Iterator[str]:
    """Write texts in which words are easily parted otherwise."""
    pieces: Sequence[str] = (" ", "  ", "\n", "\r\n", "\t", "a", "Zé", "7", "12345", "'s", "'LL", "’", ".", "…\n", "😀")
    yield from ("".join(chosen) for chosen in itertools.product(pieces, repeat=2))
    yield from ("x" + " " * size + after for size in range(4) for after in ("y", "\n", " \n\n z", "\u3000", "\xa0!"))
    yield from (chr(code) + "a" + chr(code) + "1" + chr(code) for code in range(0x250))


def _unsuited(reason: str) -> ConfigError:
    return ConfigError(f"encoder: the fast one does not fit this tokenizer, as {reason}")
