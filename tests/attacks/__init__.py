"""Attacks from inside a server's unit, and on what root and the control machine read.

Most run here. Where an attack is told elsewhere:

- another user's files and root's copies: tests/unit/test_host_source.py, tests/integration/test_sources.py
- answers of hosts: tests/unit/test_answers.py, tests/stories/test_28_a_host_that_answers_nonsense.py
- A2S and RCON: tests/unit/test_a2s.py, test_rcon_packets.py, tests/integration/test_rcon.py
- what the sandbox hides, /tmp: tests/integration/test_sandbox.py
- address families, ports of others: tests/vm/test_sandbox.py
- disk and inodes: tests/vm/test_quotas.py, tests/stories/test_31_a_full_disk.py
- floods from the network: tests/integration/test_firewall.py, bench/flood.py
- an operator with sudo: tests/stories/test_19_without_root.py
"""
