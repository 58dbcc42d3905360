"""Cockpit: whose it is, where it listens, how the page is reached, and what apt may remove."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from left4me import model, shapes, web_page
from left4me_host import apt, cockpit, instance, layout


@pytest.mark.parametrize(
    ("text", "whose"),
    [
        (None, ""),
        ("# Deployed by left4me. x\n[WebService]\nLoginTo = false\n", "ours"),
        ("[WebService]\nLoginTo=No\n", "closed"),
        ("[WebService]\n  LoginTo = FALSE  \n", "closed"),
        ("[WebService]\n# Deployed by left4me\nLoginTo = true\n", "open"),
        ("[WebService]\n#LoginTo = false\n", "open"),
        ("", "open"),
    ],
)
def test_whose_settings_there_are(
    text: str | None, whose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cockpit, "SETTINGS", str(tmp_path / "cockpit.conf"))
    if text is not None:
        (tmp_path / "cockpit.conf").write_text(text, encoding="utf-8")
    assert cockpit.settings() == whose


def test_what_is_recorded_is_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cockpit, "RECORD", str(tmp_path / "web-packages"))
    monkeypatch.setattr(layout, "VAR", str(tmp_path))
    assert cockpit.recorded() == []
    cockpit.record(["cockpit-ws", "openssl"])
    cockpit.record(["libfoo:i386", "openssl"])
    assert cockpit.recorded() == ["cockpit-ws", "libfoo:i386", "openssl"]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_where_a_process_listens_is_read_from_the_kernel(address: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as each:
        each.bind((address, 0))
        end = cockpit.endpoint(address, each.getsockname()[1])
        assert cockpit.parsed(end) == each.getsockname()[:2]
        assert end not in cockpit._bound(str(os.getpid()))
        each.listen()
        assert end in cockpit._bound(str(os.getpid()))
        assert cockpit._why_unbound(end) == "in use"
    assert cockpit._why_unbound(end) == ""
    assert cockpit._why_unbound("192.0.2.9:9090") == "no address"
    assert cockpit._bound("0") == set()


@pytest.mark.parametrize(
    ("web", "way"),
    [
        ({"listen": "127.0.0.1:9090"}, "ssh -L 9090:127.0.0.1:9090 game1, then https://localhost:9090/left4me"),
        ({"listen": "[::1]:443"}, "ssh -L 443:[::1]:443 game1, then https://localhost:443/left4me"),
        ({"listen": "10.8.0.1:9090"}, "https://10.8.0.1:9090/left4me"),
        ({"listen": "[2001:db8::1]:9090"}, "https://[2001:db8::1]:9090/left4me"),
        ({"listen": "0.0.0.0:9443"}, "https://game1:9443/left4me"),
        ({"listen": "[::]:9443"}, "https://game1:9443/left4me"),
        ({"listen": "127.0.0.1:9090", "url": "https://games.example.org/"}, "https://games.example.org/left4me"),
    ],
)
def test_how_the_page_is_reached(web: dict[str, str], way: str) -> None:
    assert web_page.reached(model.Web.model_validate(web), "game1") == way


SEEN: shapes.Cockpit = {
    "recorded": ["cockpit-ws", "cockpit-system"],
    "installed": ["cockpit-ws", "cockpit-system"],
    "listens": ["127.0.0.1:9090"],
    "settings": "",
    "unbound": "",
    "outdated": False,
    "root_may": False,
    "without_password": [],
}


@pytest.mark.parametrize(
    ("seen", "is_foreign"),
    [
        ({"installed": [], "recorded": []}, False),
        ({"installed": ["cockpit-system"], "recorded": []}, False),
        ({"installed": ["cockpit-ws"], "recorded": []}, True),
        ({"installed": ["cockpit-ws"], "recorded": ["cockpit-system"]}, True),
        ({"installed": ["cockpit-ws"], "recorded": ["cockpit-ws"]}, False),
        ({"installed": [], "recorded": ["cockpit-ws"]}, False),
    ],
)
def test_whose_cockpit_it_is(seen: dict[str, Any], is_foreign: bool) -> None:
    assert web_page.is_foreign({**SEEN, **seen}) == is_foreign  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("seen", "plan"),
    [
        ({}, []),
        ({"installed": ["cockpit-system"], "listens": []}, ["installs cockpit-ws, and lets"]),
        ({"listens": []}, ["lets Cockpit listen on 127.0.0.1:9090 instead of nothing"]),
        ({"listens": ["0.0.0.0:9090"]}, ["lets Cockpit listen on 127.0.0.1:9090 instead of 0.0.0.0:9090"]),
        ({"outdated": True}, ["restarts Cockpit, which has not read /etc/cockpit/cockpit.conf"]),
    ],
)
def test_what_a_deploy_will_do_is_said(seen: dict[str, Any], plan: list[str]) -> None:
    said = [*web_page.plan(model.Web(listen="127.0.0.1:9090"), {**SEEN, **seen})]  # type: ignore[typeddict-item, call-arg]
    assert len(said) == len(plan)
    assert all(line.startswith(begin) for line, begin in zip(said, plan, strict=True))


class Apt:
    """An apt-get that knows which packages need which, and which are there only because of others."""

    def __init__(self, needs: dict[str, list[str]], garbage: set[str]) -> None:
        self.needs, self.garbage, self.purged = needs, garbage, set[str]()

    def __call__(self, *arguments: str) -> apt.Done:
        names = {word for word in arguments[1:] if not word.startswith("-") and word != "purge"}
        removed = names | {name for name, needed in self.needs.items() if names & {*needed}}
        if "--auto-remove" in arguments:
            removed |= self.garbage
        if "--simulate" not in arguments:
            self.purged |= removed
        lines = [f"Purg {name} [1]\n" for name in removed]
        return apt.Done(True, "".join(lines), [])

    def states(self, names: list[str]) -> dict[str, str]:
        return {name: "installed" for name in names if name not in self.purged}


OURS = ["cockpit-ws", "cockpit-system", "openssl", "libproxy"]


@pytest.fixture
def apt_get(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Apt]:
    found = Apt(*request.param)
    monkeypatch.setattr(apt, "_repair", lambda: None)
    monkeypatch.setattr(apt, "_apt", found)
    monkeypatch.setattr(apt, "_states", found.states)
    monkeypatch.setattr(apt, "_to_be_purged", lambda names: set())
    return found  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("apt_get", "others", "purged"),
    [
        (({}, {"openssl", "libproxy"}), [], {*OURS}),
        # Somebody else's garbage stays, and what is needed by others is not garbage.
        (({}, {"openssl", "old-library"}), [], {"cockpit-ws", "cockpit-system", "openssl"}),
        # A package of somebody else needs Cockpit.
        (({"cockpit-storaged": ["cockpit-system"]}, {"openssl"}), ["cockpit-storaged"], set()),
        # Garbage of somebody else needs what came with Cockpit.
        (({"old-tool": ["openssl"]}, {"openssl", "old-tool"}), [], {"cockpit-ws", "cockpit-system"}),
    ],
    indirect=["apt_get"],
)
def test_only_what_was_installed_for_the_page_is_removed(apt_get: Apt, others: list[str], purged: set[str]) -> None:
    assert apt.purge(["cockpit-ws", "cockpit-system"], OURS) == others
    assert apt_get.purged == purged


@pytest.mark.parametrize("apt_get", [({}, {"openssl"})], indirect=True)
def test_a_package_that_stays_is_an_error(apt_get: Apt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "_states", lambda names: dict.fromkeys(names, "installed"))
    with pytest.raises(instance.Failed, match="not removed: cockpit-system cockpit-ws openssl: no"):
        apt.purge(["cockpit-ws", "cockpit-system"], OURS)


@pytest.mark.parametrize("apt_get", [({}, {"openssl"})], indirect=True)
def test_an_interrupted_removal_goes_on(apt_get: Apt, monkeypatch: pytest.MonkeyPatch) -> None:
    # Cockpit itself is gone, and the configuration of a package is not.
    gone = {"cockpit-ws", "cockpit-system"}

    def states(names: list[str]) -> dict[str, str]:
        states = {"libproxy": "config-files"}
        return {name: states.get(name, "installed") for name in names if name not in apt_get.purged | gone}

    monkeypatch.setattr(apt, "_states", states)
    assert apt.purge(["cockpit-ws", "cockpit-system"], OURS) == []
    assert apt_get.purged == {"openssl", "libproxy"}


@pytest.mark.parametrize("apt_get", [({}, set())], indirect=True)
def test_what_an_interrupted_removal_has_not_come_to_goes_too(apt_get: Apt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "_to_be_purged", lambda names: {"libproxy"})
    assert apt.purge(["cockpit-ws", "cockpit-system"], OURS) == []
    assert apt_get.purged == {"cockpit-ws", "cockpit-system", "libproxy"}
