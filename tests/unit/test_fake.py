"""Generated data on pyinfra's @fake connector: valid data deploy and validate back, invalid ones have their one line.

As a program, python -m tests.unit.test_fake HOSTS DONE, it is pyinfra on hosts of which this file plays the other side.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from left4me import validation
from left4me.remote.program_text import program_text
from left4me_host import layout

ROOT = Path(__file__).parent.parent.parent
DEFAULTS = {
    key: value for key, value in runpy.run_path(str(ROOT / "group_data/all.py")).items() if not key.startswith("__")
}
# How a game reads the lines of a cfg file.
statements = runpy.run_path(str(ROOT / "tests/boxes/standin/standin/console.py"))["statements"]
VAR = "/var/lib/left4me"
DISKS = {"infinity": "", "64M": "67108864", "20G": "21474836480"}
COUNT = 25
"""Generated hosts of one run."""


# --- hosts that are none


def bare() -> dict[str, Any]:
    """Return what gather.py answers on a fresh Debian, with what else this file keeps of a host."""
    return {
        "python": [3, 13],
        "system": "debian 13",
        "root": True,
        "architecture": "amd64",
        "init": "systemd",
        "overlay": True,
        "project_quotas": 1 << 50,
        "packages": [],
        "entries": {},
        "users": {},
        "groups": {},
        "installation": {"name": "0" * 12, "leads_out": []},
        "releases": [],
        "overlays": {},
        "runtime": [],
        "ports": {},
        "mounts": [],
        "running": {},
        "held": [],
        "revision": "",
        "firewall": {"version": None, "others": [], "refusal": "", "ssh_ports": [22]},
        "sysctl": {},
        "apparmor": None,
        "cockpit": {
            **{"recorded": [], "installed": [], "listens": [], "settings": "", "unbound": ""},
            **{"outdated": False, "root_may": False, "without_password": []},
        },
        "texts": {},
        "active": [],
        "commands": [],
        "sent": [],
    }


class Other:
    """The other side of a connection: does what the deploy's programs and commands would, in memory."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state
        self.programs = {
            program_text(name): getattr(self, f"_{name}")
            for name in (
                *("gather", "apply_files", "install_packages", "daemon_reload", "filetree", "ask_workshop", "gc"),
                *("load_firewall", "set_up_cockpit", "cockpit"),
            )
        }

    def run(self, command: str, stdin: Any) -> str:
        """Run a command; return what it prints. What is not known here raises."""
        self.state["commands"].append(command[-200:])
        lines = [stdin] if isinstance(stdin, str) else list(stdin or [])
        self.state["sent"] += lines
        words = shlex.split(command)
        if "status" in words:  # [ -x l4d2ctl ] || …
            return "\n[]"
        if "-c" in words:
            at = words.index("-c") + 1
            return json.dumps(self.programs[words[at]](words[at + 1 :], lines))
        known: dict[str, Callable[[list[str], list[str]], object]] = {
            "systemd-sysusers": self._sysusers,
            "/usr/local/libexec/left4me/left4me-content": self._content,
            "systemctl": self._systemctl,
        }
        known[words[0]](words[1:], lines)
        return ""

    def _gather(self, words: list[str], _lines: list[str]) -> dict[str, Any]:
        [packed] = words
        question = json.loads(zlib.decompress(base64.b64decode(packed)))
        managed = [glob for pattern in question["managed"] for glob in (pattern, f"{pattern}/*")]
        found = {
            path: entry
            for path, entry in self.state["entries"].items()
            if path in question["paths"] or any(fnmatch.fnmatchcase(path, glob) for glob in managed)
        }
        groups = {**({question["operators"]: 27} if question["operators"] else {}), **self.state["groups"]}
        hidden = dict.fromkeys(("commands", "sent", "texts", "active"))
        return {**self.state, "entries": found, "groups": groups, **hidden}

    def _apply_files(self, _words: list[str], lines: list[str]) -> None:
        for item in json.loads("".join(lines)):
            path = item["path"]
            if item["do"] == "remove":
                for each in [each for each in self.state["entries"] if each == path or each.startswith(f"{path}/")]:
                    del self.state["entries"][each]
                continue
            assert path.rpartition("/")[0] in {*self.state["entries"], *SYSTEM}, f"{path}: nothing to put it into"
            assert {item["owner"]} <= {"root", *self.state["users"]}
            text = item["text"] % "made-here" if item["do"] == "secret" else item["text"]
            content = {"symlink": item["target"], "directory": ""}.get(
                item["do"], hashlib.sha256(text.encode()).hexdigest()
            )
            kind = "file" if item["do"] == "secret" else item["do"]
            about = {key: item[key] for key in ("mode", "owner", "group")}
            self.state["entries"][path] = {**about, "type": kind, "content": content}
            self.state["texts"][path] = text
            if server := re.fullmatch(r"/etc/left4me/servers/(.+)/server\.env", path):
                self.state["ports"][server[1]] = int(re.findall(r'^LEFT4ME_PORT="(\d+)"$', text, re.MULTILINE)[0])

    def _install_packages(self, words: list[str], _lines: list[str]) -> None:
        self.state["packages"] += words

    def _daemon_reload(self, words: list[str], _lines: list[str]) -> dict[str, Any]:
        states = {unit: "active" if unit in self.state["active"] else "inactive" for unit in words}
        return {
            "reload": False,
            "limits": False,
            "units": {unit: {"ActiveState": state, "SubState": ""} for unit, state in states.items()},
        }

    def _filetree(self, words: list[str], _lines: list[str]) -> dict[str, Any]:
        return {directory: {} for directory in words}

    def _load_firewall(self, words: list[str], lines: list[str]) -> None:
        if words == ["load"]:
            self.state["texts"]["loaded"] = "".join(lines)
        else:
            text = self.state["texts"].pop("loaded")
            about = {"type": "file", "mode": 0o644, "owner": "root", "group": "root"}
            self.state["entries"][layout.FIREWALL] = {**about, "content": hashlib.sha256(text.encode()).hexdigest()}
            self.state["firewall"]["version"] = re.findall(r'^ *comment "(.+)"$', text, re.MULTILINE)[0]

    def _set_up_cockpit(self, words: list[str], _lines: list[str]) -> None:
        [listen] = words
        drop_in = self.state["texts"]["/etc/systemd/system/cockpit.socket.d/left4me.conf"].splitlines()
        assert [line for line in drop_in if line.startswith("ListenStream=")] == ["ListenStream=", drop_in[3]]
        about = {"installed": ["cockpit-ws", "cockpit-system"], "recorded": ["cockpit-ws", "cockpit-system"]}
        self.state["cockpit"] |= {**about, "listens": [drop_in[3].partition("=")[2]]}
        assert self.state["cockpit"]["listens"] == [listen]
        if "/etc/cockpit/cockpit.conf" in self.state["entries"]:
            self.state["cockpit"]["settings"] = "ours"

    def _cockpit(self, words: list[str], _lines: list[str]) -> Any:
        assert words[0] in self.state["cockpit"]["listens"]
        return self.state["cockpit"]

    def _gc(self, words: list[str], _lines: list[str]) -> list[str]:
        return []

    def _ask_workshop(self, words: list[str], _lines: list[str]) -> dict[str, Any]:
        # Steam does not give the odd ones.
        return {
            item: {"why": "is odd"} if int(item) % 2 else {"time": 1, "size": 1, "url": "http://x/"}
            for item in words[1:]
        }

    def _sysusers(self, words: list[str], _lines: list[str]) -> None:
        assert words[0] == "--inline"
        for kind, name, *rest in map(shlex.split, words[1:]):
            if kind == "g":
                self.state["groups"][name] = int(rest[0])
            else:
                uid, gid = rest[0].split(":") if ":" in rest[0] else (rest[0], rest[0])
                assert len(name) <= 32
                assert int(gid) == self.state["groups"]["left4me"]
                self.state["users"][name] = [600 if uid == "-" else int(uid), "left4me", rest[3]]

    def _content(self, words: list[str], lines: list[str]) -> None:
        if words == ["build"]:
            for tree in json.loads(lines[0]):
                if tree["what"] == "game":
                    self.state["releases"].append(tree["name"])
                    target = f"releases/{tree['name']}"
                else:
                    layer = tree["place"].rpartition("/")[2]
                    self.state["overlays"][layer] = [tree["name"], "current"]
                    target = tree["name"]
                about = {"type": "symlink", "mode": 0o777, "owner": "root", "group": "root", "content": target}
                self.state["entries"][tree["link"]] = about

    def _systemctl(self, words: list[str], _lines: list[str]) -> None:
        # systemctl reset-failed … 2>/dev/null; systemctl start … || { why; }
        if "start" in words:
            self.state["active"] += [
                word for word in words[words.index("start") : words.index("||")] if word.endswith(".service")
            ]


