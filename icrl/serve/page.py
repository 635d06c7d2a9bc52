"""`GET /`: the page, one file without outside requests; and the tokens behind an answer, which it can show."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from aiohttp import web

from icrl.serve.keys import CALLER
from icrl.serve.responses import STORE
from icrl.tokenizer import Tokenizer
from icrl.trajectory import Segment, Trajectory, policy_tokens
from icrl.wire import decode

__all__ = ["add_routes", "token_view"]

_PAGE = Path(__file__).with_name("page.html")


def add_routes(app: web.Application) -> None:
    """Serve the page and the tokens of stored responses."""
    app.router.add_get("/", _show)
    app.router.add_get("/v1/responses/{id}/tokens", _tokens)


@lru_cache(maxsize=1)
def _page() -> tuple[bytes, dict[str, str]]:
    """Return the page and headers that let it run its own script, talk to its own server, and nothing else."""
    html = _PAGE.read_text(encoding="utf-8")
    hashes = {tag: _hash(re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)) for tag in ("script", "style")}
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; script-src {hashes['script']}; "
        f"style-src {hashes['style']}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
    return html.encode(), headers


def _hash(found: re.Match[str] | None) -> str:
    text = "" if found is None else found[1]
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


async def _show(request: web.Request) -> web.Response:
    body, headers = _page()
    return web.Response(body=body, content_type="text/html", charset="utf-8", headers=headers)


async def _tokens(request: web.Request) -> web.Response:
    stored = request.app[STORE].get(request.match_info["id"], owner=request[CALLER])
    return web.json_response(token_view(decode(stored.trajectory, Trajectory), stored.tokenizer))


def token_view(trajectory: Trajectory, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return every token of a trajectory with its provenance, for people to look at."""
    segments = [
        {
            "source": segment.source,
            "role": segment.role,
            "turn": segment.turn,
            "trained": policy_tokens(segment.source),
            "tokens": _token_list(segment, tokenizer),
        }
        for segment in trajectory.segments
    ]
    return {"trajectory_id": trajectory.id, "stop_reason": str(trajectory.stop_reason), "segments": segments}


def _token_list(segment: Segment, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    logprobs = segment.logprobs or (None,) * len(segment.ids)
    return [
        {"id": token, "text": tokenizer.decode([token]), "logprob": logprob}
        for token, logprob in zip(segment.ids, logprobs, strict=True)
    ]
