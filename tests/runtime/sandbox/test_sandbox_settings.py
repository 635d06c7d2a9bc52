"""What the sandbox says before it runs anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from icrl.errors import ConfigError, SandboxError
from icrl.runtime.sandbox import sandbox
from icrl.runtime.sandbox.profiles import choose
from icrl.runtime.sandbox.roots import module_paths, read_roots
from icrl.runtime.sandbox.sandbox import Sandbox


def test_settings_are_checked():
    for wrong, told in [
        ({"profile": "sic"}, "profile: must be one of auto, light, sci, not 'sic'. Did you mean 'sci'"),
        ({"policy": "none"}, "policy: must be one of restricted, plain"),
        ({"max_concurrency": 0}, "max_concurrency: must be >= 1, not 0"),
        ({"max_queue": -1}, "max_queue: must be >= 0"),
        ({"session_idle_s": 0.0}, "session_idle_s: must be > 0"),
        ({"forks_per_zygote": 0}, "forks_per_zygote: must be >= 1"),
        ({"layers": ("seccom",)}, "layers: must be one of"),
    ]:
        with pytest.raises(ConfigError, match=told):
            Sandbox(**wrong)


def test_it_says_so_where_it_cannot_run(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="needs Linux, not darwin"):
        Sandbox()


def test_the_profile_follows_what_is_mentioned():
    assert choose("from scipy.optimize import minimize") == "sci"
    assert choose("__import__('sympy')") == "sci"
    assert choose("numpyish = 1") == "light"


def test_the_zygote_imports_nothing_of_the_server():
    code = (
        "import sys, icrl.runtime.sandbox.zygote\n"
        "print([m for m in ('asyncio', 'aiohttp', 'msgspec', 'numpy', 'ssl', 'tyro', 'logging') if m in sys.modules])"
    )
    path = str(Path(sandbox.__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.append({path!r})\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[]\n", done.stderr


def test_children_read_packages_and_nothing_of_the_project(monkeypatch):
    project = "/srv/project"
    packages = f"{project}/venv/lib/python3.11/site-packages"
    roots = read_roots(["", project, f"{project}/src", packages, "/home/user/.local/lib/python3/dist-packages"])
    assert packages in roots
    assert not {"", project, f"{project}/src"} & set(roots)
    assert str(Path(sandbox.__file__).parents[3]) in module_paths()
    assert all(
        Path(root).name.startswith(("python3", "lib-dynload", "site-packages", "dist-packages")) for root in roots
    )


def test_another_policy_is_another_fingerprint():
    fingerprints = {Sandbox(profile=p, policy=q).fingerprint for p in ("light", "sci") for q in ("plain", "restricted")}
    assert len(fingerprints) == 4
