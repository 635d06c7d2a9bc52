"""`GET /`: the page, one file without outside requests; and the tokens behind an answer, which it can show."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

from aiohttp import web

from icrl.serve.keys import CALLER
from icrl.serve.responses import STORE
from icrl.tokenizer import TextStream, Tokenizer
from icrl.trajectory import Segment, Trajectory, policy_tokens
from icrl.wire import decode

__all__ = ["add_routes", "token_view"]

_CONTROL = re.compile(r"<[^\s<>]{1,64}>")


def add_routes(app: web.Application) -> None:
    """Serve the page and the tokens of stored responses."""
    app.router.add_get("/", _show)
    app.router.add_get("/v1/responses/{id}/tokens", _tokens)


def _headers(html: str) -> dict[str, str]:
    """Return headers that let the page run its own script, talk to its own server, and nothing else."""
    script, style = (_hash(re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; script-src {script}; style-src {style}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}


def _hash(found: re.Match[str] | None) -> str:
    text = "" if found is None else found[1]
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_HTML = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
_SENT_WITH = _headers(_HTML)


async def _show(request: web.Request) -> web.Response:
    return web.Response(text=_HTML, content_type="text/html", headers=_SENT_WITH)


async def _tokens(request: web.Request) -> web.Response:
    stored = request.app[STORE].get(request.match_info["id"], owner=request[CALLER])
    return web.json_response(token_view(decode(stored.trajectory, Trajectory), stored.tokenizer))


def token_view(trajectory: Trajectory, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return every token of a trajectory with its provenance, for people to look at.

    `control` is a control token's name, empty where the segment's text does not write it, and null for other tokens.
    """
    segments = [
        {
            "source": segment.source,
            "role": segment.role,
            "turn": segment.turn,
            "trained": policy_tokens(segment.source),
            "tokens": list(_listed(segment, tokenizer)),
        }
        for segment in trajectory.segments
    ]
    return {"trajectory_id": trajectory.id, "stop_reason": str(trajectory.stop_reason), "segments": segments}


def _listed(segment: Segment, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """Yield the tokens; a character that several of them make is the last one's text."""
    stream, at = TextStream(tokenizer), 0
    for token, logprob in zip(segment.ids, segment.logprobs or repeat(None), strict=False):
        text = stream.feed([token])
        control = None if text or tokenizer.decode([token]) else _control(segment.text, at)
        at += len(text or control or "")
        yield {"id": token, "text": text, "control": control, "logprob": logprob}


def _control(text: str, at: int) -> str:
    """Name a control token as the segment's text does; the one that ends the model's turn stands in no text."""
    found = _CONTROL.match(text, at)
    return "" if found is None else found[0]
