-- The record of src/domain/revision.rs: epoch 8, counter 8, floor 8, then entries of counter 4, post id 16, stamp 4, all
-- big-endian. Lua's numbers are doubles, exact to 2^53 only: a counter is two halves of 32 bits, everything else bytes.
local HEAD, ENTRY, RING = 24, 24, 384
-- Here once, not in two tables each time.
local sub, search, pack, unpack_number = string.sub, string.find, struct.pack, struct.unpack

local function is_record(bytes)
  local ring = #bytes - HEAD
  return ring >= 0 and ring <= RING and ring % ENTRY == 0
end

local function next_counter(record)
  local high, low = unpack_number('>I4I4', record, 9)
  if low == 4294967295 then return high + 1, 0 end
  return high, low + 1
end

-- Where in `record` the entry of post `id` begins. Looked for by the second half, which is random: ids of one day begin alike.
-- That may also be found across two entries: only aligned ones count.
local function find(record, id)
  local half = sub(id, 9)
  local at = search(record, half, HEAD + 1, true)
  while at and ((at - HEAD) % ENTRY ~= 13 or sub(record, at - 8, at + 7) ~= id) do
    at = search(record, half, at + 1, true)
  end
  return at and at - 12
end

-- The record after one more change; nil for a change it has already, unless every one counts. Strings cost most here, so
-- there is no copy but the result and what goes into it.
local function push(record, id, stamp, always)
  local high, low = next_counter(record)
  local epoch, counter = sub(record, 1, 8), pack('>I4I4', high, low)
  local number = sub(counter, 5)
  local at = find(record, id)
  if at then
    if not always and sub(record, at + 20, at + 23) == stamp then return nil end
    return epoch .. counter .. sub(record, 17, at - 1) .. sub(record, at + ENTRY) .. number .. id .. stamp
  end
  if #record < HEAD + RING then return epoch .. counter .. sub(record, 17) .. number .. id .. stamp end
  -- An entry has the low half only: it is at most 2^32 behind, so a larger low half means one less in the high one.
  local fallen, above = sub(record, HEAD + 1, HEAD + 4), sub(counter, 1, 4)
  if high > 0 and unpack_number('>I4', fallen) > low then above = pack('>I4', high - 1) end
  return epoch .. counter .. above .. fallen .. sub(record, HEAD + ENTRY + 1) .. number .. id .. stamp
end
