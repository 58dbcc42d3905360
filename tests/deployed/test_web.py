"""Cockpit, which shows the page. test_files.py checks the page's own files."""

from __future__ import annotations

from collections.abc import Iterator

from tests.deployed.hosts import Host
from tests.deployed.test_files import statements

DROP_IN = "/etc/systemd/system/cockpit.socket.d/left4me.conf"
SETTINGS = "/etc/cockpit/cockpit.conf"
REFUSED = "/etc/cockpit/disallowed-users"
OURS = "# Deployed by left4me"
LOOPBACK = ("127.", "[::1]:")


def text_of(host: Host, path: str) -> str:
    return str(host.found["entries"].get(path, {}).get("text", ""))


def is_own(host: Host) -> bool:
    """Return whether a deploy has installed Cockpit; it does not reconfigure another one."""
    return "cockpit-ws" in host.found["web"]["packages"]


def own(host: Host, listen: str) -> Iterator[str]:
    """Yield what is wrong with a Cockpit that a deploy installed and that must listen on an address and port."""
    web = host.found["web"]
    for name in ("cockpit-ws:amd64", "cockpit-system:all"):
        if name not in host.found["packages"]:
            yield f"package {name} is not installed"
    lines, wanted = statements(text_of(host, DROP_IN), "#"), ["[Socket]", "ListenStream=", f"ListenStream={listen}"]
    if lines != [*wanted, "FreeBind=yes"]:
        yield f"{DROP_IN} has {lines}, must have {wanted} and FreeBind=yes"
    socket = {"ActiveState": "active", "UnitFileState": "enabled", "Listen": f"{listen} (Stream)"}
    for key, value in {**socket, "NeedDaemonReload": "no"}.items():
        if web["socket"].get(key) != value:
            yield f"cockpit.socket: {key} is {web['socket'].get(key)!r}, must be {value!r}"
    port = listen.rpartition(":")[2]
    there = {each["at"] for each in web["listening"] if each["at"].endswith(f":{port}") or "cockpit-tls" in each["by"]}
    if there != {listen}:
        yield f"Cockpit listens on {', '.join(sorted(there)) or 'nothing'}, must be {listen}"
    settings = [line.replace(" ", "").lower() for line in statements(text_of(host, SETTINGS), "#")]
    if not listen.startswith(LOOPBACK) and "loginto=false" not in settings:
        yield f"{SETTINGS} must have LoginTo = false, since other machines reach {listen}"
    if text_of(host, SETTINGS).startswith(OURS) and settings[-2:] != ["[ssh-login]", "command=/bin/false"]:
        yield f"{SETTINGS} must end with Command = /bin/false in [Ssh-Login]"
    if "root" not in text_of(host, REFUSED).split():
        yield f"{REFUSED} must have root, who may otherwise log in to Cockpit"


def test_cockpit_is_as_declared(host: Host) -> None:
    declared, entries = host.declares.web, host.found["entries"]
    if declared and is_own(host):
        host.require([*own(host, declared.listen)])
    elif declared:
        found = [name for name in host.found["packages"] if name.startswith("cockpit-ws:")]
        wrong = [] if found else ["package cockpit-ws is not installed"]
        host.require([*wrong, *([f"{DROP_IN} changes a Cockpit of somebody else"] if DROP_IN in entries else [])])
    else:
        # Of left4me's own directories, test_files.py says that nothing else is in them.
        left = [SETTINGS] if text_of(host, SETTINGS).startswith(OURS) else []
        host.require([f"{path} is left of a page that is no longer declared" for path in left])
