"""A Lua script, by its text and its digest. Apart from the link, so that whoever only has scripts loads no client."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, known to the engine by its digest."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


LAST_ID = """
local function last_id(stream)
  if redis.call('EXISTS', stream) == 0 then return '0-0' end
  local told = redis.call('XINFO', 'STREAM', stream)
  for at = 1, #told, 2 do
    if told[at] == 'last-generated-id' then return told[at + 1] end
  end
  return '0-0'
end
"""
"""The start of a script that asks where a log ends: by the last id that it gave out, be the message cut away since."""
