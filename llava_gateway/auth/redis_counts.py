"""Windows in a Redis that several gateways share.

A change is one script that runs in Redis, by the clock of Redis. So simultaneous changes of several gateways cannot exceed a limit, and the
clocks of the gateways do not matter. A window's key expires when the window is empty. The reservations of a gateway that died leave the
window after their minute.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from llava_gateway.auth.sliding_window import BUCKET, MINUTE, Change, Outcome
from llava_gateway.errors import Unavailable
from llava_gateway.storage.redis_connection import RedisConnection

log = logging.getLogger(__name__)

TIMEOUT = 2.0
"""Seconds that one script may take, with the connection to Redis."""
RETRY_AFTER = 1.0
"""Seconds until a settlement that failed is tried once more."""

SCRIPT = """
-- The same algorithm as Window in sliding_window.py, which explains it.
-- KEYS: the keys of windows. ARGV: MINUTE, BUCKET, then the fields of one Change for each window.
-- A log is one flat array with three numbers for each bucket, which takes less than half the memory of an array of arrays.
local time = redis.call('TIME')
local now, MINUTE, BUCKET = time[1] * 1000000 + time[2], tonumber(ARGV[1]), tonumber(ARGV[2])

local function change(key, limit, min_grant, max_grant, bucket, unused, new_debt)
  local stored = redis.call('GET', key)
  local total, debt, log = 0, 0, {}
  if stored then total, debt, log = unpack(cmsgpack.unpack(stored)) end

  local function add(cost)
    local last = #log
    total = total + cost
    if last > 0 and now - log[last - 2] < BUCKET then
      log[last - 1], log[last] = math.max(log[last - 1], now + MINUTE), log[last] + cost
      return log[last - 2]
    end
    log[last + 1], log[last + 2], log[last + 3] = now, now + MINUTE, cost
    return now
  end

  local function wait(cost)
    local missing = cost - limit + total + debt
    if missing <= 0 then return 0 end
    local minutes = math.max(0, math.ceil((missing - total) / limit))
    local spared = total - (missing - minutes * limit)
    for index = #log, 1, -3 do
      spared = spared - log[index]
      if spared < 0 then return minutes * MINUTE + log[index - 1] - now end
    end
    return (minutes + 1) * MINUTE
  end

  local newest = log[#log - 1]
  if newest and newest <= now and debt >= limit and limit == total then
    local minutes = math.min(math.floor(debt / limit), math.floor((now - newest) / MINUTE) + 1)
    debt = debt - minutes * limit
    for index = 1, #log, 3 do
      log[index], log[index + 1] = log[index] + minutes * MINUTE, log[index + 1] + minutes * MINUTE
    end
  end
  local first = 1
  while log[first] and log[first + 1] <= now do
    local opened, ended, cost = log[first], log[first + 1], log[first + 2]
    first, total = first + 3, total - cost
    local paid = math.min(debt, limit - total)
    if paid > 0 then
      debt, total = debt - paid, total + paid
      local last = #log
      log[last + 1], log[last + 2], log[last + 3] = opened + MINUTE, ended + MINUTE, paid
    end
  end
  if first > 1 then
    local left = {}
    for index = first, #log do left[#left + 1] = log[index] end
    log = left
  end

  if unused > 0 then
    for index = #log - 2, 1, -3 do
      if log[index] == bucket then
        local returned = math.min(unused, log[index + 2])
        log[index + 2], total = log[index + 2] - returned, total - returned
        break
      end
    end
  end
  debt = debt + new_debt
  local paid = math.min(debt, limit - total)
  if paid > 0 then
    debt = debt - paid
    add(paid)
  end

  local remaining = math.max(0, limit - total)
  local granted, opened, wait_for_grant = -1, 0, 0
  if min_grant > remaining then
    wait_for_grant = wait(min_grant)
  else
    granted = math.min(max_grant, remaining)
    if granted > 0 then opened = add(granted) end
    remaining = remaining - granted
  end
  if #log == 0 then
    redis.call('DEL', key)
  else
    local packed = cmsgpack.pack({total, debt, log})
    local minutes = 2 + math.floor(debt / limit)
    if packed ~= stored then redis.call('SET', key, packed, 'PX', string.format('%.0f', minutes * MINUTE / 1000)) end
  end
  return {granted, opened, remaining, wait_for_grant, wait(limit)}
end

local outcomes = {}
for index, key in ipairs(KEYS) do
  local fields = {}
  for field = 1, 6 do fields[field] = tonumber(ARGV[2 + (index - 1) * 6 + field]) end
  outcomes[index] = change(key, unpack(fields))
end
return outcomes
"""


class RedisCounts:
    """Windows in Redis; implements `rate_counts.Counts`."""

    def __init__(self, url: str) -> None:
        """Create the storage; the first change connects.

        Raises ValueError if `url` is not valid, or if the Redis client is not installed. The message never shows the URL, which may contain
        a password.
        """
        self._connection = RedisConnection(
            url,
            "rate_limit_storage",
            connect_timeout=TIMEOUT,
            outage="API keys with limits are refused, because Redis cannot count their requests",
            recovery="Redis counts requests again",
        )
        self._script = self._connection.redis.register_script(SCRIPT)
        self._settling: set[asyncio.Task[None]] = set()

    async def change(self, changes: Sequence[tuple[str, Change]]) -> list[Outcome]:
        keys = [f"llava-gateway/{name}" for name, _ in changes]
        async with self._reachable():
            outcomes = await self._script(keys, (MINUTE, BUCKET, *(field for _, change in changes for field in change)))
        return [Outcome(*outcome) for outcome in outcomes]

    async def settle(self, changes: Sequence[tuple[str, Change]]) -> list[Outcome]:
        """Like `change`, but a failure is tried once more in the background. A second failure loses the changes."""
        first_attempt: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._settle(changes, first_attempt))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        await asyncio.wait((first_attempt,))
        return first_attempt.result()

    async def close(self) -> None:
        if self._settling:
            await asyncio.wait(self._settling, timeout=TIMEOUT + RETRY_AFTER)
        await self._connection.close()

    async def _settle(self, changes: Sequence[tuple[str, Change]], first_attempt: asyncio.Future[list[Outcome]]) -> None:
        """Make the changes. `first_attempt`: gets the outcomes of the first attempt, or an empty list."""
        try:
            first_attempt.set_result(await self.change(changes))
        except Unavailable:
            first_attempt.set_result([])
            await asyncio.sleep(RETRY_AFTER)
            try:
                await self.change(changes)
            except Unavailable:
                log.debug("The usage of a request is not counted: %s", changes)
        finally:
            if not first_attempt.done():  # whatever has failed: a request waits for this
                first_attempt.set_result([])

    def _reachable(self) -> AbstractAsyncContextManager[None]:
        """Return a context for calls of Redis. It raises Unavailable if Redis fails or takes too long."""
        error = Unavailable("The server cannot count requests now.", code="limits_unavailable", retry_after=5)
        return self._connection.reachable(TIMEOUT, error)
