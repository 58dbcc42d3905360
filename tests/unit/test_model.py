"""What may be declared, and what is said about what may not."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from left4me import model

ROOT = Path(__file__).parent.parent.parent
DEFAULTS = {
    key: value for key, value in runpy.run_path(str(ROOT / "group_data/all.py")).items() if not key.startswith("__")
}
GAME = {"source": "host", "path": "/srv/l4d2"}


def mistakes(**data: Any) -> list[str]:
    """Return what is wrong with a host of these data over the defaults."""
    try:
        model.validate("box", {**DEFAULTS, "game": GAME, **data})
    except model.InvalidData as invalid:
        return [str(each) for each in invalid.mistakes]
    return []


def server(**data: Any) -> dict[str, Any]:
    """Return the data of a host with one server."""
    return {"servers": {"3": {"port": 27015, **data}}}


def test_the_defaults_are_complete_but_for_the_game_and_ports() -> None:
    assert mistakes() == []
    assert mistakes(**server()) == []
    assert mistakes(game=None, servers={"3": {}}) != []


def test_server_defaults_are_merged_under_each_server_and_nothing_else_is() -> None:
    servers = {"3": {"port": 27015}, "4": {"port": 27016, "hostname": "four", "layers": ["a", "b"]}}
    host = model.validate("box", {**DEFAULTS, "game": GAME, "servers": servers})
    assert host.servers["3"].hostname == DEFAULTS["server_defaults"]["hostname"]
    assert host.servers["4"].hostname == "four"
    assert host.servers["4"].layers == ("a", "b")
    assert host.servers["4"].map == DEFAULTS["server_defaults"]["map"]


def test_what_is_pyinfras_is_left_to_pyinfra() -> None:
    assert mistakes(ssh_hostname="10.0.0.1", ssh_user="admin", _sudo=True, _timeout=5) == []


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
        server(port=None),
        server(hostname=""),
        server(hostname="x" * 121),
        server(hostname='a"; quit'),
        server(hostname="a\nrcon_password x"),
        server(hostname="a // b"),
        server(map="../x"),
        server(map="c1m1_hotel; quit"),
        server(map="c1m1_hotel\n"),
        server(max_players=0),
        server(max_players=33),
        server(layers="sourcemod"),
        server(layers=["a:b"]),
        server(layers=[".."]),
        server(layers=["a", "a"]),
        server(memory_max="2 GB"),
        server(memory_max="0"),
        server(memory_max="2G\nNice=-20"),
        server(memory_max=2),
        server(cpu_weight=0),
        server(nice=20),
        server(unknown=1),
        {"servers": []},
        {"servers": {"3": None}},
        {"servers": {"3": {}}},
        {"servers": {3: {"port": 27015}}},
        {"servers": {"3": {"port": 27015}, "4": {"port": 27015}}},
        {"server_defaults": None},
        {"address": "::1"},
        {"address": "example.org"},
        {"uid": 0},
        {"uid": 1000},
        {"gid": "980"},
        {"unknown": 1},
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
    with pytest.raises(model.InvalidData) as invalid:
        model.validate_all({"one": bad, "two": bad, "good": {**DEFAULTS, "game": GAME}})
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


def test_the_keys_that_are_pyinfras_are_its_own() -> None:
    """A misspelt one is not silently let through, and none of them has gone with a newer pyinfra."""
    known = {f"_{name}" for name in ("timeout", "sudo")} | {"ssh_hostname", "ssh_user"}
    assert known < model.PYINFRA_KEYS
    code = (
        "from pyinfra.connectors.ssh import connector_data_meta as ssh; from pyinfra.api.arguments import *; "
        "print(*ssh, *(key for key, _ in all_global_arguments()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(out.split()) >= model.PYINFRA_KEYS
    assert {key for key in out.split() if key.startswith("ssh_")} <= model.PYINFRA_KEYS


@pytest.mark.parametrize(("key", "value"), [("_timout", 5), ("ssh_usr", "root"), ("_timeout", 0), ("_timeout", None)])
def test_a_misspelt_key_of_pyinfras_and_an_endless_timeout_are_mistakes(key: str, value: object) -> None:
    [line] = mistakes(**{key: value})
    assert key in line


def test_paths_to_keep_that_lie_in_each_other_are_a_mistake() -> None:
    server = {"port": 27015, "keep": ["left4dead2/cfg/banned_user.cfg", "left4dead2/cfg"]}
    [line] = mistakes(servers={"3": server})
    assert "servers.3.keep" in line
