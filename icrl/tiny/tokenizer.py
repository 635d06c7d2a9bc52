"""The embedded tokenizer: a byte-level BPE in which every unit of the world is exactly one token.

Merges are learnt from the list of units itself, by a trainer small enough to read, so the result depends on nothing
but that list. Any other string still encodes, byte by byte if need be, and decodes to itself.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from icrl.tiny.words import NAME_ENDS, NAME_STARTS, units

__all__ = ["CHAT_TEMPLATE", "END_OF_TEXT", "END_OF_TURN", "START_OF_TURN", "build_tokenizer", "learn_merges"]

END_OF_TEXT = "<|endoftext|>"
START_OF_TURN = "<|im_start|>"
END_OF_TURN = "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, the format of the Qwen family."""

_SPLIT = r" ?(?:```|</|\[/|\{/|<<|>>|\[\[|\]\]|##|==|--|->|\*\*|//)| ?[A-Za-z]+| ?[0-9]|\n\n|\n| ?[^\sA-Za-z0-9]|\s+"
"""Cuts text before merging: every digit and mark stands alone, a word keeps its leading space."""

Merge = tuple[str, str]


def build_tokenizer(directory: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` into an existing directory.

    Args:
        directory: Where the model's other files lie.
    """
    (directory / "tokenizer.json").write_text(_pipeline().to_str(pretty=True), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _pipeline() -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    merges = learn_merges(map(_visible, units()), first=_name_merges())
    special = (END_OF_TEXT, START_OF_TURN, END_OF_TURN)
    tokens = dict.fromkeys((*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)))
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer


def _visible(unit: str) -> str:
    """Write ASCII text as byte-level BPE does: space and newline get a printable stand-in."""
    return unit.replace(" ", "Ġ").replace("\n", "Ċ")


def _name_merges() -> list[Merge]:
    """Merges that make each syllable a token.

    They come before all others and join a consonant to the vowel after it, so that a name, consonant-vowel twice and
    a last consonant, always falls into its two syllables.
    """
    starts = [(s[0], s[1]) for s in NAME_STARTS]
    opens = [(e[0], e[1]) for e in NAME_ENDS]
    closes = [(e[:2], e[2]) for e in NAME_ENDS]
    return list(dict.fromkeys((*starts, *(("Ġ", s) for s in NAME_STARTS), *opens, *closes)))


def learn_merges(words: Iterable[str], first: Iterable[Merge] = ()) -> list[Merge]:
    """Learn byte-pair merges until every word is one token.

    Args:
        words: Strings over the byte-level alphabet, each at most one pre-token.
        first: Merges that are given and take precedence.

    Returns:
        All merges, the given ones first, in order of precedence. Of equally frequent pairs the alphabetically first
        is taken.

    Example:
        >>> learn_merges(["ab", "abc"])
        [('a', 'b'), ('ab', 'c')]
    """
    merges = list(first)
    pieces = [tuple(w) for w in words]
    for merge in merges:
        pieces = [_apply(merge, p) for p in pieces]
    while pieces := [p for p in pieces if len(p) > 1]:
        counts = Counter(pair for p in pieces for pair in pairwise(p))
        merge = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(merge)
        pieces = [_apply(merge, p) for p in pieces]
    return merges


def _apply(merge: Merge, piece: tuple[str, ...]) -> tuple[str, ...]:
    out: list[str] = []
    for symbol in piece:
        if out and (out[-1], symbol) == merge:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)
