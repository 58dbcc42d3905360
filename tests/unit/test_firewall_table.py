"""The firewall's table: what it is made from, and what is read of the loaded one."""

from __future__ import annotations

import re
import subprocess
import time
from typing import Any

import pytest

from left4me import manifest, validation
from left4me_host import firewall
from tests.unit.test_model import DEFAULTS, GAME

LISTED = """table inet left4me {
	comment "0123456789ab"
	counter too_short_27015 {
		packets 7 bytes 196
	}

	counter one_source_27015 {
		packets 0 bytes 0
	}

	counter too_long_27016 {
		packets 3 bytes 4500
	}

	set game {
		type inet_service
	}
}
"""


def table(running: dict[str, int] | None = None, **data: Any) -> str:
    """Return the file of a host with server 3 on 27015 and these data, without comments."""
    host = validation.validate("box", {**DEFAULTS, "game": GAME, "servers": {"3": {"port": 27015}}, **data})
    text = manifest.firewall_file(host, running or {}).text
    return re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE)


def elements(text: str, name: str) -> list[str]:
    [body] = re.findall(rf"^    set {name} {{(.*)}}$", text, re.MULTILINE)
    found = re.search(r"elements = {(.*)}", body)
    return [each.strip() for each in found[1].split(",")] if found else []


def test_only_the_servers_ports_and_users_are_in_the_table() -> None:
    text = table()
    assert elements(text, "game") == ["27015", "27200"]
    owners = ["27015 . left4me-3", "27200 . left4me-_bare", "27200 . left4me-_modded"]
    assert sorted(elements(text, "owners")) == owners
    for line in text.splitlines():
        if "dport" in line and "map" not in line:
            assert "dport 22" not in line
    assert elements(text, "rcon_from") == []
    assert elements(text, "game_may_reach") == []


def test_a_running_server_keeps_its_port_and_a_kept_one_is_protected_too() -> None:
    text = table({"3": 27099, "gone": 27050})
    assert elements(text, "game") == ["27015", "27050", "27099", "27200"]
    assert {"27015 . left4me-3", "27099 . left4me-3", "27050 . left4me-gone"} <= set(elements(text, "owners"))


def test_data_are_in_the_table_and_change_its_version() -> None:
    text = table(rcon_from=["203.0.113.7", "10.0.0.0/8"], game_may_reach=["127.0.0.1:3306"])
    assert elements(text, "rcon_from") == ["203.0.113.7", "10.0.0.0/8"]
    assert elements(text, "game_may_reach") == ["127.0.0.1 . 3306"]
    slower = table(firewall_limits={"known": 7, "newcomers": 11, "player": 13})
    assert "limit rate over 7/second" in slower
    assert "limit rate 11/second" in slower
    assert "limit rate over 13/second" in slower
    versions = {re.search('comment "(.+)"', each)[1] for each in (text, slower, table())}  # type: ignore[index]
    assert len(versions) == 3


def test_each_counter_of_a_rule_is_declared() -> None:
    text = table({"4": 27016})
    declared = set(re.findall(r"^    counter (\w+) {}$", text, re.MULTILINE))
    assert declared == {f"{reason}_{port}" for reason in firewall.DROPPED for port in (27015, 27016, 27200)}
    assert set(re.findall(r'"(\w+_\d+)"', text)) == declared


class Nft:
    """What nft prints, one listing after the other; None is a failure."""

    def __init__(self, *listings: str | None) -> None:
        self.listings = list(listings)

    def run(self, *_: Any, **__: Any) -> Any:
        listed = self.listings.pop(0)
        return type("Done", (), {"returncode": int(listed is None), "stdout": (listed or "").encode()})


def test_the_loaded_table_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", Nft(LISTED, None, "table inet left4me {\n}\n").run)
    assert firewall.loaded() == firewall.Loaded(
        "0123456789ab", {27015: {"too_short": 7, "one_source": 0}, 27016: {"too_long": 3}}
    )
    assert firewall.loaded() is None
    assert firewall.loaded() == firewall.Loaded("", {})


def test_an_attack_is_a_rate_and_not_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    before = firewall.Loaded("", {27015: {"too_short": 5_000_000, "newcomers": 9}, 27016: {"too_long": 3}})
    monkeypatch.setattr(time, "sleep", lambda _: None)
    times = iter((0.0, 0.2, 0.0, 0.2))
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    after = {27015: {"too_short": 5_000_002, "newcomers": 1009}, 27016: {"too_long": 3, "to_host": 1000}}
    monkeypatch.setattr(firewall, "loaded", lambda: firewall.Loaded("", after))
    assert firewall.attacks(before) == {27015: (5010, "newcomers")}
    assert firewall.attacks(firewall.Loaded("", after)) == {}


def test_nothing_dropped_is_no_attack_and_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall, "loaded", lambda: pytest.fail("asked again"))
    assert firewall.attacks(firewall.Loaded("", {27015: {"too_short": 0}})) == {}
