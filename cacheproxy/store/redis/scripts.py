"""Every change of what is shared, as one Lua script: it changes the state and appends to the log, or does neither.

So the order of the log is the order of the state. All keys of a script are of one slot.

Redis refuses what needs memory when it has none, except in a script that has written before: what removes begins with a
DEL and is carried out then, too; what keeps an entry begins with a SET and is refused (measured with 7.0.15, 2026).

Versions are microseconds of the engine's clock, each larger than the one before: one shard's never repeat.
"""

from __future__ import annotations

from cacheproxy.shared.script import LAST_ID, Script

_NEXT_VERSION = """
local time = redis.call('TIME')
local version = time[1] * 1000000 + time[2]
local last = tonumber(redis.call('GET', version_key) or '0') or 0
if version <= last then version = last + 1 end
local told = string.format('%.0f', version)
redis.call('SET', version_key, told)
"""

PUT = Script(
    """
local doc, dir, log, tomb, floor, version_key, epoch = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
if ARGV[10] ~= '' and redis.call('GET', epoch) ~= ARGV[10] then return {-1} end
if ARGV[11] ~= '' and string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') ~= ARGV[11] then
    return {-1}
end
local fence = tonumber(ARGV[1])
if fence < (tonumber(redis.call('GET', floor) or '0') or 0) then return {0} end
if fence < (tonumber(redis.call('GET', tomb) or '0') or 0) then return {0} end
"""
    + _NEXT_VERSION
    + """
redis.call('DEL', doc)
redis.call('HSET', doc, 'r', ARGV[3], 'm', ARGV[5], 'ver', told)
if ARGV[4] ~= '' then redis.call('HSET', doc, 'v', ARGV[4]) end
redis.call('PEXPIRE', doc, ARGV[6])
redis.call('HSET', dir, ARGV[2], told .. '|' .. ARGV[7])
local at = redis.call('XADD', log, 'MAXLEN', '~', ARGV[8], '*',
    'op', 'put', 'id', ARGV[2], 'ver', told, 'm', ARGV[5], 'by', ARGV[9])
return {1, told, at}
"""
)
"""Keep an entry, unless its fill began before a purge of it.

KEYS doc dir log tomb floor version epoch; ARGV fence id record vector meta life_ms gone_ms log_length replica mark
history. Returns {1, version, id of the message}, {0} where it is refused, {-1} where the engine does not bear the mark
any more that this replica knows it by (it was emptied, or is another one), or its data has another history: it was
started again or replaced, and may have lost the very purge that would refuse this fill. INFO costs 1 us of its time.
"""

PURGE = Script(
    """
local log, gen, dir, version_key, scratch = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local bound = tonumber(ARGV[1])
redis.call('DEL', scratch)
local count, ids, removed = #ARGV - 4, {}, 0
for i = 1, count do
    local doc = KEYS[5 + i]
    ids[i] = ARGV[4 + i]
    if bound then
        local held = redis.pcall('HGET', doc, 'ver')
        local version = type(held) == 'string' and tonumber(held) or 0
        if version > 0 and version <= bound then
            removed = removed + redis.call('DEL', doc)
            redis.call('HDEL', dir, ids[i])
        end
    else
        removed = removed + redis.call('DEL', doc)
        redis.call('HDEL', dir, ids[i])
    end
end
"""
    + _NEXT_VERSION
    + """
local raised = redis.call('INCR', gen)
for i = 1, count do redis.call('SET', KEYS[5 + count + i], raised, 'PX', ARGV[2]) end
if bound then told = ARGV[1] end
local at = redis.call('XADD', log, 'MAXLEN', '~', ARGV[3], '*',
    'op', 'purge', 'ids', table.concat(ids, ','), 'ver', told, 'gen', raised, 'by', ARGV[4])
return {removed, raised, told, at}
"""
)
"""Remove entries for good, and refuse fills of them that have begun.

KEYS log gen dir version scratch doc... tomb...; ARGV bound tomb_ms log_length replica id...
With a `bound` (else "") documents of later versions stay. Returns {removed, generation, version, id of the message}.
"""

HIDE = Script(
    """
local log, gen, floor, version_key, hidden, scratch = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
redis.call('DEL', scratch)
"""
    + _NEXT_VERSION
    + """
local raised = redis.call('INCR', gen)
redis.call('SET', floor, raised)
redis.call('HSET', hidden, ARGV[1], told .. '|' .. ARGV[2])
local at = redis.call('XADD', log, 'MAXLEN', '~', ARGV[3], '*',
    'op', 'hide', 'sel', ARGV[2], 'ver', told, 'gen', raised, 'by', ARGV[4])
return {raised, told, at}
"""
)
"""Hide what a selector means on every replica, and refuse every fill that has begun.

KEYS log gen floor version hidden scratch; ARGV name selector log_length replica.
Returns {generation, version, id of the message}.
"""

EVICT = Script(
    """
local log, dir, scratch = KEYS[1], KEYS[2], KEYS[3]
redis.call('DEL', scratch)
local count = (#ARGV - 2) / 2
local ids, versions = {}, {}
for i = 1, count do
    local id, version = ARGV[2 + i], ARGV[2 + count + i]
    local held = redis.pcall('HGET', KEYS[3 + i], 'ver')
    if not held or held == version or type(held) == 'table' then
        redis.call('DEL', KEYS[3 + i])
        redis.call('HDEL', dir, id)
        ids[#ids + 1] = id
        versions[#versions + 1] = version
    end
end
if #ids > 0 then
    redis.call('XADD', log, 'MAXLEN', '~', ARGV[1], '*',
        'op', 'evict', 'ids', table.concat(ids, ','), 'vers', table.concat(versions, ','), 'by', ARGV[2])
end
return #ids
"""
)
"""Remove entries of these very versions, or whose document is gone or of no proxy: to make room. No fill is refused.

KEYS log dir scratch doc...; ARGV log_length replica id... version... Returns how many went.
"""

READ = Script(
    """
local kind = redis.call('TYPE', KEYS[1])['ok']
if kind == 'none' then return {} end
if kind ~= 'hash' then return {-1} end
local most = tonumber(ARGV[1])
if redis.call('HSTRLEN', KEYS[1], 'r') > most or redis.call('HSTRLEN', KEYS[1], 'v') > most then return {-1} end
return redis.call('HMGET', KEYS[1], 'ver', 'r', 'v')
"""
)
"""Return {version, record, vector} of one document; {} where there is none, {-1} for what no proxy wrote. ARGV cap."""

FETCH = Script(
    """
local found = {}
for i = 1, #KEYS do
    local kind = redis.call('TYPE', KEYS[i])['ok']
    if kind == 'none' then
        found[i] = {}
    elseif kind ~= 'hash' or redis.call('HSTRLEN', KEYS[i], ARGV[1]) > tonumber(ARGV[2]) then
        found[i] = {-1}
    else
        found[i] = redis.call('HMGET', KEYS[i], 'ver', ARGV[1])
    end
end
return found
"""
)
"""Return {version, value} of one field (ARGV field cap) of each document; {} and {-1} as READ does."""

HEAD = Script(
    LAST_ID
    + """
return {last_id(KEYS[1]), redis.call('GET', KEYS[2]) or '0', redis.call('HGETALL', KEYS[3])}
"""
)
"""Return where the log ends, the generation, and what is hidden. KEYS log gen hidden."""
