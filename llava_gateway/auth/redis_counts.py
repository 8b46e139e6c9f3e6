"""Windows in a Redis that several gateways share. A change is one script there, by Redis' own clock: gateways that race cannot let too much
through, and their clocks do not matter. A window's key expires once it is empty. What a dead gateway had reserved leaves with its minute.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from llava_gateway.auth.sliding_window import BUCKET, MINUTE, Change, Outcome
from llava_gateway.errors import Unavailable

log = logging.getLogger(__name__)

TIMEOUT = 2.0
"""Seconds that Redis gets for one script, connecting included."""
RETRY_AFTER = 1.0
"""Seconds until what could not be settled is tried once more."""
CONNECTIONS = 32
"""To Redis, at most."""

SCRIPT = """
-- As Window of window.py, which explains it. KEYS: places. ARGV: MINUTE, BUCKET, then the fields of a Change for each place.
-- A log is one flat array, three numbers for each bucket, which costs less than half of what an array of arrays would.
local time = redis.call('TIME')
local now, MINUTE, BUCKET = time[1] * 1000000 + time[2], tonumber(ARGV[1]), tonumber(ARGV[2])

local function change(place, limit, least, most, bucket, unused, owed)
  local stored = redis.call('GET', place)
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
    local turns = math.max(0, math.ceil((missing - total) / limit))
    local spared = total - (missing - turns * limit)
    for index = #log, 1, -3 do
      spared = spared - log[index]
      if spared < 0 then return turns * MINUTE + log[index - 1] - now end
    end
    return (turns + 1) * MINUTE
  end

  local newest = log[#log - 1]
  if newest and newest <= now and debt >= limit and limit == total then
    local turns = math.min(math.floor(debt / limit), math.floor((now - newest) / MINUTE) + 1)
    debt = debt - turns * limit
    for index = 1, #log, 3 do
      log[index], log[index + 1] = log[index] + turns * MINUTE, log[index + 1] + turns * MINUTE
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
        local given = math.min(unused, log[index + 2])
        log[index + 2], total = log[index + 2] - given, total - given
        break
      end
    end
  end
  debt = debt + owed
  local paid = math.min(debt, limit - total)
  if paid > 0 then
    debt = debt - paid
    add(paid)
  end

  local remaining = math.max(0, limit - total)
  local granted, opened, until_least = -1, 0, 0
  if least > remaining then
    until_least = wait(least)
  else
    granted = math.min(most, remaining)
    if granted > 0 then opened = add(granted) end
    remaining = remaining - granted
  end
  if #log == 0 then
    redis.call('DEL', place)
  else
    local packed = cmsgpack.pack({total, debt, log})
    local minutes = 2 + math.floor(debt / limit)
    if packed ~= stored then redis.call('SET', place, packed, 'PX', string.format('%.0f', minutes * MINUTE / 1000)) end
  end
  return {granted, opened, remaining, until_least, wait(limit)}
end

local outcomes = {}
for index, place in ipairs(KEYS) do
  local given = {}
  for field = 1, 6 do given[field] = tonumber(ARGV[2 + (index - 1) * 6 + field]) end
  outcomes[index] = change(place, unpack(given))
end
return outcomes
"""


class RedisCounts:
    """As `counts.Counts`."""

    def __init__(self, url: str) -> None:
        """ValueError if the URL is none, or if Redis' client is not installed. Its text has no URL, which may hold a password."""
        if not url.startswith(("redis://", "rediss://")):
            raise ValueError("limits are counted in `memory` or at a redis:// or rediss:// URL")
        try:
            from redis.asyncio import BlockingConnectionPool, Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import RedisError
        except ImportError:
            raise ValueError("for limits counted in Redis install the extra: llava-gateway[redis]") from None
        self._errors = (RedisError, OSError)
        try:  # connections that fail soon: one fresh attempt, no pauses
            pool = BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS, timeout=TIMEOUT, retry=Retry(NoBackoff(), 1))
        except ValueError:
            raise ValueError("the URL of the Redis that counts limits is not valid") from None
        self._redis = Redis.from_pool(pool)
        self._script = self._redis.register_script(SCRIPT)
        self._settling: set[asyncio.Task[None]] = set()
        self._failing = False

    async def change(self, changes: Sequence[tuple[str, Change]]) -> list[Outcome]:
        keys = [f"llava-gateway/{place}" for place, _ in changes]
        async with self._reachable():
            outcomes = await self._script(keys, (MINUTE, BUCKET, *(field for _, change in changes for field in change)))
        return [Outcome(*outcome) for outcome in outcomes]

    async def settle(self, changes: Sequence[tuple[str, Change]]) -> list[Outcome]:
        """What fails is tried once more in the background; then it is lost."""
        first: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._settle(changes, first))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        await asyncio.wait((first,))
        return first.result()

    async def close(self) -> None:
        if self._settling:
            await asyncio.wait(self._settling, timeout=TIMEOUT + RETRY_AFTER)
        await self._redis.aclose(close_connection_pool=True)

    async def _settle(self, changes: Sequence[tuple[str, Change]], first: asyncio.Future[list[Outcome]]) -> None:
        """`first`: is told how the first attempt went."""
        try:
            first.set_result(await self.change(changes))
        except Unavailable:
            first.set_result([])
            await asyncio.sleep(RETRY_AFTER)
            try:
                await self.change(changes)
            except Unavailable:
                log.debug("what a request has used is not counted: %s", changes)
        finally:
            if not first.done():  # whatever has failed, a request waits for this
                first.set_result([])

    @asynccontextmanager
    async def _reachable(self) -> AsyncIterator[None]:
        """Around what Redis is asked. Raises Unavailable if that fails or takes too long; logs when an outage begins and ends."""
        try:
            async with asyncio.timeout(TIMEOUT):
                yield
        except self._errors as error:
            if not self._failing:
                self._failing = True
                log.error("keys with limits are refused, for their requests cannot be counted: %s", str(error) or "Redis is silent")
            raise Unavailable("The server cannot count requests now.", code="limits_unavailable", retry_after=5) from error
        if self._failing:
            self._failing = False
            log.warning("requests can be counted again")
