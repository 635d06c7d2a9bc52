from __future__ import annotations

import json
from typing import Any

import pytest

from icrl.errors import EngineError
from icrl.runtime.engines.sglang.loads import read_load
from icrl.runtime.engines.sglang.sampling import body
from icrl.runtime.engines.sglang.versions import Versions
from icrl.runtime.engines.sglang.wire import Finish, Meta, Span, check_tokens, decode, finish_reason, logprobs, spans
from icrl.trajectory import VersionSpan
from icrl.types import SamplingParams


def reply(**meta: Any) -> bytes:
    known = {"completion_tokens": 2, "output_token_logprobs": [[-0.5, 5, None], [-1, 6, "b"]], "new_field": [1], **meta}
    return json.dumps({"text": "ab", "output_ids": [5, 6], "meta_info": known}).encode()


def test_only_what_is_used_is_decoded() -> None:
    answer = decode(reply(cached_tokens=3), engine="e")
    assert answer.output_ids == [5, 6]
    assert logprobs(answer, engine="e") == [-0.5, -1.0]
    assert (answer.meta_info.cached_tokens, answer.meta_info.finish_reason) == (3, None)


@pytest.mark.parametrize(
    "triples",
    [
        [[-0.5, 5, None]],
        [[-0.5, 5, None], [-1.0, 7, None]],
        [[-0.5, 5, None], [-1.0, 6, None], [-1.0, 6, None]],
        [],
        [[None, 5, None], [-1.0, 6, None]],
        [["x", 5, None], [-1.0, 6, None]],
        [[1e308, 5, None], [1e308, 6, None]],
        None,
    ],
)
def test_log_probabilities_that_cannot_be_trusted_are_refused_for_good(triples: Any) -> None:
    with pytest.raises(EngineError, match="malformed reply") as caught:
        logprobs(decode(reply(output_token_logprobs=triples), engine="e"), engine="e")
    assert not caught.value.retryable


@pytest.mark.parametrize("data", [b"", b"<html>", b'{"output_ids": [5', b'{"a": NaN}', b"\xff\xfe"])
def test_what_is_no_json_may_be_asked_again(data: bytes) -> None:
    with pytest.raises(EngineError, match="not JSON") as caught:
        decode(data, engine="e")
    assert caught.value.retryable


def test_an_error_in_a_stream_is_a_refusal() -> None:
    with pytest.raises(EngineError, match="cannot be empty") as caught:
        decode(b'{"error":{"message":"input_ids cannot be empty.","code":400}}', engine="e")
    assert (caught.value.status, caught.value.retryable) == (400, False)
    with pytest.raises(EngineError, match="full") as caught:
        decode(b'{"error":{"message":"full","code":503}}', engine="e")
    assert caught.value.retryable


@pytest.mark.parametrize("wrong", [8, -1, 2**40])
def test_sampled_ids_are_of_the_vocabulary(wrong: int) -> None:
    check_tokens([0, 7], 8, engine="e")
    check_tokens([], 8, engine="e")
    with pytest.raises(EngineError, match=f"sampled id {wrong} is outside the vocabulary of 8"):
        check_tokens([0, wrong], 8, engine="e")


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        (Finish(type="length"), "length"),
        (Finish(type="stop", matched=2), "eos"),
        (Finish(type="stop", matched=[2, 3]), "eos"),
        (Finish(type="stop", matched="</a>"), "stop"),
        (Finish(type="abort", message="Aborted"), "abort"),
    ],
)
def test_finish_reasons(finish: Finish, reason: str) -> None:
    assert finish_reason(finish, ("</a>",), engine="e") == reason


def test_an_end_that_nobody_asked_for_is_an_error() -> None:
    with pytest.raises(EngineError, match="NaN happened"):
        finish_reason(Finish(type="stop", matched="NaN happened"), ("</a>",), engine="e")
    with pytest.raises(EngineError, match="why it ended"):
        finish_reason(None, (), engine="e")
    with pytest.raises(EngineError, match="novel"):
        finish_reason(Finish(type="novel"), (), engine="e")


