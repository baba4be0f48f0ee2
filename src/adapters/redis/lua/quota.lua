-- KEYS: one holder's allowances. ARGV: the terms of src/domain/quota.rs; then of each allowance the units a second (0: no
-- limit), how many at once, and how many to take or put back. Answers which allowance has nothing left (0: none, all is
-- done) and what is left of each. The same as src/adapters/embedded/quotas.rs, by this server's clock.
-- The value: when it was written (microseconds), what was left of each; doubles, exact for any time and number here.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local count = (#ARGV - 1) / 3
local known = redis.call('GET', KEYS[1])
local since = 0
if known and #known == 8 * (count + 1) then
  -- The clock of a promoted replica may be behind.
  since = math.max(0, now - struct.unpack('>d', known)) / 1000000
else
  known = false
end
local left, refused, full_in = {}, 0, 0
for i = 1, count do
  local per_s, burst = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  left[i] = math.huge
  if per_s > 0 then
    left[i] = burst
    if known then left[i] = math.min(burst, struct.unpack('>d', known, 8 * i + 1) + since * per_s) end
    if left[i] < 1 and refused == 0 and ARGV[1] == '0' then refused = i end
  end
end
if refused == 0 then
  for i = 1, count do
    local per_s, burst = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
    if per_s > 0 then
      local cost = tonumber(ARGV[3 * i + 1])
      if ARGV[1] == '2' then left[i] = math.min(burst, left[i] + cost) else left[i] = left[i] - cost end
      full_in = math.max(full_in, (burst - left[i]) / per_s)
    end
  end
  -- Kept until all are full again, debts included: from then on it says nothing that its absence does not.
  local ttl_ms = math.ceil(math.min(full_in, 10000000000) * 1000) + 1000
  local value = struct.pack('>' .. string.rep('d', count + 1), now, unpack(left))
  redis.call('SET', KEYS[1], value, 'PX', string.format('%.0f', ttl_ms))
end
return string.char(refused) .. struct.pack('>' .. string.rep('d', count), unpack(left))
