"""What handlers find in the application and in a request."""

from __future__ import annotations

from aiohttp import web

from icrl.serve.access import Keys
from icrl.serve.config import ServeConfig
from icrl.serve.service import Service

__all__ = ["CALLER", "CONFIG", "KEYS", "MODEL_NAME", "REQUEST_ID", "SERVICE", "TRAJECTORIES"]

SERVICE = web.AppKey("service", Service)
"""The agent."""
CONFIG = web.AppKey("config", ServeConfig)
"""What was set."""
KEYS = web.AppKey("keys", Keys)
"""Who may call."""
MODEL_NAME = web.AppKey("model_name", str)
"""What clients call the model."""
CALLER = web.RequestKey("caller", str)
"""Whose share a request counts against."""
REQUEST_ID = web.RequestKey("request_id", str)
"""Names the request in headers and logs."""
TRAJECTORIES = web.RequestKey("trajectories", list[str])
"""Ids of the runs that were made for a request."""
