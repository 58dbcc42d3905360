"""What layers come from, served on the boxes' bridge: archives, Steam's workshop, a git repository; and who asked."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from tests.integration.harness import wait_for

DETAILS = "/ISteamRemoteStorage/GetPublishedFileDetails/v1/"
COLLECTIONS = "/ISteamRemoteStorage/GetCollectionDetails/v1/"
VPK = b"\x34\x12\xaa\x55"


@dataclass
class Item:
    """A workshop item: what its file holds, and when it was updated."""

    content: bytes
    updated: int

    def __post_init__(self) -> None:
        self.content = VPK + self.content


class Sources(ThreadingHTTPServer):
    """Files by their path, and workshop items by their number; `asked` is the path of each request."""

    def __init__(self, address: str) -> None:
        self.files: dict[str, bytes] = {}
        self.items: dict[int, Item] = {}
        self.collections: dict[int, list[int]] = {}
        self.asked: list[str] = []
        self.is_down = False
        self.elsewhere = ""
        """Where the workshop says that its files are, other than here."""
        self.cut: set[str] = set()
        """Files of which half is sent before the connection ends."""
        self.held: set[str] = set()
        """Files whose second half is sent after `go_on`."""
        self.holding, self.go_on = threading.Event(), threading.Event()
        super().__init__((address, 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """The address without a slash at its end."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def archive(self, path: str, content: bytes, strip: int = 0) -> dict[str, Any]:
        """Serve an archive; return the layer that comes from it."""
        self.files[path] = content
        sha256 = hashlib.sha256(content).hexdigest()
        return {"source": "archive", "url": self.url + path, "sha256": sha256, "strip": strip}

    def details(self, number: str) -> dict[str, Any]:
        """Return what Steam says of an item: sizes as text, and 9 for what is not there."""
        item = self.items.get(int(number))
        if not item:
            return {"publishedfileid": number, "result": 9}
        return {
            "publishedfileid": number,
            "result": 1,
            "consumer_app_id": 550,
            "filename": f"my l4d2addons/{number}.vpk",
            "file_size": str(len(item.content)),
            "file_url": f"{self.elsewhere or self.url}/ugc/{number}/",
            "time_updated": item.updated,
            "title": f"Campaign {number}",
        }

    def collections_of(self, form: dict[str, list[str]]) -> list[dict[str, Any]]:
        """Return what Steam says of collections, and 9 for what is none."""
        asked = [form[f"publishedfileids[{at}]"][0] for at in range(int(form["collectioncount"][0]))]
        held = {
            each: [{"publishedfileid": str(item)} for item in self.collections.get(int(each), ())] for each in asked
        }
        return [
            {"publishedfileid": each, "result": 1, "children": held[each]}
            if held[each]
            else {"publishedfileid": each, "result": 9}
            for each in asked
        ]

    def downloads(self) -> list[str]:
        """Return what was downloaded since the last call; Steam's details are not."""
        asked, self.asked = self.asked, []
        return [path for path in asked if path not in (DETAILS, COLLECTIONS)]


class _Handler(BaseHTTPRequestHandler):
    server: Sources

    def do_GET(self) -> None:
        if "Range" not in self.headers:  # with it only how a file begins is asked for
            self.server.asked.append(self.path)
        parts = self.path.split("/")
        item = self.server.items.get(int(parts[2])) if parts[1] == "ugc" else None
        content = item.content if item else self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.path in self.server.cut | self.server.held:
            self.wfile.write(content[: len(content) // 2])
        if self.path in self.server.held:
            self.server.holding.set()
            self.server.go_on.wait(60)
            with suppress(ConnectionError):  # who asked may be killed by now
                self.wfile.write(content[len(content) // 2 :])
        elif self.path not in self.server.cut:
            self.wfile.write(content)
        return None

    def do_POST(self) -> None:
        self.server.asked.append(self.path)
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode("ascii"))
        if self.server.is_down or self.path not in (DETAILS, COLLECTIONS):
            return self.send_error(503)
        if self.path == COLLECTIONS:
            return self._answer({"collectiondetails": self.server.collections_of(form)})
        count = int(form["itemcount"][0])
        found = [self.server.details(form[f"publishedfileids[{at}]"][0]) for at in range(count)]
        return self._answer({"resultcount": count, "publishedfiledetails": found})

    def _answer(self, response: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.end_headers()
        self.wfile.write(json.dumps({"response": {"result": 1, **response}}).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def serving(address: str) -> Iterator[Sources]:
    """Serve while the block lasts."""
    with Sources(address) as sources:
        yield sources
        sources.go_on.set()
        sources.shutdown()


@dataclass
class Repository:
    """A git repository that a daemon serves, and what the daemon writes down."""

    path: Path
    url: str
    log: Path

    def git(self, *words: str) -> str:
        """Run git in it, and return what it says."""
        who = ["-c", "user.name=Test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main"]
        return subprocess.run(["git", "-C", self.path, *who, *words], check=True, capture_output=True, text=True).stdout

    def commit(self, name: str, text: str) -> str:
        """Commit a file; return the commit."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(text, encoding="utf-8")
        self.git("add", name)
        self.git("commit", "--quiet", "--message", text)
        return self.git("rev-parse", "HEAD").strip()

    def fetches(self) -> int:
        """Return how often somebody fetched from it."""
        return self.log.read_text(encoding="utf-8").count("Request upload-pack")


@contextmanager
def repository(address: str, folder: Path) -> Iterator[Repository]:
    """Have a git daemon serve a new repository while the block lasts."""
    with socket.create_server((address, 0)) as free:
        port = free.getsockname()[1]
    found = Repository(folder / "mod", f"git://{address}:{port}/mod", folder / "log")
    found.path.mkdir()
    found.git("init", "--quiet")
    # Not `git daemon`, which would be its parent, and the one that is killed.
    daemon = [Path(subprocess.check_output(["git", "--exec-path"], text=True).strip()) / "git-daemon"]
    options = [f"--listen={address}", f"--port={port}", f"--base-path={folder}", "--export-all", "--verbose"]
    with found.log.open("w") as log, subprocess.Popen([*daemon, *options], stderr=log) as process:
        wait_for("the git daemon listens", lambda: "Ready to rumble" in found.log.read_text(encoding="utf-8"))
        try:
            yield found
        finally:
            process.terminate()


def info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    """Return the head of a member of a tar."""
    head = tarfile.TarInfo(name)
    head.type, head.linkname, head.mode = kind, target, mode
    return head


def tar(kind: str, *members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Return a tar of heads and contents; `kind` is gz or xz."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode=f"w:{kind}") as archive:  # type: ignore[call-overload]
        for head, content in members:
            head.size = len(content)
            archive.addfile(head, io.BytesIO(content))
    return whole.getvalue()


def tree(kind: str, files: Mapping[str, bytes]) -> bytes:
    """Return an archive of files by their names; `kind` is tar.gz, tar.xz or zip."""
    if kind != "zip":
        return tar(kind.removeprefix("tar."), *((info(name), content) for name, content in files.items()))
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return whole.getvalue()
