"""Words and thoughts back to the tokens that they were sampled as."""

from __future__ import annotations

import pytest

from icrl.runtime.dialect import Piece
from icrl.serve.logprobs import said_tokens
from icrl.serve.spans import Span, place, tokens_of
from icrl.serve.usage import count
from icrl.testing import ByteTokenizer, fake_logprob
from icrl.trajectory import Segment, StopReason, Trajectory, Turn
from icrl.types import Task

TOKENIZER = ByteTokenizer()


def trajectory(*turns: str, prompt=b"ask", observed=b" told ", cached=0) -> Trajectory:
    segments = [Segment(source="prompt", role="query", ids=tuple(prompt), text="ask")]
    records = []
    for turn, text in enumerate(turns):
        if turn:
            segments.append(Segment(source="tool", role="tool_result", ids=tuple(observed), turn=turn - 1))
        ids = tuple(TOKENIZER.encode(text))
        logprobs = tuple(fake_logprob(token, i) for i, token in enumerate(ids))
        segments.append(Segment(source="policy", role="text", ids=ids, text=text, turn=turn, logprobs=logprobs))
        records.append(
            Turn(
                index=turn,
                finish_reason="stop",
                prompt_tokens=len(prompt),
                sampled_tokens=len(ids),
                cached_tokens=cached,
                generate_s=0.0,
            )
        )
    return Trajectory(
        id="t", task=Task(query="q"), segments=tuple(segments), turns=tuple(records), stop_reason=StopReason.ANSWER
    )


@pytest.mark.parametrize(
    ("text", "blocks", "spans"),
    [
        ("<answer>answer</answer>", [("said", 1, "answer")], [("said", 8, 14)]),
        ("a</think>b", [("said", 0, "a</think>b")], [("said", 0, 10)]),
        ("<think></think><think>k</think>", [("thought", 2, "k")], [("thought", 22, 23)]),
        (
            "x<echo> x </echo>x",
            [("said", 0, "x"), (None, 1, " x "), ("said", 2, "x")],
            [("said", 0, 1), ("said", 17, 18)],
        ),
        ("```python\n1\n```\nso", [(None, 1, "\n1"), ("thought", 2, "so")], [("thought", 16, 18)]),
        ("other text", [("said", 0, "this")], []),
    ],
)
def test_blocks_are_found_behind_their_marks(text, blocks, spans):
    told = [(label, Piece("text", letter, block)) for label, block, words in blocks for letter in words]
    assert [tuple(span) for span in place(text, told)] == spans


def test_a_token_counts_if_a_part_of_it_is_meant():
    ids = TOKENIZER.encode("aéb")
    assert tokens_of(TOKENIZER, ids, [Span("said", 1, 2)]) == [1, 2]
    assert tokens_of(TOKENIZER, ids, [Span("said", 0, 2), Span("thought", 1, 3), Span("said", 1, 1)]) == [0, 1, 2, 3]


def listed(t, spans, shown):
    return "".join(text for text, _ in said_tokens(TOKENIZER, t, spans, shown))


def test_the_tokens_of_the_words_in_every_turn():
    t = trajectory(" one ", "<answer> two </answer>")
    spans = {0: [Span("said", 0, 5)], 1: [Span("said", 8, 13)]}
    assert listed(t, spans, len("one\n\ntwo")) == "onetwo"
    assert listed(t, spans, len("one\n\nt")) == "onet"
    assert listed(t, spans, 2) == "on"
    assert listed(t, {}, 0) == ""
    logprobs = [logprob for _, logprob in said_tokens(TOKENIZER, t, spans, 8)]
    policy = [s for s in t.segments if s.source == "policy"]
    assert logprobs == [*policy[0].logprobs[1:4], *policy[1].logprobs[9:12]]


def test_words_around_a_call_are_one_answer():
    t = trajectory("a <x> b ")
    assert listed(t, {0: [Span("said", 0, 2), Span("said", 5, 8)]}, len("a  b")) == "a  b"


def test_usage_is_what_the_trajectory_holds():
    one, two = trajectory("<think> ü </think>", "abc", cached=2), trajectory("<answer>x</answer>")
    usage = count([one, two], [{0: [Span("thought", 7, 10)]}, {}], TOKENIZER)
    assert (usage.prompt, usage.cached, usage.thought) == (3, 2, 4)
    assert usage.sampled == one.sampled_tokens + two.sampled_tokens
    assert usage.observed == len(b" told ")
    assert len(one.ids) + len(two.ids) == 2 * usage.prompt + usage.sampled + usage.observed
