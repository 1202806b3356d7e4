-- One sync of one node: what it spent of each key is counted, what it holds is settled, new units are leased.
--
-- KEYS: the fleet (hash), its nodes (sorted set), their last calls (hash), then one key per report.
-- ARGV[1]: the node's call, packed by rust/core/src/limit/lease/wire.rs; the answer is packed for the same file.
--
-- Rules (docs/decisions/0005 says why):
-- - used = spent within 65/64 of a window, by slots of 1/64, + units leased until expiry + one window; a grant never
--   makes it exceed the limit;
-- - time is Redis's own, plus a correction that nodes ask for when it jumped, and it never runs backwards;
-- - a call that is not later than the node's last one changes nothing, and neither does one of another epoch;
-- - a node says what it spent as a number that only grows: what is already counted is never counted again.
local fleet, nodes, calls = KEYS[1], KEYS[2], KEYS[3]
local input = ARGV[1]
local node, call, epoch, clock, step, flags, seed, grace_us, policies, at =
  struct.unpack("<c8I8I8I4i8I1c16I4I2", input)
local fresh, bye, judged = flags % 2 == 1, flags % 4 >= 2, flags >= 4
local DONE, NEW_EPOCH, STALE, DOUBT = 0, 1, 2, 3
local SILENT_US = 10000000 -- a node that says nothing for so long no longer counts as one
local DOUBT_US = 1000000 -- nodes call more often than this: after a longer gap, or a jump, one of them judges the time
local RING = 65

local time = redis.call("TIME")
local wall = time[1] * 1000000 + time[2]
local known = redis.call("HMGET", fleet, "epoch", "clock", "offset", "last", "grace", "seed", "sure")
local epoch_now = tonumber(known[1])
local clock_now, offset, last = tonumber(known[2]), tonumber(known[3]), tonumber(known[4])
local grace, seed_now, sure = tonumber(known[5]), known[6], known[7] == "1"
local began = not epoch_now
if began then
  epoch_now, clock_now, offset, last, grace, seed_now, sure = wall, 0, 0, 0, wall + grace_us, seed, not fresh
elseif step ~= 0 and clock == clock_now and epoch == epoch_now then
  -- This server's clock jumped. If anything was done at the wrong time, the fleet begins anew.
  offset = offset - step
  clock_now = clock_now + 1
  judged = true
  if last > wall + offset + DOUBT_US / 4 then
    last = 0
    epoch_now = math.max(wall, epoch_now + 1)
    grace = wall + offset + grace_us
  end
end
local now = math.max(wall + offset, last)
local doubt = not began and last > 0 and now - last > DOUBT_US and not judged
local grace_left = math.max(0, math.min(grace - now, grace_us))
if not fresh and not sure then
  -- A newcomer began the fleet anew before one that knows its seed came by; nothing was granted yet.
  if seed ~= seed_now and grace_left > 0 then seed_now = seed end
  sure = true
end
redis.call("HSET", fleet, "epoch", epoch_now, "clock", clock_now, "offset", offset, "last", doubt and last or now, "grace", grace,
  "seed", seed_now, "sure", sure and "1" or "0")

local function head(status)
  local count = math.max(1, redis.call("ZCARD", nodes))
  return struct.pack("<I1I8I4I8I4I4c16", status, epoch_now, clock_now, now, count, grace_left, seed_now)
end

local before = tonumber(redis.call("HGET", calls, node))
if before and call <= before then return head(STALE) end
redis.call("HSET", calls, node, call)
if doubt and epoch == epoch_now then return head(DOUBT) end
if bye then
  redis.call("ZREM", nodes, node)
else
  redis.call("ZADD", nodes, now, node)
end
for _, silent in ipairs(redis.call("ZRANGEBYSCORE", nodes, "-inf", now - SILENT_US)) do
  redis.call("ZREM", nodes, silent)
  redis.call("HDEL", calls, silent)
end
if epoch ~= epoch_now or began or seed ~= seed_now then return head(NEW_EPOCH) end

-- What is kept of a key, as one string, since most of it stays as it is from one call to the next:
-- the epoch, the units in the ring, the oldest slot that has any; the ring, units by slot modulo 65; then the leases.
local HEAD, COUNT, LEASE = "<I8I8I8", "<I4", "<c8I8I4I8"
local RING_AT, RING_BYTES, COUNT_BYTES = 25, 4 * RING, 4
local NOTHING = string.rep("\0", RING_BYTES)

local function with(ring, slot, units)
  local place = slot % RING * COUNT_BYTES
  return string.sub(ring, 1, place) .. struct.pack(COUNT, units) .. string.sub(ring, place + COUNT_BYTES + 1)
end

local function units_of(ring, slot)
  return (struct.unpack(COUNT, ring, slot % RING * COUNT_BYTES + 1))
