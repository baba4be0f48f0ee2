-- KEYS: records. ARGV: post id, version, channel prefix, length of the keys' prefix.
-- One read for all; each write keeps the expiry it finds, since only a reader keeps a record alive. A full record is written
-- in place; one that grows anew, or Redis would set as much again aside for it.
local id, version, channel, prefix = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local records = redis.call('MGET', unpack(KEYS))
local moved = 0
for i = 1, #KEYS do
  local record = records[i]
  if record and is_record(record) then
    local bumped = push(record, id, version, false)
    if bumped then
      if #bumped == #record then
        redis.call('SETRANGE', KEYS[i], 0, bumped)
      else
        redis.call('SET', KEYS[i], bumped, 'KEEPTTL')
      end
      redis.call('PUBLISH', channel .. string.sub(KEYS[i], prefix + 1), '')
      moved = moved + 1
    end
  end
end
return moved
