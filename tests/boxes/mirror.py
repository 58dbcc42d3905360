"""Which Debian mirror this machine uses, so that images and boxes use the same one."""

import functools
import os
import re
from http.client import HTTPResponse
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from tests.boxes.system import BoxError, tool

CODENAMES = {12: "bookworm", 13: "trixie"}
_NAMES = {12: ("bookworm", "oldstable"), 13: ("trixie", "stable")}
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
    """The sources.list of that Debian, as the mirror can serve it now. Raises BoxError if it cannot.

    No -updates and no -security: a box is short-lived and cut off, and the i386 libraries must have the version
    of the amd64 ones, which two suites of a mirror in the middle of its sync do not promise.
    """
    # A mirror that caches may keep one of a release's indices from another day: its other name is cached by itself.
    for suite in _NAMES[debian]:
        if all(_whole(suite, architecture) for architecture in ("amd64", "i386")):
            return f"deb [signed-by={KEYRING}] {url()} {suite} main\n"
    names = " nor ".join(_NAMES[debian])
    raise BoxError(f"{url()} is in the middle of its sync: neither {names} has the indices that it signed; try later")


def _whole(suite: str, architecture: str) -> bool:
    """Tell whether the index of an architecture is the one that the suite's signed file names, by its size."""
    name = f"main/binary-{architecture}/Packages.xz"
    release = _ask("GET", f"{url()}/dists/{suite}/InRelease").read().decode()
    # Lines of ` <sum> <bytes> <name>`: https://wiki.debian.org/DebianRepository/Format
    sizes = set(re.findall(rf"^ [0-9a-f]+ +(\d+) {re.escape(name)}$", release, re.MULTILINE))
    return {_ask("HEAD", f"{url()}/dists/{suite}/{name}").headers["Content-Length"]} == sizes


def _ask(method: str, address: str) -> HTTPResponse:
    proxies = {"http": proxy} if (proxy := upstream_proxy()) else {}
    try:
        answer: HTTPResponse = build_opener(ProxyHandler(proxies)).open(Request(address, method=method), timeout=60)
    except OSError as error:
        raise BoxError(f"{address}: {error}") from error
    return answer


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