SYSTEM = (
    *(
        "/etc",
        "/etc/systemd/system",
        "/etc/apparmor.d",
        "/etc/sudoers.d",
        "/etc/sysctl.d",
        "/usr/local",
        "/usr/local/lib",
        "/usr/local/sbin",
    ),
    *("/usr/local/share/bash-completion/completions", "/var/lib", "/usr/local/libexec", "/etc/needrestart/conf.d"),
    *("/usr/local/lib/systemd/system", "/etc/systemd/system/multi-user.target.wants"),
    *("/etc/systemd/system/sysinit.target.wants", "/etc/systemd/system/nftables.service.d"),
    *("/usr/local/share/cockpit", "/etc/systemd/system/cockpit.socket.d", "/etc/cockpit"),
)


def main(hosts: Path, done: Path) -> None:
    """Be pyinfra on the hosts of a file, twice remembered in another: from a bare one to what the first run left."""
    from pyinfra.connectors.fake import FakeConnector
    from pyinfra.connectors.util import CommandOutput, OutputLine
    from pyinfra_cli.cli import cli

    from left4me.lock import client, protocol

    states: dict[str, dict[str, Any]] = json.loads(done.read_text()) if done.exists() else {}
    sides: dict[str, Other] = {}

    def connect(connector: Any) -> None:
        state = states.setdefault(connector.host.name, bare())
        state.update(commands=[], sent=[])
        sides[connector.host.name] = Other(state)

    def run(connector: Any, command: Any, **arguments: Any) -> tuple[bool, Any]:
        words = command.get_raw_value().removeprefix(f"{protocol.fence(client.TOKEN)} ")
        said = sides[connector.host.name].run(words, arguments.get("_stdin"))
        return True, CommandOutput([OutputLine("stdout", said)])

    FakeConnector.connect = connect  # type: ignore[method-assign, assignment]
    FakeConnector.run_shell_command = run  # type: ignore[method-assign, assignment]
    try:
        cli([str(hosts), "deploy.py", "-y"])
    finally:
        done.write_text(json.dumps(states))


