"""The output of a response as it grows: items, and the events that tell of them.

    thought  → `reasoning` item           response.reasoning_text.delta …
    said     → `message` item             response.output_text.delta …
    call     → `mcp_call` item            response.mcp_call.in_progress … completed | failed
    client's → `function_call` item       response.function_call_arguments.delta, .done

`mcp_call` is the protocol's own item for a named tool that the server ran: clients show it and never run it again.
What they run is a `function_call`; its arguments come in one piece, as a call is only certain once it is complete.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from icrl.events import TurnFinished
from icrl.serve.client_tools import client_call_id
from icrl.serve.narration import Heard
from icrl.types import ToolCall, ToolResult

__all__ = ["SERVER_LABEL", "ItemWriter"]

SERVER_LABEL = "icrl"
"""Whose tools the calls are."""

Event = dict[str, Any]
_JSON = msgspec.json.Encoder()


class ItemWriter:
    """Builds the items of one response and yields the events for each change.

    Every event that an item's life consists of comes in order, and an item is complete in `items` when its `done`
    event is out.

    Args:
        response_id: The response's name without its prefix; items are named after it.

    Example:
        >>> writer = ItemWriter("1")
        >>> [event["type"] for event in writer.feed(Heard("said", "113"))]
        ['response.output_item.added', 'response.content_part.added', 'response.output_text.delta']
        >>> [event["type"] for event in writer.close("completed")]
        ['response.output_text.done', 'response.content_part.done', 'response.output_item.done']
        >>> writer.items[0]["content"][0]["text"]
        '113'
    """

    def __init__(self, response_id: str) -> None:
        self._id = response_id
        self._open: int | None = None
        self._text: list[str] = []
        self._calls: dict[str, int] = {}
        self.items: list[dict[str, Any]] = []
        """The output so far."""

    def feed(self, heard: Heard) -> Iterator[Event]:
        """Take one thing that was heard."""
        if heard.kind in ("thought", "said"):
            yield from self._write("reasoning" if heard.kind == "thought" else "message", heard.text)
        elif heard.kind == "call" and heard.call is not None:
            yield from self.close("completed")
            yield from self._begin_call(heard.call)
        elif heard.kind == "result" and heard.call is not None and heard.result is not None:
            yield from self._end_call(heard.call, heard.result)
        elif heard.kind == "handed_over" and heard.call is not None:
            yield from self.close("completed")
            yield from self._hand_over(heard.call)
        elif heard.kind == "turn" and isinstance(heard.event, TurnFinished):
            cut = heard.event.turn.finish_reason in ("length", "abort")
            yield from self.close("incomplete" if cut else "completed")

    def close(self, status: str) -> Iterator[Event]:
        """Finish the item that is being written, if there is one."""
        if self._open is None:
            return
        index, self._open = self._open, None
        item, text = self.items[index], "".join(self._text)
        part = _part(item["type"], text)
        item |= {"content": [part], "status": status}
        place = {"item_id": item["id"], "output_index": index, "content_index": 0}
        if item["type"] == "reasoning":
            yield {"type": "response.reasoning_text.done", **place, "text": text}
        else:
            yield {"type": "response.output_text.done", **place, "text": text, "logprobs": []}
        yield {"type": "response.content_part.done", **place, "part": part}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}

    def abandon(self) -> Iterator[Event]:
        """Finish everything that is open as incomplete: the response ends here."""
        yield from self.close("incomplete")
        for index in self._calls.values():
            item = self.items[index]
            item["status"] = "incomplete"
            yield {"type": "response.output_item.done", "output_index": index, "item": item}
        self._calls.clear()

    def _write(self, kind: str, text: str) -> Iterator[Event]:
        if self._open is not None and self.items[self._open]["type"] != kind:
            yield from self.close("completed")
        if self._open is None:
            yield from self._begin_text(kind)
        index = len(self.items) - 1 if self._open is None else self._open
        self._text.append(text)
        place = {"item_id": self.items[index]["id"], "output_index": index, "content_index": 0, "delta": text}
        if kind == "reasoning":
            yield {"type": "response.reasoning_text.delta", **place}
        else:
            yield {"type": "response.output_text.delta", **place, "logprobs": []}

    def _begin_text(self, kind: str) -> Iterator[Event]:
        index = len(self.items)
        item: dict[str, Any] = {"id": self._name("rs" if kind == "reasoning" else "msg"), "type": kind}
        own: dict[str, Any] = {"summary": []} if kind == "reasoning" else {"role": "assistant"}
        item |= own
        item |= {"content": [], "status": "in_progress"}
        self.items.append(item)
        self._open, self._text = index, []
        yield {"type": "response.output_item.added", "output_index": index, "item": dict(item)}
        yield {
            "type": "response.content_part.added",
            "item_id": item["id"],
            "output_index": index,
            "content_index": 0,
            "part": _part(kind, ""),
        }

    def _begin_call(self, call: ToolCall) -> Iterator[Event]:
        index = len(self.items)
        arguments = _JSON.encode(call.arguments).decode()
        item = {
            "id": self._name("mcp"),
            "type": "mcp_call",
            "server_label": SERVER_LABEL,
            "name": call.name,
            "arguments": arguments,
            "output": None,
            "error": None,
            "approval_request_id": None,
            "status": "in_progress",
        }
        self.items.append(item)
        self._calls[call.id] = index
        place = {"item_id": item["id"], "output_index": index}
        yield {"type": "response.output_item.added", "output_index": index, "item": dict(item)}
        yield {"type": "response.mcp_call.in_progress", **place}
        yield {"type": "response.mcp_call_arguments.done", **place, "arguments": arguments}

    def _end_call(self, call: ToolCall, result: ToolResult) -> Iterator[Event]:
        index = self._calls.pop(call.id)
        item = self.items[index]
        if result.error is None:
            item |= {"output": result.text, "status": "completed"}
        else:
            item |= {"error": {"type": "mcp_tool_execution_error", "content": result.text}, "status": "failed"}
        item["icrl"] = {"wall_s": round(result.wall_s, 6)}
        outcome = "completed" if result.error is None else "failed"
        yield {"type": f"response.mcp_call.{outcome}", "item_id": item["id"], "output_index": index}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}

    def _hand_over(self, call: ToolCall) -> Iterator[Event]:
        index, arguments = len(self.items), _JSON.encode(call.arguments).decode()
        item = {
            "id": self._name("fc"),
            "type": "function_call",
            "call_id": client_call_id(self._id, call),
            "name": call.name,
            "arguments": arguments,
            "status": "completed",
        }
        self.items.append(item)
        place = {"item_id": item["id"], "output_index": index}
        begun = item | {"arguments": "", "status": "in_progress"}
        yield {"type": "response.output_item.added", "output_index": index, "item": begun}
        yield {"type": "response.function_call_arguments.delta", **place, "delta": arguments}
        yield {"type": "response.function_call_arguments.done", **place, "name": call.name, "arguments": arguments}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}

    def _name(self, prefix: str) -> str:
        return f"{prefix}_{self._id}_{len(self.items)}"


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
