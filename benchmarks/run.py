"""Benchmarks: `python benchmarks/run.py` lists the cases, `python benchmarks/run.py CASE --help` explains one."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

CASES = {
    "learning": "the paper's argument in miniature: curriculum against zero-shot, few-shot and aggressive schedules",
    "training": "training with rollouts from the in-process engine, from SGLang, and from SGLang while updating",
    "sync": "how long an SGLang server is paused for new weights, by transport",
    "updates": "what requests under way at a weight update sample, by pause mode, and what a mode costs",
    "overhead": "client CPU per turn with an instant scripted engine",
    "rollouts": "makespan against the ideal, CPU, memory, faults, prefix caches and stopped groups of many rollouts",
    "engine": "decode steps, prefix reuse and rollouts of the in-process engine",
    "tools": "the sandbox by profile and layer, search engines on one corpus, the tool runtime per call",
    "serve": "requests, first tokens, CPU per event and memory per stream of the server",
    "footprint": "import time, --help time, install size, style figures",
}


def main() -> int:
    name, *rest = sys.argv[1:] or [""]
    if name in CASES:
        import_module(name).main(rest)
        return 0
    print("usage: python benchmarks/run.py CASE [OPTIONS]\n")
    for case, what in CASES.items():
        print(f"  {case:<10} {what}")
    if name and name not in ("-h", "--help"):
        print(f"\nerror: {name!r} is not a case", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