end

-- The first slot from this one on that has units; there is one.
local function first_from(ring, slot)
  local place = slot % RING
  local found, beyond = string.find(ring, "[^%z]", place * COUNT_BYTES + 1), 0
  if not found then found, beyond = string.find(ring, "[^%z]"), RING end
  return slot - place + math.floor((found - 1) / COUNT_BYTES) + beyond
end

local rules = {}
for index = 1, policies do
  local limit, window, lease, fast
  limit, window, lease, fast, at = struct.unpack("<I4I8I8I1", input, at)
  local lives_ms = math.ceil(2 * (window + lease) / 1000) + 10000
  rules[index] = { limit = limit, window = window, lease = lease, fast = fast == 1, slot = math.ceil(window / 64), lives_ms = lives_ms }
end

local fleet_size = math.max(1, redis.call("ZCARD", nodes))
local grants = grace_left == 0 and not bye
local answer = { head(DONE) }
for index = 4, #KEYS do
  local policy, spent, told, keep, need, extra, unit, newest, pairs_told
  policy, spent, told, keep, need, extra, unit, newest, pairs_told, at = struct.unpack("<I2I8I4I4I4I4I4I8I1", input, at)
  local rule = rules[policy]
  local window, slot = rule.window, math.floor(now / rule.slot)
  local used, oldest, ring, leases = 0, 0, NOTHING, ""
  local state = redis.call("GET", KEYS[index])
  if state then
    local kept_epoch, kept_used, kept_oldest = struct.unpack(HEAD, state)
    if kept_epoch == epoch_now then
      used, oldest = kept_used, kept_oldest
      ring, leases = string.sub(state, RING_AT, RING_AT + RING_BYTES - 1), string.sub(state, RING_AT + RING_BYTES)
    end
  end

  -- What has left the window. All that is in the ring lies within 65 slots of the oldest.
  if used > 0 and oldest <= slot - RING then
    for gone = oldest, math.min(slot - RING, oldest + RING - 1) do
      local units = units_of(ring, gone)
      if units > 0 then ring, used = with(ring, gone, 0), used - units end
    end
    if used > 0 then oldest = first_from(ring, slot - RING + 1) end
  end
  -- What others hold, or may have spent without telling.
  local counted, others, frees, kept, from, lease_at = spent - told, 0, nil, "", 1, 1
  while lease_at <= #leases do
    local holder, its_spent, units, expiry, following = struct.unpack(LEASE, leases, lease_at)
    local out = expiry + window
    if holder ~= node and out > now then
      others = others + units
      if units > 0 and (not frees or out < frees) then frees = out end
    else
      if holder == node and its_spent > counted then counted = its_spent end
      kept, from = kept .. string.sub(leases, from, lease_at - 1), following
    end
    lease_at = following
  end
  kept = kept .. string.sub(leases, from)
  -- What this node spent since it was last counted, the oldest first.
  local skip = counted - (spent - told)
  for _ = 1, pairs_told do
    local back, units
    back, units, at = struct.unpack("<I1I4", input, at)
    local when = math.min(newest - back, slot)
    local skipped = math.min(skip, units)
    skip, units = skip - skipped, units - skipped
    if units > 0 and when > slot - RING then
      ring = with(ring, when, units_of(ring, when) + units)
      if used == 0 or when < oldest then oldest = when end
      used = used + units
    end
  end

  -- The grant: what will surely be spent, then a part of what the others might want as well; as much as whole requests
  -- of the node take, since of less than one it has no use, and others would miss it.
  local free = math.max(0, rule.limit - used - others - keep)
  local grant = 0
  if grants then
    grant = math.min(need, free)
    grant = grant - grant % unit
    local rest = free - grant
    local share = math.floor(rest / (2 * fleet_size))
    if rule.fast and share == 0 and rest > 0 then share = 1 end
    share = math.min(extra, share)
    grant = grant + share - share % unit
  end
  free = free - grant

  local retry = used > 0 and (oldest + RING) * rule.slot or nil
  if frees and (not retry or frees < retry) then retry = frees end
  retry = retry and math.max(0, retry - now) or 0
  -- Others may return some before; asking at the ends of slots lets all keys of a policy go in one call.
  if others > 0 then retry = math.min(retry, math.floor(now / rule.slot + 1.5) * rule.slot - now) end

  local lease = struct.pack(LEASE, node, spent, keep + grant, now + rule.lease)
  redis.call("SET", KEYS[index], struct.pack(HEAD, epoch_now, used, oldest) .. ring .. kept .. lease, "PX", rule.lives_ms)
  answer[#answer + 1] = struct.pack("<I4I4I8", grant, free, retry)
end
return table.concat(answer)
