"""Programs that a deploy sends as text to `python3 -I -c` on the host; they need only Python's standard library.

Each prints its answer as JSON, or one line with the error to standard error.
"""
