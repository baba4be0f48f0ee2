-- KEYS: one record. ARGV: stamp, channel, how many posts, their ids one after the other (left out beyond a ring's worth).
-- Answers the heads before and after; nothing if there is no record.
local record = redis.call('GET', KEYS[1])
if not record or not is_record(record) then return false end
local marked = record
if tonumber(ARGV[3]) * ENTRY > RING then
  local counter = struct.pack('>I4I4', next_counter(record))
  marked = string.sub(record, 1, 8) .. counter .. counter
else
  for at = 1, #ARGV[4], 16 do
    marked = push(marked, string.sub(ARGV[4], at, at + 15), ARGV[1], true)
  end
end
redis.call('SET', KEYS[1], marked, 'KEEPTTL')
redis.call('PUBLISH', ARGV[2], '')
return { string.sub(record, 1, HEAD), string.sub(marked, 1, HEAD) }
