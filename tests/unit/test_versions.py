"""What builds versions of layers on a host, run as a program on directories of the test, with nothing but loopback."""

import base64
import contextlib
import fcntl
import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from left4me.remote.program_text import program_text
from tests.integration.harness import wait_for

LIB = Path(__file__).parents[2] / "files/lib"
PROGRAM = """
import os, sys
lib, top, *arguments = sys.argv[1:]
sys.path.insert(0, lib)
from left4me_host import builds, filetree, game_paths, gc, layout, versions
for name, value in list(vars(layout).items()):
    if isinstance(value, str):
        setattr(layout, name, value.replace("/var/lib/left4me", f"{top}/var").replace("/etc/left4me", f"{top}/etc"))
gc.PROC = f"{top}/proc"
if "EFFECT" not in os.environ:  # most trees here are nothing to a game
    game_paths.no_effect = lambda names: ""
builds.smoke_test = lambda build: builds.record_result(build, gc.GOOD)  # which takes a host
filetree.owner = lambda: (os.getuid(), os.getgid())
sys.exit(versions.main(arguments))
"""
ENVIRONMENT = {name: os.environ[name] for name in os.environ if not name.upper().startswith(("GIT_", "HTTP"))}

VPK = b"\x34\x12\xaa\x55"
Spec = Mapping[str, tuple[str, bytes]]
"""Relative name: d, f, x or l, with the content or the target."""


def write(spec: Spec, directory: Path) -> Path:
    """Write a tree with modes that nobody would want on a host."""
    directory.mkdir(parents=True)
    for name, (kind, content) in sorted(spec.items()):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "d":
            path.mkdir(exist_ok=True)
        elif kind == "l":
            path.symlink_to(content.decode())
        else:
            path.write_bytes(content)
            path.chmod(0o700 if kind == "x" else 0o600)
    return directory


def read(directory: Path) -> Spec:
    """Read a tree back, with a mode that it should not have on a host for its kind."""
    found = {}
    wanted = {stat.S_IFDIR | 0o775: "d", stat.S_IFREG | 0o664: "f", stat.S_IFREG | 0o775: "x"}
    for path in directory.rglob("*"):
        mode = path.lstat().st_mode
        kind = "l" if path.is_symlink() else wanted.get(mode, oct(mode))
        content = os.readlink(path).encode() if kind == "l" else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(directory))] = kind, content
    return found


def with_directories(spec: Spec) -> Spec:
    """Return a tree with the directories that its names imply."""
    parents = {str(parent) for name in spec for parent in Path(name).parents} - {"."}
    return dict.fromkeys(parents, ("d", b"")) | dict(spec)


def listing(*directories: Path) -> Any:
    """List directories as the deploy does: by the module's text."""
    text = program_text("filetree")
    command = [sys.executable, "-I", "-c", text, *map(str, directories)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def sent(directory: Path, *names: str) -> bytes:
    """Return a directory, or some of what is in it, as the deploy sends it."""
    command = ["tar", "--create", f"--directory={directory}", "--no-recursion", "--null", "--files-from=-"]
    if not names:
        command = ["tar", "--create", f"--directory={directory}", "."]
    tar = subprocess.run(command, input=b"\0".join(map(os.fsencode, names)), check=True, capture_output=True).stdout
    return b"".join(base64.b64encode(tar[at : at + 3000]) + b"\n" for at in range(0, len(tar), 3000)) + b".\n"


@dataclass
class Host:
    """The directories that the program works in."""

    top: Path

    def __post_init__(self) -> None:
        for name in ("var/releases", "var/overlays", "var/game/verdicts", "etc/servers", "root", "proc"):
            (self.top / name).mkdir(parents=True)
        (self.top / "etc/game").write_text('{"build": null, "kept": 0}')

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-IBS", "-c", PROGRAM, str(LIB), str(self.top), *arguments]

    def run(self, action: str, data: bytes = b"") -> list[str]:
        """Run the program and return what it complains of: one line each, or it has succeeded."""
        done = subprocess.run(self.command(action), input=data, capture_output=True, check=False, env=ENVIRONMENT)
        lines = done.stderr.decode().splitlines()
        assert (done.returncode, done.stdout) == (bool(lines), b""), done
        assert not [line for line in lines if "Traceback" in line], done.stderr.decode()
        assert not list(self.top.glob("var/**/.*-*")), "something was left behind"
        return lines

    def build(self, *trees: Mapping[str, Any], data: bytes = b"") -> list[str]:
        return self.run("build", json.dumps(trees).encode() + b"\n" + data)

    def layer(self, name: str, version: str, **source: Any) -> dict[str, Any]:
        place = f"{self.top}/var/overlays/{name}"
        shape = {"what": f"layer {name}", "place": place, "link": f"{place}/current", "name": version}
        return shape | {"source": source}

    def control(self, name: str, version: str, directory: Path, **more: Any) -> dict[str, Any]:
        source = {"source": "control", "send": True, "base": "", "files": listing(directory)[str(directory)]}
        return self.layer(name, version, **source | more)

    def game(self, version: str, **source: Any) -> dict[str, Any]:
        place, link = f"{self.top}/var/releases", f"{self.top}/var/installation"
        shape = {"what": "game", "place": place, "link": link, "name": version}
        return shape | {"source": source}

    def overlay(self, name: str) -> Path:
        return self.top / "var/overlays" / name

    def current(self, name: str) -> tuple[str, Spec]:
        """Return the target of a layer's `current`, and what is there."""
        return os.readlink(self.overlay(name) / "current"), read(self.overlay(name) / "current/.")

    def declare(self, server: str, *layers: str) -> None:
        (self.top / f"etc/servers/{server}").mkdir(parents=True, exist_ok=True)
        (self.top / f"etc/servers/{server}/layers").write_text("".join(f"{layer}\n" for layer in layers))

    def mount(self, pid: int, *lowers: Path) -> None:
        """Let a process have an overlay mounted."""
        (self.top / f"proc/{pid}").mkdir()
        options = f"rw,lowerdir={':'.join(map(str, lowers))},upperdir=/u,workdir=/w,uuid=on"
        (self.top / f"proc/{pid}/mountinfo").write_text(
            "22 1 0:2 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
            f"58 22 0:52 / /merged rw,nosuid,nodev shared:3 - overlay overlay {options}\n"
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "host")


@dataclass
class Web:
    """A server of files, and of Steam's answers about workshop items."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    items: list[Any] = field(default_factory=list)
    collections: dict[str, list[str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    hook: Callable[[], None] = lambda: None

    def serve(self, name: str, data: bytes) -> dict[str, Any]:
        """Serve an archive; return the source that declares it."""
        self.files[f"/{name}"] = data
        sha256 = hashlib.sha256(data).hexdigest()
        return {"source": "archive", "url": f"{self.url}/{name}", "sha256": sha256, "strip": 0}

    def item(self, number: str, time: int, data: bytes) -> dict[str, Any]:
        """Serve a workshop item as Steam does; return what is to be built of it."""
        data = data if data.startswith(b"\xff\xd8") else VPK + data
        self.files[f"/ugc/{number}"] = data
        url = f"{self.url}/ugc/{number}"
        told = {"publishedfileid": number, "result": 1, "file_size": str(len(data)), "file_url": url}
        self.items = [each for each in self.items if each["publishedfileid"] != number]
        self.items.append(told | {"time_updated": time, "consumer_app_id": 550, "hcontent_file": "1"})
        return {"time": time, "size": len(data), "url": url}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers from a Web."""

    web: Web

    def do_GET(self) -> None:
        if "Range" not in self.headers:
            self.web.asked.append(self.path)
        data = self.web.files.get(self.path)
        if data is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        half = len(data) // 2
        self.wfile.write(data[:half])
        self.web.hook()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data[half:] if self.path not in self.web.cut else b"")
        return None

    def do_POST(self) -> None:
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if self.path == "/ISteamRemoteStorage/GetCollectionDetails/v1/":
            return self.collections(form, int(form["collectioncount"][0]))
        wanted = [form[f"publishedfileids[{at}]"][0] for at in range(int(form["itemcount"][0]))]
        there = {each["publishedfileid"]: each for each in self.web.items}
        answers = [there.get(each, {"publishedfileid": each, "result": 9}) for each in wanted]
        body = {"response": {"result": 1, "resultcount": len(answers), "publishedfiledetails": answers}}
        self.send_response(200 if self.path == "/ISteamRemoteStorage/GetPublishedFileDetails/v1/" else 404)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())
        return None

    def collections(self, form: dict[str, list[str]], count: int) -> None:
        answers = []
        for each in (form[f"publishedfileids[{at}]"][0] for at in range(count)):
            children = [{"publishedfileid": child} for child in self.web.collections.get(each, ())]
            about = {"result": 1, "children": children} if children else {"result": 9}
            answers.append({"publishedfileid": each, **about})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"response": {"result": 1, "collectiondetails": answers}}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"web": made}))
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


