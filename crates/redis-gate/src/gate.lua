-- The gate of one sale. Decides attempts and maintains the outbox. Each call is one atomic step.
-- Redis does not roll back a script that fails midway. Each operation therefore reads and decides
-- first and writes last, and only its first write can fail (out of memory, persistence error).
--
-- KEYS  1 stock key   string: free units, a mirror of the fields below; the tutorial's `counter`
--       2 {K}:m       hash: epoch, run, gate, leader, version, total, limit, opens, closes, win,
--                     next, n, outn
--       3 {K}:c       hash: order id -> unit:gen:slot:fingerprint:buyer:live|ended
--       4 {K}:k       hash: digest(buyer, key) -> order id
--       5 {K}:b       hash: digest(buyer) -> one character per slot in use, '0' + slot
--       6 {K}:f       list: unit:gen of released units, first in first out, after a sentinel
--       7 {K}:o       stream: the outbox; entry id epoch-n, one entry per batch
-- Every key always exists (hashes and the list contain a sentinel `-`), because a missing key
-- causes TRYAGAIN while a Cluster slot is migrating.
-- ARGV  1 operation, 2 epoch, then the arguments of the operation
-- Replies {status, ...}: OK, or GONE, TYPE, RUN, EPOCH, REBUILD, DRIFT with a detail.

local K, M, C, I, B, F, O = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local op, epoch = ARGV[1], ARGV[2]

local function run_id()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function whole(number)
  return string.format('%d', number)
end

-- Reads all seven keys with the command for each type. Returns the state, or nil and the refusal.
local function read()
  local reads = {
    {K, redis.pcall('GET', K)},
    {M, redis.pcall('HMGET', M, 'epoch', 'run', 'gate', 'leader', 'version', 'total', 'limit', 'opens', 'closes', 'win', 'next', 'n', 'outn')},
    {C, redis.pcall('HLEN', C)},
    {I, redis.pcall('HLEN', I)},
    {B, redis.pcall('HLEN', B)},
    {F, redis.pcall('LLEN', F)},
    {O, redis.pcall('XLEN', O)},
  }
  for _, got in ipairs(reads) do
    if type(got[2]) == 'table' and got[2].err then
      return nil, {'TYPE', got[1] .. ': ' .. got[2].err}
    end
  end
  local m = reads[2][2]
  if not m[1] then
    return nil, {'GONE', M .. ' does not exist'}
  end
  local function number(at) return tonumber(m[at] or '') end
  for _, at in ipairs({5, 6, 10, 11, 12, 13}) do
    if not number(at) then return nil, {'DRIFT', M .. ' is missing a field'} end
  end
  return {
    free_mirror = tonumber(reads[1][2] or ''),
    epoch = m[1], run = m[2], gate = m[3], leader = m[4], version = number(5), total = number(6),
    limit = number(7), opens = number(8), closes = number(9), win = number(10),
    next = number(11), n = number(12), outn = number(13),
    claims = reads[3][2], keys = reads[4][2], buyers = reads[5][2], returned = reads[6][2] - 1, outbox = reads[7][2],
  }
end

-- Returns the state of a usable gate: in this epoch, in this run of Redis, open, and not modified
-- by another client.
local function guard()
  local s, refusal = read()
  if not s then return nil, refusal end
  if s.run ~= run_id() then
    return nil, {'RUN', 'Redis has restarted or failed over since the gate was opened'}
  end
  if s.epoch ~= epoch then
    return nil, {'EPOCH', s.epoch}
  end
  if s.gate ~= 'open' then
    return nil, {'REBUILD', s.epoch}
  end
  s.free = s.total - s.next + s.returned
  if s.free_mirror ~= s.free or s.returned < 0 then
    return nil, {'DRIFT', K .. ' is ' .. tostring(s.free_mirror) .. ' (expected ' .. whole(s.free) .. ' free units)'}
  end
  if s.outbox ~= s.outn or s.claims < 1 or s.keys < 1 or s.buyers < 1 then
    return nil, {'DRIFT', 'the outbox has ' .. s.outbox .. ' entries (expected ' .. whole(s.outn) .. '), or a key was emptied'}
  end
  return s
end

