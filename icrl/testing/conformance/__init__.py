"""The laws that every engine keeps, as checks that anybody can run against his own.

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_my_engine_conforms(check):
        await check(open_my_engine)

A check raises `AssertionError` where a law is broken, and `unittest.SkipTest`, which pytest and unittest report as
skipped, where it does not apply.
"""

from __future__ import annotations

from icrl.testing.conformance import interruptions, stops, tokens, updates
from icrl.testing.conformance.subject import Check, OpenSubject, Subject

__all__ = ["CHECKS", "Check", "OpenSubject", "Subject"]

CHECKS: tuple[Check, ...] = (
    stops.stop_strings_inside_tokens,
    stops.stop_strings_over_tokens,
    stops.end_tokens_are_kept,
    stops.budgets_are_kept,
    stops.bad_requests_are_refused,
    tokens.deltas_are_the_tokens,
    tokens.resumed_is_uninterrupted,
    tokens.company_changes_nothing,
    tokens.logprobs_are_those_of_a_full_pass,
    tokens.prefixes_are_reused,
    interruptions.aborting_returns_what_there_is,
    interruptions.cancelling_leaves_nothing,
    interruptions.names_are_unique,
    interruptions.closing_returns_what_there_is,
    updates.updates_split_the_versions,
    updates.pausing_can_abort,
    updates.updates_drop_what_is_cached,
)
"""Every check, each of which opens an engine of its own."""
