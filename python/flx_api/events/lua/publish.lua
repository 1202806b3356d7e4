-- Puts packed entries of ephemeral events into the partitions of the bus, each with the numbers that follow, in one go.
--
-- KEYS: the heads (hash: run, epoch, and n<p> and id<p>, the last number and entry of each partition), then the stream of
--       each partition, from 0.
-- ARGV: the run id of this Redis as the caller's connection knows it, an epoch to begin when there is none of this run,
--       the most entries of a stream, milliseconds for which entries are kept; then for each entry its partition, the count
--       of its events, and the events.
-- Answer: all heads.
--
-- An epoch ends with the run of Redis: what is on disk may be older than what was answered, so numbers are never continued
-- after a restart. Then nothing of the past is kept either.

local heads = KEYS[1]
if redis.call("HGET", heads, "run") ~= ARGV[1] then
  redis.call("DEL", unpack(KEYS))
  redis.call("HSET", heads, "run", ARGV[1], "epoch", ARGV[2])
end
if #ARGV > 4 then
  local epoch = redis.call("HGET", heads, "epoch")
  local now = redis.call("TIME")
  local oldest = string.format("%.0f", now[1] * 1000 - tonumber(ARGV[4]))
  for index = 5, #ARGV, 3 do
    local partition = ARGV[index]
    local stream = KEYS[2 + tonumber(partition)]
    local count = tonumber(ARGV[index + 1])
    local first = redis.call("HINCRBY", heads, "n" .. partition, count) - count + 1
    local id = redis.call("XADD", stream, "MAXLEN", "~", ARGV[3], "*",
                          "e", epoch, "n", first, "c", count, "d", ARGV[index + 2])
    redis.call("XTRIM", stream, "MINID", "~", oldest)
    redis.call("HSET", heads, "id" .. partition, id)
  end
end
return redis.call("HGETALL", heads)
