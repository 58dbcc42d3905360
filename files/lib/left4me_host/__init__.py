"""The library of l4d2ctl and of the programs in /usr/local/libexec/left4me.

Commands import only the modules they use, because imports are most of their run time.
"""

VERSION = "0.1.0"
"""Must equal the version in pyproject.toml."""
