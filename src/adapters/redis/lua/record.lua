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

-- Where in `record` the entry of post `id` begins. An id may also be found across two entries: only aligned ones count.
local function find(record, id)
  local at = string.find(record, id, HEAD + 1, true)
  while at and (at - HEAD) % ENTRY ~= 5 do at = string.find(record, id, at + 1, true) end
  return at and at - 4
end

-- The record after one more change; nil for a change it has already, unless every one counts. Strings cost most here, so
-- there is no copy but the result and what goes into it.
local function push(record, id, stamp, always)
  local high, low = next_counter(record)
  local epoch, counter = string.sub(record, 1, 8), struct.pack('>I4I4', high, low)
  local entry = string.sub(counter, 5) .. id .. stamp
  local at = find(record, id)
  if at then
    if not always and string.sub(record, at + 20, at + 23) == stamp then return nil end
    return epoch .. counter .. string.sub(record, 17, at - 1) .. string.sub(record, at + ENTRY) .. entry
  end
  if #record < HEAD + RING then return epoch .. counter .. string.sub(record, 17) .. entry end
  -- An entry has the low half only: it is at most 2^32 behind, so a larger low half means one less in the high one.
  local fallen = struct.unpack('>I4', record, HEAD + 1)
  local floor = struct.pack('>I4I4', fallen > low and high - 1 or high, fallen)
  return epoch .. counter .. floor .. string.sub(record, HEAD + ENTRY + 1) .. entry
end
