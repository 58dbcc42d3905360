"""What an operator does, from his first evening on: one file, one story, one test, a box of its own, top to bottom.

Read these first. Each step is a command as an operator types it, what he must see, and a look by other means.
"""
