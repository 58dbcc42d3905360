"""What may be declared, and what is said about what may not."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS
from pyinfra.connectors.ssh import connector_data_meta

from left4me import model, validation
from left4me_host import layout

ROOT = Path(__file__).parent.parent.parent
DEFAULTS = {
    key: value for key, value in runpy.run_path(str(ROOT / "group_data/all.py")).items() if not key.startswith("__")
}
GAME = {"source": "host", "path": "/srv/l4d2"}
HUGE = 10**5000


def mistakes(**data: Any) -> list[str]:
    """Return what is wrong with a host of these data over the defaults."""
    try:
        validation.validate("box", {**DEFAULTS, "game": GAME, **data})
    except validation.InvalidData as invalid:
        return [str(each) for each in invalid.mistakes]
    return []


def server(**data: Any) -> dict[str, Any]:
    """Return the data of a host with one server."""
    return {"servers": {"3": {"port": 27015, **data}}}


def test_the_defaults_are_complete_but_for_the_game_and_ports() -> None:
    assert mistakes() == []
    assert mistakes(**server()) == []
    assert mistakes(servers={"3": {}}) == []
    assert mistakes(game=None, servers={"3": {}}) != []


def test_server_defaults_are_merged_under_each_server_and_nothing_else_is() -> None:
    servers = {"3": {"port": 27015}, "4": {"port": 27016, "hostname": "four", "layers": ["a", "b"]}}
    layers = {name: {"source": "archive", "url": "https://x/", "sha256": "0" * 64, "strip": 0} for name in "ab"}
    host = validation.validate("box", {**DEFAULTS, "game": GAME, "servers": servers, "layers": layers})
    assert host.servers["3"].hostname == DEFAULTS["server_defaults"]["hostname"]
    assert host.servers["4"].hostname == "four"
    assert host.servers["4"].layers == ("a", "b")
    assert host.servers["4"].map == DEFAULTS["server_defaults"]["map"]


def test_a_mistake_in_server_defaults_is_one_line_there_but_for_servers_with_their_own() -> None:
    def lines(defaults: dict[str, Any], **servers: Any) -> list[str]:
        return mistakes(server_defaults={**DEFAULTS["server_defaults"], **defaults}, servers=servers)

    must = "must match ^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"
    assert lines({"map": "../x"}, a={}, b={}, c={"map": "ok"}) == [f"box: server_defaults.map: '../x': {must}"]
    assert lines({"map": "../x"}, a={}, b={"map": "../y"}) == [
        f"box: server_defaults.map: '../x': {must}",
        f"box: servers.b.map: '../y': {must}",
    ]
    assert lines({"mapp": 1}, a={}, b={}) == ["box: server_defaults.mapp: (hidden): is not a known key"]
    assert lines({"layers": ["x"]}, a={}, b={"layers": []}) == [
        "box: server_defaults.layers: 'x': is not one of the host's layers: it has none"
    ]
    assert mistakes(server_defaults={}, servers={"a": dict.fromkeys(DEFAULTS["server_defaults"])}) != []


def test_what_is_pyinfras_is_left_to_pyinfra() -> None:
    assert mistakes(ssh_hostname="10.0.0.1", ssh_user="admin", _sudo=True, _timeout=5, _doas=False) == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"_su_user": "root"}, "_su_user: 'root': is not supported: remove it"),
        ({"_doas": True}, "_doas: True: is not supported: remove it"),
        ({"_dzdo_user": "root"}, "_dzdo_user: 'root': is not supported: remove it"),
        ({"_sudo": True, "_sudo_user": "games"}, "_sudo_user: 'games': is not supported: remove it"),
        ({"_su_password": "secret"}, "_su_password: (hidden): is not supported: remove it"),
        ({"_chdir": "/srv"}, "_chdir: '/srv': is not supported"),
        ({"_sudo_password": "secret"}, "_sudo_password: (hidden): has no effect without _sudo"),
        ({"ssh_key_password": "secret"}, "ssh_key_password: (hidden): has no effect without ssh_key"),
        (
            {"ssh_password": "two\nlines"},
            "ssh_password: (hidden): must be a string of one line that is not empty, or removed",
        ),
        ({"ssh_user": ""}, "ssh_user: '': must be a string of one line that is not empty, or removed"),
        ({"ssh_port": 0}, "ssh_port: 0: input should be greater than or equal to 1"),
        ({"ssh_connect_retries": -1}, "ssh_connect_retries: -1: input should be greater than or equal to 0"),
        ({"ssh_strict_host_key_checking": "ask"}, "input should be 'yes', 'no', 'off' or 'accept-new'"),
        ({"ssh_config_file": "~/config"}, "ssh_config_file: '~/config': must be without ~"),
        ({"ssh_paramiko_connect_kwargs": {"passphrase": "secret"}}, "(hidden): "),
        ({"ssh_password": None}, "ssh_password: (hidden): must be a string of one line that is not empty, or removed"),
        ({"ssh_port": "22"}, "ssh_port: '22': input should be a valid integer"),
        ({"ssh_connect_retries": True}, "ssh_connect_retries: True: input should be a valid integer"),
        ({"ssh_paramiko_connect_kwargs": {"banner_timeout": 9}}, "is not supported"),
    ],
)
def test_a_way_to_the_host_that_not_everything_can_go_is_refused(data: dict[str, Any], said: str) -> None:
    [line] = mistakes(**data)
    assert said in line
    assert "secret" not in line


@pytest.mark.parametrize("name", ["3", "a", "versus-1", "0_o", "a" * 20])
def test_good_ids(name: str) -> None:
    assert mistakes(servers={name: {"port": 27015}}) == []


@pytest.mark.parametrize("name", ["", "_check", "-a", "A", "a" * 21, "a.b", "a/b", "..", "a b", "a\n", "ä", "a@b"])
def test_bad_ids(name: str) -> None:
    [line] = mistakes(servers={name: {"port": 27015}})
    assert line.endswith("must match ^[a-z0-9][a-z0-9_-]{0,19}$")


@pytest.mark.parametrize(
    "data",
    [
        server(port=1023),
        server(port=65536),
        server(port=True),
        server(port="27015"),
        server(hostname=""),
        server(hostname="x" * 121),
        server(hostname='a"; quit'),
        server(hostname="a\nrcon_password x"),
        server(map="../x"),
        server(map="c1m1_hotel; quit"),
        server(map="c1m1_hotel\n"),
        server(max_players=0),
        server(max_players=33),
        server(layers="sourcemod"),
        server(layers=["a:b"]),
        server(layers=[".."]),
        server(memory_max="2 GB"),
        server(memory_max="0"),
        server(memory_max="2G\nNice=-20"),
        server(memory_max=2),
        server(disk_max="0"),
        server(disk_max="63M"),
        server(disk_max="1025T"),
        server(disk_max="50%"),
        server(cpu_weight=0),
        server(nice=20),
        server(unknown=1),
        {"servers": []},
        {"servers": {"3": None}},
        {"servers": {3: {"port": 27015}}},
        {"servers": {"3": {"port": 27015}, "4": {"port": 27015}}},
        {"server_defaults": None},
        {"address": "::1"},
        {"address": "example.org"},
        {"trial_port": 27015},
        {"trial_server": "9"},
        {"steamcmd_url": "steamcmd.tar.gz"},
        {"update_at": "04:30"},
        {"builds_kept": -1},
        {"game": {"source": "steamcmd", "build": "../1"}},
        {"game": {"source": "archive", "url": "https://x/", "sha256": "0", "strip": 0}},
        server(build="a/b"),
        server(restart="at noon"),
        {"uid": 0},
        {"uid": 1000},
        {"gid": "980"},
        {"unknown": 1},
        {"web": "127.0.0.1:9090"},
        {"web": {}},
        {"web": {"listen": "127.0.0.1:9090", "port": 9090}},
        *(
            {"web": {"listen": listen}}
            for listen in (
                *("9090", ":9090", "localhost:9090", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:9_0"),
                *("::1:9090", "[127.0.0.1]:9090", "[::1]", "[::1]9090", "[fe80::1%eth0]:9090", "127.0.0.1:9090\n"),
                *("010.0.0.1:9090", "[0:0:0:0:0:0:0:1]:9090", 9090, None),
            )
        ),
        *(
            {"web": {"listen": "127.0.0.1:9090", "url": url}}
            for url in (
                *("games.example.org", "http://games.example.org", "https://anna@example.org", "https://", ""),
                *("http://localhost.example.org/", "https://example.org/?x=1", "https://example.org/#/a"),
                *("https://example.org/a b", "javascript:alert(1)"),
            )
        ),
        {"firewall": "yes"},
        {"sysctl": {"net.core.rmem_default": "524288"}},
        {"sysctl": {"../passwd": 1}},
        {"sysctl": {"swappiness": 1}},
        {"rcon_from": "203.0.113.7"},
        {"rcon_from": ["203.0.113.7/24"]},
        {"rcon_from": ["::1"]},
        {"rcon_from": ["example.org"]},
        {"game_may_reach": ["127.0.0.1"]},
        {"game_may_reach": ["127.0.0.1:0"]},
        {"game_may_reach": ["127.0.0.1:65536"]},
        {"game_may_reach": ["localhost:3306"]},
        {"game_may_reach": ["127.0.0.1:3306 }"]},
        {"firewall_limits": {"known": 60, "newcomers": 100}},
        {"firewall_limits": {"known": 0, "newcomers": 100, "player": 500}},
        {"memory_max": "0%"},
        {"memory_max": "101%"},
        {"game": {}},
        {"game": {"source": "steam"}},
        {"game": {"source": "host"}},
        {"game": {"source": "host", "path": "srv"}},
        {"game": {"source": "host", "path": "/srv/../etc"}},
        {"game": {"source": "host", "path": "/srv/a b"}},
        {"game": {"source": "host", "path": "/srv", "owner": "steam"}},
        {"game": "/srv"},
    ],
    ids=str,
)
def test_each_mistake_is_one_line_with_host_and_key(data: dict[str, Any]) -> None:
    found = mistakes(**data)
    assert len(found) == 1, found
    [key] = data
    assert found[0].startswith(f"box: {key}"), found
    assert "\n" not in found[0]


def test_all_mistakes_of_all_hosts_come_together() -> None:
    bad = {**DEFAULTS, "game": GAME, "uid": 0, **server(port=1)}
    with pytest.raises(validation.InvalidData) as invalid:
        validation.validate_all({"one": bad, "two": bad, "good": {**DEFAULTS, "game": GAME}})
    keys = [(each.host, each.key) for each in invalid.value.mistakes]
    assert keys == [(host, key) for host in ("one", "two") for key in ("servers.3.port", "uid")]


TEXT = st.text(alphabet="3a_-/.\n\0ä\ud800", max_size=5) | st.sampled_from(["3", "port", "source", "path"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(database=None, deadline=None)
@given(st.dictionaries(st.sampled_from([*DEFAULTS, "game"]), ANYTHING))
def test_no_data_whatever_makes_it_raise_anything_else(data: dict[str, Any]) -> None:
    assert all("\n" not in line for line in mistakes(**data))


@pytest.mark.parametrize(
    "data",
    [
        server(cvars={"sv_gravity": HUGE}),
        server(port=HUGE),
        server(max_players=HUGE),
        server(memory_max="9" * 5000),
        {"memory_max": "9" * 5000},
        {"memory_max": 2},
        {"port_range": [1024, HUGE]},
        {"port_range": [HUGE, 1024]},
        {"_timeout": -HUGE},
        {"server_defaults": HUGE},
    ],
    ids=lambda data: str([*data]),
)
def test_a_number_that_python_does_not_print_is_a_mistake_like_another(data: dict[str, Any]) -> None:
    assert mistakes(**data)


def test_the_keys_that_are_pyinfras_are_its_own() -> None:
    """None of them has gone with a newer pyinfra."""
    assert {"_timeout", "_sudo", "ssh_hostname", "ssh_user"} <= {*model.PyinfraKeys.__annotations__}
    assert {*model.PyinfraKeys.__annotations__} < {*connector_data_meta, *CONNECTOR_ARGUMENT_KEYS}


@pytest.mark.parametrize(("key", "value"), [("_timout", 5), ("ssh_usr", "root"), ("_timeout", 0), ("_timeout", None)])
def test_a_misspelt_key_of_pyinfras_and_an_endless_timeout_are_mistakes(key: str, value: object) -> None:
    [line] = mistakes(**{key: value})
    assert key in line


@pytest.mark.parametrize("other", ["left4dead2/cfg", "left4dead2/./cfg/"])
def test_paths_to_keep_that_lie_in_each_other_are_a_mistake(other: str) -> None:
    server = {"port": 27015, "keep": ["left4dead2/cfg/banned_user.cfg", other]}
    [line] = mistakes(servers={"3": server})
    assert "servers.3.keep" in line


def test_what_cannot_be_sent_is_a_mistake_of_its_layer(tmp_path: Path) -> None:
    layer = tmp_path / "evening"
    layer.mkdir()
    os.mkfifo(layer / "pipe")
    (layer / "srcds_run").write_text("")
    (layer / "srcds_run").chmod(0o700)
    source = {"source": "control", "path": str(layer)}
    why = f"path: '{layer}': cannot be sent: {layer}/pipe is neither a file nor a directory nor a link"
    lines = [f"box: layers.evening.{why}"]
    assert mistakes(layers={"evening": source}) == lines
    assert mistakes(game=source) == [f"box: game.{why}"]


@pytest.mark.parametrize("directory", [False, True])
def test_what_cannot_be_read_is_a_mistake_of_its_layer(tmp_path: Path, directory: bool) -> None:
    layer = tmp_path / "evening"
    layer.mkdir()
    hidden = layer / "hidden"
    hidden.mkdir() if directory else hidden.write_text("")
    hidden.chmod(0)
    layers = {"evening": {"source": "control", "path": str(layer)}}
    code = f"from tests.unit.test_model import mistakes; print(*mistakes(layers={layers}))"
    # In a user namespace root has no more rights than its files say.
    root = ["unshare", "--user"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*root, sys.executable, "-B", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith(f"box: layers.evening.path: '{layer}': "), done
    assert str(hidden) in done.stdout.partition(": ")[2]
    assert len(done.stdout.splitlines()) == 1


# What is declared, and what it comes to: written by hand, so that no default changes unseen.
DEFAULT_SERVER: dict[str, Any] = {
    "port": None,
    "hostname": "Left 4 Dead 2",
    "map": "c1m1_hotel",
    "gamemode": "coop",
    "max_players": 8,
    "tickrate": 30,
    "layers": [],
    "exec": [],
    "cvars": {},
    "arguments": [],
    "admins": [],
    "rcon_password": None,
    "memory_max": "2G",
    "disk_max": "infinity",
    "cpu_weight": 100,
    "nice": -5,
    "keep": [],
    "build": None,
    "restart": "never",
    "state": "running",
}
DEFAULT_HOST: dict[str, Any] = {
    "game": {"source": "host", "path": "/srv/l4d2", "build": None},
    "trial_port": 27200,
    "trial_server": None,
    "steamcmd_url": "https://steamcdn-a.akamaihd.net/client/installer/steamcmd_linux.tar.gz",
    "steamcmd_sha256": None,
    "update_at": None,
    "builds_kept": 1,
    "layers": {},
    "workshop_api": "https://api.steampowered.com",
    "address": "0.0.0.0",
    "port_range": [27015, 27114],
    "uid": 980,
    "gid": 980,
    "memory_max": "90%",
    "cpu_weight": 100,
    "cpu_quota": None,
    "operators": None,
    "web": None,
    "webhook": None,
    "attic_keep": 3,
    "attic_max": "10G",
    "firewall": True,
    "rcon_from": [],
    "game_may_reach": [],
    "firewall_limits": {"known": 60, "newcomers": 100, "player": 500},
    "sysctl": {"net.core.rmem_default": 524288},
}
HIDDEN = "**********"
SECRETS = ("hunter2", "swordfish", "t0k3n", "for friends")
ONE: dict[str, Any] = {"servers": {"3": {}}}
EVENING: dict[str, Any] = {
    "address": "192.0.2.7",
    "port_range": [27100, 27109],
    "memory_max": "16G",
    "cpu_quota": 400,
    "operators": "games",
    "web": {"listen": "127.0.0.1:9090", "url": "https://games.example.org:8443"},
    "webhook": "https://discord.com/api/webhooks/1/t0k3n",
    "layers": {
        "sourcemod": {
            "source": "archive",
            "url": "https://example.org/sm.zip?key=hunter2",
            "sha256": "0" * 64,
            "strip": 1,
            "into": None,
        },
        "evening": {"source": "git", "url": "ssh://git@example.org/evening.git", "ref": "v1.2", "into": "left4dead2"},
        "maps": {"source": "workshop", "items": [1643520526, 42]},
    },
    "server_defaults": {**DEFAULTS["server_defaults"], "gamemode": "versus", "cvars": {"sv_alltalk": 1}},
    "servers": {
        "versus-1": {
            "port": 27105,
            "hostname": "Unser Abend, nur für uns",
            "layers": ["evening", "sourcemod"],
            "cvars": {"sv_gravity": 700.5, "sv_tags": "a, b", "sv_Password": "for friends"},
            "exec": ["versus.cfg"],
            "arguments": ["-nohltv", "+sv_search_key", "abc"],
            "admins": ["STEAM_1:0:1234", "[U:1:99]"],
            "rcon_password": "swordfish",
            "keep": ["left4dead2/cfg/banned_user.cfg"],
            "memory_max": "4G",
        },
        "old": {"state": "absent"},
    },
}
PAIRS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {**DEFAULT_HOST, "servers": {}}),
    (ONE, {**DEFAULT_HOST, "servers": {"3": DEFAULT_SERVER}}),
    (
        EVENING,
        {
            **DEFAULT_HOST,
            "address": "192.0.2.7",
            "port_range": [27100, 27109],
            "memory_max": "16G",
            "cpu_quota": 400,
            "operators": "games",
            "web": EVENING["web"],
            "webhook": "https://discord.com/api/webhooks/1/t0k3n",
            "layers": EVENING["layers"],
            "servers": {
                "versus-1": {
                    **DEFAULT_SERVER,
                    "port": 27105,
                    "hostname": "Unser Abend, nur für uns",
                    "gamemode": "versus",
                    "layers": ["evening", "sourcemod"],
                    "cvars": {"sv_gravity": "700.5", "sv_tags": "a, b", "sv_Password": "for friends"},
                    "exec": ["versus.cfg"],
                    "arguments": ["-nohltv", "+sv_search_key", "abc"],
                    "admins": ["STEAM_1:0:1234", "[U:1:99]"],
                    "rcon_password": HIDDEN,
                    "keep": ["left4dead2/cfg/banned_user.cfg"],
                    "memory_max": "4G",
                },
                "old": {**DEFAULT_SERVER, "gamemode": "versus", "cvars": {"sv_alltalk": "1"}, "state": "absent"},
            },
        },
    ),
]


@pytest.mark.parametrize(("data", "comes_to"), PAIRS, ids=["nothing", "one server", "an evening"])
def test_what_data_come_to(data: dict[str, Any], comes_to: dict[str, Any]) -> None:
    host = validation.validate("box", {**DEFAULTS, "game": GAME, **data})
    assert host.model_dump(mode="json") == comes_to


def test_make_show_prints_what_data_come_to_without_the_secrets(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory"
    hosts = [(f"h{number}", {"game": GAME, **data}) for number, (data, _) in enumerate(PAIRS)]
    inventory.write_text(f"hosts = {hosts!r}\n", encoding="utf-8")
    command = [sys.executable, "-m", "left4me.inventory_export", "--show", str(inventory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not [secret for secret in SECRETS if secret in done.stdout + done.stderr]
    shown = json.loads(done.stdout)
    assert [shown["h0"], shown["h1"]] == [comes_to for _, comes_to in PAIRS[:2]]
    evening = shown["h2"]
    assert evening.pop("webhook") == HIDDEN
    layers = evening.pop("layers")
    assert layers["sourcemod"]["url"] == f"https://example.org/sm.zip?{HIDDEN}"
    assert layers["maps"] == EVENING["layers"]["maps"]
    cvars = evening["servers"]["versus-1"]["cvars"]
    assert cvars["sv_Password"] == HIDDEN
    cvars["sv_Password"] = "for friends"
    assert evening == {key: value for key, value in PAIRS[2][1].items() if key not in ("webhook", "layers")}
    limited = subprocess.run([*command, "--limit", "h1"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(limited.stdout) == {"h1": shown["h1"]}


def ports(known: dict[str, int], last: int = 27018, **servers: int | None) -> dict[str, int | None]:
    """Return the ports that servers come to, each declared with a port or None, on a host that knows some."""
    declared = {name: {"port": port} for name, port in servers.items()}
    data = {**DEFAULTS, "game": GAME, "port_range": [27015, last], "servers": declared}
    host = validation.validate("box", data).with_ports(known)
    return {name: server.port for name, server in host.servers.items()}


def test_a_port_is_the_next_free_one_and_stays() -> None:
    assert ports({}, a=None, b=None) == {"a": 27015, "b": 27016}
    assert ports({}, a=None, b=27015, c=None) == {"a": 27016, "b": 27015, "c": 27017}
    # Another server before it, or one less, moves nobody.
    assert ports({"a": 27015, "b": 27016}, new=None, a=None, b=None) == {"new": 27017, "a": 27015, "b": 27016}
    assert ports({"a": 27015, "b": 27016}, b=None) == {"b": 27016}
    # Who asks for it gets it, from whoever has it by chance.
    assert ports({"a": 27015}, a=None, b=27015) == {"a": 27016, "b": 27015}
    # One that is outside a new range is given up.
    assert ports({"a": 27030}, a=None) == {"a": 27015}


def test_a_port_that_an_undeclared_server_has_is_not_given_away() -> None:
    assert ports({"gone": 27015}, a=None) == {"a": 27016}
    # Nor the one that a server runs on still, whose port was changed.
    assert ports({"a": 27015}, a=27018, b=None) == {"a": 27018, "b": 27016}


def test_a_range_that_is_short() -> None:
    assert ports({}, last=27016, a=None, b=None) == {"a": 27015, "b": 27016}
    # Only where no other is left the port of one that may run still.
    assert ports({"gone": 27015}, last=27016, a=None, b=None) == {"a": 27016, "b": 27015}
    [line] = mistakes(port_range=[27020, 27015], servers={"a": {}, "b": {"port": 27018}})
    assert line == "box: port_range: (27020, 27015): has a last port that is lower than the first"
    [line] = mistakes(port_range=[27015, 27016], servers={"a": {}, "b": {}, "c": {}})
    assert line == "box: port_range: (27015, 27016): is too small for 3 servers"


ARCHIVE = {"source": "archive", "url": "https://example.org/a.zip", "sha256": "0" * 64, "strip": 0}
BREAKS = 'must not contain a newline or other control character, a quote (") or a backslash'
WORD = "must be one word of letters, digits and _ . , : = / @ -, without //"
DECIDED = "is set by left4me or by another key: remove it"
LINES: list[tuple[dict[str, Any], str]] = [
    (
        {"servers": {"3": {"port": 27015}, "4": {"port": 27015}}},
        "servers.4.port: 27015: is already the port of server 3",
    ),
    (server(port=27115), "servers.3.port: 27115: is outside port_range, 27015 to 27114"),
    (server(port=27014), "servers.3.port: 27014: is outside port_range, 27015 to 27114"),
    (server(layers=["b"]), "servers.3.layers: 'b': is not one of the host's layers: it has none"),
    (
        {"layers": {"a": ARCHIVE}, **server(layers=["a", "b"])},
        "servers.3.layers: 'b': is not one of the host's layers: a",
    ),
    ({"layers": {"a": ARCHIVE}, **server(layers=["a", "a"])}, "servers.3.layers: 'a': is listed 2 times"),
    (
        {"memory_max": "5G", "servers": {"a": {}, "b": {}, "c": {"memory_max": "2048M"}}},
        "memory_max: '5G': is less than the sum of its servers' memory_max: 2G + 2G + 2048M",
    ),
    (
        {"firewall": False, "rcon_from": ["10.0.0.1"]},
        "rcon_from: ['10.0.0.1']: has no effect while firewall is False: remove it",
    ),
    (
        {"firewall": False, "game_may_reach": ["127.0.0.1:3306"]},
        "game_may_reach: ['127.0.0.1:3306']: has no effect while firewall is False: remove it",
    ),
    (
        {"web": {"listen": "127.0.0.1:9090"}},
        "web: '127.0.0.1:9090': needs operators: set it to the group whose members may use the page",
    ),
    *(
        (
            {"operators": "games", "web": {"listen": f"[::1]:{port}"}},
            f"web.listen: '[::1]:{port}': has a port of the servers: 27015 to 27114 or 27200",
        )
        for port in (27015, 27114, 27200)
    ),
    (
        {"memory_max": "99T", **server(memory_max="infinity")},
        "memory_max: '99T': is less than the sum of its servers' memory_max: infinity",
    ),
    *(
        (server(cvars={"sv_tags": f"a{text}b"}), f"servers.3.cvars.sv_tags: {f'a{text}b'!r}: {BREAKS}")
        for text in ("\n", "\r", '"', "\\", "\0", "\x1b", "\x85", "\u2028")
    ),
    *(
        (server(arguments=["-nohltv", f"a{text}b"]), f"servers.3.arguments.1: {f'a{text}b'!r}: {WORD}")
        for text in ("\n", '"', "'", ";", "//", " ", "$", "\\", "%")
    ),
    *(
        (server(arguments=[word]), f"servers.3.arguments.0: {word!r}: {DECIDED}")
        for word in ("+servercfgfile", "+SV_LAN", "-port", "--port", "-autoupdate", "-restart", "-ignoresigint")
    ),
    *(
        (server(cvars={name: "x"}), f"servers.3.cvars.{name}: '{name}': {DECIDED}")
        for name in ("hostname", "sv_lan", "Sv_Lan", "servercfgfile", "hostport")
    ),
    (
        server(cvars={"sv tags": 1}),
        "servers.3.cvars.sv tags: 'sv tags': must match ^[A-Za-z_][A-Za-z0-9_]{0,63}$",
    ),
    *(
        (
            server(exec=[name]),
            f"servers.3.exec.0: {name!r}: must be a path relative to left4dead2/cfg (letters, digits and _ . / + -), "
            "not in left4me/",
        )
        for name in ("../x.cfg", "/x.cfg", "left4me/server.cfg", "a;b", "a b", "a\nb", "a//b")
    ),
    (
        server(arguments=["+sv_password", "x"]),
        "servers.3.arguments.0: (hidden): would be visible in ps to every user of the host: set it in `cvars`",
    ),
    (
        {"layers": {"a": {"source": "workshop", "items": ["12x"]}}},
        "layers.a.items.0: '12x': input should be a valid integer",
    ),
    ({"servers": {"_check": {}}}, "servers._check: '_check': must match ^[a-z0-9][a-z0-9_-]{0,19}$"),
    (
        {"layers": {"left4me-x": ARCHIVE}},
        "layers.left4me-x: 'left4me-x': is reserved: choose a name that does not start with left4me",
    ),
    ({"layers": {"a/b": ARCHIVE}}, "layers.a/b: 'a/b': must match ^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"),
    (server(state="gone"), "servers.3.state: 'gone': input should be 'running', 'stopped' or 'absent'"),
    (
        server(admins=["me"]),
        "servers.3.admins.0: 'me': must be a Steam ID, such as STEAM_1:0:1234, [U:1:2468] or 76561197960268196",
    ),
]


def test_server_defaults_of_a_fleet_go_over_the_shipped_ones() -> None:
    shipped = DEFAULTS["server_defaults"]
    own = {"server_defaults": {"gamemode": "versus"}, "servers": {"a": {}, "b": {"gamemode": "survival"}}}
    servers = validation.validate("box", {**DEFAULTS, "game": GAME, **own}).servers
    assert (servers["a"].gamemode, servers["b"].gamemode) == ("versus", "survival")
    assert (servers["a"].map, servers["a"].nice) == (shipped["map"], shipped["nice"])


def test_what_real_servers_have_is_accepted() -> None:
    cvars = {"sv_downloadurl": "https://cdn.example.org/l4d2/", "sv_tags": "a.cfg;b.cfg"}
    own = {
        "hostname": "L4D2 // EU",
        "cvars": cvars,
        "exec": ["server_hard+.cfg"],
        "keep": ["left4dead2/addons/[L4D2] x"],
        "admins": ["76561197960268196", "STEAM_1:0:1", "[U:1:3]"],
    }
    layers = {
        "own": {"source": "git", "url": "git@example.org:u/r.git", "ref": "v1"},
        "maps": {"source": "workshop", "items": ["123", 124]},
    }
    host = validation.validate("box", {**DEFAULTS, "game": GAME, "layers": layers, **server(**own)})
    found = host.servers["3"]
    assert (found.hostname, found.cvars, found.exec) == (own["hostname"], cvars, ("server_hard+.cfg",))
    assert (found.keep, found.admins) == (("left4dead2/addons/[L4D2] x",), ("[U:1:2468]", "STEAM_1:0:1", "[U:1:3]"))
    assert host.layers["maps"].model_dump()["items"] == (123, 124)


@pytest.mark.parametrize(
    ("data", "line"), LINES, ids=[line[:70].encode("unicode_escape").decode() for _, line in LINES]
)
def test_each_class_of_mistakes_has_its_one_line(data: dict[str, Any], line: str) -> None:
    # A value that is no single line is shown as one.
    assert mistakes(**data) == [f"box: {line}"]


@pytest.mark.parametrize(
    "data",
    [
        server(rcon_password="hunter2 "),
        server(rcon_password="hunter2" * 10),
        server(rcon_password=["hunter2"]),
        server(rcon_pasword="hunter2"),
        server(cvars={"sv_password": "hunter2\n"}),
        server(cvars=["sv_password hunter2"]),
        {"servers": [{"rcon_password": "hunter2"}]},
        {"servers": {"3": ("rcon_password", "hunter2")}},
        {"server_defaults": [("rcon_password", "hunter2")]},
        {"server_defaults": {**DEFAULTS["server_defaults"], "rcon_password": ["hunter2"]}, **ONE},
        {"rcon_password": "hunter2"},
        {"webhook": "discord.com/hunter2"},
        {"webhook": "https://discord.com/a b/hunter2"},
        {"layers": {"a": {**ARCHIVE, "url": "ftp://me:hunter2@example.org"}}},
        {"layers": {"a": {"url": "https://me:hunter2@example.org"}}},
        {"layers": {"a": {**ARCHIVE, "uri": "https://me:hunter2@example.org"}}},
        {"ssh_pasword": "hunter2"},
    ],
    ids=str,
)
def test_a_mistake_shows_no_secret(data: dict[str, Any]) -> None:
    found = mistakes(**data)
    assert len(found) == 1, found
    assert "hunter2" not in found[0]


def overlay_bytes(server_id: str, layers: Iterable[str], release: str, helper: Any) -> int:
    """Return what left4me-overlay hands to mount(2), by its own hand: bytes of the options, with versions of 8."""
    helper["resolve"].__globals__.update(
        declared_layers=lambda _server: list(layers),
        directory=lambda path, **_: path,
        resolve=lambda link, below: (
            link.replace("current", "v" * 8) if not below else f"{layout.VAR}/releases/{release}"
        ),
    )
    return len(helper["directory_options"](server_id) + helper["OFF"])


@pytest.mark.parametrize("admins", [[], ["STEAM_1:0:1"]])
@pytest.mark.parametrize(("server_id", "width"), [("3", 4), ("a" * 20, 64), ("ab", 7)])
def test_the_count_of_layers_that_is_said_to_fit_does(server_id: str, width: int, admins: list[str]) -> None:
    helper = runpy.run_path(str(ROOT / "files/libexec/left4me-overlay"))
    names = [f"{number:0{width}}" for number in range(200)]
    data = {"layers": dict.fromkeys(names, ARCHIVE)}
    [line] = mistakes(**data, servers={server_id: {"layers": names, "admins": admins}})
    assert line.startswith(f"box: servers.{server_id}.layers: 200 layers: are too many for one mount: the first ")
    fits = int(line.removesuffix(" fit").rpartition(" ")[2])
    assert mistakes(**data, servers={server_id: {"layers": names[:fits], "admins": admins}}) == []
    assert len(mistakes(**data, servers={server_id: {"layers": names[: fits + 1], "admins": admins}})) == 1
    # The longest release, and left4me's own layer that admins bring.
    release, own = "control-" + "x" * 12, [model.ADMINS_LAYER] if admins else []
    assert overlay_bytes(server_id, [*own, *names[:fits]], release, helper) < 4096
    assert overlay_bytes(server_id, [*own, *names[: fits + 1]], release, helper) >= 4096


KINDS = [model.Host, model.Server, model.GameOnHost, model.GameOnControl, model.LayerOnControl, model.LayerArchive]


@pytest.mark.parametrize("declared", [*KINDS, model.LayerGit, model.LayerWorkshop])
def test_every_key_is_documented(declared: type[model.Host]) -> None:
    assert [key for key, field in declared.model_fields.items() if not field.description] == []