local function head(s, now)
  return {'OK', s.epoch, whole(s.version), whole(s.n), whole(s.free), whole(now), s.limit and whole(s.limit) or '', s.opens and whole(s.opens) or '',
    s.closes and whole(s.closes) or ''}
end

-- The window state: 0 before, 1 open, 2 closed. It only moves forward, even if the clock jumps
-- back.
local function window(s, now)
  local win = 1
  if s.opens and now < s.opens then win = 0 end
  if s.closes and now >= s.closes then win = 2 end
  return math.max(win, s.win)
end

local function lowest_free(slots)
  for slot = 1, 64 do
    if not string.find(slots, string.char(48 + slot), 1, true) then return slot end
  end
end

local function unit_of(claim)
  return string.match(claim, '^(%d+:%d+):')
end

-- claim: decides a batch. Six arguments per attempt: order id, digest(buyer), digest(buyer, key),
-- fingerprint, quantity, message part.
local WIDTH = 6
local function claim()
  local s, refusal = guard()
  if not s then return refusal end
  local now, count = now_ms(), (#ARGV - 2) / WIDTH
  local function arg(i, at) return ARGV[2 + (i - 1) * WIDTH + at] end
  -- Converting numbers to strings takes longer in Lua than deciding an attempt, so values that
  -- arrive as strings stay strings.

  -- Phase 1: read and decide on an overlay, so that each attempt sees the earlier claims of its
  -- batch.
  local ids, key_at, keys, buyer_at, buyers = {}, {}, {}, {}, {}
  for i = 1, count do
    ids[i] = arg(i, 1)
    local buyer, key = arg(i, 2), arg(i, 3)
    if key ~= '' and not key_at[key] then keys[#keys + 1] = key; key_at[key] = #keys end
    if s.limit and buyer ~= '' and not buyer_at[buyer] then buyers[#buyers + 1] = buyer; buyer_at[buyer] = #buyers end
  end
  local known = redis.call('HMGET', C, unpack(ids))
  local by_key, slots = {}, {}
  if #keys > 0 then
    local found, found_ids = redis.call('HMGET', I, unpack(keys)), {}
    for _, id in ipairs(found) do
      if id then found_ids[#found_ids + 1] = id end
    end
    local claims = {}
    if #found_ids > 0 then claims = redis.call('HMGET', C, unpack(found_ids)) end
    local at = 0
    for i, key in ipairs(keys) do
      if found[i] then at = at + 1; by_key[key] = {found[i], claims[at] or ''} end
    end
  end
  if #buyers > 0 then
    local found = redis.call('HMGET', B, unpack(buyers))
    for i, buyer in ipairs(buyers) do slots[buyer] = found[i] or '' end
  end
  local win = window(s, now)
  local returned = {}
  local from_returned = math.min(s.returned, count)
  if from_returned > 0 then returned = redis.call('LRANGE', F, 1, from_returned) end
  local verdicts, set_claims, set_keys, set_buyers, entry = {}, {}, {}, {}, {}
  local taken, taken_returned, fresh, n, touched = 0, 0, s.next, s.n, {}
  for i = 1, count do
    local id, buyer, key, fingerprint = ids[i], arg(i, 2), arg(i, 3), arg(i, 4)
    local before, verdict = by_key[key], nil
    if known[i] then
      -- The same attempt was sent before and its reply was lost.
      verdict = '~' .. unit_of(known[i])
    elseif before then
      local unit = unit_of(before[2])
      if not unit then
        return {'DRIFT', 'an idempotency key refers to an unknown order: ' .. before[1]}
      end
      if string.match(before[2], '^%d+:%d+:%d+:(%x+):') == fingerprint then
        verdict = '=' .. unit .. ':' .. before[1]
      else
        verdict = 'x'
      end
    elseif arg(i, 5) ~= '1' then
      verdict = 'q'
    elseif s.limit and buyer == '' then
      verdict = 'b'
    elseif win == 0 then
      verdict = 'n'
    elseif win == 2 then
      verdict = 'd'
    elseif s.limit and #slots[buyer] >= s.limit then
      verdict = 'l'
    elseif taken == s.free then
      verdict = 's'
    else
      local unit, slot = nil, '0'
      taken = taken + 1
      if taken_returned < s.returned then
        taken_returned = taken_returned + 1
        unit = returned[taken_returned]
      else
        fresh = fresh + 1
        unit = whole(fresh) .. ':1'
      end
      if s.limit then
        local free_slot = lowest_free(slots[buyer])
        slot = whole(free_slot)
        slots[buyer] = slots[buyer] .. string.char(48 + free_slot)
        touched[buyer] = true
      end
      n = n + 1
      local made = unit .. ':' .. slot .. ':' .. fingerprint .. ':' .. buyer .. ':live'
      set_claims[#set_claims + 1] = id
      set_claims[#set_claims + 1] = made
      if key ~= '' then
        by_key[key] = {id, made}
        set_keys[#set_keys + 1] = key
        set_keys[#set_keys + 1] = id
      end
      entry[#entry + 1] = arg(i, 6)
      entry[#entry + 1] = unit .. ':' .. slot
      verdict = '+' .. unit .. ':' .. slot
    end
    verdicts[i] = verdict
  end
  for buyer in pairs(touched) do
    set_buyers[#set_buyers + 1] = buyer
    set_buyers[#set_buyers + 1] = slots[buyer]
  end

  -- Phase 2: write. No argument list exceeds three values for each of 256 attempts.
  local entry_id = ''
  if taken > 0 then
    entry_id = epoch .. '-' .. whole(n)
    redis.call('DECRBY', K, taken)
    redis.call('HSET', M, 'next', whole(fresh), 'n', whole(n), 'outn', whole(s.outn + 1), 'win', win)
    redis.call('HSET', C, unpack(set_claims))
    if #set_keys > 0 then redis.call('HSET', I, unpack(set_keys)) end
    if #set_buyers > 0 then redis.call('HSET', B, unpack(set_buyers)) end
    if taken_returned > 0 then
      redis.call('LPOP', F, taken_returned + 1)
      redis.call('LPUSH', F, '-')
    end
    redis.call('XADD', O, entry_id, 'at', whole(now), unpack(entry))
    s.n, s.free = n, s.free - taken
  elseif win ~= s.win then
    redis.call('HSET', M, 'win', win)
  end
  local reply = head(s, now)
  reply[#reply + 1] = entry_id
  reply[#reply + 1] = table.concat(verdicts, ' ')
  return reply
end

-- trim: removes outbox entries whose claims are all decided. Also allowed while the gate is closed
-- and after a restart of Redis.
local function trim()
  local s, refusal = read()
  if not s then return refusal end
  if s.epoch ~= epoch then return {'EPOCH', s.epoch} end
  local gone = redis.call('XDEL', O, unpack(ARGV, 3))
  if gone > 0 then redis.call('HINCRBY', M, 'outn', -gone) end
  return {'OK', whole(gone)}
end

-- give_back: releases the unit of an ended order. Keyed by order id, which makes it idempotent.
local function give_back()
  local s, refusal = guard()
  if not s then return refusal end
  local id, now = ARGV[3], now_ms()
  local found = redis.call('HGET', C, id)
  local done = 'unknown'
  if found then
    local number, gen, slot, fingerprint, buyer, state = string.match(found, '^(%d+):(%d+):(%d+):(%x+):([^:]*):(%a+)$')
    done = state
    if state == 'live' then
      s.n, s.free = s.n + 1, s.free + 1
      redis.call('INCR', K)
      redis.call('HSET', M, 'n', whole(s.n))
      redis.call('HSET', C, id, number .. ':' .. gen .. ':' .. slot .. ':' .. fingerprint .. ':' .. buyer .. ':ended')
      if slot ~= '0' then
        local slots = redis.call('HGET', B, buyer) or ''
        local at = string.find(slots, string.char(48 + slot), 1, true)
        if at then redis.call('HSET', B, buyer, string.sub(slots, 1, at - 1) .. string.sub(slots, at + 1)) end
      end
      redis.call('RPUSH', F, number .. ':' .. whole(gen + 1))
    end
  end
  local reply = head(s, now)
  reply[#reply + 1] = done
  return reply
end

-- Sets the sale's terms: version, total, limit, opens, closes; '' means none.
local function set_terms(at)
  redis.call('HSET', M, 'version', ARGV[at], 'total', ARGV[at + 1], 'limit', ARGV[at + 2], 'opens', ARGV[at + 3], 'closes',
    ARGV[at + 4], 'win', 0)
end

-- sync: applies newer terms of the sale.
local function sync()
  local s, refusal = guard()
  if not s then return refusal end
  if tonumber(ARGV[3]) > s.version then
    local more = ARGV[4] - s.total
    redis.call('INCRBY', K, more)
    set_terms(3)
    redis.call('HSET', M, 'n', whole(s.n + 1))
    s.version, s.n, s.free = tonumber(ARGV[3]), s.n + 1, s.free + more
  end
  return head(s, now_ms())
end

-- peek: returns the head of the gate's state if the gate is usable.
local function peek()
  local s, refusal = guard()
  if not s then return refusal end
  return head(s, now_ms())
end

-- look: returns the claim of an order id or, if ARGV 4 is a digest(buyer, key), the order id stored
-- under that digest. The reply is '' if there is none.
local function look()
  local s, refusal = guard()
  if not s then return refusal end
  if ARGV[4] then return {'OK', redis.call('HGET', I, ARGV[4]) or ''} end
  return {'OK', redis.call('HGET', C, ARGV[3]) or ''}
end

-- close: stops new claims while existing ones are forwarded to the store. Replies with the number
-- of outbox entries left.
local function close()
  local s, refusal = read()
  if not s then return refusal end
  if s.epoch ~= epoch then return {'EPOCH', s.epoch} end
  if s.gate == 'open' then redis.call('HSET', M, 'gate', 'rebuilding') end
  return {'OK', whole(s.outbox)}
end

-- reset: replaces any existing state with an empty gate of this epoch, led by ARGV 3. Refuses if
-- the existing gate is of this epoch or a later one, or if a key has another type and so belongs to
-- another application.
local function reset()
  local s, refusal = read()
  if refusal and refusal[1] == 'TYPE' then return refusal end
  if s and (tonumber(s.epoch) or 0) >= tonumber(epoch) then
    return {'EPOCH', s.epoch}
  end
  redis.call('DEL', K, M, C, I, B, F, O)
  redis.call('HSET', M, 'epoch', epoch, 'run', run_id(), 'gate', 'rebuilding', 'leader', ARGV[3], 'version', 0, 'total', 0,
    'win', 0, 'next', 0, 'n', 0, 'outn', 0)
  redis.call('SET', K, 0)
  redis.call('HSET', C, '-', '-')
  redis.call('HSET', I, '-', '-')
  redis.call('HSET', B, '-', '-')
  redis.call('RPUSH', F, '-')
  redis.call('XADD', O, '0-1', '-', '-')
  redis.call('XDEL', O, '0-1')
  return {'OK'}
end

local function led()
  local s, refusal = read()
  if not s then return nil, refusal end
  if s.run ~= run_id() then return nil, {'RUN', 'Redis restarted during the rebuild'} end
  if s.epoch ~= epoch or s.leader ~= ARGV[3] then return nil, {'EPOCH', s.epoch} end
  if s.gate ~= 'rebuilding' then return nil, {'REBUILD', 'the gate is already open'} end
  return s
end

-- load: adds items to one key while ARGV 3 leads the epoch; ARGV 4 names the key: c, k, b or f.
local function load()
  local s, refusal = led()
  if not s then return refusal end
  local into = ARGV[4]
  if into == 'f' then
    redis.call('RPUSH', F, unpack(ARGV, 5))
  else
    redis.call('HSET', ({c = C, k = I, b = B})[into], unpack(ARGV, 5))
  end
  return {'OK'}
end

-- open: opens a loaded gate. Arguments: the terms, the number of units handed out, and the number
-- of released units, which must match the loaded free list.
local function open()
  local s, refusal = led()
  if not s then return refusal end
  local next, returned = tonumber(ARGV[9]), tonumber(ARGV[10])
  if s.returned ~= returned then
    return {'DRIFT', 'the free list has ' .. s.returned .. ' units (expected ' .. returned .. ')'}
  end
  set_terms(4)
  redis.call('SET', K, whole(ARGV[5] - next + returned))
  redis.call('HSET', M, 'next', whole(next), 'gate', 'open')
  return {'OK'}
end

local operations = {
  claim = claim, trim = trim, give_back = give_back, sync = sync, peek = peek, look = look,
  close = close, reset = reset, load = load, open = open,
}
return operations[op]()
