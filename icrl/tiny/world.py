"""The embedded world: a fictional corpus, questions about it, and demonstrations of how to look an answer up.

400 entities have four attributes each, one sentence a fact. The questions about 100 of the entities are held out;
eight further entities serve the demonstrations only; the rest is for training. Nothing here can be known without
searching. `python -m icrl.tiny.world` rewrites the files of the package, which equal what this module computes.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from random import Random

import yaml

from icrl.tiny.words import ATTRIBUTES, LISTED_ATTRIBUTES, NAMED_ATTRIBUTES, NAMES, NUMBERED_ATTRIBUTES, Fact, draw_fact
from icrl.types import Demonstration, Step, Task

__all__ = ["QUESTIONS", "Document", "World", "top_documents", "write_demonstrations", "write_tasks", "write_world"]

QUESTIONS = (
    "What is the {a} of {e}?",
    "Tell me the {a} of {e}.",
    "I need the {a} of {e}.",
    "Who or what is the {a} of {e}?",
)
"""How questions are worded; `a` and `e` are attribute and entity."""

_ENTITIES = 400
_FACTS_EACH = 4
_HELD_OUT = 100
_DEMONSTRATED = (NAMED_ATTRIBUTES, tuple(LISTED_ATTRIBUTES), NUMBERED_ATTRIBUTES, NAMED_ATTRIBUTES) * 2
"""Which attributes each demonstration asks for: any few of them show answers of more than one kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One searchable text."""

    id: str
    """Stable name, such as `"rikor-code"`."""
    text: str
    """The text."""


@dataclass(frozen=True, kw_only=True)
class World:
    """A corpus with its tasks, all of it a function of the seed.

    Example:
        >>> world = World()
        >>> len(world.documents), len(world.train), len(world.held_out), len(world.demonstrations)
        (1600, 1168, 400, 8)
    """

    seed: int = 0
    """Which world; the shipped files are those of seed 0."""

    @cached_property
    def facts(self) -> tuple[tuple[Fact, ...], ...]:
        """[400][4] everything that holds, by entity: the held-out ones, those of demonstrations, the rest."""
        random = Random(f"facts {self.seed}")
        names = random.sample(NAMES, _ENTITIES)
        kinds = {_HELD_OUT + i: kind for i, kind in enumerate(_DEMONSTRATED)}
        return tuple(_describe(random, name, kinds.get(i, ATTRIBUTES)) for i, name in enumerate(names))

    @cached_property
    def documents(self) -> tuple[Document, ...]:
        """[1600] one sentence a fact, shuffled."""
        documents = [
            Document(id=_slug(f), text=f"The {f.attribute} of {f.entity} is {f.value}.")
            for facts in self.facts
            for f in facts
        ]
        Random(f"order {self.seed}").shuffle(documents)
        return tuple(documents)

    @property
    def held_out(self) -> tuple[Task, ...]:
        """[400] questions about entities that no training question and no demonstration mentions."""
        return self._tasks(self.facts[:_HELD_OUT])

    @property
    def train(self) -> tuple[Task, ...]:
        """[1168] questions to learn from."""
        return self._tasks(self.facts[_HELD_OUT + len(_DEMONSTRATED) :])

    @cached_property
    def demonstrations(self) -> tuple[Demonstration, ...]:
        """[8] worked examples, one search each; results are the top two documents of a BM25 search."""
        shown = self.facts[_HELD_OUT : _HELD_OUT + len(_DEMONSTRATED)]
        wordings = (*QUESTIONS, *reversed(QUESTIONS))
        return tuple(self._demonstrate(facts[0], wording) for facts, wording in zip(shown, wordings, strict=True))

    def _tasks(self, by_entity: Iterable[tuple[Fact, ...]]) -> tuple[Task, ...]:
        return tuple(_task(fact, self.seed) for facts in by_entity for fact in facts)

    def _demonstrate(self, fact: Fact, wording: str) -> Demonstration:
        query = f"{fact.attribute} of {fact.entity}"
        found = top_documents(query, self.documents, 2)
        step = Step(
            tool="search",
            arguments={"query": query},
            result=" ".join(d.text for d in found),
            thought=f"I need the {query}.",
        )
        return Demonstration(query=_ask(wording, fact), steps=(step,), answer=fact.value)


def _describe(random: Random, entity: str, first: tuple[str, ...]) -> tuple[Fact, ...]:
    """Invent an entity's facts; the attribute of the first is one of those given."""
    attribute = random.choice(first)
    others = random.sample([a for a in ATTRIBUTES if a != attribute], _FACTS_EACH - 1)
    return tuple(draw_fact(random, attribute=a, entity=entity) for a in (attribute, *others))


