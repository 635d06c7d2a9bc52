"""Search: what an index costs to build and to ask, for our BM25 and others, on one made-up corpus."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from icrl.config import load

WORDS, ZIPF, COMMON = 200_000, 1.07, 30
K = 10
CHECKED = 50
Search = Callable[[str], list[tuple[int, float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchBench:
    """Index time, memory, disk and query cost of search engines."""

    documents: tuple[int, ...] = (10_000, 100_000)
    """Sizes of the corpus; 1,000,000 takes minutes."""
    engines: tuple[str, ...] = ("icrl", "tantivy", "rank_bm25", "fts5")
    """Engines; rank_bm25 and fts5 are left out beyond 100,000 documents."""
    queries: int = 1000
    """Queries of 3 to 8 words."""
    seed: int = 0
    """Of the corpus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one engine needed."""

    index_s: float
    index_cpu_s: float
    index_peak_mb: float
    disk_mb: float
    open_s: float
    search_peak_mb: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    per_s: float
    queries: int
    overlap: float
    worst: float | None


def main(argv: Sequence[str]) -> None:
    options = load(SearchBench, argv, prog="benchmarks/run.py tools", description=str(SearchBench.__doc__))
    for documents in options.documents:
        Console(width=160).print(show(documents, measure(documents=documents, options=options)))


def measure(*, documents: int, options: SearchBench) -> dict[str, Figures]:
    """Measure every engine on a corpus of so many documents, each in processes of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens, lengths = generate(folder, documents, options)
        reference = score_by_hand(folder, tokens, lengths)
        del tokens
        found = {}
        for engine in options.engines:
            if documents > 100_000 and engine in ("rank_bm25", "fts5"):
                continue
            for step in ("index", "search"):
                command = [sys.executable, __file__, engine, step, str(folder)]
                subprocess.run(command, check=True)
            figures = json.loads((folder / f"{engine}.json").read_text())
            overlap, worst = compare(figures.pop("found"), reference, exact=engine == "icrl")
            found[engine] = Figures(**figures, overlap=overlap, worst=worst)
        return found


def show(documents: int, found: dict[str, Figures]) -> Table:
    table = Table(title=f"{documents:,} documents of 100 words, {K} results a query, one thread")
    columns = (
        "index s (CPU)",
        "peak MB",
        "disk MB",
        "open s",
        "search MB",
        "p50 / p99 ms",
        "CPU ms a query",
        "queries/s",
    )
    for column in ("engine", *columns, "overlap with the reference", "largest error"):
        table.add_column(column, justify="right")
    for engine, f in found.items():
        cells = (
            f"{f.index_s:.1f} ({f.index_cpu_s:.1f})", f"{f.index_peak_mb:,.0f}", f"{f.disk_mb:,.1f}", f"{f.open_s:.2f}",
            f"{f.search_peak_mb:,.0f}", f"{f.p50_ms:.3f} / {f.p99_ms:.2f}", f"{f.cpu_ms:.3f}", f"{f.per_s:,.0f}",
            f"{f.overlap:.3f}", "" if f.worst is None else f"{f.worst:.1e}",
        )  # fmt: skip
        table.add_row(engine, *cells)
    return table


# ---- the corpus


def generate(folder: Path, documents: int, options: SearchBench) -> tuple[np.ndarray, np.ndarray]:
    """Write a corpus whose word frequencies follow Zipf's law, and queries made of words of its documents."""
    random = np.random.default_rng(options.seed)
    shares = np.cumsum(1 / np.arange(1, WORDS + 1) ** ZIPF)
    lengths = random.integers(20, 181, size=documents)
    tokens = np.searchsorted(shares, random.random(int(lengths.sum())) * shares[-1]).astype(np.int32)
    ends = np.cumsum(lengths)
    names = np.array([f"w{i}" for i in range(WORDS)], dtype=object)
    with (folder / "corpus.jsonl").open("w") as file:
        for start, end in zip(ends - lengths, ends, strict=True):
            file.write(f'{{"text": "{" ".join(names[tokens[start:end]])}"}}\n')
    queries = []
    while len(queries) < options.queries:
        document = random.integers(documents)
        words = tokens[ends[document] - lengths[document] : ends[document]]
        rare = np.unique(words[words >= COMMON])
        size = int(random.integers(3, 9))
        if len(rare) >= size:
            queries.append([int(word) for word in random.choice(rare, size, replace=False)])
    (folder / "queries.json").write_text(json.dumps(queries))
    return tokens, lengths


def score_by_hand(folder: Path, tokens: np.ndarray, lengths: np.ndarray, k1: float = 1.2, b: float = 0.75) -> list[Any]:
    """Score all documents by Lucene's formula in double precision, for the first queries."""
    documents = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    norms = k1 * (1 - b + b * lengths / lengths.mean())
    scored = []
    for query in json.loads((folder / "queries.json").read_text())[:CHECKED]:
        scores = np.zeros(len(lengths))
        for word in query:
            counts = np.bincount(documents[tokens == word], minlength=len(lengths))
            holders = np.count_nonzero(counts)
            scores += np.log1p((len(lengths) - holders + 0.5) / (holders + 0.5)) * counts / (counts + norms)
        best = np.argsort(-scores, kind="stable")[:K]
        scored.append((scores.astype(np.float32), set(best.tolist())))
    return scored


