"""The deploy's lock on a host: who may change it, and what becomes of those who vanish.

holder.py runs on the host and holds it; protocol.py is what the other two share with it; client.py holds it for
pyinfra, wave_locks.py for the hosts of a rollout's wave.
"""
