"""The library of l4d2ctl and of the programs in /usr/local/libexec/left4me.

Commands import only the modules they use, because imports are most of their run time.
"""

VERSION = "0.1.0"
"""Must equal the version in pyproject.toml."""


def version() -> str:
    """Return the version and, if a deploy recorded it, the git revision: `0.1.0 (revision abc1234)`."""
    from left4me_host import layout

    try:
        with open(layout.REVISION, encoding="utf-8", errors="replace") as file:
            revision = file.read().strip()
    except OSError:
        revision = ""
    return f"{VERSION} (revision {revision})" if revision else VERSION
