"""What requires a restart: directives that only a restart applies, and nothing else."""

from __future__ import annotations

import pytest

from left4me import manifest, validation
from left4me.remote.generation import generation
from left4me.shapes import SYSTEMS
from tests.unit.test_model import DEFAULTS, GAME

TEMPLATE = """# Deployed by left4me.
[Unit]
After=network-online.target

[Service]
User=left4me-%i
# A reason.
ExecStart=/srv/srcds_run -game left4dead2 \\
    -ip ${LEFT4ME_ADDRESS}
ExecStopPost=+/bin/true
TimeoutStopSec=15s
"""
DROP_IN = "[Service]\nMemoryMax=2G\nNice=-5\n"
ENVIRONMENT = '# Deployed.\nLEFT4ME_PORT="27015"\nLEFT4ME_ARGUMENTS=""\n'
BEFORE = generation(TEMPLATE, DROP_IN, ENVIRONMENT)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# A reason.\n", ""),
        ("# A reason.", "# Another one.\n; And one more."),
        ("\\\n    -ip", "-ip"),
        ("left4dead2 \\\n", "left4dead2 \\\n# amid a line\n"),
        ("After=network-online.target", "After=network-online.target other.service"),
        ("TimeoutStopSec=15s", "TimeoutStopSec=20s"),
        ("ExecStopPost=+/bin/true\n", ""),
    ],
)
def test_comments_and_what_a_daemon_reload_applies_require_no_restart(old: str, new: str) -> None:
    assert old in TEMPLATE
    assert generation(TEMPLATE.replace(old, new), DROP_IN, ENVIRONMENT) == BEFORE


@pytest.mark.parametrize(
    ("old", "new"),
    [("User=left4me-%i", "User=root"), ("-game left4dead2", "-game other"), ("User=", "NoNewPrivileges=yes\nUser=")],
)
def test_what_only_a_restart_applies_requires_one(old: str, new: str) -> None:
    assert old in TEMPLATE
    assert generation(TEMPLATE.replace(old, new), DROP_IN, ENVIRONMENT) != BEFORE


def test_limits_of_the_cgroup_hold_at_once_and_the_nice_level_does_not() -> None:
    assert generation(TEMPLATE, DROP_IN.replace("2G", "1G"), ENVIRONMENT) == BEFORE
    assert generation(TEMPLATE, DROP_IN.replace("-5", "0"), ENVIRONMENT) != BEFORE


def test_the_sandbox_of_debian_13_requires_a_restart_after_an_upgrade() -> None:
    host = validation.validate("box", {**DEFAULTS, "game": GAME, "servers": {"3": {"port": 27015}}})
    drop_ins = {"/etc/systemd/system/left4me-server@.service.d": "directory"}
    drop_ins |= {f"{path}/{name}.conf": "file" for path in drop_ins for name in ("ports", "sandbox")}
    kinds = {system: {item.path: item.do for item in manifest.everything(host, system)} for system in SYSTEMS}
    assert kinds == {"debian 12": kinds["debian 12"], "debian 13": {**kinds["debian 12"], **drop_ins}}
    [before, after] = [
        [item.text for item in manifest.servers(host, system) if item.path.endswith("/server.env")]
        for system in SYSTEMS
    ]
    assert before != after


def test_the_ports_of_others_require_no_restart_on_debian_13() -> None:
    texts = []
    for ports in ((27015, 27016, 27018), (27015, 27017, 27018)):
        servers = {str(number): {"port": port} for number, port in enumerate(ports)}
        host = validation.validate("box", {**DEFAULTS, "game": GAME, "servers": servers})
        texts.append({item.path: item.text for item in manifest.servers(host, "debian 13")})
    path = "/etc/systemd/system/left4me-server@.service.d/ports.conf"
    denied = [[line for line in each[path].splitlines() if line.startswith("SocketBindDeny=")] for each in texts]
    assert denied == [
        ["SocketBindDeny=27015-27016", "SocketBindDeny=27018", "SocketBindDeny=27200"],
        ["SocketBindDeny=27015", "SocketBindDeny=27017-27018", "SocketBindDeny=27200"],
    ]
    assert texts[0]["/etc/left4me/servers/0/server.env"] == texts[1]["/etc/left4me/servers/0/server.env"]
    allowed = texts[1]["/etc/systemd/system/left4me-server@1.service.d/limits.conf"].splitlines()
    assert "SocketBindAllow=27017" in allowed


def test_of_server_env_each_value_counts_but_the_generation_itself() -> None:
    assert generation(TEMPLATE, DROP_IN, f'{ENVIRONMENT}LEFT4ME_GENERATION="{BEFORE}"\n') == BEFORE
    assert generation(TEMPLATE, DROP_IN, ENVIRONMENT.replace("27015", "27016")) != BEFORE
    assert generation(TEMPLATE, DROP_IN, ENVIRONMENT.replace("# Deployed.", "# Written.")) == BEFORE
