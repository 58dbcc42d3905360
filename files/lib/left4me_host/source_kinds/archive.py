"""A tree from an archive by URL: tar.gz, tar.xz, zip or 7z, whatever its name says."""

from __future__ import annotations

import hashlib
import http.client
import lzma
import os
import shutil
import stat
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any, Literal, NamedTuple

from left4me_host import filetree

SECONDS = 30  # that a server may say nothing
LARGEST = 64 << 30
"""Bytes that an archive may unpack to: six times the game."""
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, OSError)


def shown(url: str) -> str:
    """Return a URL without what may be a secret in it."""
    return url.partition("?")[0]


def download(url: str, path: str) -> str:
    """Write what is at a URL to a new file; return its SHA256."""
    if not url.startswith(("http://", "https://")):  # urllib would also read this host's own files
        raise ValueError(f"{url} is neither http:// nor https://")
    digest, request = hashlib.sha256(), urllib.request.Request(url, headers={"User-Agent": "left4me"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as response, open(path, "xb") as file:
            end = time.monotonic() + filetree.LONGEST
            while chunk := response.read1(1 << 20):
                if time.monotonic() > end:
                    raise OSError(f"it is not done within {filetree.LONGEST} s")
                digest.update(chunk)
                file.write(chunk)
            if response.length:  # what is still to come; read() alone takes a broken connection for the end
                raise OSError(f"it broke off with {response.length} bytes still to come")
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise OSError(f"cannot download {shown(url)}: {reason}") from None
    return digest.hexdigest()


class Member(NamedTuple):
    """One thing in an archive, of whatever format."""

    name: str
    kind: str  # directory, file, symlink, hardlink, or what is refused
    executable: bool
    target: str
    content: IO[bytes] | None


def in_tar(file: IO[bytes], mode: Literal["r|gz", "r|xz", "r|"]) -> Iterator[Member]:
    """Yield what is in a tar, as it is read."""
    kinds = dict.fromkeys(tarfile.REGULAR_TYPES, "file")
    kinds |= {tarfile.DIRTYPE: "directory", tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hardlink"}
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for each in archive:
            kind = kinds.get(each.type, "special")
            content = archive.extractfile(each) if kind == "file" else None
            yield Member(each.name, kind, bool(each.mode & 0o100), each.linkname, content)


def zip_name(info: zipfile.ZipInfo) -> str:
    """Return a name in a zip.

    Without the flag that says UTF-8 it is code page 437 by the format's letter (APPNOTE.TXT, appendix D), and UTF-8 by
    what the tools of Unix and macOS write. Some of Windows divide directories by a backslash.
    """
    name = info.filename
    if not info.flag_bits & 0x800:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name if info.create_system == 3 else name.replace("\\", "/")


def in_zip(path: str) -> Iterator[Member]:
    """Yield what is in a zip: one made on Unix has modes, and links whose target is their content."""
    kinds = {stat.S_IFLNK: "symlink", stat.S_IFREG: "file", stat.S_IFDIR: "directory", 0: "file"}
    with zipfile.ZipFile(path) as archive:
        for each in archive.infolist():
            mode = each.external_attr >> 16 if each.create_system == 3 else 0
            name = zip_name(each)
            kind = "directory" if name.endswith("/") else kinds.get(stat.S_IFMT(mode), "special")
            target = os.fsdecode(archive.read(each)) if kind == "symlink" else ""
            content = archive.open(each) if kind == "file" else None
            yield Member(name, kind, bool(mode & 0o100), target, content)


def in_7z(path: str) -> Iterator[Member]:
    """Yield what is in a 7z, which Debian's bsdtar turns into a tar: what a tar may not hold is refused here too."""
    command = ["bsdtar", "--create", "--format=pax", "--file=-", f"@{path}"]
    with open(os.memfd_create("bsdtar"), "w+b") as said:
        try:
            bsdtar = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said)
        except FileNotFoundError:
            raise OSError(
                "a 7z takes Debian's package libarchive-tools, which a deploy installs for a url that ends with .7z"
            ) from None
        with bsdtar:
            assert bsdtar.stdout
            yield from in_tar(bsdtar.stdout, "r|")
        if bsdtar.returncode:
            said.seek(0)
            raise OSError(filetree.first_line(said.read()) or f"bsdtar failed with exit code {bsdtar.returncode}")


def stripped(name: str, strip: int) -> str:
    """Return a name in an archive without its first `strip` directories."""
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"the archive has {name!r} in it, which leads out: it is not unpacked")
    return "/".join([part for part in name.split("/") if part not in ("", ".")][strip:])


def unpack(members: Iterator[Member], strip: int, target: str) -> None:
    """Write what is in an archive to a directory.

    The symlinks come last, so that nothing is written through one.
    """
    links, left = {}, LARGEST
    for member in members:
        name = stripped(member.name, strip)
        if member.kind == "special":
            raise ValueError(f"the archive has {member.name!r} in it, a device or the like: it is not unpacked")
        if not name:
            continue
        path = f"{target}/{name}"
        os.makedirs(path if member.kind == "directory" else os.path.dirname(path), exist_ok=True)
        if member.kind == "symlink":
            links[name] = member.target
        elif member.kind == "hardlink":
            shutil.copy(f"{target}/{stripped(member.target, strip)}", path)
        elif member.content:
            with open(path, "wb") as file:
                while chunk := member.content.read(1 << 20):
                    left -= file.write(chunk)
                    if left < 0:
                        raise ValueError(f"the archive unpacks to more than {LARGEST >> 30} GB")
            os.chmod(path, 0o755 if member.executable else 0o644)
    for name, link in links.items():
        if os.path.lexists(f"{target}/{name}"):
            raise ValueError(f"the archive has {name!r} in it as a link and as something else: it is not unpacked")
        os.symlink(link, f"{target}/{name}")


def unpack_from(url: str, sha256: str | None, strip: int, target: str) -> None:
    """Fill the directory `target` with what is in the archive."""
    with filetree.beside(os.path.dirname(target), "download") as path:
        if (found := download(url, path)) != sha256 and sha256:
            raise ValueError(f"{shown(url)} has the SHA256 {found}, declared is {sha256}")
        with open(path, "rb") as file:
            start = file.read(8)
            file.seek(0)
            if start.startswith(b"PK\3\4"):
                members = in_zip(path)
            elif start.startswith((b"\x1f\x8b", b"\xfd7zXZ\0")):
                members = in_tar(file, "r|gz" if start[0] == 0x1F else "r|xz")
            elif start.startswith(b"7z\xbc\xaf\x27\x1c"):
                members = in_7z(path)
            else:
                raise ValueError(f"{shown(url)} is neither a tar.gz nor a tar.xz nor a zip nor a 7z")
            try:
                unpack(members, strip, target)
            except BROKEN as error:
                raise OSError(f"{shown(url)} cannot be unpacked: {error}") from None
    if not os.listdir(target):
        raise ValueError(f"{shown(url)} holds nothing that strip {strip} leaves")


def fill(wanted: dict[str, Any], target: str, _sent: object) -> None:
    """Fill the directory `target` with what is in the archive that was declared."""
    source = wanted["source"]
    unpack_from(source["url"], source["sha256"], source["strip"], target)
