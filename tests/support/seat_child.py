"""A seat in a process of its own, to be stopped and resumed: `python -m tests.support.seat_child URL LEASE_MS`.

It writes a line whenever something changed, and at least every 20 ms: the monotonic clock, whether it may serve the
first shard, and the number of the last purge it has applied there (ids are numbers).
"""

from __future__ import annotations

import asyncio
import sys
import time

from tests.support.seats import seated

TICK_S = 0.001
LONGEST_S = 0.02


async def main(url: str, lease_ms: int) -> None:
    """Run until the process is ended."""
    async with seated(url, lease_ms=lease_ms) as seat:
        said, said_at_s = (False, -1), 0.0
        while True:
            purged = [int(message.fields[b"ids"]) for message in seat.applied[0][-1:]]
            # The clock before the look, so that a line never says more than was true by its time.
            now_s = time.monotonic()
            looked = (seat.members.serving(0), purged[-1] if purged else 0)
            if looked != said or now_s - said_at_s > LONGEST_S:
                said, said_at_s = looked, now_s
                sys.stdout.write(f"{now_s:.6f} {int(looked[0])} {looked[1]} {time.monotonic():.6f}\n")
                sys.stdout.flush()
            await asyncio.sleep(TICK_S)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
