"""A tree from an archive at a URL: tar.gz, tar.xz, zip or 7z, recognized by content."""

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

SECONDS = 30  # without data before a download fails
LARGEST = 64 << 30
"""The largest size of an unpacked archive, in bytes."""
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, OSError)


def shown(url: str) -> str:
    """Return a URL without its query, which may be a secret."""
    return url.partition("?")[0]


def download(url: str, path: str) -> str:
    """Download a URL to a new file; return its SHA256. Raises ValueError or OSError."""
    if not url.startswith(("http://", "https://")):  # urllib would also read this host's files
        raise ValueError(f"{url} is neither http:// nor https://")
    digest, request = hashlib.sha256(), urllib.request.Request(url, headers={"User-Agent": "left4me"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as response, open(path, "xb") as file:
            end = time.monotonic() + filetree.LONGEST
            while chunk := response.read1(1 << 20):
                if time.monotonic() > end:
                    raise OSError(f"not finished after {filetree.LONGEST} s")
                digest.update(chunk)
                file.write(chunk)
            if response.length:  # the number of missing bytes; read1() does not report a broken connection
                raise OSError(f"the connection broke, {response.length} bytes are missing")
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise OSError(f"cannot download {shown(url)}: {reason}") from None
    return digest.hexdigest()


class Member(NamedTuple):
    """An entry of an archive of any format."""

    name: str
    kind: str  # directory, file, symlink, hardlink, or special, which is refused
    executable: bool
    target: str
    content: IO[bytes] | None


def in_tar(file: IO[bytes], mode: Literal["r|gz", "r|xz", "r|"]) -> Iterator[Member]:
    kinds = dict.fromkeys(tarfile.REGULAR_TYPES, "file")
    kinds |= {tarfile.DIRTYPE: "directory", tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hardlink"}
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for each in archive:
            kind = kinds.get(each.type, "special")
            content = archive.extractfile(each) if kind == "file" else None
            yield Member(each.name, kind, bool(each.mode & 0o100), each.linkname, content)


def zip_name(info: zipfile.ZipInfo) -> str:
    """Return a member's name.

    Without the UTF-8 flag a name should be in code page 437 (APPNOTE.TXT, appendix D), but Unix and macOS tools write
    UTF-8. Some Windows tools separate directories with backslashes.
    """
    name = info.filename
    if not info.flag_bits & 0x800:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name if info.create_system == 3 else name.replace("\\", "/")


def in_zip(path: str) -> Iterator[Member]:
    """Yield the members of a zip. A zip made on Unix has modes, and symlinks whose content is the target."""
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
    """Yield the members of a 7z, converted to a tar by bsdtar."""
    command = ["bsdtar", "--create", "--format=pax", "--file=-", f"@{path}"]
    with open(os.memfd_create("bsdtar"), "w+b") as stderr:
        try:
            bsdtar = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr)
        except FileNotFoundError:
            why = "a 7z needs the Debian package libarchive-tools; a deploy installs it if the url ends with .7z"
            raise OSError(why) from None
        with bsdtar:
            assert bsdtar.stdout
            yield from in_tar(bsdtar.stdout, "r|")
        if bsdtar.returncode:
            stderr.seek(0)
            raise OSError(filetree.first_line(stderr.read()) or f"bsdtar failed with exit code {bsdtar.returncode}")


def stripped(name: str, strip: int) -> str:
    """Return a member's name without the first `strip` directories. Raises ValueError for a path that leads out."""
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"not unpacked: the archive contains {name!r}, a path outside of it")
    return "/".join([part for part in name.split("/") if part not in ("", ".")][strip:])


def unpack(members: Iterator[Member], strip: int, target: str) -> None:
    """Write the members of an archive to a directory, symlinks last, so that no file is written through a symlink."""
    links, remaining = {}, LARGEST
    for member in members:
        name = stripped(member.name, strip)
        if member.kind == "special":
            raise ValueError(f"not unpacked: the archive contains {member.name!r}, a device or another special file")
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
                    remaining -= file.write(chunk)
                    if remaining < 0:
                        raise ValueError(f"the archive unpacks to more than {LARGEST >> 30} GB")
            os.chmod(path, 0o755 if member.executable else 0o644)
    for name, link in links.items():
        if os.path.lexists(f"{target}/{name}"):
            raise ValueError(f"not unpacked: the archive contains {name!r} more than once, as a symlink too")
        os.symlink(link, f"{target}/{name}")


def unpack_from(url: str, sha256: str | None, strip: int, target: str) -> None:
    """Download an archive and unpack it into the directory `target`. Raises ValueError or OSError."""
    with filetree.beside(os.path.dirname(target), "download") as path:
        if (found := download(url, path)) != sha256 and sha256:
            raise ValueError(f"{shown(url)} has the SHA256 {found}, but {sha256} is declared")
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
                raise ValueError(f"{shown(url)} is not a tar.gz, tar.xz, zip or 7z")
            try:
                unpack(members, strip, target)
            except BROKEN as error:
                raise OSError(f"{shown(url)} cannot be unpacked: {error}") from None
    if not os.listdir(target):
        raise ValueError(f"{shown(url)} has no files left after `strip` {strip}")


def fill(wanted: dict[str, Any], target: str, _sent: object) -> None:
    source = wanted["source"]
    unpack_from(source["url"], source["sha256"], source["strip"], target)