# --- data


def gathered(strategy: st.SearchStrategy[Any]) -> list[Any]:
    """Return COUNT examples of a strategy."""
    found: list[Any] = []

    @settings(
        max_examples=COUNT, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
    )
    @given(strategy)
    def gather(each: Any) -> None:
        found.append(each)

    gather()
    return found


def pattern(regex: str) -> st.SearchStrategy[str]:
    return st.from_regex(re.compile(regex, re.ASCII), fullmatch=True)


IDS = pattern(r"[a-z0-9][a-z0-9_-]{0,19}")
NAMES = pattern(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,5}").filter(lambda name: not name.startswith("left4me"))
LINES = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"], exclude_characters='"\\'), max_size=12
)
WEB = pattern(r"https?://[a-z]{1,9}(:[0-9]{3})?/[!-~]{1,5}")
OPERATORS = pattern("[a-z_][a-z0-9_-]{0,31}")
WEB_PAGES = st.none() | st.fixed_dictionaries(
    {"listen": st.sampled_from(["127.0.0.1:9090", "[::1]:9091", "0.0.0.0:443", "[2001:db8::1]:9090"])},
    optional={"url": st.none() | pattern("https://[a-z]{1,9}(:[1-9][0-9]{3})?(/[a-z]{1,5}/?)?")},
)
SECRETS = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters='"\\'), min_size=1, max_size=9
).map(lambda text: f"Of-our-own:{text}")
OWN_NAMES = ("hostname", "sv_lan", "rcon_password", "servercfgfile", "mp_gamemode", "map", "hostport")
CVARS = pattern(r"[a-z_][A-Za-z0-9_]{0,9}").filter(lambda name: name.lower() not in OWN_NAMES)
LAYERS = st.one_of(
    st.just({"source": "control", "path": "tests/boxes/layer"}),
    st.fixed_dictionaries(
        {"url": WEB, "sha256": st.binary(min_size=32, max_size=32).map(bytes.hex), "strip": st.integers(0, 9)},
        optional={},
    ).map(lambda data: {"source": "archive", **data}),
    st.fixed_dictionaries({"url": WEB, "ref": pattern("v[0-9.]{1,9}")}).map(lambda data: {"source": "git", **data}),
    st.lists(st.integers(1, 1 << 40), min_size=1, max_size=4).map(lambda items: {"source": "workshop", "items": items}),
)


