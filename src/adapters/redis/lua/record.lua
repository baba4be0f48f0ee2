-- The record of src/domain/revision.rs: epoch 8, counter 8, floor 8, then entries of counter 4, post id 16, stamp 4, all
-- big-endian. Lua's numbers are doubles, exact to 2^53 only: a counter is two halves of 32 bits, everything else bytes.
local HEAD, ENTRY, RING = 24, 24, 384

local function is_record(bytes)
  local ring = #bytes - HEAD
  return ring >= 0 and ring <= RING and ring % ENTRY == 0
end

local function next_counter(record)
  local high, low = struct.unpack('>I4I4', record, 9)
  if low == 4294967295 then return high + 1, 0 end
  return high, low + 1
end

-- Where in `ring` the entry of post `id` begins. An id may also be found across two entries: only aligned ones count.
local function find(ring, id)
  local at = string.find(ring, id, 1, true)
  while at and at % ENTRY ~= 5 do at = string.find(ring, id, at + 1, true) end
  return at and at - 4
end

-- The record after one more change; nil for a change it has already, unless every one counts.
local function push(record, id, stamp, always)
  local high, low = next_counter(record)
  local floor, ring = string.sub(record, 17, HEAD), string.sub(record, HEAD + 1)
  local at = find(ring, id)
  if at then
    if not always and string.sub(ring, at + 20, at + 23) == stamp then return nil end
    ring = string.sub(ring, 1, at - 1) .. string.sub(ring, at + ENTRY)
  elseif #ring == RING then
    -- An entry has the low half only: it is at most 2^32 behind, so a larger low half means one less in the high one.
    local fallen = struct.unpack('>I4', ring)
    floor = struct.pack('>I4I4', fallen > low and high - 1 or high, fallen)
    ring = string.sub(ring, ENTRY + 1)
  end
  return string.sub(record, 1, 8) .. struct.pack('>I4I4', high, low) .. floor .. ring
    .. struct.pack('>I4', low) .. id .. stamp
end

