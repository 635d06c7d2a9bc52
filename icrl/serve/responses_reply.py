"""A response of the Responses protocol, whole or as semantic events."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

from icrl.serve.exchange import Exchange, Told
from icrl.serve.problem import engine_failed
from icrl.serve.responses_items import ItemWriter
from icrl.serve.responses_request import ResponsesRequest
from icrl.serve.stream import encode_event
from icrl.trajectory import StopReason, Trajectory

__all__ = ["ResponseReply", "Status"]

Status = Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]
"""Where a response is."""

_ENDS: dict[StopReason, tuple[Status, str | None]] = {
    StopReason.ANSWER: ("completed", None),
    StopReason.END_OF_TURN: ("completed", None),
    StopReason.CLIENT_CALL: ("completed", None),
    StopReason.ABORTED: ("incomplete", "aborted"),
    StopReason.STALLED: ("failed", None),
    StopReason.ERROR: ("failed", None),
}
"""Status and reason; every limit is incomplete for `max_output_tokens`."""


class ResponseReply:
    """Writes one response and its events.

    Args:
        model: What clients call the model.
        body: What was asked.
        exchange: The run.
    """

    def __init__(self, model: str, body: ResponsesRequest, exchange: Exchange) -> None:
        run_id = exchange.runs[0].id
        self.exchange = exchange
        """The run that it tells of."""
        self.name = f"resp_{run_id}"
        """The response's id."""
        self.cancelled = False
        """Whether its owner ended it."""
        self._said: defaultdict[int, list[str]] = defaultdict(list)
        self._model = model
        self._body = body
        self._created = int(time.time())
        self._sequence = 0
        self._writer = ItemWriter(run_id)

    @property
    def said(self) -> dict[int, str]:
        """The words so far, by turn."""
        return {turn: "".join(words) for turn, words in self._said.items()}

    def opening(self) -> bytes:
        """Write the events that open a stream."""
        opened = self._response("in_progress", None, [], None)
        kinds = ("response.created", "response.in_progress")
        return b"".join(self._event({"type": kind, "response": opened}) for kind in kinds)

    def tell(self, batch: Iterable[Told]) -> bytes:
        """Write the events of what was heard; nothing where it changes no item."""
        return b"".join(self._told(batch))

    def _told(self, batch: Iterable[Told]) -> Iterator[bytes]:
        for told in batch:
            if told.heard.kind == "said":
                self._said[told.heard.turn].append(told.heard.text)
            for event in self._writer.feed(told.heard):
                yield self._event(event)

    def ending(self, trajectory: Trajectory) -> tuple[dict[str, Any], bytes]:
        """Return the finished response, and the events that close a stream."""
        status, reason = _ENDS.get(trajectory.stop_reason, ("incomplete", "max_output_tokens"))
        if self.cancelled and status == "incomplete":
            status, reason = "cancelled", None
        return self._closed(status, reason, trajectory)

    def failed(self) -> bytes:
        """Write the end of a stream that broke."""
        return self._closed("failed", None, None)[1]

    def so_far(self) -> dict[str, Any]:
        """Write the response as it is now."""
        status: Status = "cancelled" if self.cancelled else "in_progress"
        return self._response(status, None, copy.deepcopy(self._writer.items), None)

    def _closed(
        self, status: Status, reason: str | None, trajectory: Trajectory | None
    ) -> tuple[dict[str, Any], bytes]:
        events = [self._event(event) for event in self._writer.abandon()]
        response = self._response(status, reason, self._writer.items, trajectory)
        # The protocol has no event for a cancelled response: it ends as an incomplete one.
        kind = "incomplete" if status == "cancelled" else status
        events.append(self._event({"type": f"response.{kind}", "response": response}))
        return response, b"".join(events)

    def _event(self, event: dict[str, Any]) -> bytes:
        event["sequence_number"] = self._sequence
        self._sequence += 1
        return encode_event(event, event=event["type"])

    def _response(
        self, status: Status, reason: str | None, output: list[dict[str, Any]], trajectory: Trajectory | None
    ) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": {"code": "server_error", "message": engine_failed().message} if status == "failed" else None,
            "incomplete_details": None if reason is None else {"reason": reason},
            "model": self._model,
            "output": output,
            "usage": None if trajectory is None else self._usage(trajectory),
            "icrl": None if trajectory is None else _facts(trajectory),
            **_echo(self._body),
        }

    def _usage(self, trajectory: Trajectory) -> dict[str, Any]:
        usage = self.exchange.usage([trajectory])
        return {
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
            "output_tokens": usage.sampled,
            "output_tokens_details": {"reasoning_tokens": usage.thought},
            "total_tokens": usage.prompt + usage.sampled,
            "icrl": {"observed_tokens": usage.observed},
        }


def _echo(body: ResponsesRequest) -> dict[str, Any]:
    """Return the settings of the request as they were understood."""
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "parallel_tool_calls": True,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "store": body.store is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": msgspec.to_builtins(body.tools or []),
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
    }


def _facts(trajectory: Trajectory) -> dict[str, Any]:
    return {
        "trajectory_id": trajectory.id,
        "stop_reason": str(trajectory.stop_reason),
        "wall_s": round(trajectory.wall_s, 6),
    }
