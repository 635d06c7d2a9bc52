from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import EngineError
from icrl.runtime.engines.sglang.streaming import Arrived
from icrl.runtime.engines.sglang.versions import Versions
from icrl.trajectory import VersionSpan


def event(ids: list[int], total: int, *, version: str = "default", finish: str | None = None) -> bytes:
    meta = {
        "completion_tokens": total,
        "output_token_logprobs": [[-token / 8, token, None] for token in ids],
        "weight_version": version,
        "finish_reason": finish and {"type": finish},
    }
    return b"data: " + json.dumps({"text": "\n", "output_ids": ids, "meta_info": meta}).encode() + b"\n\n"


def events(ids: list[int], cuts: list[int], *, cumulative: bool) -> bytes:
    ends = [*sorted({cut for cut in cuts if 0 < cut < len(ids)}), len(ids)]
    starts = [0, *ends[:-1]]
    last = len(ends) - 1
    said = [
        event(ids[0 if cumulative else a : b], b, finish="length" if i == last else None)
        for i, (a, b) in enumerate(zip(starts, ends, strict=True))
    ]
    return b"".join(said) + b"data: [DONE]\n\n"


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.lists(st.integers(0, 12)),
    st.lists(st.integers(0, 4000)),
    st.booleans(),
)
def test_both_modes_give_the_same_tokens_however_the_bytes_are_cut(
    ids: list[int], cuts: list[int], splits: list[int], cumulative: bool
) -> None:
    data = events(ids, cuts, cumulative=cumulative)
    arrived, handed = Arrived(engine="e"), []
    bounds = [0, *sorted({split for split in splits if split < len(data)}), len(data)]
    for a, b in itertools.pairwise(bounds):
        handed += arrived.feed(data[a:b])
    assert arrived.ids == handed == ids
    assert arrived.logprobs == [-token / 8 for token in ids]
    assert arrived.finish is not None
    assert arrived.spans(Versions("default")) == (VersionSpan(version=0, start=0, end=len(ids)),)


@pytest.mark.parametrize("cumulative", [True, False])
def test_versions_are_known_to_the_event_before_the_end(cumulative: bool) -> None:
    arrived = Arrived(engine="e")
    for i, version in enumerate(["default", "default", "1"]):
        arrived.feed(event([5] * (i + 1) if cumulative else [5], i + 1, version=version))
    expected = (VersionSpan(version=0, start=0, end=2), VersionSpan(version=1, start=2, end=3))
    assert arrived.spans(Versions("default")) == expected


@pytest.mark.parametrize("cumulative", [True, False])
def test_versions_are_known_where_many_events_come_at_once(cumulative: bool) -> None:
    names, arrived = ["default", "default", "1", "1", "2"], Arrived(engine="e")
    said = [event([7] * (i + 1 if cumulative else 1), i + 1, version=name) for i, name in enumerate(names)]
    arrived.feed(b"".join(said[:2]))
    assert arrived.feed(b"".join(said[2:])) == [7, 7, 7]
    spans = [(span.version, span.start, span.end) for span in arrived.spans(Versions("default"))]
    assert spans == [(0, 0, 2), (1, 2, 4), (2, 4, 5)]


def test_versions_are_those_of_the_tokens_that_arrived() -> None:
    arrived = Arrived(engine="e")
    arrived.feed(event([7], 1) + event([7, 7], 2))
    with pytest.raises(EngineError, match="not JSON"):
        arrived.feed(event([7, 7, 7], 3, version="1") + b"data: {\n\n")
    assert arrived.spans(Versions("default")) == (VersionSpan(version=0, start=0, end=len(arrived.ids)),)


def test_events_that_count_backwards_are_refused() -> None:
    arrived = Arrived(engine="e")
    arrived.feed(event([7], 1) + event([7, 7], 2))
    with pytest.raises(EngineError, match="3 tokens follow 4"):
        arrived.feed(event([7] * 4, 4) + event([7] * 3, 3))


def test_an_abort_in_the_queue_of_an_incremental_server_repeats_the_last_token() -> None:
    arrived = Arrived(engine="e")
    arrived.feed(event([5, 6], 2))
    arrived.feed(event([6], 2, finish="abort"))
    assert (arrived.ids, arrived.finish and arrived.finish.type) == ([5, 6], "abort")


@pytest.mark.parametrize(("ids", "total"), [([7], 3), ([5, 6, 7], 4), ([9, 6, 7], 3), ([7], 1)])
def test_events_that_do_not_fit_together_are_refused(ids: list[int], total: int) -> None:
    arrived = Arrived(engine="e")
    arrived.feed(event([5], 1))
    arrived.feed(event([6], 2) if len(ids) == 1 else event([5, 6], 2))
    with pytest.raises(EngineError, match="malformed"):
        arrived.feed(event(ids, total + 1 if ids == [7] and total == 3 else total))
    assert arrived.ids == [5, 6]


def test_comments_and_the_end_mark_are_no_events() -> None:
    arrived = Arrived(engine="e")
    assert arrived.feed(b": ping\n\ndata: [DONE]\n\n") == []
    assert arrived.finish is None
