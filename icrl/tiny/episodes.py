"""Episodes: documents of several records that all follow one format, invented for that document alone.

This is the text that teaches imitation. A reader who has seen two records knows what the third looks like; a reader
who has seen none cannot, because tags, marks, order and contents are drawn anew for every document.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from icrl.tiny.subjects import FieldKind, Record, Subject, fact_subject, sum_subject
from icrl.tiny.words import NAMES, RESERVED, TAGS, WORDS, units

__all__ = ["SPOKEN", "draw_choices", "draw_episodes"]

SPOKEN = (*WORDS, *TAGS, *(w for w in RESERVED if "_" not in w))
"""Every ordinary word; the reserved ones are allowed as such."""

_ANY_TAG = (*TAGS, *(w for w in WORDS if len(w) > 2), *NAMES[::12])
_RARE_TAG = tuple(u for u in units() if u.isalpha() and len(u) > 2 and u.lower() not in RESERVED)
"""Whatever is one token: a reader who has met few words as tags believes that no others can be."""

_T: FieldKind = "thought"
_K: FieldKind = "key"
_E: FieldKind = "evidence"
_A: FieldKind = "answer"
_C: FieldKind = "constant"

_ORDERS: tuple[tuple[FieldKind, ...], ...] = (
    *((_T, _K, _E, _A),) * 3,
    *((_K, _E, _A),) * 3,
    *((_E, _A), (_T, _C), (_K, _C), (_K, _T, _E, _A), (_T, _E, _A), (_K, _E, _T, _A), (_E, _K, _A)),
    *((_T, _K, _E, _T, _A), (_K, _E, _K, _A), (_K, _K, _T), (_E, _T, _A), (_K, _E, _K, _E, _A), (_T, _K, _T), (_C, _K)),
)

Wrap = Callable[[str, str], str]
"""Puts a text under a tag: `wrap(tag, text)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Format:
    """What the records of one document have in common."""

    wrap: Wrap
    """How a field is marked."""
    tags: tuple[str, ...]
    """The tag of each field."""
    others: tuple[str, ...]
    """Tags that it might have drawn instead."""
    ask: Callable[[str], str]
    """How a question is introduced."""
    gap: str
    """Between the fields of a record."""
    pause: str
    """Between records."""

    def body(self, record: Record) -> str:
        """Write the fields of a record."""
        return self.gap.join(self.wrap(t, f) for t, f in zip(self.tags, record.fields, strict=True))

    def whole(self, record: Record) -> str:
        """Write a record, question first."""
        return self.ask(record.question) + (self.gap or "\n") + self.body(record)


def draw_episodes(random: Random, records: tuple[int, int], sums: float) -> str:
    """Write one document of episodes.

    Args:
        random: Source of all choices.
        records: Fewest and most records.
        sums: Share of documents about sums instead of facts.

    Returns:
        The text; in half of all documents the last record's fields are an assistant's turn.
    """
    kinds = random.choice(_ORDERS)
    if random.random() < 0.15:
        kinds = tuple(random.sample(kinds, len(kinds)))
    subject = (sum_subject if random.random() < sums else fact_subject)(random, kinds)
    style = _draw_format(random, kinds)
    count = 1 if random.random() < _ALONE else random.randint(*records)
    head = _draw_head(random, style, alone=count == 1)
    *shown, last = _draw_records(subject, count)
    text = head + "".join(style.whole(r) + style.pause for r in shown)
    if shown and random.random() < 0.5:
        return text + style.whole(last)
    tail = (style.gap or "\n") if random.random() < 0.5 else ""
    reply = style.body(last) if shown or random.random() < 0.5 else random.choice(_IGNORANCE).format(q=last.question)
    return _chat(text + style.ask(last.question) + tail, reply)


def _draw_records(subject: Subject, count: int) -> list[Record]:
    return [subject() for _ in range(count)]


def draw_choices(random: Random) -> str:
    """Write one document whose records look facts up or work out sums, with a tag for the key of each kind.

    Here the format depends on the question: whoever writes on has to find the records that ask for the same thing.
    """
    kinds = random.choice(_CHOICE_ORDERS)
    subjects = (fact_subject(random, kinds), sum_subject(random, kinds))
    both, *styles = _draw_two_formats(random, kinds)
    count = random.randint(3, 5) if len(kinds) > 2 else random.randint(5, 9)
    order = [i % 2 if i < 2 else random.randrange(2) for i in range(count - 1)]
    random.shuffle(order)
    order.append(random.randrange(2))
    head = _draw_head(random, both, alone=False)
    *shown, (style, last) = [(styles[i], subjects[i]()) for i in order]
    text = head + "".join(s.whole(r) + s.pause for s, r in shown)
    if random.random() < 0.4:
        return text + style.whole(last)
    tail = (style.gap or "\n") if random.random() < 0.5 else ""
    return _chat(text + style.ask(last.question) + tail, style.body(last))


_CHOICE_ORDERS: tuple[tuple[FieldKind, ...], ...] = (
    *((_T, _K, _E, _A),) * 2,
    *((_K, _E, _A), (_T, _K), (_T, _K), (_K,), (_K,), (_K, _A)),
)


def _draw_two_formats(random: Random, kinds: tuple[FieldKind, ...]) -> tuple[_Format, _Format, _Format]:
    """Draw two formats that differ in the tag of the key, after one that has the tags of both."""
    first = _draw_format(random, kinds)
    other = random.choice(first.others)
    second = replace(first, tags=tuple(other if k == "key" else t for k, t in zip(kinds, first.tags, strict=True)))
    styles = [first, second]
    random.shuffle(styles)
    union = tuple(dict.fromkeys((*styles[0].tags, *styles[1].tags)))
    return replace(first, tags=union), styles[0], styles[1]


def _chat(user: str, assistant: str) -> str:
    return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{assistant}"


def _draw_format(random: Random, kinds: tuple[FieldKind, ...]) -> _Format:
    wrap = _draw_wrap(random)
    pool = random.choices((TAGS, _ANY_TAG, _RARE_TAG), weights=(3, 4, 3))[0]
    *tags, question_tag = random.sample(pool, len(kinds) + 1)
    if kinds.count("key") == 2:
        first, second = (i for i, kind in enumerate(kinds) if kind == "key")
        tags[second] = tags[first]
    label = random.choice(("Question: ", "Question: ", "", "Prompt: ", None, "User: ", "Task: ", "Q: "))
    return _Format(
        wrap=wrap,
        tags=tuple(tags),
        others=tuple(t for t in pool if t not in tags),
        ask=(lambda q: wrap(question_tag, q)) if label is None else (lambda q: label + q),
        gap=random.choice(("\n", "\n", " ", "\n", "")),
        pause=random.choice(("\n\n", "\n\n", "\n", "\n##\n", "\n---\n")),
    )


def _draw_wrap(random: Random) -> Wrap:
    if random.random() < 0.45:
        pad = random.choice((" ", " ", "", "\n"))
        return lambda tag, text: f"<{tag}>{pad}{text}{pad}</{tag}>"
    return random.choices(_WRAPS, weights=_WRAP_WEIGHTS)[0]


_WRAPS: tuple[Wrap, ...] = (
    lambda tag, text: f"[{tag}] {text} [/{tag}]",
    lambda tag, text: f"{{{tag}}} {text} {{/{tag}}}",
    lambda tag, text: f"{tag.capitalize()}: {text}",
    lambda tag, text: f"{tag} = {text} ;",
    lambda tag, text: f"## {tag}\n{text}",
    lambda tag, text: f"({tag}) {text} (end)",
    lambda tag, text: f"<<{tag}>> {text} <<end>>",
    lambda tag, text: f"[[{tag}: {text}]]",
    lambda tag, text: f"```{tag}\n{text}\n```",
)
_WRAP_WEIGHTS = (10, 7, 10, 6, 6, 6, 5, 5, 5)


def _draw_head(random: Random, style: _Format, *, alone: bool) -> str:
    """A first line of random words, in half of all documents; some of these lines show tags.

    Shown tags are as often those of the records as not, so that they say nothing about the records; and where a
    record stands alone they are never its own. A reader learns to take the format from records, not from a line that
    talks about tags.
    """
    if random.random() < (0.2 if alone else 0.5):
        return ""
    line = " ".join(random.choice(SPOKEN) for _ in range(random.randint(2, 14))).capitalize()
    if random.random() < (0.8 if alone else 0.2):
        tags = tuple(dict.fromkeys(style.tags)) if not alone and random.random() < 0.5 else style.others
        chosen = random.sample(range(len(tags)), min(len(tags), random.randint(2, 4)))
        *most, last = (_mention(random, style, tags[i]) for i in sorted(chosen))
        line = f"{line} {' , '.join(most)} and {last}"
    return line + random.choice((".", ":", "")) + random.choice(("\n", "\n\n", " "))


def _mention(random: Random, style: _Format, tag: str) -> str:
    return style.wrap(tag, random.choice(("", random.choice(SPOKEN)))) if random.random() < 0.5 else f"<{tag}> </{tag}>"


_ALONE = 0.18
"""Share of documents with a single record, which nothing shows how to write."""

_IGNORANCE = ("I do not know.", "I do not know that.", "I do not know: {q}", "I must look that up.")
"""What half of them say instead of a record: a likely reply, where each of the many formats is unlikely."""
