"""A sliding log of what a key has used within the last minute. Times are whole microseconds of one clock, whichever it is."""

from collections import deque
from typing import NamedTuple

MINUTE = 60_000_000
BUCKET = MINUTE // 120
"""Costs that come within this time share a bucket, which counts in full until the last of them is a minute old. So a log stays short,
however many costs there are, and errs on the strict side, by half a second at most."""


class Change(NamedTuple):
    """What is to be done to a window, in this order: settle an earlier grant, then grant anew."""

    limit: int
    """Of any sixty seconds."""
    least: int = 0
    """Granted or refused."""
    most: int = 0
    """Granted as far as the limit allows, at least `least`."""
    bucket: int = 0
    """The grant that `unused` belongs to."""
    unused: int = 0
    """Given back, unless the bucket has left the window."""
    debt: int = 0
    """Used without a grant. It takes room as room becomes free, before anything is granted, however many minutes it fills."""


class Outcome(NamedTuple):
    """How the window stands after a change."""

    granted: int
    """-1: `least` does not fit, and nothing was granted."""
    bucket: int
    """Names the grant when it is settled."""
    remaining: int
    wait: int
    """Until `least` fits if nothing else is used; 0 if it did."""
    reset: int
    """Until the whole limit is there again."""


class Window:
    """The log of one limit. `redis_counts.SCRIPT` does the same in Redis."""

    __slots__ = ("_debt", "_log", "_total")

    def __init__(self) -> None:
        self._log: deque[tuple[int, int, int]] = deque()
        """Buckets, oldest first: when the first of their costs came, when they leave the window, and the sum of their costs."""
        self._total = 0
        """Of the log; at least the limit while there is a debt."""
        self._debt = 0

    def is_empty(self, now: int) -> bool:
        return not self._debt and (not self._log or self._log[-1][1] <= now)

    def change(self, now: int, change: Change) -> Outcome:
        limit, least, most, bucket, unused, debt = change
        self._expire(now, limit)
        if unused:
            self._give_back(bucket, unused)
        self._debt += debt
        paid = min(self._debt, limit - self._total)
        if paid > 0:
            self._debt -= paid
            self._add(now, paid)
        remaining = max(0, limit - self._total)
        if least > remaining:
            return Outcome(-1, 0, remaining, self._wait(now, limit, least), self._wait(now, limit, limit))
        granted = min(most, remaining)
        opened = self._add(now, granted) if granted else 0
        return Outcome(granted, opened, remaining - granted, 0, self._wait(now, limit, limit))

    def _expire(self, now: int, limit: int) -> None:
        """Drop the buckets that have left the window; a debt takes their room at once."""
        log = self._log
        if log and log[-1][1] <= now and self._debt >= limit == self._total:  # whole minutes of nothing but debt: each repeats the log
            turns = min(self._debt // limit, (now - log[-1][1]) // MINUTE + 1)
            self._debt -= turns * limit
            self._log = log = deque((opened + turns * MINUTE, until + turns * MINUTE, cost) for opened, until, cost in log)
        while log and log[0][1] <= now:
            opened, until, cost = log.popleft()
            self._total -= cost
            paid = min(self._debt, limit - self._total)
            if paid > 0:
                self._debt -= paid
                self._total += paid
                log.append((opened + MINUTE, until + MINUTE, paid))

    def _give_back(self, bucket: int, unused: int) -> None:
        for index in reversed(range(len(self._log))):
            opened, until, cost = self._log[index]
            if opened == bucket:
                given = min(unused, cost)
                self._log[index] = (opened, until, cost - given)
                self._total -= given
                return

    def _add(self, now: int, cost: int) -> int:
        """Returns the name of the bucket."""
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
        """Until `cost` fits, of which the debt goes first."""
        missing = cost - limit + self._total + self._debt
        if missing <= 0:
            return 0
        turns = max(0, -((self._total - missing) // limit))  # minutes of nothing but debt
        spared = self._total - (missing - turns * limit)  # of the log: its newest part may stay
        for _, until, cost_then in reversed(self._log):
            spared -= cost_then
            if spared < 0:
                return turns * MINUTE + until - now
        return (turns + 1) * MINUTE  # of a cost beyond the limit
