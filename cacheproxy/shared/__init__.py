"""The engine that replicas share: how it is reached, what its keys are called, how changes follow, who is alive.

Nothing here knows what a document is. redis.asyncio is imported here and in `store/redis*` only.
"""