def server(layers: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Generate what a server may have of its own."""
    cfg = pattern(r"[a-z_]{1,9}(/[a-z]{1,5})?\.cfg")
    argument = pattern(r"[-+][a-z]{3,8}_[a-z0-9.:=@/]{1,8}|[0-9]{1,4}").filter(
        lambda word: "//" not in word and word.lstrip("-+") not in OWN_NAMES
    )
    argument = argument.filter(lambda word: word.lstrip("-+") not in ("steam_dir", "steamcmd_script"))
    return st.fixed_dictionaries(
        {},
        optional={
            "hostname": LINES.filter(bool),
            "map": pattern(r"c[0-9]m[0-9]_[a-z]{1,12}"),
            "gamemode": st.sampled_from(["coop", "versus", "mutation12"]),
            "max_players": st.integers(1, 32),
            "tickrate": st.integers(10, 128),
            "layers": st.lists(st.sampled_from(layers), unique=True, max_size=12) if layers else st.just([]),
            "exec": st.lists(cfg, max_size=3),
            "cvars": st.dictionaries(
                CVARS, LINES | st.integers() | st.floats(allow_nan=False, allow_infinity=False), max_size=5
            ),
            "arguments": st.lists(argument, max_size=4),
            "admins": st.lists(pattern(r"STEAM_[0-5]:[01]:[0-9]{1,10}|\[U:1:[0-9]{1,10}\]"), max_size=3),
            "rcon_password": st.none() | SECRETS,
            "keep": st.lists(pattern(r"left4dead2/[a-z]{8}"), unique=True, max_size=2),
            "memory_max": st.sampled_from(["1G", "512M", "1073741824"]),
            "disk_max": st.sampled_from([*DISKS]),
            "cpu_weight": st.integers(1, 10000),
            "nice": st.integers(-20, 19),
            "state": st.sampled_from(["running", "running", "stopped", "absent"]),
        },
    )


@st.composite
def hosts(draw: st.DrawFn, least: int = 0) -> dict[str, Any]:
    """Generate a host's data, with so many servers at least."""
    layers = draw(st.dictionaries(NAMES, LAYERS, max_size=4))
    ids = draw(st.lists(IDS, min_size=least, max_size=4, unique=True))
    servers = {each: draw(server([*layers])) for each in ids}
    numbers = draw(st.permutations(range(27015, 27015 + 12)))
    for name, port in zip(ids, numbers, strict=False):
        servers[name]["port"] = draw(st.sampled_from([None, port]))
    return {
        "game": {"source": "host", "path": "/srv/l4d2"},
        "layers": layers,
        "servers": servers,
        "port_range": [27015, 27030],
        **draw(st.sampled_from([{}, {"operators": None}]) | st.builds(dict, operators=OPERATORS, web=WEB_PAGES)),
        **draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "address": st.sampled_from(["0.0.0.0", "192.0.2.7"]),
                    "memory_max": st.sampled_from(["infinity", "99T"]),
                    "cpu_quota": st.none() | st.integers(1, 100000),
                    "webhook": st.none() | WEB,
                    "uid": st.integers(700, 999),
                },
            )
        ),
    }


