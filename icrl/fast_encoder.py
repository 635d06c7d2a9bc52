"""An encoder that gives the ids of a Hugging Face tokenizer at a fraction of its time, where that is certain.

`WordMemo` parts text into words itself, and asks what is to become of a word only once. It asks the original's model,
or `tiktoken`, which takes half as long for words that are new, as most are where words are whole clauses (Chinese,
Japanese). The two libraries merge by different rules: the original knows pairs, tiktoken knows the bytes that a pair
makes, and looks a whole word up first. They agree where every vocabulary entry is what its own bytes are merged to.
For suppose that two neighbouring pieces could make an entry by bytes but not as a pair. What is merged within a stretch
of text does not depend on its surroundings as long as nothing is merged across its ends, so that the entry's bytes
alone would be merged to these two pieces, too, and not to the entry. This is checked for every entry, and the forms of
the rest are known ones; a few hundred texts are compared besides. Whatever is in doubt is left to the original: an
unknown form, a long word, a character that two versions of Unicode may sort differently.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from tokenizers import Tokenizer as Plain

from icrl.byte_level import byte_alphabet, word_bytes
from icrl.errors import ConfigError

__all__ = ["WordMemo"]

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LARGE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_EMBEDDED = r" ?(?:```|</|\[/|\{/|<<|>>|\[\[|\]\]|##|==|--|->|\*\*|//)| ?[A-Za-z]+| ?[0-9]|\n\n|\n| ?[^\sA-Za-z0-9]|\s+"
_PATTERNS = frozenset({_GPT2, _LARGE % "", _LARGE % "{1,3}", _EMBEDDED})
"""Pre-tokenisations that are known here; each matches every character."""

_SPACES = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""What the original takes for space; Python takes four separators of ASCII for it, too."""

MOST_WORDS = 1 << 16
"""Words that are remembered; then they are all forgotten, as the text may be about something else by now."""
LONGEST_WORD = 32
"""Characters of the longest word that is remembered, or left to tiktoken, whose time grows with the square."""

_Merge = Callable[[str], Sequence[int]]


class WordMemo:
    """Encodes word by word, remembers words, and says of text with doubtful characters that it does not.

    Args:
        pipeline: Contents of `tokenizer.json`.
        plain: The tokenizer made of it, without its added tokens and its normalisation.
        fast: Leave words that are not known yet to tiktoken.

    Raises:
        ConfigError: It is not certain that the ids would be the same, or tiktoken is wanted and not installed.

    Example:
        >>> from icrl.tiny import BASE_DIR
        >>> from icrl.tokenizer_files import find_tokenizer_files
        >>> files = find_tokenizer_files(BASE_DIR)
        >>> WordMemo(files.pipeline, files.plain).encode("a word") == files.plain.encode("a word").ids
        True
    """

    def __init__(self, pipeline: Mapping[str, Any], plain: Plain, *, fast: bool = False) -> None:
        self._parts = _parts(_pattern(pipeline))
        self._original = _original(plain)
        self._merge = _tiktoken(pipeline["model"], plain) if fast else self._original
        self._known: dict[str, tuple[int, ...]] = {}
        self.unknown = 0
        """Words so far that were not known."""
        _compare(self.encode, plain)

    def encode(self, text: str) -> list[int] | None:
        """Encode text in which no added token is parsed; `None` where the original has to."""
        if not (text.isascii() or all(map(_is_settled, set(text)))):
            return None
        known, ids = self._known, list[int]()
        for word in self._parts(text):
            ids += known.get(word) or self._learn(word)
        return ids

    def _learn(self, word: str) -> Sequence[int]:
        self.unknown += 1
        if len(word) > LONGEST_WORD:
            return self._original(word)
        if len(self._known) >= MOST_WORDS:
            self._known.clear()
        ids = self._known[word] = tuple(self._merge(word))
        return ids


def _original(plain: Plain) -> _Merge:
    """Return what makes ids of a word's bytes, as the original does."""
    tokenize, alphabet = plain.model.tokenize, {byte: character for character, byte in byte_alphabet().items()}
    spelling = "".join(alphabet[byte] for byte in range(256))
    return lambda word: [token.id for token in tokenize(word.encode().decode("latin-1").translate(spelling))]


def _tiktoken(model: Mapping[str, Any], plain: Plain) -> _Merge:
    """Return what makes the same ids of a word's bytes in less time.

    Raises:
        ConfigError: tiktoken is not installed, or it is not certain that the ids would be the same.
    """
    try:
        import tiktoken
    except ImportError as error:
        raise ConfigError("encoder: the fast one needs tiktoken: pip install 'icrl[fast]'") from error
    ranks, ids = _ranks(model)
    _check_entries(model, plain)
    merge = tiktoken.Encoding("icrl", pat_str=r"(?s:.+)", mergeable_ranks=ranks, special_tokens={}).encode_ordinary
    return merge if ids == list(range(len(ids))) else lambda word: [ids[rank] for rank in merge(word)]


@lru_cache(maxsize=1 << 14)
def _is_settled(character: str) -> bool:
    """Say whether a character counts the same in all versions of Unicode since 3.2, and here.

    Letters and numbers beyond the first plane do not: looking for them would make all words dearer.
    """
    kind = _kind(character)
    return kind == "" or (kind is not None and character <= "\uffff")


def _kind(character: str) -> str | None:
    """Return `L`, `N` or `Z` of letters, numbers and spaces, "" of others, `None` where versions of Unicode differ.

    Halves of surrogate pairs are never settled, as they are not text.
    """
    now = unicodedata.category(character)
    kind = _sort(now)
    return kind if now not in ("Cn", "Cs") and kind == _sort(unicodedata.ucd_3_2_0.category(character)) else None


def _sort(category: str) -> str:
    return category[0] if category[0] in "LNZ" else ""


@cache
def _class(kind: str) -> str:
    """Return all settled characters of a kind, as what a class of a regular expression holds."""
    runs = itertools.groupby(map(chr, range(0x10000)), key=lambda character: _kind(character) == kind)
    members = [list(run) for inside, run in runs if inside]
    return "".join(f"{run[0]}-{run[-1]}" for run in members)


@cache
def _parts(pattern: str) -> Callable[[str], list[str]]:
    """Return what parts text into words; Python's regular expressions know no classes of Unicode."""
    letters, numbers = _class("L"), _class("N")
    pattern = pattern.replace(r"[^\s", f"[^{_SPACES}").replace(r"\p{L}\p{N}", letters + numbers)
    pattern = pattern.replace(r"\p{L}", f"[{letters}]").replace(r"\p{N}", f"[{numbers}]")
    return re.compile(pattern.replace(r"\s", f"[{_SPACES}]").replace(r"\S", f"[^{_SPACES}]")).findall


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
