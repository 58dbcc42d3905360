"""Steam, for the stand-in's steamcmd.sh: the archive that it comes in, and builds of the game; and who asked."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

from tests.integration.sources import info, tar

STEAMCMD = "/steamcmd_linux.tar.gz"
APP = "/steam/222860"
SCRIPT = Path(__file__).parent.parent / "boxes/steamcmd/steamcmd.sh"
ELF32 = b"\x7fELF\x01\x01\x01".ljust(4096, b"\0")
WINDOWS = {"srcds.exe": b"MZ", "bin/engine.dll": b"MZ", "left4dead2/bin/server.dll": b"MZ"}
COMMON = {"left4dead2/gameinfo.txt", "left4dead2/steam.inf"}
"""What the Windows step brings of the files that are the same on Linux."""
AS_IT_IS: Mapping[str, bytes | None] = MappingProxyType({})


@dataclass
class Build:
    """A published build: a tree, and what is different in it, None for a file that is not there."""

    number: str
    tree: Path
    changes: Mapping[str, bytes | None]
    packed: Path
    """Where its tars are, each from when it was first asked for."""

    def files(self, platform: str) -> dict[str, Path | bytes]:
        """Return where the content of each of a platform's files is, or the content."""
        found: dict[str, Path | bytes] = {}
        for path in sorted(self.tree.rglob("*")):
            name = path.relative_to(self.tree).as_posix()
            if path.is_file() and name not in self.changes and not name.startswith("steamapps/"):
                found[name] = path
        found |= {name: content for name, content in self.changes.items() if content is not None}
        if platform == "windows":
            return {name: found[name] for name in sorted(COMMON & found.keys())} | WINDOWS
        return found

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each depot: what is common, Windows' own, Linux' own."""
        sizes = {"222861": 0, "222862": sum(map(len, WINDOWS.values())), "222863": 0}
        for name, content in self.files("linux").items():
            depot = "222863" if name.endswith((".so", "srcds_run", "srcds_linux")) else "222861"
            sizes[depot] += len(content) if isinstance(content, bytes) else content.stat().st_size
        return sizes

    def tar(self, platform: str) -> Path:
        """Return a platform's tree as a tar; modes are those of the tree."""
        packed = self.packed / f"{platform}.tar"
        if packed.exists():
            return packed
        with tarfile.open(packed, "w") as archive:
            for path in sorted(self.tree.rglob("*")):
                if path.is_dir() and platform == "linux" and path.name != "steamapps":
                    archive.addfile(info(path.relative_to(self.tree).as_posix(), tarfile.DIRTYPE, mode=0o755))
            for name, content in self.files(platform).items():
                path = self.tree / name
                head = info(name, mode=path.stat().st_mode & 0o777 if path.is_file() else 0o644)
                whole = content if isinstance(content, bytes) else content.read_bytes()
                head.size = len(whole)
                archive.addfile(head, io.BytesIO(whole))
        return packed


class Steam(ThreadingHTTPServer):
    """The current build, and what goes wrong; `asked` is the path of each request."""

    def __init__(self, address: str) -> None:
        self.asked: list[str] = []
        self.is_down = False
        """Nothing is answered but 503."""
        self.cut = False
        """Of the tree for Linux half is sent before the connection ends."""
        self.hold = False
        """Of the tree for Linux half is sent before nothing more comes, until `go_on`."""
        self.holding, self.go_on = threading.Event(), threading.Event()
        self.failures = 0
        self.build: Build | None = None
        self.one_at_a_time = threading.Lock()
        self.folder = tempfile.TemporaryDirectory(prefix="left4me-steam-")
        super().__init__((address, 0), _Handler)
        self.steamcmd = tar(
            "gz",
            (info("steamcmd.sh", mode=0o755), SCRIPT.read_bytes()),
            (info("linux32/steamclient.so", mode=0o755), ELF32),
            (info("linux32/steamcmd", mode=0o755), ELF32),
            (info("neighbour"), self.url.encode()),
        )
        self.steamcmd_sha256 = hashlib.sha256(self.steamcmd).hexdigest()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """The address without a slash at its end."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    @property
    def steamcmd_url(self) -> str:
        """Where SteamCMD itself is."""
        return self.url + STEAMCMD

    def publish(self, build: str, tree: Path, changes: Mapping[str, bytes | None] = AS_IT_IS) -> None:
        """Make a build current: a tree with some files changed, added, or (None) left out."""
        self.build = Build(build, tree, dict(changes), Path(tempfile.mkdtemp(dir=self.folder.name)))

    def fail_next(self, count: int) -> None:
        """Have the next app_updates fail as Steam does at times."""
        self.failures = count

    def tar(self, platform: str) -> Path | None:
        """Return the tar of the current build's tree."""
        with self.one_at_a_time:
            return self.build.tar(platform) if self.build else None

    def state(self, *, is_attempt: bool) -> bytes | None:
        """Return what is known of the current build; an attempt to install it may be one that fails."""
        with self.one_at_a_time:
            if not self.build:
                return None
            transient = is_attempt and self.failures > 0
            self.failures -= transient
            known = {"build": self.build.number, "depots": self.build.sizes(), "transient": transient}
            return json.dumps(known).encode()


class _Handler(BaseHTTPRequestHandler):
    server: Steam

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.is_down:
            return self.send_error(503)
        if self.path.startswith(APP) and self.path.endswith(".tar"):
            return self._tree(self.path.removeprefix(f"{APP}/").removesuffix(".tar"))
        if self.path == STEAMCMD:
            return self._answer(self.server.steamcmd)
        if self.path == "/steam/login":
            return self._answer(b"")
        if self.path in (APP, f"{APP}/info"):
            return self._answer(self.server.state(is_attempt=self.path == APP))
        return self.send_error(404)

    def _answer(self, content: bytes | None) -> None:
        if content is None:
            return self.send_error(404)
        self._head(len(content))
        self.wfile.write(content)
        return None

    def _head(self, size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def _tree(self, platform: str) -> None:
        path = self.server.tar(platform)
        if not path:
            return self.send_error(404)
        size = path.stat().st_size
        self._head(size)
        # Whoever is killed in the middle asks no more.
        with path.open("rb") as file, contextlib.suppress(ConnectionError):
            if platform == "linux" and (self.server.cut or self.server.hold):
                self.wfile.write(file.read(size // 2))
                if self.server.cut:
                    return None
                self.server.holding.set()
                self.server.go_on.wait(60)
            shutil.copyfileobj(file, self.wfile)
        return None

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def serving(address: str) -> Iterator[Steam]:
    """Serve while the block lasts."""
    with Steam(address) as steam, steam.folder:
        yield steam
        steam.go_on.set()
        steam.shutdown()