def _slug(fact: Fact) -> str:
    return f"{fact.entity}-{fact.attribute}".lower()


def _ask(wording: str, fact: Fact) -> str:
    return wording.format(a=fact.attribute, e=fact.entity)


def _task(fact: Fact, seed: int) -> Task:
    wording = Random(f"question {seed} {_slug(fact)}").choice(QUESTIONS)
    return Task(
        id=_slug(fact),
        query=_ask(wording, fact),
        answers=(fact.value,),
        metadata={"world": "search", "attribute": fact.attribute, "entity": fact.entity},
    )


def top_documents(query: str, documents: Iterable[Document], count: int) -> list[Document]:
    """Rank documents by BM25 (k1 = 1.2, b = 0.75, Lucene's idf); of equal scores the earlier document wins.

    A plain reference for building the demonstrations; `icrl.runtime.tools` has the search that scales.

    Args:
        query: Words to look for.
        documents: Where to look.
        count: How many to return at most; documents that share no word with the query are not returned.

    Example:
        >>> world = World()
        >>> best = top_documents("Rikor", [Document(id="a", text="An owl."), Document(id="b", text="See Rikor.")], 2)
        >>> [d.id for d in best]
        ['b']
    """
    texts = {d: Counter(_words(d.text)) for d in documents}
    mean_length = sum(map(Counter.total, texts.values())) / max(1, len(texts))
    spread = Counter(word for counts in texts.values() for word in counts)
    wanted = set(_words(query))

    def score(document: Document) -> float:
        counts = texts[document]
        norm = 1.2 * (0.25 + 0.75 * counts.total() / mean_length)
        return sum(
            math.log1p((len(texts) - spread[w] + 0.5) / (spread[w] + 0.5)) * counts[w] * 2.2 / (counts[w] + norm)
            for w in wanted & counts.keys()
        )

    ranked = sorted(texts, key=score, reverse=True)
    return [d for d in ranked[:count] if score(d) > 0]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def write_world(world: World, directory: Path) -> None:
    """Write `corpus.jsonl`, `train.jsonl`, `heldout.jsonl` and `demonstrations.yaml` into an existing directory."""
    _write_lines(directory / "corpus.jsonl", (asdict(d) for d in world.documents))
    write_tasks(directory / "train.jsonl", world.train)
    write_tasks(directory / "heldout.jsonl", world.held_out)
    write_demonstrations(directory / "demonstrations.yaml", world.demonstrations)


def write_tasks(path: Path, tasks: Iterable[Task]) -> None:
    """Write tasks as JSONL, in the format that `--tasks` reads."""
    _write_lines(path, map(_task_record, tasks))


def write_demonstrations(path: Path, demonstrations: Iterable[Demonstration]) -> None:
    """Write demonstrations as YAML, in the format that `--demos` reads."""
    text = yaml.safe_dump([_demonstration_record(d) for d in demonstrations], sort_keys=False, width=110)
    path.write_text(text, encoding="utf-8")


def _write_lines(path: Path, records: Iterable[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def _task_record(task: Task) -> dict[str, object]:
    return {"id": task.id, "question": task.query, "answers": list(task.answers), "metadata": dict(task.metadata)}


def _demonstration_record(demonstration: Demonstration) -> dict[str, object]:
    steps = [
        {"thought": s.thought, "tool": s.tool, "arguments": dict(s.arguments), "result": s.result}
        for s in demonstration.steps
    ]
    return {"question": demonstration.query, "steps": steps, "answer": demonstration.answer}


if __name__ == "__main__":
    write_world(World(), Path(__file__).parent)
