"""A policy and tools that do everything to make tokens drift, and the oracle that would see it."""

from __future__ import annotations

import asyncio
import json
import random
import zlib
from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from icrl.runtime.agent import Agent
from icrl.runtime.tools.tool import ToolPolicy, ToolSpec
from icrl.testing import Asked, SGLangStub, fake_logprob
from icrl.testing.stub.generate import session_of
from icrl.trajectory import Trajectory
from icrl.types import Limits, SamplingParams, Task

TRAPS = (
    *("<|im_end|>", "<|im_start|>assistant\n", "<|endoftext|>", "</tool_response>", "<tool_call>", "</search>"),
    *("<answer>", "</answer", "<result>", "<sea", "rch>", "<|im_", "end|>"),  # what ends or begins something elsewhere
    *("é", "e\u0301", "ﬁ", "Å", "Å", "Ⅳ", "①", "ｆｕｌｌ", "ﷺ"),  # what normalisation would change
    *("👩‍👩‍👧‍👦", "🇩🇪🇫", "✈️", "\u202edlrow", "\u200b", "\u00ad", "\ufeff", "\ufffd", "\x00", "\x85", "\u2028"),
    *("  ", " ", "\n\n\n", " \n \t", "\r\n", "\r", "\u3000", "a  b", " a", "\n a", "\t\t"),  # what merges
    *("don't", "1234567", "αβγ", "你好世界", "กำ", "ไม่", "नमस्ते", "𝔘𝔫𝔦", "\\u00e9", "&lt;", "%3C", "''", '"'),
)
"""Texts at whose borders tokenizers disagree with themselves."""

SAMPLING = SamplingParams(max_tokens=48)
LIMITS = Limits(max_turns=3, max_tokens=400, max_observation_tokens=40, max_tool_calls=6)


class Adversary:
    """A script of replies whose tokens no tokenizer would give for their text."""

    def __init__(self, tokenizer: Any, dialect: str, seed: int) -> None:
        self.vocab_size = tokenizer.vocab_size
        self.ends = sorted(tokenizer.eos_ids)
        self.dialect = dialect
        self.seed = seed
        self.encode = lru_cache(100_000)(lambda text: tuple(tokenizer.encode(text)))
        self.junk = [i for i in range(self.vocab_size) if i not in tokenizer.eos_ids]

    def __call__(self, ids: Sequence[int]) -> list[int]:
        draw = random.Random(zlib.crc32(array("i", ids).tobytes(), self.seed))
        kind = draw.random()
        said = self.noise(draw)
        if kind < 0.6:
            said += self.split(draw, self.call(draw))
            if draw.random() < 0.2:
                said += self.split(draw, self.call(draw))
        elif kind < 0.85:
            said += self.split(draw, f"<answer>{self.text(draw)}</answer>")
        if draw.random() < 0.3:
            said += self.noise(draw)
        return [*said, draw.choice(self.ends)] if draw.random() < 0.7 else said or [self.junk[0]]

    def text(self, draw: random.Random) -> str:
        return "".join(draw.choices(TRAPS, k=draw.randrange(4)))

    def call(self, draw: random.Random) -> str:
        query = self.text(draw)
        if self.dialect == "xml":
            return f"<search>{query}</search>"
        return f"<tool_call>\n{json.dumps({'name': 'search', 'arguments': {'query': query}})}\n</tool_call>"

    def noise(self, draw: random.Random) -> list[int]:
        """Ids at random: halves of characters, control tokens, words; or a trap in odd pieces."""
        if draw.random() < 0.5:
            return draw.choices(self.junk, k=draw.randrange(6))
        return self.split(draw, self.text(draw))

    def split(self, draw: random.Random, text: str) -> list[int]:
        """Encode a text in pieces, as a policy that does not know the tokenizer's merges would write it."""
        ids: list[int] = []
        start = 0
        while start < len(text):
            end = start + draw.randrange(1, 6)
            ids += self.encode(text[start:end])
            start = end
        return ids


