"""The Debian mirror of this machine, which images and boxes use too."""

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
# A frozen mirror needs these options, also inside a box.
_CARRIED = ("Acquire::Check-Valid-Until", "Acquire::Check-Date")


@functools.cache
def url() -> str:
    """Return the URL of the http(s) Debian mirror in this machine's apt sources, or else deb.debian.org."""
    listing = tool("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages")
    for base, release in (line.rsplit(" ", 1) for line in listing.splitlines()):
        # Third-party archives use Debian's suite names, but their URLs do not end in debian.
        if release in _SUITES and re.fullmatch(r"https?://.*debian/?", base):
            return base.rstrip("/")
    return _DEFAULT


def sources(debian: int) -> str:
    """Return the sources.list of a Debian. Raises BoxError if the mirror has no consistent indices now.

    Without -updates and -security: a box is short-lived and isolated, and i386 and amd64 libraries must have the same
    version, which two suites do not guarantee while a mirror syncs.
    """
    # A caching mirror may serve an outdated index; the suite's other name is cached separately.
    for suite in _NAMES[debian]:
        if all(_is_consistent(suite, architecture) for architecture in ("amd64", "i386")):
            return f"deb [signed-by={KEYRING}] {url()} {suite} main\n"
    names = " nor ".join(_NAMES[debian])
    raise BoxError(
        f"the mirror {url()} is syncing: neither {names} has the indices named in InRelease; try again later"
    )


def _is_consistent(suite: str, architecture: str) -> bool:
    """Return whether the index of an architecture has the size that InRelease names."""
    name = f"main/binary-{architecture}/Packages.xz"
    release = _request("GET", f"{url()}/dists/{suite}/InRelease").read().decode()
    # Lines of ` <sum> <bytes> <name>`: https://wiki.debian.org/DebianRepository/Format
    sizes = set(re.findall(rf"^ [0-9a-f]+ +(\d+) {re.escape(name)}$", release, re.MULTILINE))
    return {_request("HEAD", f"{url()}/dists/{suite}/{name}").headers["Content-Length"]} == sizes


def _request(method: str, address: str) -> HTTPResponse:
    proxies = {"http": proxy} if (proxy := upstream_proxy()) else {}
    try:
        answer: HTTPResponse = build_opener(ProxyHandler(proxies)).open(Request(address, method=method), timeout=60)
    except OSError as error:
        raise BoxError(f"{address}: {error}") from error
    return answer


def host() -> str:
    """Return the mirror's host name without port."""
    return urlsplit(url()).hostname or ""


def carried_options() -> list[str]:
    """Return the apt.conf lines that this machine's mirror requires."""
    lines = tool("apt-config", "dump", *_CARRIED).splitlines()
    return [line for line in lines if not line.endswith(' "";')]


def upstream_proxy() -> str | None:
    """Return the URL of the proxy that this machine needs for the mirror, or None."""
    dumped = tool("apt-config", "dump", "--format", "%v%n", "Acquire::http::Proxy").strip()
    proxy = dumped or os.environ.get("http_proxy", "")
    return None if proxy in ("", "DIRECT") else proxy
