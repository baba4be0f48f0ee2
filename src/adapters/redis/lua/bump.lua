-- KEYS: records. ARGV: post id, version, channel prefix, length of the keys' prefix.
-- One read for all; each write goes over what it finds, which is never longer, and keeps its expiry: only a reader keeps a
-- record alive.
local id, version, channel, prefix = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local records = redis.call('MGET', unpack(KEYS))
local moved = 0
for i = 1, #KEYS do
  local record = records[i]
  if record and is_record(record) then
    local bumped = push(record, id, version, false)
    if bumped then
      redis.call('SETRANGE', KEYS[i], 0, bumped)
      redis.call('PUBLISH', channel .. string.sub(KEYS[i], prefix + 1), '')
      moved = moved + 1
    end
  end
end
return moved