def run(
    tmp_path: Path, data: Mapping[str, Mapping[str, Any]]
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Deploy to hosts that are none, or to what the run before left; return what was said and what became of them."""
    (tmp_path / "hosts").write_text(f"hosts = {list(data.items())!r}\n", encoding="utf-8")
    command = [sys.executable, "-m", "tests.unit.test_fake", str(tmp_path / "hosts"), str(tmp_path / "done")]
    environment = {**os.environ, "PYINFRA_PROGRESS": "off"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return done, json.loads((tmp_path / "done").read_text())


# --- valid data


@dataclass(frozen=True)
class Written:
    """A generated host: its data with every default, and what a deploy wrote."""

    data: Mapping[str, Any]
    state: Mapping[str, Any]

    def servers(self) -> dict[str, dict[str, Any]]:
        """Return the servers that are to be there, each with every default."""
        servers = {name: {**DEFAULTS["server_defaults"], **own} for name, own in self.data["servers"].items()}
        return {name: each for name, each in servers.items() if each["state"] != "absent"}

    def text(self, path: str) -> str:
        """Return what a file holds."""
        text: str = self.state["texts"][path]
        assert hashlib.sha256(text.encode()).hexdigest() == self.state["entries"][path]["content"]
        return text

    def lines(self, server: str, name: str) -> list[str]:
        """Return the lines of a server's file that are no comments."""
        lines = self.text(f"/etc/left4me/servers/{server}/{name}").split("\n")
        assert lines.pop() == ""
        return [line for line in lines if not line.startswith(("#", "//"))]

    def port(self, server: str) -> int:
        """Return the port that was written."""
        return int(self.environment(server)["PORT"])

    def environment(self, server: str) -> dict[str, str]:
        """Return a server's environment, read as systemd reads an EnvironmentFile."""
        pairs = [re.fullmatch(r'LEFT4ME_([A-Z_]+)="([^"\\$`]*)"', line) for line in self.lines(server, "server.env")]
        return {pair[1]: pair[2] for pair in pairs if pair}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> list[Written]:
    """Generate hosts and deploy to all of them, then once more, when nothing may be left to do."""
    tmp_path = tmp_path_factory.mktemp("fake")
    generated = {f"@fake/h{number}": data for number, data in enumerate(gathered(hosts()))}
    first, states = run(tmp_path, generated)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Traceback" not in first.stderr
    assert "Of-our-own" not in first.stdout + first.stderr
    assert sorted(states) == sorted(generated)
    second, again = run(tmp_path, generated)
    assert second.returncode == 0, second.stderr
    for name, state in again.items():
        assert state["sent"] == [], (generated[name], state["commands"])
        assert len(state["commands"]) <= 8, state["commands"]
        assert {**state, "commands": 0, "sent": 0} == {**states[name], "commands": 0, "sent": 0}
    return [Written({**DEFAULTS, **data}, states[name]) for name, data in generated.items()]


def test_the_command_line_and_the_ports_validate_back(deployed: list[Written]) -> None:
    for host in deployed:
        first, last = host.data["port_range"]
        ports = [host.port(server) for server in host.servers()]
        assert len(ports) == len({*ports})
        for server, declared in host.servers().items():
            found = host.environment(server)
            assert re.fullmatch("[0-9a-f]{16}", found.pop("GENERATION"))
            assert first <= int(found["PORT"]) <= last
            assert found == {
                "ADDRESS": host.data["address"],
                "PORT": str(declared["port"] or found["PORT"]),
                "MAX_PLAYERS": str(declared["max_players"]),
                "MAP": declared["map"],
                "GAMEMODE": declared["gamemode"],
                "TICKRATE": str(declared["tickrate"]),
                "ARGUMENTS": " ".join(declared["arguments"]),
                **({"DISK_MAX": disk} if (disk := DISKS[declared["disk_max"]]) else {}),
            }


def test_each_server_cfg_says_to_the_game_what_the_data_say(deployed: list[Written]) -> None:
    for host in deployed:
        for server, declared in host.servers().items():
            given = declared["rcon_password"]
            # As the game reads it, and every line of it is one statement.
            lines = host.lines(server, "server.cfg")
            *said, echo = [words for line in lines for words in statements(line)]
            assert said == [
                *(["exec", name] for name in declared["exec"]),
                *([name, str(value)] for name, value in declared["cvars"].items()),
                ["hostname", declared["hostname"]],
                ["sv_lan", "0"],
                ["exec", f"left4me/secret/{'rcon-given.cfg' if given else 'rcon.cfg'}"],
            ]
            assert re.fullmatch("echo left4me: server.cfg [0-9a-f]{12} was read", " ".join(echo))


def test_layers_keep_admins_limits_and_links_validate_back(deployed: list[Written]) -> None:
    for host in deployed:
        for server, declared in host.servers().items():
            own = ["left4me-admins"] if declared["admins"] else []
            assert host.lines(server, "layers") == [*own, *declared["layers"]]
            for layer in [*own, *declared["layers"]]:
                link = host.state["entries"][f"{VAR}/overlays/{layer}/current"]
                assert re.fullmatch("[a-z2-7]{8}", link["content"])
            assert host.lines(server, "keep") == declared["keep"]
            admins = f"/etc/left4me/servers/{server}/admins_simple.ini"
            assert (admins in host.state["entries"]) == bool(declared["admins"])
            if declared["admins"]:
                wanted = [f'"{admin}" "99:z"' for admin in declared["admins"]]
                assert host.lines(server, "admins_simple.ini") == wanted
            unit = f"left4me-server@{server}.service"
            text = host.text(f"/etc/systemd/system/{unit}.d/limits.conf")
            limits = [line for line in text.splitlines() if not line.startswith("#")]
            wanted = [f"CPUWeight={declared['cpu_weight']}", f"MemoryMax={declared['memory_max']}"]
            wanted += [f"Nice={declared['nice']}", f"SocketBindAllow={host.state['ports'][server]}"]
            assert limits == ["[Service]", *wanted]
            running = declared["state"] == "running"
            assert (f"/etc/systemd/system/multi-user.target.wants/{unit}" in host.state["entries"]) == running
            assert (unit in host.state["active"]) == running
        there = {path.split("/")[4] for path in host.state["entries"] if re.match("/etc/left4me/servers/.", path)}
        assert there == {"_bare", "_modded", *host.servers()}


def test_each_password_is_where_the_game_alone_reads_it(deployed: list[Written]) -> None:
    for host in deployed:
        for server, declared in host.servers().items():
            given = declared["rcon_password"]
            path = f"{VAR}/secrets/{server}/{'rcon-given.cfg' if given else 'rcon.cfg'}"
            about = host.state["entries"][path]
            assert (about["mode"], about["owner"], about["group"]) == (0o400, f"left4me-{server}", "root")
            assert host.text(path) == f'rcon_password "{given or "made-here"}"\n'
            assert [each for each in host.state["entries"] if each.startswith(f"{VAR}/secrets/{server}/")] == [path]
        elsewhere = {path: text for path, text in host.state["texts"].items() if not path.startswith(f"{VAR}/secrets/")}
        assert not [path for path, text in elsewhere.items() if "Of-our-own" in text or "made-here" in text]
        assert not [command for command in host.state["commands"] if "Of-our-own" in command]


# --- invalid data


def first(data: dict[str, Any]) -> dict[str, Any]:
    """Return the first server of a host, of two that are to be there."""
    for server in data["servers"].values():
        server["state"] = "running"
    found: dict[str, Any] = next(iter(data["servers"].values()))
    return found


Spoil = Callable[[st.DrawFn, dict[str, Any]], str]
"""Puts one mistake into valid data, and returns the pattern of its line."""
BREAKERS = ("\n", "\r", '"', "\\", "\0")


def broken(draw: st.DrawFn) -> str:
    """Return a text that would break out of its line."""
    text: str = draw(LINES) + draw(st.sampled_from(BREAKERS))
    return text + draw(LINES)


def _same_port(draw: st.DrawFn, data: dict[str, Any]) -> str:
    first(data)
    one, two = list(data["servers"])[:2]
    data["servers"][one]["port"] = data["servers"][two]["port"] = 27029
    return rf"servers\.{two}\.port: 27029: is already the port of server {one}"


def _port_outside(draw: st.DrawFn, data: dict[str, Any]) -> str:
    first(data)["port"] = port = draw(st.integers(1024, 27014) | st.integers(27031, 65535))
    return rf"servers\..*\.port: {port}: is outside port_range, 27015 to 27030"


def _layer_undeclared(draw: st.DrawFn, data: dict[str, Any]) -> str:
    first(data)["layers"] = [draw(NAMES.filter(lambda name: name not in data["layers"]))]
    return r"servers\..*\.layers: '.*': is not one of the host's layers: .*"


def _layer_twice(draw: st.DrawFn, data: dict[str, Any]) -> str:
    name = draw(NAMES)
    data["layers"][name] = draw(LAYERS)
    first(data)["layers"] = [name, name]
    return rf"servers\..*\.layers: '{re.escape(name)}': is listed 2 times"


def _too_many_layers(draw: st.DrawFn, data: dict[str, Any]) -> str:
    names = [f"layer-{number:02}" for number in range(draw(st.integers(91, 150)))]
    data["layers"] |= {name: {"source": "control", "path": "tests/boxes/layer"} for name in names}
    first(data)["layers"] = names
    return rf"servers\..*\.layers: {len(names)} layers: are too many for one mount: the first \d\d fit"


def _memory(draw: st.DrawFn, data: dict[str, Any]) -> str:
    first(data)["memory_max"] = draw(st.sampled_from(["1G", "2T", "infinity"]))
    data["memory_max"] = draw(st.sampled_from(["1023M", "1000000000", "1K"]))
    return r"memory_max: '\w+': is less than the sum of its servers' memory_max: .*"


def _cvar(draw: st.DrawFn, data: dict[str, Any]) -> str:
    first(data)["cvars"] = {"sv_tags": broken(draw)}
    return r"servers\..*\.cvars\.sv_tags: .*: must not contain a newline .*"


def _cvar_name(draw: st.DrawFn, data: dict[str, Any]) -> str:
    first(data)["cvars"] = {"sv" + broken(draw)[:60] + '"': 1}
    return r"servers\..*\.cvars\.sv.*: must match .*"


def _hostname(draw: st.DrawFn, data: dict[str, Any]) -> str:
    first(data)["hostname"] = broken(draw)[:100] + "\n"
    return r"servers\..*\.hostname: .*: must not contain a newline .*"


def _argument(draw: st.DrawFn, data: dict[str, Any]) -> str:
    first(data)["arguments"] = ["-a" + draw(st.sampled_from([*BREAKERS, ";", "//", " ", "'", "$", "%"]))]
    return r"servers\..*\.arguments\.0: .*: must be one word .*"


def _exec(draw: st.DrawFn, data: dict[str, Any]) -> str:
    first(data)["exec"] = [draw(st.sampled_from(["../x.cfg", "/x.cfg", "left4me/x.cfg", "a b"]))]
    return r"servers\..*\.exec\.0: .*: must be a path relative to left4dead2/cfg.*"


def _id(draw: st.DrawFn, data: dict[str, Any]) -> str:
    bad = draw(st.sampled_from(["", "_check", "-a", "A", "a" * 21, "a.b", "a/b", "..", "a\n", "ä"]))
    data["servers"][bad] = {}
    return r"servers\..*: must match \^\[a-z0-9\]\[a-z0-9_-\]\{0,19\}\$"


def _reserved(draw: st.DrawFn, data: dict[str, Any]) -> str:
    name = "left4me" + draw(st.sampled_from(["", "-admins", ".x"]))
    data["layers"][name] = draw(LAYERS)
    return rf"layers\.{name}: '{name}': is reserved: .*"


def _unknown(draw: st.DrawFn, data: dict[str, Any]) -> str:
    where = draw(st.sampled_from([data, first(data)]))
    where["rcon_pasword"] = draw(SECRETS)
    return r"(servers\..*\.)?rcon_pasword: \(hidden\): is not a known key"


def _secret(draw: st.DrawFn, data: dict[str, Any]) -> str:
    first(data)["rcon_password"] = draw(SECRETS) + draw(st.sampled_from([*BREAKERS, " ", "ä"]))
    return r"servers\..*\.rcon_password: \(hidden\): .*"


def _default(draw: st.DrawFn, data: dict[str, Any]) -> str:
    first(data)
    for server in data["servers"].values():
        server.pop("map", None)
    data["server_defaults"] = {**DEFAULTS["server_defaults"], "map": draw(st.sampled_from(["../x", "a b", ""]))}
    return r"server_defaults\.map: '.*': must match .*"


SPOILS: list[Spoil] = [
    *(_same_port, _port_outside, _layer_undeclared, _layer_twice, _too_many_layers, _memory, _cvar, _cvar_name),
    *(_hostname, _argument, _exec, _id, _reserved, _unknown, _secret, _default),
]


@st.composite
def invalid(draw: st.DrawFn, spoils: list[Spoil]) -> tuple[dict[str, Any], str]:
    """Generate data with one mistake, and the pattern of its line."""
    data = draw(hosts(least=2))
    return data, draw(st.sampled_from(spoils))(draw, data)


@pytest.mark.parametrize("spoil", SPOILS, ids=[spoil.__name__[1:] for spoil in SPOILS])
def test_each_class_of_mistakes_is_one_line_whatever_stands_around_it(spoil: Spoil) -> None:
    @settings(max_examples=8, database=None, deadline=None, suppress_health_check=[*HealthCheck])
    @given(invalid([spoil]))
    def holds(generated: tuple[dict[str, Any], str]) -> None:
        data, line = generated
        with pytest.raises(validation.InvalidData) as found:
            validation.validate("h", {**DEFAULTS, **data})
        [mistake] = map(str, found.value.mistakes)
        assert re.fullmatch(f"h: {line}", mistake), (line, mistake)
        assert "Of-our-own" not in mistake

    holds()


def test_a_run_with_mistakes_connects_to_nobody(tmp_path: Path) -> None:
    generated = {f"@fake/h{number}": each for number, each in enumerate(gathered(invalid(SPOILS)))}
    data = {name: each for name, (each, _) in generated.items()}
    done, states = run(tmp_path, {**data, "@fake/good": {"game": {"source": "host", "path": "/srv/l4d2"}}})
    assert done.returncode == 2, done.stderr
    assert (states, done.stdout) == ({}, "")
    assert "Traceback" not in done.stderr
    refused = [line.removeprefix("refused: ") for line in done.stderr.splitlines() if line.startswith("refused: ")]
    assert len(refused) == len(generated)
    for name, (_, line) in generated.items():
        assert [each for each in refused if re.fullmatch(f"{name}: {line}", each)], (name, line, refused)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
