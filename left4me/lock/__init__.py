"""The deploy's lock on a host: only the lock's owner changes the host. A lost connection frees the lock.

holder.py runs on the host and holds the lock. client.py requests it for pyinfra, wave_locks.py for the hosts of a
rollout's wave. protocol.py has their common parts.
"""
