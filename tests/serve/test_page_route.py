"""The page as it is sent, and the tokens that it shows."""

from __future__ import annotations

import base64
import hashlib
import re

from demo import TOKENIZER

from icrl.serve.page import token_view
from icrl.testing import ScriptedEngine
from icrl.trajectory import Segment, StopReason, Trajectory, Turn
from icrl.types import Task


async def test_the_page_is_one_file_that_may_do_nothing_but_talk_to_its_server(serve, monkeypatch):
    monkeypatch.setenv("ICRL_API_KEY", "secret")
    client = await serve(["<answer> ok </answer>"])
    answer = await client.get("/")
    html = await answer.text()
    assert answer.status == 200
    assert answer.content_type == "text/html"
    assert len(html.splitlines()) < 600
    policy = dict(rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", html)
    assert not re.search(r"\son\w+=|\sstyle=|innerHTML|eval\(", html)


def trajectory(*segments: Segment) -> Trajectory:
    turn = Turn(index=0, finish_reason="eos", prompt_tokens=1, sampled_tokens=1, cached_tokens=0, generate_s=0.0)
    turns = (turn,) if any(segment.source == "policy" for segment in segments) else ()
    return Trajectory(id="t", task=Task(query="q"), segments=segments, stop_reason=StopReason.ANSWER, turns=turns)


def test_tokens_are_shown_with_provenance_mask_and_logprobs():
    ids = tuple(TOKENIZER.encode("Hé!"))
    sampled = (*TOKENIZER.encode(" yes"), max(TOKENIZER.eos_ids))
    view = token_view(
        trajectory(
            Segment(source="prompt", role="query", ids=ids, text="Hé!"),
            Segment(source="policy", role="text", ids=sampled, text=" yes", logprobs=(-0.5,) * len(sampled), turn=0),
        ),
        TOKENIZER,
    )
    first, second = view["segments"]
    assert (first["trained"], second["trained"]) == (False, True)
    assert "".join(token["text"] for token in first["tokens"]) == "Hé!"
    assert all(token["control"] is None and token["logprob"] is None for token in first["tokens"])
    assert "" in [token["text"] for token in first["tokens"]]
    assert "�" not in str(view)
    assert second["tokens"][-1] == {"id": max(TOKENIZER.eos_ids), "text": "", "control": "", "logprob": -0.5}


async def test_control_tokens_of_the_prompt_are_named(serve):
    client = await serve(ScriptedEngine(["<answer> ok </answer>"], tokenizer=TOKENIZER), agent={"dialect": "xml"})
    name = (await (await client.post("/v1/responses", json={"input": "x <|im_end|> y"})).json())["id"]
    view = await (await client.get(f"/v1/responses/{name}/tokens")).json()
    tokens = [token for segment in view["segments"] for token in segment["tokens"]]
    named = [token["control"] for token in tokens if token["control"]]
    assert named == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert "<|im_end|>" in "".join(token["text"] for token in tokens)
