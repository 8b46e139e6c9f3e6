"""A sliding log of the usage of one limit within the last minute.

Times are whole microseconds of one clock; the caller chooses the clock. A cost is one request or a number of tokens.
"""

from collections import deque
from typing import NamedTuple

MINUTE = 60_000_000
BUCKET = MINUTE // 120
"""Costs within this time share a bucket, which counts in full until its last cost is a minute old. So a log stays short with any number of
costs. Its error is half a second at most, and always on the strict side."""


class Change(NamedTuple):
    """A change of a window: an earlier grant is settled, then a new one is made."""

    limit: int
    """The upper bound of the costs in any sixty seconds."""
    min_grant: int = 0
    """The cost that is needed. If it does not fit, nothing is granted."""
    max_grant: int = 0
    """The cost that is wanted. It is granted as far as the limit allows, but never less than `min_grant`."""
    bucket: int = 0
    """The bucket of the earlier grant that `unused` belongs to."""
    unused: int = 0
    """The part of an earlier grant that is returned, unless the bucket has left the window."""
    debt: int = 0
    """A cost that arose without a grant. It takes all room that becomes free before anything is granted, in as many minutes as it needs."""


class Outcome(NamedTuple):
    """The state of the window after a change."""

    granted: int
    """-1: `min_grant` does not fit, and nothing was granted."""
    bucket: int
    """Identifies the grant, for a later `Change`."""
    remaining: int
    """The cost that still fits now."""
    wait: int
    """Microseconds until `min_grant` fits if nothing else is used; 0 if it was granted."""
    reset: int
    """Microseconds until the whole limit is available again."""


class Window:
    """The log of one limit. `redis_counts.SCRIPT` does the same in Redis."""

    __slots__ = ("_debt", "_log", "_total")

    def __init__(self) -> None:
        self._log: deque[tuple[int, int, int]] = deque()
        """The buckets, oldest first: the time of the first cost, the time when the bucket leaves the window, and the sum of its costs."""
        self._total = 0
        """The sum of the log's costs. While there is a debt, it is at least the limit."""
        self._debt = 0

    def is_empty(self, now: int) -> bool:
        """Return whether nothing counts at the time `now`, so that the window can be dropped."""
        return not self._debt and (not self._log or self._log[-1][1] <= now)

    def change(self, now: int, change: Change) -> Outcome:
        """Apply a change at the time `now`, which never decreases."""
        limit, min_grant, max_grant, bucket, unused, debt = change
        self._expire(now, limit)
        if unused:
            self._return_unused(bucket, unused)
        self._debt += debt
        paid = min(self._debt, limit - self._total)
        if paid > 0:
            self._debt -= paid
            self._add(now, paid)
        remaining = max(0, limit - self._total)
        if min_grant > remaining:
            return Outcome(-1, 0, remaining, self._wait(now, limit, min_grant), self._wait(now, limit, limit))
        granted = min(max_grant, remaining)
        opened = self._add(now, granted) if granted else 0
        return Outcome(granted, opened, remaining - granted, 0, self._wait(now, limit, limit))

    def _expire(self, now: int, limit: int) -> None:
        """Drop the buckets that have left the window. A debt takes their room at once."""
        log = self._log
        if log and log[-1][1] <= now and self._debt >= limit == self._total:  # whole minutes of debt alone: each repeats the log
            minutes = min(self._debt // limit, (now - log[-1][1]) // MINUTE + 1)
            self._debt -= minutes * limit
            self._log = log = deque((opened + minutes * MINUTE, until + minutes * MINUTE, cost) for opened, until, cost in log)
        while log and log[0][1] <= now:
            opened, until, cost = log.popleft()
            self._total -= cost
            paid = min(self._debt, limit - self._total)
            if paid > 0:
                self._debt -= paid
                self._total += paid
                log.append((opened + MINUTE, until + MINUTE, paid))

    def _return_unused(self, bucket: int, unused: int) -> None:
        for index in reversed(range(len(self._log))):
            opened, until, cost = self._log[index]
            if opened == bucket:
                returned = min(unused, cost)
                self._log[index] = (opened, until, cost - returned)
                self._total -= returned
                return

    def _add(self, now: int, cost: int) -> int:
        """Add a cost to the newest bucket or to a new one. Return the time of the bucket's first cost, which identifies the bucket."""
        log = self._log
        if log and now - log[-1][0] < BUCKET:
            opened, until, before = log[-1]
            log[-1] = (opened, max(until, now + MINUTE), before + cost)
        else:
            opened = now
            log.append((now, now + MINUTE, cost))
        self._total += cost
        return opened

    def _wait(self, now: int, limit: int, cost: int) -> int:
        """Return the microseconds until `cost` fits. The debt is paid first."""
        missing = cost - limit + self._total + self._debt
        if missing <= 0:
            return 0
        minutes = max(0, -((self._total - missing) // limit))  # of debt alone
        spared = self._total - (missing - minutes * limit)  # the cost that may stay in the log: its newest part
        for _, until, cost_then in reversed(self._log):
            spared -= cost_then
            if spared < 0:
                return minutes * MINUTE + until - now
        return (minutes + 1) * MINUTE  # for a cost beyond the limit
