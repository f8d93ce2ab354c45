"""How a message of the control log looks, for those who write it within a script that changes state, too."""

from __future__ import annotations

TOPIC, PAYLOAD = b"topic", b"payload"

APPEND = """
local function tell(log, most, topic, payload)
  return redis.call('XADD', log, 'MAXLEN', '~', most, '*', 'topic', topic, 'payload', payload)
end
"""
"""The start of a script that changes state and says so, at once."""