@pytest.mark.parametrize(
    ("finish", "status", "again"),
    [
        ({"type": "abort", "message": "no memory", "status_code": 503}, 503, True),
        ({"type": "abort", "message": "too long", "status_code": 400, "err_type": "BadRequestError"}, 400, False),
        ({"type": "abort", "message": "oom", "err_type": "RuntimeError"}, 500, True),
    ],
)
def test_an_abort_with_a_status_is_an_error_whatever_it_holds(finish: Any, status: int, again: bool) -> None:
    with pytest.raises(EngineError, match=finish["message"]) as caught:
        decode(reply(finish_reason=finish, output_token_logprobs=[]), engine="e")
    assert (caught.value.status, caught.value.retryable) == (status, again)


def span(version: int, start: int, end: int) -> VersionSpan:
    return VersionSpan(version=version, start=start, end=end)


def test_spans_are_numbers_of_versions() -> None:
    versions = Versions("default")
    named = [Span(version="default", start=0, end=3), Span(version="7", start=3, end=5)]
    assert spans(Meta(weight_versions=named), 5, versions, engine="e") == (span(0, 0, 3), span(7, 3, 5))
    assert spans(Meta(weight_versions=named[:1]), 3, versions, engine="e") == (span(0, 0, 3),)
    assert spans(Meta(weight_version="7"), 3, versions, engine="e") == (span(7, 0, 3),)
    assert spans(Meta(weight_version="7"), 0, versions, engine="e") == ()


@pytest.mark.parametrize("bounds", [(0, 2, 3, 5), (0, 3, 3, 4), (1, 3, 3, 5), (0, 4, 3, 5)])
def test_spans_cover_every_token_once(bounds: tuple[int, int, int, int]) -> None:
    a, b, c, d = bounds
    named = [Span(version="1", start=a, end=b), Span(version="2", start=c, end=d)]
    with pytest.raises(EngineError, match="do not cover the 5 tokens"):
        spans(Meta(weight_versions=named), 5, Versions("1"), engine="e")


def test_names_of_weights() -> None:
    assert [Versions("12").number(name) for name in ("12", "13", "default", "v-foreign", "٣")] == [12, 13, 0, 0, 0]
    assert Versions("default").first == 0


def test_a_request_says_how_to_sample() -> None:
    params = SamplingParams(temperature=0.5, top_p=0.9, top_k=20, max_tokens=100, stop=("</a>",), seed=-5)
    request = json.loads(
        body(b"1,2", params, rid='r"1', room=1000, chunk_tokens=64, deterministic=True, cache_key="v1")
    )
    assert (request["rid"], request["input_ids"], request["stream"], request["return_logprob"]) == (
        'r"1',
        [1, 2],
        True,
        True,
    )
    sampling = request["sampling_params"]
    assert request["extra_key"] == "v1"
    assert sampling["stop"] == ["</a>"]
    assert (sampling["temperature"], sampling["top_p"], sampling["top_k"]) == (0.5, 0.9, 20)
    assert (sampling["max_new_tokens"], sampling["stream_interval"]) == (100, 64)
    assert 0 <= sampling["sampling_seed"] < 2**31
    assert sampling["repetition_penalty"] == 1.0


def test_a_request_says_no_more_than_it_must() -> None:
    request = json.loads(body(b"1", SamplingParams(seed=3), rid="r", room=9))
    assert not request["stream"]
    assert "extra_key" not in request
    assert not {"stop", "sampling_seed", "stream_interval"} & set(request["sampling_params"])
    assert (request["sampling_params"]["max_new_tokens"], request["sampling_params"]["top_k"]) == (9, -1)


def test_loads_of_several_schedulers_are_one() -> None:
    ranks = [{"num_running_reqs": r, "num_waiting_reqs": 2, "token_usage": u} for r, u in ((1, 0.25), (3, 0.75))]
    load = read_load(json.dumps({"loads": ranks}).encode(), engine="e")
    assert (load.running, load.waiting, load.kv_usage) == (4, 4, 0.75)
    with pytest.raises(EngineError, match="/v1/loads"):
        read_load(b'{"loads": [{}]}', engine="e")
