from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from icrl.runtime.engines.resumption import Received, SeamWatch
from icrl.testing import ByteTokenizer
from icrl.trajectory import Generation, VersionSpan
from icrl.types import SamplingParams

EOS = 258


def part(text, *versions, **changes):
    ids = tuple(text.encode()) if isinstance(text, str) else tuple(text)
    spans = tuple(VersionSpan(version=version, start=start, end=end) for version, start, end in versions)
    logprobs = tuple(-i / 8 for i in range(len(ids)))
    usual = {"ids": ids, "logprobs": logprobs, "finish_reason": "abort", "versions": spans}
    return Generation(**(usual | changes))


def received(*parts, stop=(), max_tokens=100):
    whole = Received(SamplingParams(max_tokens=max_tokens, stop=tuple(stop), seed=5), ByteTokenizer())
    for one in parts:
        whole.add(one, version=9)
    return whole


def test_spans_are_shifted_joined_and_filled_in():
    whole = received(part("abc", (1, 0, 2), (2, 2, 3)), part("de", (2, 0, 1), (3, 1, 2)), part("f"), part(""))
    assert [(s.version, s.start, s.end) for s in whole.versions] == [(1, 0, 2), (2, 2, 4), (3, 4, 5), (9, 5, 6)]


def test_the_rest_is_shorter_and_has_random_numbers_of_its_own():
    assert received().rest == SamplingParams(max_tokens=100, seed=5)
    one, two = received(part("a")).rest, received(part("ab")).rest
    assert (one.max_tokens, two.max_tokens) == (99, 98)
    assert len({5, one.seed, two.seed}) == 3


def test_it_ends_at_a_stop_string_across_a_seam_though_more_was_sampled():
    whole = received(part("x </ans", (1, 0, 7)), part("wer> y", (2, 0, 6)), stop=["</answer>"])
    assert whole.ending() == (11, "stop")
    reply = whole.generation(11, "stop", prompt_tokens=4, wall_s=1.0)
    assert bytes(reply.ids) == b"x </answer>"
    assert [(s.version, s.start, s.end) for s in reply.versions] == [(1, 0, 7), (2, 7, 11)]
    short = whole.generation(5, "stop", prompt_tokens=4, wall_s=1.0)
    assert [(s.version, s.start, s.end) for s in short.versions] == [(1, 0, 5)]


def test_an_end_token_or_the_budget_end_it():
    assert received(part([104, EOS])).ending() == (2, "eos")
    assert received(part("abcd"), max_tokens=4).ending() == (4, "length")
    assert received(part("abc"), max_tokens=4).ending() is None
    assert received().ending() is None


def test_what_was_cached_is_what_the_first_server_had():
    whole = received(part("a", cached_tokens=7), part("b", cached_tokens=9))
    reply = whole.generation(2, "eos", prompt_tokens=8, wall_s=2.0)
    assert (reply.prompt_tokens, reply.cached_tokens, reply.wall_s, reply.finish_reason) == (8, 7, 2.0, "eos")


@given(st.text(alphabet="<a/>é", max_size=14), st.lists(st.integers(0, 30), max_size=4))
def test_the_end_is_found_wherever_the_seams_are(text, cuts):
    ids = text.encode()
    stop = "</a>"
    bounds = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    whole, found = received(stop=[stop]), None
    for a, b in pairwise(bounds):
        whole.add(part(ids[a:b]), version=1)
        found = found or whole.ending()
    at = text.find(stop)
    assert found == (None if at < 0 else (len(text[: at + len(stop)].encode()), "stop"))


def test_the_watch_tells_up_to_the_end_of_a_stop_string_and_says_so_once():
    told, ends = [], []
    watch = SeamWatch(received(part("x </"), stop=["</a>"]), told.extend, lambda: ends.append(len(told)))
    watch(b"a")
    assert (bytes(told), ends) == (b"a", [])
    watch(b"> and more")
    watch(b"still more")
    assert (bytes(told), ends) == (b"a>", [2])
    SeamWatch(received(part("x")), None, lambda: None)(b"abc")
