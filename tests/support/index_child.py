"""A process that changes an index and saves it again and again, until it is killed.

python -m tests.support.index_child DIRECTORY      prints "saved" after each save that returned
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from cacheproxy.index.partitioned import PartitionedIndex
from tests.support.index_world import DIM, EPOCH, graphs_from, partition, settled, units

ROWS = units(600)
"""Entry e0, e1, ... always has this vector."""


async def main(directory: Path) -> None:
    """Run until killed."""
    async with PartitionedIndex(graphs_from(20), dim=DIM, epoch=EPOCH) as index:
        turn = 0
        while True:
            for i in range(0, 600, 2):
                index.add(partition(f"category {i % 3}"), f"e{i}", ROWS[i])
            index.remove([f"e{i}" for i in range(turn % 7, 600, 7)])
            await settled(index)
            await index.save(directory)
            os.write(1, b"saved\n")
            turn += 1


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