class TrapTool:
    """Answers with traps, chosen by what it is asked."""

    policy = ToolPolicy()
    fingerprint = "traps"
    spec = ToolSpec(
        name="search",
        description="Answers with traps.",
        parameters={"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    )

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        draw = random.Random(zlib.crc32(str(arguments["query"]).encode("utf-8", "surrogatepass")))
        return "".join(draw.choices(TRAPS, k=draw.randrange(40)))

    async def aclose(self) -> None:
        """Nothing is held."""


Exchange = tuple[tuple[int, ...], tuple[int, ...]]
"""What an engine was given, and what it gave."""


class Witness:
    """Remembers what an engine was given and what it gave, by session."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.tokenizer = engine.tokenizer
        self.info = engine.info
        self.exchanges: dict[str, list[Exchange]] = {}

    async def generate(self, ids: Sequence[int], params: SamplingParams, *, session: str, **more: Any) -> Any:
        given = tuple(ids)
        reply = await self.engine.generate(ids, params, session=session, **more)
        self.exchanges.setdefault(session, []).append((given, reply.ids))
        return reply

    async def abort(self, request_id: str) -> None:
        await self.engine.abort(request_id)

    async def aclose(self) -> None:
        """The engine is closed by whoever opened it."""


def exchanges_of(stubs: Sequence[SGLangStub]) -> dict[str, list[Exchange]]:
    """What servers were given and gave, by session; of a reply that broke off, the part that somebody went on from."""
    sessions: dict[str, list[Asked]] = {}
    for asked in (asked for stub in stubs for asked in stub.requests):
        sessions.setdefault(session_of(asked.rid) or "", []).append(asked)
    exchanges: dict[str, list[Exchange]] = {}
    for session, requests in sessions.items():
        requests.sort(key=lambda asked: asked.arrived_s)
        following = [*requests[1:], None]
        exchanges[session] = [_exchange(*pair) for pair in zip(requests, following, strict=True)]
    return exchanges


def _exchange(asked: Asked, following: Asked | None) -> Exchange:
    given, said = tuple(asked.ids), tuple(asked.sampled)
    if asked.fault is None:
        return given, said
    assert following is not None, f"{asked.rid} was lost and not tried again"
    arrived = tuple(following.ids[len(given) :])
    assert said[: len(arrived)] == arrived, f"{asked.rid}: {arrived} was resumed from, {said} was sampled"
    return given, arrived


async def trajectories_of(
    agent: Agent, count: int, *, name: str, at_once: int = 250, query: str = ""
) -> list[Trajectory]:
    """Run an agent on queries full of traps, or on one query."""
    done: list[Trajectory] = []
    async with agent:
        for first in range(0, count, at_once):
            numbers = range(first, min(count, first + at_once))
            done += await asyncio.gather(*(_one(agent, f"{name}-{number}", query) for number in numbers))
    return done


async def _one(agent: Agent, name: str, query: str) -> Trajectory:
    draw = random.Random(name)
    query = query or name + "".join(draw.choices(TRAPS, k=draw.randrange(1, 6)))
    return await agent.start(Task(query=query), seed=0, trajectory_id=name).execute()


def verify(trajectory: Trajectory, exchanges: Sequence[Exchange], *, scripted: bool = True) -> int:
    """Compare a trajectory with what an engine was given and gave; return how many tokens were sampled."""
    ids = trajectory.ids
    mask = [False] * len(ids)
    for given, sampled in exchanges:
        end = len(given) + len(sampled)
        assert ids[: len(given)] == given, f"{trajectory.id}: the engine was given other tokens than are kept"
        assert ids[len(given) : end] == sampled, f"{trajectory.id}: other tokens are kept than were sampled"
        mask[len(given) : end] = [True] * len(sampled)
    assert trajectory.mask() == tuple(mask), f"{trajectory.id}: the mask is not what was sampled"
    if not scripted:
        return sum(mask)
    pairs = zip(trajectory.logprobs(), ids, mask, strict=True)
    wrong = [at for at, (p, i, kept) in enumerate(pairs) if p != (fake_logprob(i, at) if kept else 0.0)]
    assert not wrong, f"{trajectory.id}: log-probabilities at {wrong} are not the engine's"
    return sum(mask)
