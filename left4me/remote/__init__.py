"""Programs that a deploy runs on the host, sent as text to `python3 -I -c`: Python's standard library alone.

Each reads its input as JSON and prints its answer as JSON, or one line of why not to standard error.
"""
