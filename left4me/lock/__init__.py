"""The deploy's lock on a host: only its owner changes the host, and a lost connection frees it.

holder.py runs on the host and holds the lock. client.py requests it for pyinfra, wave_locks.py for the hosts of a
rollout's wave. protocol.py is what they share.
"""
