"""docs/serve.md says what the server does: its tables are complete and its numbers right."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from icrl.serve.app import build_app
from icrl.serve.config import AdmissionConfig, LimitsConfig, ServeConfig
from icrl.serve.metrics import METRICS
from icrl.serve.service import Service
from icrl.trajectory import StopReason

PAGE = Path(__file__).parents[2] / "docs" / "serve.md"
TEXT = PAGE.read_text(encoding="utf-8")


def rows(pattern):
    """Return the cells of table rows whose first cell looks like this."""
    return [[cell.strip() for cell in row] for row in re.findall(rf"^\| (`?{pattern}`?[^|]*) \|(.*)\|$", TEXT, re.M)]


def test_every_bound_is_listed_with_its_default():
    listed = {name.strip("`"): rest.split("|")[0].strip() for name, rest in rows(r"admission\.\w+")}
    defaults = {
        f"admission.{field.name}": "none" if field.default is None else str(field.default)
        for field in dataclasses.fields(AdmissionConfig)
    }
    assert listed == defaults
    for field in dataclasses.fields(LimitsConfig):
        assert f"`limits.{field.name}`" in TEXT


async def test_every_family_of_metrics_is_listed(monkeypatch):
    monkeypatch.delenv("ICRL_API_KEY", raising=False)
    service = Service(lambda: None, AdmissionConfig())
    app = build_app(service, ServeConfig(), model_name="m")
    families = {family.name for family in app[METRICS].registry.collect()} | {"icrl_log_dropped"}
    assert {name.strip("`") for name, _ in rows(r"icrl_\w+")} == families


async def test_every_path_is_listed(monkeypatch):
    monkeypatch.delenv("ICRL_API_KEY", raising=False)
    app = build_app(Service(lambda: None, AdmissionConfig()), ServeConfig(), model_name="m")
    listed = " ".join(name for name, _ in rows(r"(?:GET|POST)"))
    for route in app.router.routes():
        path = re.sub(r"(/v1/models)/.*|(/v1/responses/\{id\})/tokens", r"\1\2", route.resource.canonical)
        assert path in listed or path.rpartition("/")[2] in listed, path


def test_every_stop_reason_is_listed():
    told = TEXT.partition("`stop_reason` is icrl's own: ")[2].partition(".")[0]
    assert set(re.findall(r"`(\w+)`", told)) == {str(reason) for reason in StopReason}
