"""What runs on a host: the parts of l4d2ctl and of the programs in /usr/local/libexec/left4me.

Each command imports only the parts that it uses, because imports take most of a command's time.
"""

VERSION = "0.1.0"
"""The same as in pyproject.toml."""


def version() -> str:
    """Return the version and, where a deploy noted it, the git revision: `0.1.0 (revision abc1234)`."""
    from left4me_host import layout

    try:
        with open(layout.REVISION, encoding="utf-8", errors="replace") as file:
            revision = file.read().strip()
    except OSError:
        revision = ""
    return f"{VERSION} (revision {revision})" if revision else VERSION
