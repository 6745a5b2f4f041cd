"""Rules of the Redis scripts: declared keys, local names, no operation whose order is undefined."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.store.calls import parts
from tests.tidy import lua_rules as rules
from tests.tidy.sources import PACKAGES, ROOT, files

SCRIPTS = [path for top in PACKAGES for path in files(top, "*.lua")]
SHARED = """
local jobs_key = KEYS[1]
local function emit(events_key, list)
  redis.call('XADD', events_key, '*', list)
end
"""
BAD = {
    "undeclared key": "redis.call('GET', 'jobs')",
    "key built by hand": "redis.call('GET', KEYS[1] .. ':x')",
    "key from an argument": "local job_key = ARGV[1]\nredis.call('GET', job_key)",
    "name that does not say key": "local job = KEYS[1]\nredis.call('GET', job)",
    "key in the wrong place of a list": "local a_key, b_key = KEYS[1], ARGV[1]\nredis.call('GET', b_key)",
    "key out of its scope": "if ARGV[1] then local a_key = KEYS[2] end\nredis.call('GET', a_key)",
    "key assigned again": "local a_key = KEYS[2]\na_key = ARGV[1]",
    "key built in a local": "local a_key = KEYS[2] .. ARGV[1]\nredis.call('GET', a_key)",
    "no key": "redis.call('GET')",
    "helper without a key": "emit('events', {})",
    "key built from an element": "local t = {}\nredis.call('GET', KEYS[1] .. t[1])",
    "own helper without a key": "local function f(n, a_key) return n end\nf(1, ARGV[1])",
    "protected call": "redis.pcall('GET', KEYS[1])",
    "computed command": "redis.call(ARGV[1], KEYS[1])",
    "a set": "redis.call('SADD', KEYS[1], 'x')",
    "a set in small letters": "redis.call('smembers', KEYS[1])",
    "popping a set": "redis.call('SPOP', KEYS[1])",
    "scan": "redis.call('SCAN', 0)",
    "global": "total = 1",
    "global after a block": "for i = 1, 2 do local x = i end\nx = 3",
    "global in a list": "local a\na, b = 1, 2",
    "field of a global": "cache.x = 1",
    "element of a global": "local t = {}\nt[1], cache[2] = 1, 2",
    "overwritten library": "redis.call = 1",
    "global function": "function f() end",
    "misspelt": "local count = 1\nreturn cuont",
    "random": "local x = math.random()",
    "clock of the machine": "local x = os.time()",
    "open block": "if ARGV[1] then local x = 1",
}
GOOD = {
    "declared": "local a_key, b_key = KEYS[2], KEYS[3]\nredis.call('GET', a_key)\nredis.call('GET', b_key)",
    "computed position": "local n = 3\nredis.call('GET', KEYS[n + tonumber(ARGV[1])])",
    "keys from before": "redis.call('GET', jobs_key)\nemit(KEYS[2], { x = 1, y = 2 })\nemit(jobs_key, {})",
    "parameter": "local function f(a_key)\n  return redis.call('GET', a_key)\nend\nreturn f(KEYS[1])",
    "element of a map": "local t = {}\nlocal a_key = KEYS[t[1]]\nreturn redis.call('GET', a_key)",
    "scopes": "local t = {}\nfor i, v in ipairs(ARGV) do\n  t[i], t.last = v, { n = i }\nend\nreturn t",
    "nested": "local n = 0\nlocal f = { g = function(x)\n  n = x\nend }\nwhile n < 2 do f.g(n + 1) end",
    "branches": "local a\nif ARGV[1] then a = 1 elseif ARGV[2] then a = 2 else a = 3 end\nreturn a",
    "comment": "-- total = redis.call('KEYS', '*')\nreturn 'x = 1'",
    "until": "local n = 0\nrepeat\n  n = n + 1\nuntil n > 3\nreturn n",
}


@pytest.mark.parametrize("sample", BAD.values(), ids=BAD.keys())
def test_the_rule_bites(sample: str) -> None:
    """Each kind of slip is reported with its place."""
    found = rules.script("bad.lua", sample, SHARED)
    assert found
    assert all(violation.startswith("bad.lua:") for violation in found)


@pytest.mark.parametrize("sample", GOOD.values(), ids=GOOD.keys())
def test_the_rule_spares(sample: str) -> None:
    """Ordinary scripts pass."""
    assert rules.script("good.lua", sample, SHARED) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_keep_the_rules(path: Path) -> None:
    """Every shipped script declares its keys, keeps its names local and says what it does."""
    name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    # What a leading underscore marks is put before scripts of its directory when they are loaded.
    before = [path.parent / f"{part}.lua" for part in parts(path.stem) if part != path.stem]
    shared = "\n".join(part.read_text(encoding="utf-8") for part in before)
    assert rules.script(name, text, shared) == []
    if not path.name.startswith("_"):
        assert rules.head(name, text) == []


def test_the_head_is_asked_for() -> None:
    """A script without its head is reported once per missing part."""
    assert len(rules.head("lua/claim.lua", "return 1\n")) == 3
    assert rules.head("lua/claim.lua", "-- claim: takes jobs.\n-- KEYS: jobs\n-- Returns 1\nreturn 1\n") == []
