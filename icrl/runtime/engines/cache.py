"""Who owns which slot: running requests, parked sessions, shared prefixes; least recently used ones make room."""

from __future__ import annotations

from collections import OrderedDict

from icrl.runtime.engines.request import Parked, Prefix, Request
from icrl.runtime.engines.slots import ALIGNMENT, SlotStore

__all__ = ["KeyValueCache"]

MIN_SLOTS = 4
"""Matrix products with fewer rows round differently on CPUs, so no range of slots is narrower."""


class KeyValueCache:
    """Slots and prefixes within a bound on tokens.

    Args:
        store: The tensors.
        max_tokens: Slots times capacity plus prefix tokens never exceed this.
        max_slots: Parked sessions make room instead of more slots than this.
    """

    def __init__(self, store: SlotStore, *, max_tokens: int, max_slots: int) -> None:
        self.store = store
        self.max_tokens = max_tokens
        self.max_slots = max_slots
        self.owners: list[Request | Parked | None] = []
        self.parked: OrderedDict[str, Parked] = OrderedDict()
        self.prefixes: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()

    def find_prefix(self, ids: tuple[int, ...]) -> Prefix | None:
        """Look a prefix up; it may still be in the making."""
        prefix = self.prefixes.get(ids)
        if prefix is not None:
            self.prefixes.move_to_end(ids)
        return prefix

    def add_prefix(self, prefix: Prefix) -> None:
        """Announce a prefix that is going to be computed."""
        self.prefixes[prefix.ids] = prefix

    def remove_prefix(self, prefix: Prefix) -> None:
        """Take an announcement back."""
        self.prefixes.pop(prefix.ids, None)

    def adopt(self, request: Request) -> bool:
        """Give a request the slot that its session left, as far as the tokens agree."""
        parked = self.parked.pop(request.session, None) if request.session is not None else None
        if parked is None:
            return False
        common = _common(parked.ids, request.ids)
        if common <= (len(parked.prefix.ids) if parked.prefix else 0):
            self._drop(parked)
            return False
        request.slot, request.prefix = parked.slot, parked.prefix
        # The last token is always run: its logits are wanted.
        request.computed = min(common, len(request.ids) - 1)
        self.owners[parked.slot] = request
        return True

    def take(self, request: Request, length: int) -> bool:
        """Give a request a free slot that holds `length` tokens; evict and grow as needed."""
        if not self.reserve(length, slots=self._running() + 1):
            return False
        if None not in self.owners:
            # Sessions are worth memory as long as there is some.
            if len(self.owners) < min(self.max_slots, self._allowed(self.store.capacity)):
                self.reserve(length, slots=len(self.owners) + 1)
            else:
                self._evict_parked()
        request.slot = self.owners.index(None)
        self.owners[request.slot] = request
        return True

    def reserve(self, length: int, slots: int = 0) -> bool:
        """Make every slot hold `length` tokens and let `slots` of them exist; `False` if the bound forbids it."""
        wanted = max(slots, self._running(), MIN_SLOTS)
        capacity = max(self.store.capacity, -(-length // ALIGNMENT) * ALIGNMENT)
        have = len(self.owners)
        if capacity == self.store.capacity and wanted <= have <= self._allowed(capacity):
            return True
        while self._allowed(capacity) < wanted:
            if not self._evict_prefix():
                return False
        # Twice as much as before where that costs no slot, so that growing is rare.
        if capacity > self.store.capacity and self._allowed(2 * self.store.capacity) >= max(wanted, have):
            capacity = max(capacity, 2 * self.store.capacity)
        count = have if wanted <= have else max(wanted, 2 * have)
        self._repack(min(count, self._allowed(capacity)), capacity)
        return True

    def _allowed(self, capacity: int) -> int:
        free = self.max_tokens - sum(len(prefix.ids) for prefix in self.prefixes.values())
        return free // capacity if capacity else 0

    def _repack(self, slots: int, capacity: int) -> None:
        while sum(owner is not None for owner in self.owners) > slots:
            self._evict_parked()
        order = [i for i, owner in enumerate(self.owners) if owner is not None]
        self.store.repack(order, slots, capacity, self._longest())
        self.owners = [self.owners[i] for i in order]
        for i, owner in enumerate(self.owners):
            if owner is not None:
                owner.slot = i
        self.owners.extend([None] * (slots - len(order)))

    def _longest(self) -> int:
        return max((owner.own_tokens for owner in self.owners if owner is not None), default=0)

    def _running(self) -> int:
        return len(self.owners) - self.owners.count(None) - len(self.parked)

    def _evict_parked(self) -> None:
        _, parked = self.parked.popitem(last=False)
        self._drop(parked)

    def _evict_prefix(self) -> bool:
        """Drop the least recently used prefix that nothing refers to; parked sessions give theirs up first."""
        for ids, prefix in self.prefixes.items():
            if not prefix.users:
                del self.prefixes[ids]
                return True
        if self.parked:
            self._evict_parked()
            return True
        return False

    def _drop(self, holder: Parked | Request) -> None:
        self.owners[holder.slot] = None
        self.leave_prefix(holder)

    def join_prefix(self, request: Request, prefix: Prefix) -> None:
        """Refer to a prefix."""
        prefix.users += 1
        request.prefix = prefix

    def leave_prefix(self, holder: Parked | Request) -> None:
        """Stop referring to a prefix."""
        if holder.prefix is not None:
            holder.prefix.users -= 1
            holder.prefix = None

    def release(self, request: Request) -> None:
        """Take a request's slot and prefix away."""
        if request.slot >= 0:
            self.owners[request.slot] = None
            request.slot = -1
        self.leave_prefix(request)

    def park(self, request: Request) -> None:
        """Keep a finished request's keys and values for its session, or free them where it has none."""
        if request.session is None or not request.computed:
            self.release(request)
            return
        older = self.parked.pop(request.session, None)
        if older is not None:
            self._drop(older)
        parked = Parked(ids=request.ids[: request.computed], slot=request.slot, prefix=request.prefix)
        self.owners[request.slot] = self.parked[request.session] = parked
        request.slot, request.prefix = -1, None

    def forget(self) -> None:
        """Drop everything that belongs to the weights of before: parked sessions, and prefixes for new requests."""
        while self.parked:
            self._evict_parked()
        self.prefixes.clear()

    def compact(self, requests: list[Request]) -> None:
        """Move requests to the lowest slots, so that attention runs over a short range of them."""
        inside = {request.slot for request in requests if request.slot < len(requests)}
        low = [slot for slot in range(len(requests)) if slot not in inside]
        high = [request.slot for request in requests if request.slot >= len(requests)]
        self.store.swap(low, high, self._longest())
        for a, b in zip(low, high, strict=True):
            self.owners[a], self.owners[b] = self.owners[b], self.owners[a]
            for slot in (a, b):
                owner = self.owners[slot]
                if owner is not None:
                    owner.slot = slot


def _common(first: list[int], second: list[int]) -> int:
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(i for i in range(length) if first[i] != second[i])
