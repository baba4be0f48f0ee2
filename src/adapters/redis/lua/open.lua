-- KEYS: one record. ARGV: a random epoch, the time to live in seconds. Answers the head.
-- The epoch comes from outside: Lua's random numbers repeat after a restart.
local record = redis.call('GET', KEYS[1])
if not record or not is_record(record) then
  record = ARGV[1] .. string.rep('\0', 16)
  redis.call('SET', KEYS[1], record, 'EX', ARGV[2])
elseif redis.call('TTL', KEYS[1]) * 2 < tonumber(ARGV[2]) then
  -- Now and then only: a refresh is a write that goes to the log and to the replicas.
  redis.call('EXPIRE', KEYS[1], ARGV[2])
end
return string.sub(record, 1, HEAD)
