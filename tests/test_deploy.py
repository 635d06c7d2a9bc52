"""What is deployed fits the command line: there is no Docker engine here, so the files are read and checked."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from icrl.cli import COMMANDS
from icrl.config import load
from icrl.serve.config import ServeConfig

DEPLOY = Path(__file__).parent.parent / "deploy"


def instructions():
    """Return the instructions of the Dockerfile in order, continued lines joined."""
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def last(name):
    return [rest for instruction, rest in instructions() if instruction == name][-1]


def composition(name):
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


@pytest.fixture
def compose():
    """The two files, one on top of the other, as Docker merges them here."""
    below, above = composition("compose.yaml"), composition("compose.sglang.yaml")
    services = {
        name: {**below["services"].get(name, {}), **above["services"].get(name, {})}
        for name in {**below["services"], **above["services"]}
    }
    return {
        "services": services,
        "networks": below["networks"] | above["networks"],
        "volumes": below["volumes"] | above["volumes"],
    }


@pytest.fixture
def unit():
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read(DEPLOY / "icrl.service", encoding="utf-8")
    return parser


def settings(arguments, monkeypatch, tmp_path):
    """Parse the arguments of a command as the command line does, and return its settings."""
    command, *flags = arguments
    assert command in COMMANDS
    monkeypatch.setenv("ICRL_API_KEY", "key")
    (tmp_path / "keys").write_text("key\n")
    return load(ServeConfig, [flag.replace("%d", str(tmp_path)) for flag in flags], prog="icrl serve", description="")


def test_the_image_is_built_from_files_that_exist():
    kinds = [kind for kind, _ in instructions()]
    assert set(kinds) <= {
        *("FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL"),
        *("HEALTHCHECK", "ENTRYPOINT", "CMD"),
    }
    for _, rest in (i for i in instructions() if i[0] == "COPY" and "--from" not in i[1]):
        for source in rest.split()[:-1]:
            assert (DEPLOY.parent / source).exists(), source
    bases = [rest.split()[0] for kind, rest in instructions() if kind == "FROM"]
    assert all(re.search(r":\d", base) for base in bases), "a base image without a version is another one tomorrow"


def test_the_image_asks_for_extras_that_exist():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extras,) = [rest.partition("=")[2] for kind, rest in instructions() if rest.startswith("EXTRAS=")]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_the_image_serves_without_rights_and_only_with_a_key(monkeypatch, tmp_path):
    assert last("USER") == "10001:10001"
    assert json.loads(last("ENTRYPOINT")) == ["icrl"]
    served = settings(json.loads(last("CMD")), monkeypatch, tmp_path)
    assert (served.host, str(served.port), served.insecure) == ("0.0.0.0", last("EXPOSE"), False)
    assert f"127.0.0.1:{served.port}/ready" in last("HEALTHCHECK")
    assert last("STOPSIGNAL") == "SIGTERM"


def test_the_composition_is_locked_up(compose):
    for service in compose["services"].values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert {"interval", "timeout", "start_period", "retries", "test"} == set(service["healthcheck"])
        assert set(service["networks"]) <= set(compose["networks"])
        for volume in service["volumes"]:
            assert volume.partition(":")[0] in compose["volumes"]
    icrl, sglang = compose["services"]["icrl"], compose["services"]["sglang"]
    assert icrl["read_only"] is True
    assert icrl["user"] == last("USER")
    assert icrl["env_file"] == "icrl.env"
    assert all(port.startswith("127.0.0.1:") for port in icrl["ports"])
    assert "ports" not in sglang
    assert "environment" not in icrl, "secrets come from the file"
    assert (DEPLOY / icrl["build"]["context"] / icrl["build"]["dockerfile"]).is_file()


def test_the_composition_starts_what_the_command_line_knows(compose, monkeypatch, tmp_path):
    icrl, sglang = compose["services"]["icrl"], compose["services"]["sglang"]
    alone = settings(composition("compose.yaml")["services"]["icrl"]["command"], monkeypatch, tmp_path)
    served = settings(icrl["command"], monkeypatch, tmp_path)
    assert served == replace(alone, model=served.model, tokenizer=served.tokenizer, name=served.name)
    assert served.model == f"http://sglang:{sglang['expose'][0]}"
    assert icrl["ports"] == [f"127.0.0.1:8000:{served.port}"]
    assert f":{served.port}/ready" in icrl["healthcheck"]["test"][-1]
    assert int(icrl["stop_grace_period"].removesuffix("s")) > served.grace_s + 10
    assert f"--port={sglang['expose'][0]}" in sglang["command"]
    assert f":{sglang['expose'][0]}/health" in sglang["healthcheck"]["test"][-1]


def test_the_unit_starts_reloads_and_drains(unit, monkeypatch, tmp_path):
    service = unit["Service"]
    program, *arguments = shlex.split(service["ExecStart"])
    assert program.endswith("/icrl")
    served = settings(arguments, monkeypatch, tmp_path)
    assert served.api_key_file == tmp_path / "keys"
    assert service["LoadCredential"].partition(":")[0] == "keys"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert (service["KillSignal"], service["KillMode"]) == ("SIGTERM", "mixed")
    assert int(service["TimeoutStopSec"]) > served.grace_s + 10


def test_the_unit_is_locked_up(unit):
    service = unit["Service"]
    for name in (
        *("DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices", "ProtectKernelModules"),
        *("ProtectKernelTunables", "ProtectControlGroups", "RestrictSUIDSGID", "LockPersonality"),
    ):
        assert service[name] == "yes", name
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert "AF_NETLINK" not in service["RestrictAddressFamilies"]


def test_no_secret_is_in_the_repository():
    ignored = (DEPLOY.parent / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "deploy/icrl.env" in ignored
    assert not any(re.search(r"API_KEY=\w{8}", path.read_text()) for path in DEPLOY.iterdir() if path.suffix != ".env")
