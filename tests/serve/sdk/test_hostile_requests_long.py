"""Ten thousand malformed requests, more than the tests of every day have time for."""

from __future__ import annotations

import pytest
from attacking import attack, residue
from listening import listening

pytestmark = pytest.mark.sdk

THOUSANDS = 10


@pytest.mark.timeout(600)
async def test_ten_thousand_hostile_requests():
    async with listening(store_entries=20) as server:
        await attack(server.port, 100, 1000)
        before = await residue()
        for seed in range(THOUSANDS):
            await attack(server.port, seed, 1000)
        after = await residue()
        assert (after.tasks, after.files) == (before.tasks, before.files)
        assert after.resident_bytes - before.resident_bytes < 64_000_000
        assert not server.server.service.running
        assert server.server.service.state == "ready"
