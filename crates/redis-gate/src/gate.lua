-- The gate of one sale. Decides attempts and maintains the outbox. Each call is one atomic step.
-- Redis does not roll back a script that fails midway. Each operation therefore reads and decides
-- first and writes last, and only its first write can fail (out of memory, persistence error).
--
-- KEYS  1 stock key   string: free units of all items, a mirror of the fields below; the tutorial's
--                     `counter`
--       2 {K}:m       hash: epoch, run, gate, leader, version, limit, opens, closes, win, n, outn,
--                     total and next (units handed out) of item 1, total2 and next2 of item 2, …
--       3 {K}:c       hash: order id (24 bytes) -> units, after `-` once the order has ended; then
--                     `|` and the buyer's digest, if the units count against a limit
--       4 {K}:k       hash: digest(buyer, key) -> order id, fingerprint (8 bytes)
--       5 {K}:b       hash: digest(buyer) -> one character per unit held: '0' + slot, or '/' for a
--                     unit without a slot
--       6 {K}:f       list: released units of item 1, first in first out, after a sentinel
--       7 {K}:o       stream: the outbox; entry id epoch-n, one entry per batch
--       8… {K}:f2, …  list: the same as 6 for each other item
-- Units are separated by commas: [item/]number[:generation][@slot]. Item 1 and generation 1 are
-- left out. Digests are 16 bytes.
-- Every key always exists (hashes and lists contain a sentinel `-`), because a missing key causes
-- TRYAGAIN while a Cluster slot is migrating.
-- ARGV  1 operation, 2 epoch, then the arguments of the operation
-- Replies {status, ...}: OK, or GONE, TYPE, RUN, EPOCH, REBUILD, DRIFT with a detail.

local K, M, C, I, B, F, O = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local ITEMS = #KEYS - 6
local op, epoch = ARGV[1], ARGV[2]
local ID_BYTES = 24
local SLOT_ZERO = 48

-- A pattern would be matched at each byte of the text, which takes as long as the rest of the call.
local function run_id()
  local info = redis.call('INFO', 'server')
  local _, before = string.find(info, 'run_id:', 1, true)
  return string.match(info, '^%w+', before + 1)
end

local function whole(number)
  return string.format('%d', number)
end

local function list(item)
  return item == 1 and F or KEYS[item + 6]
end

local function field(name, item)
  return item == 1 and name or name .. item
end