def compare(found: list[list[list[float]]], reference: list[Any], *, exact: bool) -> tuple[float, float | None]:
    """Return the mean overlap of the first results, and the largest difference of a score."""
    shared, errors = [], [0.0]
    for hits, (scores, best) in zip(found, reference, strict=False):
        shared.append(len({int(document) for document, _ in hits} & best) / len(best))
        errors += [abs(score - float(scores[int(document)])) for document, score in hits]
    return float(np.mean(shared)), max(errors) if exact else None


# ---- what runs in a process of its own


def index_icrl(folder: Path) -> None:
    from icrl.runtime.tools.index import build_index

    build_index(folder / "corpus.jsonl", folder / "icrl", show_progress=False)


def open_icrl(folder: Path) -> Search:
    from icrl.runtime.tools.index import Bm25Index

    index = Bm25Index.open(folder / "icrl")
    return lambda query: [(int(hit.id), hit.score) for hit in index.search([query], K)[0]]


def index_tantivy(folder: Path) -> None:
    from icrl.runtime.tools.retrievers.tantivy import build_tantivy_index

    build_tantivy_index(folder / "corpus.jsonl", folder / "tantivy", show_progress=False)


def open_tantivy(folder: Path) -> Search:
    from icrl.runtime.tools.retrievers.tantivy import TantivyIndex

    index = TantivyIndex.open(folder / "tantivy")
    return lambda query: [(int(hit.id), hit.score) for hit in index.search([query], K)[0]]


def read_texts(folder: Path) -> list[str]:
    with (folder / "corpus.jsonl").open() as file:
        return [json.loads(line)["text"] for line in file]


def index_rank_bm25(folder: Path) -> None:
    import pickle

    from rank_bm25 import BM25Okapi

    index = BM25Okapi([text.split() for text in read_texts(folder)], k1=1.2, b=0.75)
    (folder / "rank_bm25").write_bytes(pickle.dumps(index))


def open_rank_bm25(folder: Path) -> Search:
    import pickle

    index = pickle.loads((folder / "rank_bm25").read_bytes())

    def search(query: str) -> list[tuple[int, float]]:
        scores = index.get_scores(query.split())
        return [(int(i), float(scores[i])) for i in np.argsort(-scores, kind="stable")[:K]]

    return search


def index_fts5(folder: Path) -> None:
    with sqlite3.connect(folder / "fts5") as database:
        database.execute("create virtual table corpus using fts5(text, content='', tokenize='ascii')")
        rows = ((i + 1, text) for i, text in enumerate(read_texts(folder)))
        database.executemany("insert into corpus(rowid, text) values (?, ?)", rows)
        database.execute("insert into corpus(corpus) values ('optimize')")


def open_fts5(folder: Path) -> Search:
    database = sqlite3.connect(folder / "fts5")
    statement = f"select rowid, bm25(corpus) from corpus where corpus match ? order by bm25(corpus) limit {K}"
    return lambda query: [(row - 1, -score) for row, score in database.execute(statement, [" OR ".join(query.split())])]


def run_step(engine: str, step: str, folder: Path) -> None:
    path = folder / f"{engine}.json"
    if step == "index":
        started, cpu = time.perf_counter(), time.process_time()
        globals()[f"index_{engine}"](folder)
        figures = {"index_s": time.perf_counter() - started, "index_cpu_s": time.process_time() - cpu}
        built = folder / engine
        files = [built] if built.is_file() else [file for file in built.rglob("*") if file.name != "documents.jsonl"]
        disk = sum(file.stat().st_size for file in files if file.is_file())
        figures |= {"index_peak_mb": peak_mb(), "disk_mb": disk / 2**20}
    else:
        figures = json.loads(path.read_text()) | ask(engine, folder)
    path.write_text(json.dumps(figures))


def ask(engine: str, folder: Path) -> dict[str, Any]:
    queries = [" ".join(f"w{word}" for word in query) for query in json.loads((folder / "queries.json").read_text())]
    started = time.perf_counter()
    search = globals()[f"open_{engine}"](folder)
    opened = time.perf_counter() - started
    found = [search(query) for query in queries[:CHECKED]]
    times, cpu = [], time.process_time()
    began = time.perf_counter()
    for query in queries:
        started = time.perf_counter()
        search(query)
        times.append(time.perf_counter() - started)
        # What is slow is measured on fewer queries.
        if time.perf_counter() - began > 60:
            break
    cpu = time.process_time() - cpu
    p50, p99 = np.percentile(times, [50, 99]) * 1000
    return {
        "open_s": opened, "search_peak_mb": peak_mb(), "p50_ms": p50, "p99_ms": p99, "cpu_ms": cpu / len(times) * 1000,
        "per_s": len(times) / sum(times), "queries": len(times), "found": found,
    }  # fmt: skip


def peak_mb() -> float:
    """Return the largest resident size of this process; `getrusage` would count the parent's at the fork as well."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    run_step(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
