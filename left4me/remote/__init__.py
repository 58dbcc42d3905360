"""A deploy sends these programs as text to `python3 -I -c` on the host. They need only the standard library.

Each prints its answer as JSON, or one line with the error to standard error.
"""
