"""Which Debian mirror this machine uses, so that images and boxes use the same one."""

import functools
import os
import re
from urllib.parse import urlsplit

from tests.boxes.system import tool

CODENAMES = {12: "bookworm", 13: "trixie"}
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_SUITE = re.compile(r"(?:bookworm|trixie|bullseye|stable|oldstable|testing|sid)(?P<kind>|-updates|-security)")
# A frozen mirror needs these where it is used, thus in the box as well.
_CARRIED = ("Acquire::Check-Valid-Until", "Acquire::Check-Date")


@functools.cache
def mirrors() -> dict[str, str]:
    """Base URLs by kind of suite ("", "-updates", "-security"), as this machine's apt has them.

    A kind that apt has no http(s) source for is taken from deb.debian.org, Debian's own.
    """
    found = {
        "": "http://deb.debian.org/debian",
        "-updates": "http://deb.debian.org/debian",
        "-security": "http://deb.debian.org/debian-security",
    }
    listing = tool("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages")
    for url, release in (line.rsplit(" ", 1) for line in listing.splitlines()):
        suite = _SUITE.fullmatch(release)
        if suite and urlsplit(url).scheme in ("http", "https") and "debian" in url:
            found[suite["kind"]] = url.rstrip("/")
    return found


def sources(debian: int) -> str:
    """The sources.list of that Debian on this machine's mirror."""
    suite = CODENAMES[debian]
    return "".join(
        f"deb [signed-by={KEYRING}] {url} {suite}{kind} main\n" for kind, url in mirrors().items()
    )


def hosts() -> list[str]:
    """The hosts that the mirrors are on, without port."""
    return sorted({urlsplit(url).hostname or "" for url in mirrors().values()})


def needs_tls() -> bool:
    """Whether a mirror is reached over https, so that a bare image must bring certificates."""
    return any(url.startswith("https:") for url in mirrors().values())


def carried_options() -> list[str]:
    """apt.conf lines of this machine without which its mirror cannot be used."""
    lines = tool("apt-config", "dump", *_CARRIED).splitlines()
    return [line for line in lines if not line.endswith('"";')]


def upstream_proxy() -> str | None:
    """The http proxy this machine itself needs to reach the mirror, as a URL, or None."""
    dumped = tool("apt-config", "dump", "--format", "%v%n", "Acquire::http::Proxy").strip()
    url = dumped or os.environ.get("http_proxy", "")
    return None if url in ("", "DIRECT") else url
