"""Which Debian mirror this machine uses, so that images and boxes use the same one."""

import functools
import os
import re
from urllib.parse import urlsplit

from tests.boxes.system import tool

CODENAMES = {12: "bookworm", 13: "trixie"}
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_DEFAULT = "http://deb.debian.org/debian"
_SUITES = {"bookworm", "trixie", "forky", "stable", "oldstable", "testing", "sid", "unstable"}
# A frozen mirror needs these where it is used, thus in the box as well.
_CARRIED = ("Acquire::Check-Valid-Until", "Acquire::Check-Date")


@functools.cache
def url() -> str:
    """The base URL of the Debian mirror in this machine's apt sources; Debian's own if there is none over http(s)."""
    listing = tool("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages")
    for base, release in (line.rsplit(" ", 1) for line in listing.splitlines()):
        # Third parties name their suites after Debian's, but not their archive.
        if release in _SUITES and re.fullmatch(r"https?://.*debian/?", base):
            return base.rstrip("/")
    return _DEFAULT


def sources(debian: int) -> str:
    """The sources.list of that Debian.

    No -updates and no -security: a box is short-lived and cut off, and the i386 libraries must have the version
    of the amd64 ones, which two suites of a mirror in the middle of its sync do not promise.
    """
    return f"deb [signed-by={KEYRING}] {url()} {CODENAMES[debian]} main\n"


def host() -> str:
    """The host that the mirror is on, without port."""
    return urlsplit(url()).hostname or ""


def carried_options() -> list[str]:
    """apt.conf lines of this machine without which its mirror cannot be used."""
    lines = tool("apt-config", "dump", *_CARRIED).splitlines()
    return [line for line in lines if not line.endswith(' "";')]


def upstream_proxy() -> str | None:
    """The http proxy this machine itself needs to reach the mirror, as a URL, or None."""
    dumped = tool("apt-config", "dump", "--format", "%v%n", "Acquire::http::Proxy").strip()
    proxy = dumped or os.environ.get("http_proxy", "")
    return None if proxy in ("", "DIRECT") else proxy
