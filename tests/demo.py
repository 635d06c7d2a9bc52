"""A scripted agent for looking at the page: it thinks, searches, takes its time, fails, and says hostile things."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from icrl.errors import EngineError, ToolError
from icrl.runtime.agent import Agent
from icrl.runtime.tools.tool import ToolPolicy, ToolSpec
from icrl.testing import ScriptedEngine
from icrl.tiny import BASE_DIR
from icrl.tokenizer import ChatTokenizer

HOSTILE = (
    "<img src=x onerror=\"window.hit='img'\"><script>window.hit='script'</script>"
    "<a href=\"javascript:window.hit='link'\">here</a><style>*{display:none}</style>&lt;b&gt;"
)
"""Markup that does something if a page takes it for its own."""

PASSAGES = {
    "lake capital of Arven": (
        "Arven (region): The seat of Arven moved in 1921 from Old Harbour to Lirux, a town on the lake of the same "
        "name.\n\nLirux: Town on Lake Lirux with 41 200 inhabitants. It is known for its glass works."
    ),
    "Lirux river": (
        "Lirux: Three brooks enter the lake from the north. Its only outflow is the river Torix.\n\n"
        "Torix: River, 118 km, from Lake Lirux to the sea at Puren."
    ),
    "its mayor": "Lirux: The mayor since 2019 is Oda Venn.",
    "hostile": HOSTILE,
}
"""What the tool finds, by query."""

RIVER = "Which river flows out of the lake at the capital of Arven?"
TURNS = {
    RIVER: [
        "<think> I need the capital of Arven first, then the river of its lake. </think> "
        "<search> lake capital of Arven </search>",
        "<think> The capital is Lirux. Now its river. </think> <search> Lirux river </search>",
        "<answer> The river Torix. The capital of Arven is Lirux, and the Torix is the only outflow of its lake; "
        "it reaches the sea at Puren after 118 km. </answer>",
    ],
    "And who is its mayor?": ["<search> its mayor </search>", "<answer> Oda Venn, since 2019. </answer>"],
    "What is lost?": [
        "<search> nothing of the kind </search>",
        "<answer> I do not know; the search found nothing. </answer>",
    ],
    "Say something hostile.": ["<search> hostile </search>", f"<answer> {HOSTILE.replace('</', '< /')} </answer>"],
    "Tell me a long story.": [
        "<answer> " + " ".join(f"Line {n} of the story." + "\n" * (n % 4 == 3) for n in range(120)) + " </answer>"
    ],
    "Short?": ["<answer> Yes. </answer>"],
}
"""What the model says, by question."""
TOKENIZER = ChatTokenizer.load(BASE_DIR)
BREAKS = "Break the engine."


@dataclass(slots=True, kw_only=True)
class Library:
    """Finds passages, slowly if asked for."""

    latency_s: float = 0.0
    """Seconds before it answers."""
    name: str = "search"
    """What the model calls it."""
    policy: ToolPolicy = field(default_factory=lambda: ToolPolicy(timeout_s=60.0))
    """How a toolbox treats it."""
    fingerprint: str = "library"
    """What decides its answers besides the arguments."""
    open: asyncio.Event = field(default_factory=asyncio.Event)
    """Whether it answers at all; calls wait until it does."""
    cancelled: int = 0
    """How many calls were cut off."""

    def __post_init__(self) -> None:
        self.open.set()

    @property
    def spec(self) -> ToolSpec:
        """What the model is told."""
        query = {"query": {"type": "string"}}
        schema = {"type": "object", "properties": query, "required": ["query"]}
        what = "Search a collection of documents for words and return the passages that fit best."
        return ToolSpec(name=self.name, description=what, parameters=schema)

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        """Look it up."""
        query = arguments["query"].strip()
        try:
            await asyncio.sleep(self.latency_s)
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if query not in PASSAGES:
            raise ToolError(f"nothing was found for {query!r}")
        return PASSAGES[query]

    async def aclose(self) -> None:
        """Nothing to close."""


def agent(*, latency_s: float = 0.0, library: Library | None = None) -> Agent:
    """Make the agent; `latency_s` is how long a turn and a call take."""

    def say(ids: Sequence[int]) -> str:
        asked = TOKENIZER.decode(ids).rsplit("Question: ", 1)[-1]
        question = asked.split("\nassistant\n", 1)[0].strip()
        if question == BREAKS:
            raise EngineError("out of memory at 0xdeadbeef", engine="scripted")
        turns = TURNS.get(question, [f"<answer> You said: {question} </answer>"])
        return turns[min(asked.count("</information>"), len(turns) - 1)]

    engine = ScriptedEngine(say, tokenizer=TOKENIZER, latency_s=latency_s)
    return Agent(engine, tools=[library or Library(latency_s=latency_s)], dialect="xml")