-- Reads all keys with the command for each type. Returns the state, or nil and the refusal.
local function read()
  local names = {'epoch', 'run', 'gate', 'leader', 'version', 'limit', 'opens', 'closes', 'win', 'n', 'outn', 'total', 'next'}
  for item = 2, ITEMS do
    names[#names + 1] = field('total', item)
    names[#names + 1] = field('next', item)
  end
  local failed
  local function checked(key, got)
    if type(got) == 'table' and got.err then failed = failed or {'TYPE', key .. ': ' .. got.err} end
    return got
  end
  local stock, m = checked(K, redis.pcall('GET', K)), checked(M, redis.pcall('HMGET', M, unpack(names)))
  local claims, keys = checked(C, redis.pcall('HLEN', C)), checked(I, redis.pcall('HLEN', I))
  local buyers, outbox = checked(B, redis.pcall('HLEN', B)), checked(O, redis.pcall('XLEN', O))
  local lengths = {}
  for item = 1, ITEMS do
    lengths[item] = checked(list(item), redis.pcall('LLEN', list(item)))
  end
  if failed then return nil, failed end
  if not m[1] then return nil, {'GONE', M .. ' does not exist'} end
  -- Converting between numbers and strings is slow, so what is only passed on stays a string.
  local s = {
    epoch = m[1], run = m[2], gate = m[3], leader = m[4], version = m[5], limit = tonumber(m[6]), limit_text = m[6] or '',
    opens = m[7] or '', closes = m[8] or '', win = tonumber(m[9]), n = tonumber(m[10]), outn = tonumber(m[11]),
    stock = tonumber(stock), claims = claims, keys = keys, buyers = buyers, outbox = outbox, total = {}, next = {}, returned = {},
  }
  local is_whole = s.version and s.win and s.n and s.outn
  for item = 1, ITEMS do
    local total, next = tonumber(m[10 + 2 * item]), tonumber(m[11 + 2 * item])
    is_whole = is_whole and total and next
    s.total[item], s.next[item], s.returned[item] = total, next, lengths[item] - 1
  end
  if not is_whole then return nil, {'DRIFT', M .. ' is missing a field'} end
  return s
end

-- Returns the state of a usable gate: in this epoch, in this run of Redis, open, and not modified
-- by another client.
local function guard()
  local s, refusal = read()
  if not s then return nil, refusal end
  if s.run ~= run_id() then return nil, {'RUN', 'Redis has restarted or failed over since the gate was opened'} end
  if s.epoch ~= epoch then return nil, {'EPOCH', s.epoch} end
  if s.gate ~= 'open' then return nil, {'REBUILD', s.epoch} end
  local free, sum = {}, 0
  for item = 1, ITEMS do
    local fresh, returned = s.total[item] - s.next[item], s.returned[item]
    if fresh < 0 or returned < 0 then
      return nil, {'DRIFT', 'item ' .. item .. ' has ' .. fresh .. ' fresh and ' .. returned .. ' released units'}
    end
    free[item] = fresh + returned
    sum = sum + free[item]
  end
  if s.stock ~= sum then
    return nil, {'DRIFT', K .. ' is ' .. tostring(s.stock) .. ' (expected ' .. whole(sum) .. ' free units)'}
  end
  if s.outbox ~= s.outn or s.claims < 1 or s.keys < 1 or s.buyers < 1 then
    return nil, {'DRIFT', 'the outbox has ' .. s.outbox .. ' entries (expected ' .. whole(s.outn) .. '), or a key was emptied'}
  end
  s.free = free
  local time = redis.call('TIME')
  s.now = time[1] * 1000 + math.floor(time[2] / 1000)
  return s
end

-- Returns the state of a gate of this epoch, which may be closed or of an earlier run of Redis.
local function current()
  local s, refusal = read()
  if s and s.epoch ~= epoch then return nil, {'EPOCH', s.epoch} end
  return s, refusal
end

-- Returns the state of a closed gate while ARGV 3 leads the rebuild of this epoch.
local function led()
  local s, refusal = read()
  if not s then return nil, refusal end
  if s.run ~= run_id() then return nil, {'RUN', 'Redis restarted during the rebuild'} end
  if s.epoch ~= epoch or s.leader ~= ARGV[3] then return nil, {'EPOCH', s.epoch} end
  if s.gate ~= 'rebuilding' then return nil, {'REBUILD', 'the gate is already open'} end
  return s
end

local function head(s)
  return {'OK', s.epoch, s.version, whole(s.n), table.concat(s.free, ','), whole(s.now), s.limit_text, s.opens, s.closes}
end

-- The window state: 0 before, 1 open, 2 closed. It only moves forward, even if the clock jumps
-- back.
local function window(s)
  local win, opens, closes = 1, tonumber(s.opens), tonumber(s.closes)
  if opens and s.now < opens then win = 0 end
  if closes and s.now >= closes then win = 2 end
  return math.max(win, s.win)
end

-- The units of a claim in {K}:c.
local function units_of(claim)
  return string.match(claim, '^%-?([^|]+)')
end

-- The lines of an attempt: item, quantity, item, quantity, …; and the sum of the quantities.
local ONE = {1, 1}
local function lines_of(text)
  if text == '1' then return ONE, 1 end
  local lines, sum = {}, 0
  for item, quantity in string.gmatch(text, '(%d+)/(%d+)') do
    lines[#lines + 1] = tonumber(item)
    lines[#lines + 1] = tonumber(quantity)
    sum = sum + quantity
  end
  return lines, sum
end

-- Why these lines cannot be taken: `s` if no unit is left of any of their items, or `e` and what is
-- left of each. Nothing if all units are free.
local function short_of(lines, free)
  local is_short, is_sold_out = false, true
  for at = 1, #lines, 2 do
    local left = free[lines[at]]
    is_short = is_short or left < lines[at + 1]
    is_sold_out = is_sold_out and left == 0
  end
  if is_sold_out then return 's' end
  if not is_short then return nil end
  local left = {}
  for at = 1, #lines, 2 do left[#left + 1] = free[lines[at]] end
  return 'e' .. table.concat(left, ',')
end

-- Returns a function that takes a unit of an item, a released one if there is one, and a table with
-- what it has taken. It reads released units in pieces of one for each attempt.
local function taker(s, count)
  local taken = {units = 0, returned = {}, next = {}}
  local lists, free, next = {}, s.free, s.next
  local function take(item)
    taken.units = taken.units + 1
    free[item] = free[item] - 1
    local done = taken.returned[item] or 0
    if done < s.returned[item] then
      if done % count == 0 then
        lists[item] = redis.call('LRANGE', list(item), done + 1, done + count)
      end
      taken.returned[item] = done + 1
      return lists[item][done % count + 1]
    end
    next[item] = next[item] + 1
    taken.next[item] = next[item]
    return whole(next[item])
  end
  return take, taken
end

-- Takes the units of all lines, each in the buyer's lowest free slot if `slots` is not nil. Returns
-- the units as a string, and the buyer's slots.
local function take_lines(lines, take, slots)
  local units, slot = nil, 0
  for at = 1, #lines, 2 do
    local item = lines[at]
    for _ = 1, lines[at + 1] do
      local unit, mark = take(item), nil
      if item ~= 1 then unit = whole(item) .. '/' .. unit end
      if slots then
        repeat
          slot = slot + 1
          mark = string.char(SLOT_ZERO + slot)
        until not string.find(slots, mark, 1, true)
        slots = slots .. mark
        unit = unit .. '@' .. whole(slot)
      end
      units = units and units .. ',' .. unit or unit
    end
  end
  return units, slots
end

-- claim: decides a batch. Six arguments per attempt: order id, digest(buyer), digest(buyer, key),
-- fingerprint ('' without a key), lines, message part. The lines are `1` for one unit of item 1,
-- item/quantity,… for others, and '' if they are invalid.
local WIDTH = 6
local function claim(s)
  local count, limit, win = (#ARGV - 2) / WIDTH, s.limit, window(s)

  -- Phase 1: read and decide on an overlay, so that each attempt sees the earlier claims of its
  -- batch.
  local ids, keys, by_key, buyers, slots, at = {}, {}, {}, {}, {}, 3
  for i = 1, count do
    ids[i] = ARGV[at]
    local buyer, key = ARGV[at + 1], ARGV[at + 2]
    if key ~= '' and by_key[key] == nil then keys[#keys + 1] = key; by_key[key] = false end
    if limit and buyer ~= '' and not slots[buyer] then buyers[#buyers + 1] = buyer; slots[buyer] = '' end
    at = at + WIDTH
  end
  local known, units_by_id = redis.call('HMGET', C, unpack(ids)), {}
  if #keys > 0 then
    local found_ids = {}
    for i, found in ipairs(redis.call('HMGET', I, unpack(keys))) do
      by_key[keys[i]] = found
      if found then found_ids[#found_ids + 1] = string.sub(found, 1, ID_BYTES) end
    end
    if #found_ids > 0 then
      for i, found in ipairs(redis.call('HMGET', C, unpack(found_ids))) do
        if not found then return {'DRIFT', 'an idempotency key refers to an unknown order'} end
        units_by_id[found_ids[i]] = units_of(found)
      end
    end
  end
  if #buyers > 0 then
    for i, found in ipairs(redis.call('HMGET', B, unpack(buyers))) do slots[buyers[i]] = found or '' end
  end
  local take, taken = taker(s, count)
  local verdicts, repeated, set_claims, set_keys, touched, entry = {}, {}, {}, {}, {}, {}
  local n = s.n
  at = 3
  for i = 1, count do
    local id, buyer, key, lines = ids[i], ARGV[at + 1], ARGV[at + 2], ARGV[at + 4]
    local before, verdict = by_key[key], nil
    if known[i] then
      -- The same attempt was sent before and its reply was lost.
      verdict = '~' .. units_of(known[i])
    elseif before then
      if string.sub(before, ID_BYTES + 1) == ARGV[at + 3] then
        local first = string.sub(before, 1, ID_BYTES)
        verdict = '=' .. units_by_id[first]
        repeated[#repeated + 1] = first
      else
        verdict = 'x'
      end
    elseif lines == '' then
      verdict = 'q'
    elseif limit and buyer == '' then
      verdict = 'b'
    elseif win == 0 then
      verdict = 'n'
    elseif win == 2 then
      verdict = 'd'
    else
      local quantity
      lines, quantity = lines_of(lines)
      if limit and #slots[buyer] + quantity > limit then
        verdict = 'l'
      else
        verdict = short_of(lines, s.free)
      end
      if not verdict then
        local units, held = take_lines(lines, take, limit and slots[buyer])
        n = n + 1
        set_claims[#set_claims + 1] = id
        if limit then
          slots[buyer], touched[buyer] = held, true
          set_claims[#set_claims + 1] = units .. '|' .. buyer
        else
          set_claims[#set_claims + 1] = units
        end
        if key ~= '' then
          by_key[key] = id .. ARGV[at + 3]
          units_by_id[id] = units
          set_keys[#set_keys + 1] = key
          set_keys[#set_keys + 1] = by_key[key]
        end
        entry[#entry + 1] = ARGV[at + 5]
        entry[#entry + 1] = units
        verdict = '+' .. units
      end
    end
    verdicts[i] = verdict
    at = at + WIDTH
  end

  -- Phase 2: write. No argument list exceeds three values for each of 256 attempts.
  local entry_id = ''
  if n > s.n then
    local terms, set_buyers = {}, {}
    for item, next in pairs(taken.next) do
      terms[#terms + 1] = field('next', item)
      terms[#terms + 1] = whole(next)
    end
    for buyer in pairs(touched) do
      set_buyers[#set_buyers + 1] = buyer
      set_buyers[#set_buyers + 1] = slots[buyer]
    end
    entry_id = epoch .. '-' .. whole(n)
    redis.call('DECRBY', K, taken.units)
    redis.call('HSET', M, 'n', whole(n), 'outn', whole(s.outn + 1), 'win', win, unpack(terms))
    redis.call('HSET', C, unpack(set_claims))
    if #set_keys > 0 then redis.call('HSET', I, unpack(set_keys)) end
    if #set_buyers > 0 then redis.call('HSET', B, unpack(set_buyers)) end
    for item, count in pairs(taken.returned) do
      redis.call('LPOP', list(item), count + 1)
      redis.call('LPUSH', list(item), '-')
    end
    redis.call('XADD', O, entry_id, 'at', whole(s.now), unpack(entry))
    s.n = n
  elseif win ~= s.win then
    redis.call('HSET', M, 'win', win)
  end
  local reply = head(s)
  reply[#reply + 1] = entry_id
  reply[#reply + 1] = table.concat(verdicts, ' ')
  reply[#reply + 1] = table.concat(repeated)
  return reply
end

-- trim: removes outbox entries whose claims are all decided. Also allowed while the gate is closed
-- and after a restart of Redis.
local function trim(s)
  local gone = redis.call('XDEL', O, unpack(ARGV, 3))
  if gone > 0 then redis.call('HINCRBY', M, 'outn', -gone) end
  return {'OK', whole(gone)}
end

-- give_back: releases the units of an ended order. Keyed by order id, which makes it idempotent.
local function give_back(s)
  local id, done = ARGV[3], 'unknown'
  local found = redis.call('HGET', C, id)
  if found and string.sub(found, 1, 1) == '-' then
    done = 'ended'
  elseif found then
    done = 'live'
    local units, buyer = string.match(found, '^([^|]+)|?(.*)$')
    local slots, released = '', {}
    if buyer ~= '' then slots = redis.call('HGET', B, buyer) or '' end
    for unit in string.gmatch(units, '[^,]+') do
      local item, of_item = string.match(unit, '^(%d+)/(.+)$')
      local number, generation, slot = string.match(of_item or unit, '^(%d+):?(%d*)@?(%d*)$')
      item = tonumber(item or 1)
      released[#released + 1] = {list(item), number .. ':' .. whole((tonumber(generation) or 1) + 1)}
      s.free[item] = s.free[item] + 1
      local at = string.find(slots, string.char(SLOT_ZERO + (tonumber(slot) or -1)), 1, true)
      if at then slots = string.sub(slots, 1, at - 1) .. string.sub(slots, at + 1) end
    end
    s.n = s.n + 1
    redis.call('INCRBY', K, #released)
    redis.call('HSET', M, 'n', whole(s.n))
    redis.call('HSET', C, id, '-' .. found)
    if buyer ~= '' then redis.call('HSET', B, buyer, slots) end
    for _, unit in ipairs(released) do redis.call('RPUSH', unit[1], unit[2]) end
  end
  local reply = head(s)
  reply[#reply + 1] = done
  return reply
end

-- Sets the sale's terms: version, limit, opens, closes ('' means none), and the total of each item.
local function set_terms(at)
  redis.call('HSET', M, 'version', ARGV[at], 'limit', ARGV[at + 1], 'opens', ARGV[at + 2], 'closes', ARGV[at + 3], 'win', 0)
  for item = 1, ITEMS do
    redis.call('HSET', M, field('total', item), ARGV[at + 3 + item])
  end
end

-- sync: applies newer terms of the sale.
local function sync(s)
  if tonumber(ARGV[3]) > tonumber(s.version) then
    local more = 0
    for item = 1, ITEMS do more = more + ARGV[6 + item] - s.total[item] end
    redis.call('INCRBY', K, more)
    set_terms(3)
    redis.call('HSET', M, 'n', whole(s.n + 1))
    local changed, refusal = guard()
    if refusal then return refusal end
    s = changed
  end
  return head(s)
end

-- look: returns the claim of an order id or, if ARGV 4 is a digest(buyer, key), the order id stored
-- under that digest. The reply is '' if there is none.
local function look(s)
  if ARGV[4] then return {'OK', redis.call('HGET', I, ARGV[4]) or ''} end
  return {'OK', redis.call('HGET', C, ARGV[3]) or ''}
end

-- close: stops new claims while existing ones are forwarded to the store. Replies with the number
-- of outbox entries left.
local function close(s)
  if s.gate == 'open' then redis.call('HSET', M, 'gate', 'rebuilding') end
  return {'OK', whole(s.outbox)}
end

-- reset: replaces any existing state with an empty gate of this epoch, led by ARGV 3. Refuses if
-- the existing gate is of this epoch or a later one, or if a key has another type and so belongs to
-- another application.
local function reset()
  local s, refusal = read()
  if refusal and refusal[1] == 'TYPE' then return refusal end
  if s and (tonumber(s.epoch) or 0) >= tonumber(epoch) then return {'EPOCH', s.epoch} end
  redis.call('DEL', unpack(KEYS))
  redis.call('HSET', M, 'epoch', epoch, 'run', run_id(), 'gate', 'rebuilding', 'leader', ARGV[3], 'version', 0, 'win', 0, 'n', 0, 'outn', 0)
  redis.call('SET', K, 0)
  redis.call('HSET', C, '-', '-')
  redis.call('HSET', I, '-', '-')
  redis.call('HSET', B, '-', '-')
  for item = 1, ITEMS do
    redis.call('HSET', M, field('total', item), 0, field('next', item), 0)
    redis.call('RPUSH', list(item), '-')
  end
  redis.call('XADD', O, '0-1', '-', '-')
  redis.call('XDEL', O, '0-1')
  return {'OK'}
end

-- load: adds entries to one key while ARGV 3 leads the epoch. ARGV 4 is c, k or b, or the number of
-- an item, for its list.
local function load(s)
  local item = tonumber(ARGV[4])
  if item then
    redis.call('RPUSH', list(item), unpack(ARGV, 5))
  else
    redis.call('HSET', ({c = C, k = I, b = B})[ARGV[4]], unpack(ARGV, 5))
  end
  return {'OK'}
end

-- open: opens a loaded gate. Arguments: the terms, then for each item the number of units handed
-- out, and the number of released units, which must match the loaded list.
local function open(s)
  local free, terms, at = 0, {'gate', 'open'}, 8 + ITEMS
  for item = 1, ITEMS do
    local next, returned = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
    if s.returned[item] ~= returned then
      return {'DRIFT', list(item) .. ' has ' .. s.returned[item] .. ' units (expected ' .. returned .. ')'}
    end
    free = free + ARGV[7 + item] - next + returned
    terms[#terms + 1] = field('next', item)
    terms[#terms + 1] = whole(next)
    at = at + 2
  end
  set_terms(4)
  redis.call('SET', K, whole(free))
  redis.call('HSET', M, unpack(terms))
  return {'OK'}
end

local check = ({trim = current, close = current, load = led, open = led})[op] or guard
local run = ({
  claim = claim, give_back = give_back, sync = sync, look = look, trim = trim, close = close, load = load, open = open,
  -- Returns the head of the gate's state if the gate is usable.
  peek = head,
})[op]
if op == 'reset' then return reset() end
local state, refusal = check()
return refusal or run(state)
