"""What a program costs in the sandbox, by profile, policy and layer; and a thousand at once."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from icrl.runtime.sandbox.lock import LAYERS
from icrl.runtime.sandbox.sandbox import PolicyName, Sandbox

CALLS, AT_ONCE = 200, 1000
Profile = Literal["light", "sci"]
PROFILES: tuple[Profile, ...] = ("light", "sci")
POLICIES: tuple[PolicyName, ...] = ("plain", "restricted")
STAGES = {f"+ {LAYERS[n - 1]}" if n else "bare fork": LAYERS[:n] for n in range(len(LAYERS))} | {"all": LAYERS}

# Small programs as models write them.
QUICK = (
    "print(sum(i * i for i in range(1000)))",
    "from math import comb\ncomb(20, 10)",
    "from fractions import Fraction\nprint(sum(Fraction(1, k) for k in range(1, 20)))",
    "n = 97\nall(n % d for d in range(2, int(n ** 0.5) + 1))",
    "from itertools import permutations\nlen({''.join(p) for p in permutations('banana')})",
    "from collections import Counter\nCounter('mississippi').most_common(2)",
    "def f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)\nprint(f(12))",
)
SYMPY = (
    "from sympy import symbols, solve\nx = symbols('x')\nprint(solve(x**2 - 5*x + 6, x))",
    "from sympy import symbols, integrate, exp\nx = symbols('x')\nprint(integrate(x**2 * exp(-x), x))",
    "import sympy as sp\nx = sp.Symbol('x')\nprint(sp.factor(x**6 - 1), sp.simplify(sp.sin(x)**2 + sp.cos(x)**2))",
)


def main(argv: Sequence[str]) -> None:
    """Print tables, or JSON with `--json`."""
    found = measure()
    if "--json" in argv:
        print(json.dumps(found, indent=1))
        return
    for table in tables(found):
        Console().print(table)


def measure() -> dict[str, Any]:
    """Return latency in ms, CPU ms per call by process, and what a thousand calls at once take."""
    logging.getLogger("icrl.sandbox").setLevel(logging.ERROR)  # that layers are missing is meant
    rows = [
        asyncio.run(_sequential(profile, policy, stage, QUICK))
        for profile in PROFILES
        for policy in POLICIES
        for stage in STAGES
        if policy == "plain" or stage in ("bare fork", "all")
    ]
    rows += [asyncio.run(_sequential("sci", policy, "all", SYMPY)) for policy in POLICIES]
    sessions = [asyncio.run(_session(profile)) for profile in PROFILES]
    return {"calls": rows, "sessions": sessions, "at_once": [asyncio.run(_at_once(profile)) for profile in PROFILES]}


def tables(found: dict[str, Any]) -> list[Table]:
    """Show what `measure` returned."""
    calls = Table(title=f"one program at a time, {CALLS} of each kind")
    for column in ("profile", "policy", "layers", "programs"):
        calls.add_column(column)
    for column in ("p50 ms", "p99 ms", "CPU ms", "server", "zygote", "child", "calls a CPU second"):
        calls.add_column(column, justify="right")
    for row in found["calls"]:
        parts = (f"{row[name]:.2f}" for name in ("p50_ms", "p99_ms", "cpu_ms", "server_ms", "zygote_ms", "child_ms"))
        names = (row["profile"], row["policy"], row["layers"], row["programs"])
        calls.add_row(*names, *parts, f"{1000 / row['cpu_ms']:.0f}")
    sessions = Table(title=f"a session, {CALLS} programs one after another")
    for column in ("profile", "p50 ms", "p99 ms", "server ms"):
        sessions.add_column(column, justify="right")
    for row in found["sessions"]:
        sessions.add_row(row["profile"], *(f"{row[name]:.2f}" for name in ("p50_ms", "p99_ms", "server_ms")))
    at_once = Table(title=f"{AT_ONCE} programs at once, restricted, all layers")
    for column in ("profile", "seconds", "calls/s", "failed", "peak MiB of server", "peak MiB of all processes"):
        at_once.add_column(column, justify="right")
    for row in found["at_once"]:
        figures = (f"{row['wall_s']:.1f}", f"{AT_ONCE / row['wall_s']:.0f}", f"{row['failed']}")
        at_once.add_row(row["profile"], *figures, f"{row['server_mb']:.0f}", f"{row['all_mb']:.0f}")
    return [calls, sessions, at_once]


async def _sequential(profile: Profile, policy: PolicyName, stage: str, programs: Sequence[str]) -> dict[str, Any]:
    layers = STAGES[stage]
    async with Sandbox(profile, policy, layers=layers, allow_unsandboxed=stage != "all") as box:
        for program in programs:
            await box.run(program)
        zygote = _zygote(box)
        walls, child_s = [], 0.0
        server_s, zygote_s = time.process_time(), _cpu_s(zygote)
        for n in range(CALLS):
            began = time.perf_counter()
            result = await box.run(programs[n % len(programs)])
            walls.append((time.perf_counter() - began) * 1e3)
            child_s += result.cpu_s
            if result.status != "ok":
                raise SystemExit(f"{programs[n % len(programs)]!r} failed: {result.error}")
        server_s, zygote_s = time.process_time() - server_s, _cpu_s(zygote) - zygote_s
    parts = {"server_ms": server_s, "zygote_ms": zygote_s, "child_ms": child_s}
    kind = "quick" if programs is QUICK else "sympy"
    names = {"profile": profile, "policy": policy, "layers": stage, "programs": kind}
    each = {name: value / CALLS * 1e3 for name, value in parts.items()}
    return {**names, **_latency(walls), "cpu_ms": sum(each.values()), **each}


async def _session(profile: Profile) -> dict[str, Any]:
    async with Sandbox(profile) as box, box.session() as repl:
        await repl.run("1")
        walls = []
        server_s = time.process_time()
        for n in range(CALLS):
            began = time.perf_counter()
            await repl.run(QUICK[n % len(QUICK)])
            walls.append((time.perf_counter() - began) * 1e3)
        server_s = time.process_time() - server_s
    return {"profile": profile, **_latency(walls), "server_ms": server_s / CALLS * 1e3}


async def _at_once(profile: Profile) -> dict[str, Any]:
    async with Sandbox(profile) as box:
        await box.run("1")
        peak = {"server_mb": 0.0, "all_mb": 0.0}
        watcher = asyncio.create_task(_watch(_zygote(box), peak))
        began = time.perf_counter()
        calls = (box.run(QUICK[n % len(QUICK)], timeout_s=30.0) for n in range(AT_ONCE))
        results = await asyncio.gather(*calls)
        wall_s = time.perf_counter() - began
        watcher.cancel()
    return {"profile": profile, "wall_s": wall_s, "failed": sum(r.status != "ok" for r in results), **peak}


async def _watch(zygote: int, peak: dict[str, float]) -> None:
    """Note the most memory that this process, the zygote and its children held, shared pages counted once."""
    while True:
        server = _memory_mb(os.getpid(), "Pss")
        parents = {pid: _parent(pid) for pid in map(int, filter(str.isdigit, os.listdir("/proc")))}
        family = [zygote, *(pid for pid, parent in parents.items() if parent == zygote)]
        peak["server_mb"] = max(peak["server_mb"], server)
        peak["all_mb"] = max(peak["all_mb"], server + sum(_memory_mb(pid, "Pss") for pid in family))
        await asyncio.sleep(0.25)


def _latency(walls: list[float]) -> dict[str, float]:
    return {"p50_ms": statistics.median(walls), "p99_ms": statistics.quantiles(walls, n=100)[98]}


def _zygote(box: Sandbox) -> int:
    (pid,) = box.zygotes.values()
    return pid


def _cpu_s(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _memory_mb(pid: int, field: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
