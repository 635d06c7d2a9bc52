from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import ConfigError, ToolUnavailable
from icrl.runtime.tools.corpus import Hit
from icrl.runtime.tools.retrievers.fusion import FusedRetriever, fuse


def hit(name: str, score: float = 0.0) -> Hit:
    return Hit(id=name, title=f"title {name}", text=f"text {name}", score=score)


class Fixed:
    def __init__(self, names: str, fingerprint: str | None = None) -> None:
        self.names = names
        self.fingerprint = fingerprint
        self.asked: list[int] = []
        self.closed = False

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.asked.append(k)
        if not self.names:
            raise ToolUnavailable("gone")
        return [[hit(name, 9.0 - i) for i, name in enumerate(self.names[:k])] for _ in queries]

    async def aclose(self) -> None:
        self.closed = True


RANKINGS = st.lists(st.permutations("abcdef").map(lambda names: [hit(name) for name in names[:4]]), max_size=4)


@given(RANKINGS, st.integers(1, 7))
def test_scores_are_those_of_the_formula(rankings, k):
    scores: dict[str, float] = {}
    for ranking in rankings:
        for i, one in enumerate(ranking):
            scores[one.id] = scores.get(one.id, 0.0) + 1 / (61 + i)
    found = fuse(rankings, k)
    assert {one.id: one.score for one in found}.items() <= scores.items()
    assert [one.score for one in found] == sorted(scores.values(), reverse=True)[:k]


async def test_documents_that_several_found_come_first():
    first, second = Fixed("abc"), Fixed("dbe")
    fused = FusedRetriever([first, second], depth=5)
    found = await fused.search(["x", "y"], 3)
    assert [one.id for one in found[0]] == ["b", "a", "d"]
    assert found[0] == found[1]
    assert found[0][0] == Hit(id="b", title="title b", text="text b", score=2 / 62)
    await fused.search(["x"], 9)
    assert first.asked == second.asked == [5, 9]
    await fused.aclose()
    assert first.closed
    assert second.closed


async def test_one_that_fails_fails_all():
    with pytest.raises(ToolUnavailable, match="gone"):
        await FusedRetriever([Fixed("abc"), Fixed("")]).search(["x"], 1)


def test_the_fingerprint_is_that_of_all():
    one, two, nameless = Fixed("a", "1"), Fixed("a", "2"), Fixed("a")
    assert FusedRetriever([one, two]).fingerprint == FusedRetriever([one, two]).fingerprint
    assert FusedRetriever([one, two]).fingerprint != FusedRetriever([two, one]).fingerprint
    assert FusedRetriever([one, two]).fingerprint != FusedRetriever([one, two], depth=7).fingerprint
    assert FusedRetriever([one, nameless]).fingerprint is None


async def test_settings_are_checked():
    with pytest.raises(ConfigError, match="retrievers: there must be one"):
        FusedRetriever([])
    with pytest.raises(ConfigError, match="depth: must be >= 1"):
        FusedRetriever([Fixed("a")], depth=0)
    with pytest.raises(ConfigError, match="k: must be >= 1"):
        await FusedRetriever([Fixed("a")]).search(["x"], 0)