# What is in a tree


def test_a_listing_tells_files_programs_links_and_empty_directories_apart(tmp_path: Path) -> None:
    there = write(
        {"cfg/a.cfg": ("f", b"abc"), "run": ("x", b""), "empty": ("d", b""), "link": ("l", b"cfg")}, tmp_path / "there"
    )
    nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert listing(there, tmp_path / "missing") == {
        str(there): {"cfg": "d", "cfg/a.cfg": f"f:{abc}", "run": f"x:{nothing}", "empty": "d", "link": "l:cfg"},
        str(tmp_path / "missing"): {},
    }


def test_a_listing_of_a_fifo_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    text = program_text("filetree")
    done = subprocess.run(
        [sys.executable, "-I", "-c", text, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"cannot list the files: {tmp_path}/pipe is neither a file nor a directory nor a link\n"


# From the control machine

names = st.sampled_from(["a", "b", "ä b", "-c", "d\n", os.fsdecode(b"\xff")])
leaves = st.tuples(st.sampled_from("fx"), st.binary(max_size=3)) | st.tuples(
    st.just("l"), st.sampled_from([b"a", b"b", b"."])
)
nested: st.SearchStrategy[Any] = st.dictionaries(
    names, st.recursive(leaves, lambda below: st.dictionaries(names, below, max_size=3)), max_size=4
)


def flat(tree: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, tuple[str, bytes]]]:
    for name, node in tree.items():
        if isinstance(node, dict):
            yield f"{at}{name}", ("d", b"")
            yield from flat(node, f"{at}{name}/")
        else:
            yield f"{at}{name}", node


@settings(max_examples=12, deadline=None)
@given(nested, nested)
def test_only_what_changed_travels_and_the_tree_is_the_declared_one(before: Any, after: Any) -> None:
    old, new = dict(flat(before)), dict(flat(after))
    with tempfile.TemporaryDirectory() as name:
        host = Host(Path(name) / "host")
        first, second = write(old, Path(name) / "old"), write(new, Path(name) / "new")
        assert host.build(host.control("sm", "aaaaaaaa", first), data=sent(first)) == []
        assert host.current("sm") == ("aaaaaaaa", old)
        changed = [each for each in new if new[each] != old.get(each)]
        tree = host.control("sm", "bbbbbbbb", second, base=str(host.overlay("sm") / "aaaaaaaa"), send=bool(changed))
        assert host.build(tree, data=sent(second, *changed) if changed else b"") == []
        assert host.current("sm") == ("bbbbbbbb", new)
        assert read(host.overlay("sm") / "aaaaaaaa") == old


def test_a_version_that_is_there_is_not_built_again_and_what_was_sent_for_it_is_passed_over(
    host: Host, tmp_path: Path
) -> None:
    one, two = write({"a": ("f", b"1")}, tmp_path / "1"), write({"a": ("f", b"2")}, tmp_path / "2")
    assert host.build(host.control("sm", "aaaaaaaa", one), data=sent(one)) == []
    inode = (host.overlay("sm") / "aaaaaaaa/a").stat().st_ino
    trees = host.control("sm", "aaaaaaaa", one), host.control("mm", "aaaaaaaa", two)
    assert host.build(*trees, data=sent(one) + sent(two)) == []
    assert (host.overlay("sm") / "aaaaaaaa/a").stat().st_ino == inode
    assert host.current("mm") == ("aaaaaaaa", {"a": ("f", b"2")})
    assert stat.S_IMODE(host.overlay("mm").stat().st_mode) == 0o700


def test_a_version_that_is_there_is_made_current_with_nothing_sent(host: Host, tmp_path: Path) -> None:
    one, two = write({"a": ("f", b"1")}, tmp_path / "1"), write({"a": ("f", b"2")}, tmp_path / "2")
    assert host.build(host.control("sm", "aaaaaaaa", one), data=sent(one)) == []
    assert host.build(host.control("sm", "bbbbbbbb", two), data=sent(two)) == []
    assert host.build(host.control("sm", "aaaaaaaa", one, send=False)) == []
    assert host.current("sm") == ("aaaaaaaa", {"a": ("f", b"1")})


@pytest.mark.parametrize("lines", [0, 1, 30])
def test_what_was_sent_only_in_part_leaves_the_old_version(host: Host, tmp_path: Path, lines: int) -> None:
    one = write({"a": ("f", b"1")}, tmp_path / "1")
    big = write({f"{each}": ("f", os.urandom(9000)) for each in range(20)}, tmp_path / "2")
    assert host.build(host.control("sm", "aaaaaaaa", one), data=sent(one)) == []
    part = b"".join(sent(big).splitlines(keepends=True)[:lines])
    trees = host.control("sm", "bbbbbbbb", big), host.control("mm", "bbbbbbbb", one)
    assert host.build(*trees, data=part) == [
        "layer sm: the upload ended too early: deploy again",
        "layer mm: the upload ended too early: deploy again",
    ]
    assert host.current("sm") == ("aaaaaaaa", {"a": ("f", b"1")})
    assert os.listdir(host.overlay("mm")) == []


def test_a_tree_that_fails_leaves_all_as_they_were_and_those_that_are_whole_for_the_next_build(
    host: Host, tmp_path: Path
) -> None:
    one = write({"a": ("f", b"1")}, tmp_path / "1")
    other = write({"a": ("f", b"2"), "b": ("f", b"")}, tmp_path / "2")
    link = write({"a": ("l", b"../../mm")}, tmp_path / "3")
    junk = (base64.b64encode(os.urandom(3000)) + b"\n") * 100 + b".\n"
    trees = (
        host.control("junk", "aaaaaaaa", one),
        host.control("changed", "aaaaaaaa", one),
        host.control("link", "aaaaaaaa", link),
        host.layer("host", "aaaaaaaa", source="host", path=str(tmp_path / "nowhere")),
        host.control("sm", "aaaaaaaa", one),
    )
    assert host.build(*trees, data=junk + sent(other) + sent(link) + sent(one)) == [
        "layer junk: tar: This does not look like a tar archive",
        "layer changed: a changed during the deploy: deploy again",
        "layer link: a is a symlink to ../../mm, outside of the tree: only links within it are allowed",
        f"layer host: [Errno 2] No such file or directory: '{tmp_path}/nowhere'",
    ]
    assert not (host.overlay("sm") / "current").is_symlink()
    assert host.build(host.layer("sm", "aaaaaaaa", source="control", send=False, base="", files={})) == []
    assert host.current("sm") == ("aaaaaaaa", {"a": ("f", b"1")})


# The game, from a directory on the host


LIBRARY = ("f", b"\x7fELF\x01")
GAME: Spec = {
    "srcds_run": ("x", b"#!"),
    "srcds_linux": ("x", b"\x7fELF\x01"),
    "bin/engine_srv.so": LIBRARY,
    "left4dead2/bin/server_srv.so": LIBRARY,
}


def test_a_release_is_a_copy_with_the_links_that_its_tool_made(host: Host, tmp_path: Path) -> None:
    game = {**GAME, "bin/other.txt": ("l", b"/home/steam/linux32/steamclient.so")}
    there = write(game, tmp_path / "serverfiles")
    assert host.build(host.game("1234", source="host", path=str(there))) == []
    assert os.readlink(host.top / "var/installation") == "releases/1234"
    assert read(host.top / "var/installation/.") == with_directories(game)


def test_what_holds_no_game_is_no_release(host: Host, tmp_path: Path) -> None:
    lacks: Mapping[str, tuple[str, Spec]] = {
        "srcds_run": ("no executable srcds_run", {"srcds_run": ("f", b"#!")}),
        "windows": ("no libraries in bin", {"bin/engine_srv.so": ("d", b"")}),
        "broken": ("left4dead2/bin/server_srv.so is not a library", {"left4dead2/bin/server_srv.so": ("f", b"")}),
    }
    for name, (reason, spec) in lacks.items():
        there = write({**GAME, **spec}, tmp_path / name)
        if name == "windows":
            (there / "bin/engine_srv.so").rmdir()
        [line] = host.build(host.game("1234", source="host", path=str(there)))
        assert line.startswith("game: "), line
        assert reason in line
    there = write(GAME, tmp_path / "serverfiles")
    os.mkfifo(there / "pipe")
    assert (
        "pipe is neither a file nor a directory nor a link"
        in host.build(host.game("1234", source="host", path=str(there)))[0]
    )
    assert not os.path.lexists(host.top / "var/installation")


def test_the_game_finds_steams_client_below_its_home(host: Host, tmp_path: Path) -> None:
    there = write({**GAME, "bin/steamclient.so": LIBRARY}, tmp_path / "serverfiles")
    assert host.build(host.game("1234", source="host", path=str(there))) == []
    client = host.top / "var/installation/.steam/sdk32/steamclient.so"
    assert (os.readlink(client), client.read_bytes()) == ("../../bin/steamclient.so", LIBRARY[1])


# Archives

CONTENT: Spec = {
    "addons/run.sh": ("x", b"#!/bin/sh"),
    "addons/metamod.vdf": ("f", b"vdf"),
    "addons/same.vdf": ("f", b"vdf"),
    "link": ("l", b"addons/metamod.vdf"),
    "logs": ("d", b""),
}


def tar_member(archive: tarfile.TarFile, name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, target, 4 if kind == tarfile.REGTYPE else 0
    archive.addfile(member, io.BytesIO(b"evil") if member.size else None)


def tar(compression: str, *members: tuple[Any, ...]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{compression}") as archive:  # type: ignore[call-overload]
        for member in members:
            tar_member(archive, *member)
    return data.getvalue()


def packed(kind: str, directory: Path) -> bytes:
    """Pack a directory by the tool that people use for it."""
    if kind != "zip":
        os.link(directory / "addons/metamod.vdf", directory / "addons/same.vdf")
        command = ["tar", "--create", "--gzip" if kind == "gz" else "--xz", "--directory", str(directory.parent)]
        return subprocess.run([*command, directory.name], check=True, capture_output=True).stdout
    shutil.copy(directory / "addons/metamod.vdf", directory / "addons/same.vdf")
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(directory.rglob("*")):
            info = zipfile.ZipInfo(f"{path.relative_to(directory.parent)}{'/' if path.is_dir() else ''}")
            info.external_attr = path.lstat().st_mode << 16
            content = os.readlink(path).encode() if path.is_symlink() else b"" if path.is_dir() else path.read_bytes()
            archive.writestr(info, content)
    return data.getvalue()


@pytest.mark.parametrize("strip", [0, 1])
@pytest.mark.parametrize("kind", ["gz", "xz", "zip"])
def test_an_archive_is_unpacked_whatever_its_name(host: Host, web: Web, tmp_path: Path, kind: str, strip: int) -> None:
    spec = {name: node for name, node in CONTENT.items() if name != "addons/same.vdf"}
    data = packed(kind, write(spec, tmp_path / "mod-1.2"))
    assert host.build(host.layer("mm", "aaaaaaaa", **web.serve("drop.php", data) | {"strip": strip})) == []
    top = "" if strip else "mod-1.2/"
    expected = with_directories({f"{top}{name}": node for name, node in CONTENT.items()})
    assert host.current("mm") == ("aaaaaaaa", expected)


def zipped(name: str, mode: int = 0, content: str = "evil") -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        info = zipfile.ZipInfo("placeholder")
        info.filename, info.external_attr, info.create_system = name, mode << 16, 3
        archive.writestr(info, content)
    return data.getvalue()


SYMLINK, HARDLINK = tarfile.SYMTYPE, tarfile.LNKTYPE
HOSTILE = {
    "dots": (tar("gz", ("good",), ("a/../../evil",)), "'a/../../evil'"),
    "absolute": (tar("xz", ("good",), ("/tmp/evil",)), "'/tmp/evil'"),
    "device": (tar("gz", ("good",), ("evil", tarfile.CHRTYPE)), "'evil'"),
    "fifo": (tar("gz", ("good",), ("evil", tarfile.FIFOTYPE)), "'evil'"),
    "absolute link": (tar("gz", ("evil", SYMLINK, "/etc")), "evil is a symlink to /etc"),
    "link out": (tar("gz", ("a/evil", SYMLINK, "../../x")), "a/evil is a symlink to ../../x"),
    # By their names alone these two stay inside.
    "two links": (tar("gz", ("evil", SYMLINK, "c/../x"), ("c", SYMLINK, ".")), "evil is a symlink"),
    "link by a link": (
        tar("gz", ("a/good",), ("c", SYMLINK, "a/.."), ("evil", SYMLINK, "c/../x")),
        "evil is a symlink",
    ),
    "below a link": (tar("gz", ("evil", SYMLINK, "../../../.."), ("evil/root/owned",)), "'evil'"),
    "below a link below": (tar("gz", ("a", SYMLINK, ".."), ("a/evil", SYMLINK, "/etc"), ("a/evil/b",)), "'a'"),
    "over a link": (tar("gz", ("evil", SYMLINK, "../../../../root/x"), ("evil",)), "'evil'"),
    "hard link out": (tar("gz", ("evil", HARDLINK, "../../../root/secret")), "'../../../root/secret'"),
    "absolute hard link": (tar("gz", ("evil", HARDLINK, "/etc/passwd")), "'/etc/passwd'"),
    "hard link to a link": (
        tar("gz", ("a", SYMLINK, "../../../../root/secret"), ("evil", HARDLINK, "a")),
        "No such file",
    ),
    "zip dots": (zipped("../../evil"), "'../../evil'"),
    "zip absolute": (zipped("/evil"), "'/evil'"),
    "zip link": (zipped("evil", stat.S_IFLNK | 0o777, "../../x"), "evil is a symlink to ../../x"),
    "zip fifo": (zipped("evil", stat.S_IFIFO | 0o777), "'evil'"),
}


@pytest.mark.parametrize("which", HOSTILE)
def test_an_archive_that_would_lead_out_is_refused_whole(host: Host, web: Web, which: str) -> None:
    (host.top / "root/secret").write_text("secret")
    assert host.build(host.layer("mm", "aaaaaaaa", **web.serve("good", tar("gz", ("good",))))) == []
    before = sorted(map(str, host.top.rglob("*")))
    data, named = HOSTILE[which]
    [line] = host.build(host.layer("mm", "bbbbbbbb", **web.serve("evil", data)))
    assert line.startswith("layer mm: ")
    assert named in line
    assert sorted(map(str, host.top.rglob("*"))) == before
    assert host.current("mm") == ("aaaaaaaa", {"good": ("f", b"evil")})


def test_what_cannot_be_downloaded_or_unpacked_is_one_line_and_the_old_version_stays(host: Host, web: Web) -> None:
    good, wrong = web.serve("good", tar("gz", ("good",))), "0" * 64
    assert host.build(host.layer("mm", "aaaaaaaa", **good)) == []
    cut, text = web.serve("cut", os.urandom(5000)), web.serve("text", b"<html>")
    half = web.serve("half", gzip.compress(os.urandom(9000))[:5000])
    web.cut.add("/cut")
    sources = [
        good | {"sha256": wrong},
        cut,
        good | {"url": f"{web.url}/missing"},
        good | {"url": "http://127.0.0.1:1/x"},
        good | {"url": "file:///etc/passwd"},
        text,
        good | {"strip": 1},
    ]
    assert host.build(*(host.layer("mm", "bbbbbbbb", **source) for source in sources)) == [
        f"layer mm: {web.url}/good has the SHA256 {good['sha256']}, but {wrong} is declared",
        f"layer mm: cannot download {web.url}/cut: the connection broke, 2500 bytes are missing",
        f"layer mm: cannot download {web.url}/missing: HTTP Error 404: Not Found",
        "layer mm: cannot download http://127.0.0.1:1/x: [Errno 111] Connection refused",
        "layer mm: file:///etc/passwd is neither http:// nor https://",
        f"layer mm: {web.url}/text is not a tar.gz, tar.xz, zip or 7z",
        f"layer mm: {web.url}/good has no files left after `strip` 1",
    ]
    [line] = host.build(host.layer("mm", "bbbbbbbb", **half))
    assert line.startswith(f"layer mm: {web.url}/half cannot be unpacked: ")
    assert host.current("mm") == ("aaaaaaaa", {"good": ("f", b"evil")})


# Killed, full, locked


def test_a_killed_build_leaves_the_old_version_and_prune_removes_what_it_left(host: Host, web: Web) -> None:
    assert host.build(host.layer("mm", "aaaaaaaa", **web.serve("old", tar("gz", ("good",))))) == []
    arrived, killed = threading.Event(), threading.Event()

    def hook() -> None:
        arrived.set()
        killed.wait()

    web.hook = hook
    tree = host.layer("mm", "bbbbbbbb", **web.serve("new", tar("gz", ("new",))))
    with subprocess.Popen(host.command("build"), stdin=subprocess.PIPE, env=ENVIRONMENT) as program:
        assert program.stdin
        program.stdin.write(json.dumps([tree]).encode() + b"\n")
        program.stdin.close()
        assert arrived.wait(20)
        wait_for("the download has begun", lambda: len(list(host.overlay("mm").glob(".*"))) == 2)
        program.send_signal(signal.SIGKILL)
    killed.set()
    web.hook = lambda: None
    assert host.current("mm") == ("aaaaaaaa", {"good": ("f", b"evil")})
    assert sorted(path.name.split("-")[0] for path in host.overlay("mm").glob(".*")) == [".download", ".new"]
    host.declare("3", "mm")
    assert host.run("prune") == []
    assert host.build(tree) == []
    assert host.current("mm") == ("bbbbbbbb", {"new": ("f", b"evil")})


def test_a_full_disk_is_one_line_for_each_tree_and_the_old_versions_stay(host: Host, web: Web, tmp_path: Path) -> None:
    old = web.serve("old", tar("gz", ("good",)))
    big = write({"big": ("f", os.urandom(3 << 20))}, tmp_path / "big")
    run_git(big, "init", "--quiet")
    commit(big)
    (big / "big").rename(tmp_path / "zeros")
    zeros = io.BytesIO()
    with tarfile.open(fileobj=zeros, mode="w:gz") as archive:
        member = tarfile.TarInfo("zeros")
        member.size = 3 << 20
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    shutil.copytree(big / ".git", tmp_path / "repository")
    shutil.rmtree(big / ".git")
    (tmp_path / "zeros").rename(big / "big")
    new: dict[str, dict[str, Any]] = {
        "download": web.serve("big", os.urandom(3 << 20)),
        "unpack": web.serve("zeros", zeros.getvalue()),
        "git": {"source": "git", "url": f"file://{tmp_path}/repository", "ref": "HEAD"},
        "workshop": {"source": "workshop", "items": {"7": web.item("7", 1, os.urandom(3 << 20))}},
        "host": {"source": "host", "path": str(big)},
        "control": host.control("control", "", big)["source"],
    }
    (tmp_path / "1").write_text(json.dumps([host.layer(name, "aaaaaaaa", **old) for name in new]) + "\n")
    trees = [host.layer(name, "bbbbbbbb", **source) for name, source in new.items()]
    (tmp_path / "2").write_bytes(json.dumps(trees).encode() + b"\n" + sent(big))
    overlays, program = host.top / "var/overlays", '"$@"'
    script = f"""
        mount -t tmpfs -o size=1m none {overlays} && {program} <{tmp_path}/1 || exit 9
        {program} <{tmp_path}/2
        cd {overlays} && find -name '.?*' && grep -r . && readlink */current
    """
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *host.command("build")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    lines = done.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"layer {name}" for name in new], done
    assert all("No space left on device" in line for line in lines[:-1]), lines
    assert "the disk is full: tar: ./big: " in lines[-1]
    assert sorted(done.stdout.split()) == sorted(
        [f"{name}/aaaaaaaa/good:evil" for name in new] + ["aaaaaaaa" for _ in new]
    )


def held(directory: Path, how: int) -> bool:
    """Tell whether somebody holds a lock on a directory that would not go with this one."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def test_a_start_does_not_wait_for_a_build(host: Host, web: Web) -> None:
    seen = []
    web.hook = lambda: seen.append(held(host.top / "var/releases", fcntl.LOCK_EX))
    assert host.build(host.layer("mm", "aaaaaaaa", **web.serve("old", tar("gz", ("good",))))) == []
    assert seen == [False]


def test_nothing_becomes_current_while_a_server_is_being_mounted(host: Host, web: Web) -> None:
    assert host.build(host.layer("mm", "aaaaaaaa", **web.serve("old", tar("gz", ("good",))))) == []
    releases = os.open(host.top / "var/releases", os.O_RDONLY)
    fcntl.flock(releases, fcntl.LOCK_SH)
    waits = f":{os.fstat(releases).st_ino} "
    tree = host.layer("mm", "bbbbbbbb", **web.serve("new", tar("gz", ("new",))))
    with subprocess.Popen(host.command("build"), stdin=subprocess.PIPE, env=ENVIRONMENT) as program:
        assert program.stdin
        program.stdin.write(json.dumps([tree]).encode() + b"\n")
        program.stdin.close()
        locks = Path("/proc/locks")
        wait_for("it waits", lambda: any("->" in line and waits in line for line in locks.open(encoding="ascii")))
        assert os.readlink(host.overlay("mm") / "current") == "aaaaaaaa"
        os.close(releases)
    assert program.returncode == 0
    assert os.readlink(host.overlay("mm") / "current") == "bbbbbbbb"


# git


def run_git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=left4me", "-c", "user.email=left4me@localhost", "-c", "protocol.file.allow=always"]
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout.strip()


def commit(directory: Path) -> str:
    """Commit all that is there; return the commit."""
    run_git(directory, "add", "--all")
    run_git(directory, "commit", "--quiet", "--message=more")
    return run_git(directory, "rev-parse", "HEAD")


def test_a_repository_at_a_commit_at_a_tag_and_not_at_all(host: Host, tmp_path: Path) -> None:
    spec = {"cfg/a.cfg": ("f", b"1"), "run": ("x", b"#!"), "link": ("l", b"cfg/a.cfg")}
    repository = write(spec, tmp_path / "repository")
    run_git(repository, "init", "--quiet")
    first = commit(repository)
    run_git(repository, "tag", "--annotate", "--message=1", "v1")
    run_git(repository, "submodule", "--quiet", "add", str(repository), "submodule")
    (repository / "cfg/a.cfg").write_text("2")
    (repository / "evil").symlink_to("../../../root")
    last = commit(repository)
    source = {"source": "git", "url": f"file://{repository}"}

    for version, ref in ("aaaaaaaa", "v1"), ("bbbbbbbb", first):
        assert host.build(host.layer("cfg", version, **source, ref=ref)) == []
        assert host.current("cfg") == (version, with_directories(spec))
    assert host.build(
        host.layer("cfg", "cccccccc", **source, ref=last),
        host.layer("cfg", "cccccccc", **source, ref="v2"),
        host.layer("cfg", "cccccccc", source="git", url=f"file://{tmp_path}/nowhere", ref="v1"),
    ) == [
        "layer cfg: evil is a symlink to ../../../root, outside of the tree: only links within it are allowed",
        f"layer cfg: cannot fetch v2 of file://{repository}: fatal: couldn't find remote ref v2",
        f"layer cfg: cannot fetch v1 of file://{tmp_path}/nowhere: fatal: '{tmp_path}/nowhere' does not appear to "
        "be a git repository",
    ]
    (repository / "evil").unlink()
    assert host.build(host.layer("cfg", "dddddddd", **source, ref=commit(repository))) == []
    changed = {"cfg/a.cfg": ("f", b"2"), "submodule": ("d", b"")}
    version, there = host.current("cfg")
    assert version == "dddddddd"
    assert there == dict(with_directories(spec)) | changed | {".gitmodules": there[".gitmodules"]}


def test_git_asks_nobody_for_a_password(host: Host, web: Web) -> None:
    web.files["/r/info/refs?service=git-upload-pack"] = b"x"
    [line] = host.build(host.layer("cfg", "aaaaaaaa", source="git", url=f"{web.url}/r", ref="v1"))
    assert line.startswith(f"layer cfg: cannot fetch v1 of {web.url}/r: fatal: ")


@pytest.mark.parametrize("scheme", ["git", "http"])
def test_a_git_server_that_says_nothing_is_given_up_and_git_is_gone_with_all_that_it_started(
    host: Host, scheme: str
) -> None:
    tree = json.dumps([host.layer("cfg", "aaaaaaaa", source="git", url="URL", ref="v1")])
    command = [
        word.replace("filetree.owner", "from left4me_host.source_kinds import git; git.SECONDS = 0.5; filetree.owner")
        for word in host.command("build")
    ]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/r"
        given = tree.replace("URL", url).encode() + b"\n"
        done = subprocess.run(command, input=given, capture_output=True, timeout=20, check=False, env=ENVIRONMENT)
        assert done.stderr.decode() == f"layer cfg: cannot fetch v1 of {url}: no output for 0.5 s\n"
        with silent.accept()[0] as connection:
            connection.settimeout(10)
            while connection.recv(1 << 16):
                pass  # the request; then nobody has the connection any more
    assert not os.listdir(host.overlay("cfg"))


# The workshop


def details(api: str, *ids: str) -> Any:
    """Ask as the deploy does: by the module's text."""
    text = program_text("ask_workshop")
    command = [sys.executable, "-I", "-c", text, api, *ids]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_steam_is_asked_once_and_the_item_that_it_does_not_give_is_named(web: Web) -> None:
    one = web.item("1001", 1700000000, b"vpk")
    web.item("1002", 1700000000, b"vpk")
    web.items[-1]["file_url"] = ""
    web.items[-1]["file_size"] = 0
    web.item("1004", 1700000000, b"vpk")
    web.items[-1]["result"] = 15
    ids = ["1001", "1002", "1003", "1004"]
    gone = {"why": "is not available from Steam"}
    assert details(web.url, *ids) == {"1001": one, "1002": gone, "1003": gone, "1004": gone}


def test_what_is_no_campaign_is_left_out_and_collections_are_what_they_hold(web: Web) -> None:
    one, two = web.item("1", 1700000000, b"one"), web.item("2", 1700000000, b"two")
    web.item("3", 1700000000, b"\xff\xd8\xff a preview")
    web.item("4", 1700000000, b"four")
    web.items[-1]["consumer_app_id"] = 4000
    web.collections = {"9": ["1", "8", "3"], "8": ["2", "9"], "7": ["6"], "6": ["5"], "5": ["51"], "51": ["52"]}
    assert details(web.url, "9", "4") == {
        "9": {"items": ["1", "8", "3"]},
        "8": {"items": ["2", "9"]},
        "1": one,
        "2": two,
        "3": {"why": f"is not a VPK file: Steam's download address is {web.url}/ugc/3"},
        "4": {"why": "belongs to app 4000, not to Left 4 Dead 2 (550)"},
    }
    assert details(web.url, "7")["52"] == {"why": "is nested in more than 3 collections"}


def test_steam_that_cannot_be_asked_is_one_line(web: Web) -> None:
    api = "http://127.0.0.1:1"
    assert details(api, "1") == {"error": f"the request to {api} failed: [Errno 111] Connection refused"}
    assert details(f"{web.url}/x", "1") == {"error": f"the request to {web.url}/x failed: HTTP Error 404: Not Found"}
    web.items = [{"publishedfileid": "1", "result": 1, "file_url": "x", "file_size": "much"}]
    assert details(web.url, "1") == {"error": f"the request to {web.url} failed: its answer is not in Steam's format"}


def test_only_an_item_whose_update_time_changed_is_downloaded(host: Host, web: Web) -> None:
    def build(version: str, **items: Any) -> list[str]:
        web.asked.clear()
        given = {name.removeprefix("i"): item for name, item in items.items()}
        return host.build(host.layer("maps", version, source="workshop", items=given))

    one, two = web.item("1", 1700000000, b"one"), web.item("2", 1700000001, b"two")
    assert build("aaaaaaaa", i1=one, i2=two) == []
    assert web.asked == ["/ugc/1", "/ugc/2"]
    assert build("bbbbbbbb", i1=one, i2=web.item("2", 1700000002, b"TWO")) == []
    assert web.asked == ["/ugc/2"]
    addons = "left4dead2/addons"
    expected = with_directories({f"{addons}/1.vpk": ("f", VPK + b"one"), f"{addons}/2.vpk": ("f", VPK + b"TWO")})
    assert host.current("maps") == ("bbbbbbbb", expected)
    times = [(host.overlay("maps") / f"current/{addons}/{each}.vpk").stat().st_mtime for each in (1, 2)]
    assert times == [1700000000, 1700000002]

    assert build("cccccccc", i2=web.item("2", 1700000002, b"TWO") | {"size": 4}) == [
        "layer maps: item 2 has 7 bytes, Steam announced 4: deploy again; if that fails too, remove it from `items`"
    ]
    assert host.current("maps") == ("bbbbbbbb", expected)
    assert build("dddddddd", i1=one) == []
    assert web.asked == []
    assert host.current("maps") == ("dddddddd", with_directories({f"{addons}/1.vpk": ("f", VPK + b"one")}))


def test_an_item_that_is_gone_from_steam_comes_from_whichever_layer_has_it(host: Host, web: Web) -> None:
    def build(layer: str, version: str, item: dict[str, Any]) -> list[str]:
        return host.build(host.layer(layer, version, source="workshop", items={"1": item}))

    old, new = web.item("1", 1700000000, b"old"), web.item("1", 1700000001, b"new")
    assert build("campaigns", "aaaaaaaa", new) == []
    web.item("1", 1700000000, b"old")
    assert build("maps", "aaaaaaaa", old) == []
    web.asked.clear()
    for layer in ("maps", "new-one"):
        assert build(layer, "bbbbbbbb", new | {"url": ""}) == []
        there = with_directories({"left4dead2/addons/1.vpk": ("f", VPK + b"new")})
        assert host.current(layer) == ("bbbbbbbb", there)
    assert web.asked == []
    assert build("maps", "cccccccc", new | {"url": "", "time": 1700000002}) == [
        "layer maps: Steam no longer has item 1, and its copy here has changed: remove it from `items`"
    ]


# What goes


@pytest.fixture
def versions(host: Host) -> Host:
    """A host with versions of everything; server 3 runs with old ones, a process of another namespace with others."""
    for name in ("sm", "mm", "old", "held"):
        for version in ("aaaaaaaa", "bbbbbbbb", "cccccccc"):
            write({"a": ("f", b"")}, host.overlay(name) / version)
        (host.overlay(name) / "current").symlink_to("cccccccc")
    for release in ("1", "2", "3"):
        write({"a": ("f", b"")}, host.top / "var/releases" / release)
    (host.top / "var/installation").symlink_to("releases/3")
    host.declare("3", "sm", "mm")
    host.declare("4")
    host.mount(10, host.overlay("sm") / "aaaaaaaa", host.top / "var/releases/1")
    host.mount(11, host.overlay("held") / "bbbbbbbb", host.top / "var/releases/3")
    (host.top / "proc/12").mkdir()  # it has ended
    return host


def left(host: Host) -> str:
    there = [f"{path.parent.name}/{path.name}" for path in host.top.glob("var/*/*") if path.parent.name == "releases"]
    return " ".join(sorted(there + [f"{path.parent.name}/{path.name}" for path in host.top.glob("var/overlays/*/*")]))


def test_what_is_neither_current_nor_mounted_goes(versions: Host) -> None:
    for name in ("var/.new-1", "var/releases/.gone-1", "var/overlays/.gone-2", "var/overlays/sm/.new-3"):
        write({"a/b": ("f", b"")}, versions.top / name)
    (versions.overlay("mm") / ".new-4").symlink_to("x")
    write({"a": ("f", b"")}, versions.overlay("old") / ".new-6")  # which nothing uses either
    (versions.overlay("mm") / ".download-5").write_text("half")
    assert versions.run("prune") == []
    assert left(versions) == (
        "held/bbbbbbbb held/cccccccc held/current mm/cccccccc mm/current "
        "releases/1 releases/3 sm/aaaaaaaa sm/cccccccc sm/current"
    )
    assert sorted(os.listdir(versions.top / "var/overlays")) == ["held", "mm", "sm"]


def test_versions_without_a_current_one_wait_for_the_next_deploy(versions: Host) -> None:
    (versions.overlay("mm") / "current").unlink()
    assert versions.run("prune") == []
    assert "mm/aaaaaaaa mm/bbbbbbbb mm/cccccccc" in left(versions)


def unreadable_layers(host: Host) -> None:
    (host.top / "etc/servers/4/layers").write_bytes(b"\xff\n")


def missing_layers(host: Host) -> None:
    (host.top / "etc/servers/4/layers").unlink()


def missing_servers(host: Host) -> None:
    shutil.rmtree(host.top / "etc/servers")


def unreadable_mounts(host: Host) -> None:
    (host.top / "proc/13/mountinfo").mkdir(parents=True)


@pytest.mark.parametrize("broken", [unreadable_layers, missing_layers, missing_servers, unreadable_mounts])
def test_what_cannot_be_told_unused_stays(versions: Host, broken: Callable[[Host], None]) -> None:
    broken(versions)
    before = left(versions)
    [line] = versions.run("prune")
    assert line.startswith("left4me-content prune: ")
    assert left(versions) == before


def test_nothing_goes_while_a_server_is_being_mounted(versions: Host) -> None:
    before = left(versions)
    releases = os.open(versions.top / "var/releases", os.O_RDONLY)
    fcntl.flock(releases, fcntl.LOCK_SH)
    waits = f":{os.fstat(releases).st_ino} "
    with subprocess.Popen(versions.command("prune"), env=ENVIRONMENT) as program:
        locks = Path("/proc/locks")
        wait_for("it waits", lambda: any("->" in line and waits in line for line in locks.open(encoding="ascii")))
        # The server that is being mounted gets the version that nobody used until now.
        versions.mount(14, versions.overlay("old") / "cccccccc")
        assert left(versions) == before
        os.close(releases)
    assert program.returncode == 0
    assert "old/cccccccc old/current" in left(versions)
    assert "old/aaaaaaaa" not in left(versions)


def test_no_other_word_is_taken(host: Host) -> None:
    done = subprocess.run(host.command("purge"), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: left4me-content build|prune\n")


# Where the game looks


UPLOAD = """
import json, sys
from left4me.wanted_versions import Tree, Upload
wanted, bases = json.loads(sys.argv[1])
for line in Upload([Tree(**wanted)], bases, set()):
    print(line)
"""


def uploaded(tree: Mapping[str, Any], bases: Mapping[str, Any]) -> bytes:
    """Return what a deploy sends for a tree; pyinfra, which that imports, would patch this process."""
    command = [sys.executable, "-c", UPLOAD, json.dumps([tree, bases])]
    return subprocess.run(command, cwd=LIB.parents[1], check=True, capture_output=True).stdout


def test_a_directory_is_sent_to_where_it_belongs(host: Host, tmp_path: Path) -> None:
    folder = write({"cfg/x.cfg": ("f", b"1"), "addons/link": ("l", b"../cfg/x.cfg")}, tmp_path / "sm")
    bases: dict[str, Any] = {}
    for name, content in (("aaaaaaaa", b"1"), ("bbbbbbbb", b"2")):
        (folder / "cfg/x.cfg").write_bytes(content)
        tree = host.layer("sm", name, source="control", path=str(folder), into="left4dead2")
        assert host.run("build", uploaded(tree, bases)) == []
        expected = {"left4dead2/cfg/x.cfg": ("f", content), "left4dead2/addons/link": ("l", b"../cfg/x.cfg")}
        assert host.current("sm") == (name, with_directories(expected))
        base = host.overlay("sm") / name / "left4dead2"
        bases = {str(host.overlay("sm")): (str(base), listing(base)[str(base)])}
    assert read(host.overlay("sm") / "aaaaaaaa")["left4dead2/cfg/x.cfg"] == ("f", b"1")


def test_an_archive_is_unpacked_where_it_belongs(host: Host, web: Web) -> None:
    source = web.serve("sm", tar("gz", ("addons/a.vdf",), ("cfg/x.cfg",)))
    assert host.build(host.layer("sm", "aaaaaaaa", **source, into="left4dead2")) == []
    assert sorted(host.current("sm")[1]) == [
        *("left4dead2", "left4dead2/addons", "left4dead2/addons/a.vdf", "left4dead2/cfg", "left4dead2/cfg/x.cfg"),
    ]


def test_a_tree_without_effect_is_refused_and_the_version_before_stays(
    host: Host, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "EFFECT", "yes")
    good = web.serve("good", tar("gz", ("left4dead2/cfg/x.cfg",)))
    assert host.build(host.layer("sm", "aaaaaaaa", **good)) == []
    source = web.serve("sm", tar("gz", ("addons/a.vdf",), ("cfg/x.cfg",)))
    told = 'layer sm: has no left4dead2/ at the top, only addons/, cfg/: add "into": "left4dead2"'
    assert host.build(host.layer("sm", "bbbbbbbb", **source)) == [told]
    assert host.current("sm")[0] == "aaaaaaaa"
    assert host.build(host.layer("sm", "bbbbbbbb", **source, into="left4dead2")) == []
    assert host.build(host.layer("maps", "aaaaaaaa", source="workshop", items={})) == ["layer maps: has no files"]


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456789\n"


def test_a_checkout_that_is_not_whole_is_refused_by_the_name_of_what_is_missing(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "EFFECT", "yes")
    repository, other = tmp_path / "repository", tmp_path / "other"
    for each in (repository, other):
        write({"left4dead2/cfg/x.cfg": ("f", b"1")}, each)
        run_git(each, "init", "--quiet")
        commit(each)
    run_git(repository, "submodule", "--quiet", "add", str(other), "docs/other")
    (repository / "README.md").write_bytes(LFS)

    def built(version: str, **more: Any) -> list[str]:
        source = {"source": "git", "url": f"file://{repository}", "ref": "HEAD", **more}
        return host.build(host.layer("maps", version, **source))

    commit(repository)
    assert built("aaaaaaaa") == []  # of neither the game sees anything
    assert built("bbbbbbbb", into="left4dead2") == [
        "layer maps: docs/other is a submodule, which is not fetched: add its repository as a layer of its own"
    ]
    (repository / "left4dead2/addons").mkdir()
    (repository / "left4dead2/addons/map.vpk").write_bytes(LFS)
    commit(repository)
    lfs = "is a Git LFS pointer, not the file: use an archive of a release"
    assert built("cccccccc") == [f"layer maps: left4dead2/addons/map.vpk {lfs}"]
    (repository / "left4dead2/addons/map.vpk").unlink()
    run_git(repository, "submodule", "--quiet", "add", str(other), "left4dead2/addons/other")
    commit(repository)
    assert built("dddddddd") == [
        "layer maps: left4dead2/addons/other is a submodule, which is not fetched: "
        "add its repository as a layer of its own"
    ]
    assert host.current("maps")[0] == "aaaaaaaa"


def flagless(names: Mapping[bytes, bytes], system: int) -> bytes:
    """Return a zip without the flag that its names are UTF-8: bytes of the same length are put in afterwards."""
    places = {name: chr(ord("A") + at) * len(name) for at, name in enumerate(names)}
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in names.items():
            info = zipfile.ZipInfo(places[name])
            info.create_system = system
            archive.writestr(info, content)
    packed = data.getvalue()
    for name, place in places.items():
        packed = packed.replace(place.encode(), name)
    return packed


def test_names_in_a_zip_are_what_its_maker_meant(host: Host, web: Web) -> None:
    unix = flagless({"Überleben.cfg".encode(): b"u", "Grüße und mehr.cfg".encode("cp437"): b"g"}, 3)
    windows = flagless({rb"cfg\server with name.cfg": b"w"}, 0)
    assert host.build(host.layer("unix", "aaaaaaaa", **web.serve("unix", unix))) == []
    assert host.build(host.layer("windows", "aaaaaaaa", **web.serve("windows", windows))) == []
    assert host.current("unix")[1] == {"Überleben.cfg": ("f", b"u"), "Grüße und mehr.cfg": ("f", b"g")}
    assert host.current("windows")[1] == with_directories({"cfg/server with name.cfg": ("f", b"w")})


def test_an_archive_that_unpacks_to_too_much_is_refused(host: Host, web: Web) -> None:
    limit = "from left4me_host.source_kinds import archive; archive.LARGEST = 1 << 20; filetree.owner"
    command = [word.replace("filetree.owner", limit) for word in host.command("build")]
    tree = host.layer("mm", "aaaaaaaa", **web.serve("bomb", tar_of(b"\0" * (3 << 20))))
    given = json.dumps([tree]).encode() + b"\n"
    done = subprocess.run(command, input=given, capture_output=True, check=False, env=ENVIRONMENT)
    assert done.stderr.decode() == "layer mm: the archive unpacks to more than 0 GB\n"


def tar_of(content: bytes) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        info = tarfile.TarInfo("left4dead2/x")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def test_an_unknown_kind_of_source_is_refused_by_its_name(host: Host) -> None:
    kinds = "archive, control, git, host, workshop"
    assert host.build(host.layer("sm", "aaaaaaaa", source="rsync", url="rsync://x/y")) == [
        f"layer sm: unknown source 'rsync': use one of {kinds}"
    ]
    assert not host.overlay("sm").joinpath("current").exists()
