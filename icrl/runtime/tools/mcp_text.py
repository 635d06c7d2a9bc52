"""What an MCP tool answered, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from mcp_types import CallToolResult, ContentBlock

__all__ = ["text_of"]


def text_of(result: CallToolResult) -> str:
    """Join the parts of a result; what is not text is described."""
    if not result.content and result.structured_content is not None:
        return msgspec.json.encode(result.structured_content).decode()
    return "\n".join(_part(block) for block in result.content)


def _part(block: ContentBlock) -> str:
    match block.type:
        case "text":
            return block.text
        case "image" | "audio":
            return f"[{block.type}, {block.mime_type}, {_bytes(block.data)} bytes]"
        case "resource_link":
            return f"[resource {block.name}, {block.uri}]"
        case "resource":
            resource = block.resource
            text: str | None = getattr(resource, "text", None)
            if text is not None:
                return text
            return f"[resource {resource.uri}, {resource.mime_type}, {_bytes(getattr(resource, 'blob', ''))} bytes]"


def _bytes(base64: str) -> int:
    """Return how many bytes Base64 text stands for."""
    return len(base64.rstrip("=")) * 3 // 4
