"""The paths on a host, and the names that servers may have.

The host, the control machine and the programs that a deploy sends use this module. It imports nothing, because
left4me-overlay loads it at every stop.
"""

VAR = "/var/lib/left4me"
ETC = "/etc/left4me"
"""The deploy removes all files here that it did not write."""
RUN = "/run/left4me"

SERVERS = f"{ETC}/servers"
REVISION = f"{ETC}/revision"
GAME_SETTINGS = f"{ETC}/game"
WEBHOOK = f"{ETC}/webhook"
FIREWALL = f"{ETC}/firewall.nft"
"""The firewall's table, which left4me-firewall.service loads at boot."""

RELEASES = f"{VAR}/releases"
INSTALLATION = f"{VAR}/installation"
"""The symlink to the current build."""
CANDIDATE = f"{VAR}/candidate"
"""The symlink to the build that is being smoke-tested."""
OVERLAYS = f"{VAR}/overlays"
RUNTIME = f"{VAR}/runtime"
ATTIC = f"{VAR}/attic"
SECRETS = f"{VAR}/secrets"
HELD = f"{VAR}/held"
JOBS = f"{VAR}/jobs"
"""Has the record of each job, N.json (jobs.py)."""
GAME = f"{VAR}/game"
"""Has SteamCMD, its home and log, the download of the next build, and the results of smoke tests."""
VERDICTS = f"{GAME}/verdicts"
FAILED_UPDATE = f"{GAME}/failed-update"
"""Says why the last update from Steam failed. Removed by the next good update and when `game.source` changes."""

GAME_UNIT = "left4me-game.service"
CHECK_UNIT = "left4me-game-check.service"
FIREWALL_UNIT = "left4me-firewall.service"

DEPLOY_LOCK = f"{RUN}/deploy.lock"

CTL = "/usr/local/sbin/l4d2ctl"
LIB = "/usr/local/lib/left4me"
LIBEXEC = "/usr/local/libexec/left4me"
OVERLAY_HELPER = ("/usr/bin/nsenter", "--mount=/proc/1/ns/mnt", "--", f"{LIBEXEC}/left4me-overlay")
"""The helper runs in PID 1's mount namespace, as in the unit's Exec lines."""
UNITS = "/usr/local/lib/systemd/system"
OWN_UNITS = "/etc/systemd/system"
WANTS = f"{OWN_UNITS}/multi-user.target.wants"
OF_ALL = f"{OWN_UNITS}/left4me-server@.service.d"
"""Has the drop-ins of all servers, which only hosts with Debian 13 have."""
SANDBOX = f"{OF_ALL}/sandbox.conf"
DENIED_PORTS = f"{OF_ALL}/ports.conf"

PROFILE = "/etc/apparmor.d/left4me-server"
"""The AppArmor profile of servers; its name is the file's."""
PINS = "/sys/fs/bpf/left4me"
"""Keeps the BPF programs of each server attached: see denied_ports.py."""

APPLY_LIMITS = ("systemd-run", "--quiet", "--wait", "--collect", "--slice=left4me.slice", "true")
"""After a daemon-reload, systemd writes changed limits into the cgroups of running units only when a unit of the same
slice starts."""

JOB = "LEFT4ME_JOB"
"""The environment variable in which l4d2ctl gives the number of its job to itself in a unit."""

ADDONS = "left4dead2/addons"
"""The game's directory for .vpk files, relative to the top of a build."""

SERVER_ID = r"[a-z0-9][a-z0-9_-]{0,19}"
"""Fits after left4me- in a user name (at most 32 characters), and after @ in a unit's name."""
BARE, MODDED = "_bare", "_modded"
"""The smoke test's instances, without layers and with a server's layers. The names are not valid server ids."""


def is_server_id(text: str) -> bool:
    """Return whether SERVER_ID matches all of `text`, without importing re."""
    plain = text.isascii() and text == text.lower() and text[:1].isalnum()
    return plain and len(text) <= 20 and all(character.isalnum() or character in "_-" for character in text)


def unit(server: str) -> str:
    return f"left4me-server@{server}.service"


def cgroup(server: str) -> str:
    """Return the cgroup of a server that runs."""
    return f"/sys/fs/cgroup/left4me.slice/{unit(server)}"


def user(server: str) -> str:
    return f"left4me-{server}"


def runtime(server: str) -> str:
    """Return the directory that contains a server's upper, work and merged."""
    return f"{RUNTIME}/{server}"


def merged(server: str) -> str:
    """Return the mount point of a server's overlay."""
    return f"{RUNTIME}/{server}/merged"


def overlay_note(server: str) -> str:
    """Return the symlink whose target is the device of a server's overlay, or OVERLAY_GONE."""
    return f"{RUN}/{server}.overlay"


OVERLAY_GONE = "gone"


def waiting_marker(server: str) -> str:
    """Return the file that a job locks while it waits to restart a server when empty: see when_empty.py."""
    return f"{RUN}/{server}.waiting"


def started_record(server: str) -> str:
    """Return the file in which left4me-overlay records what a server was started with, in lines KEY=VALUE."""
    return f"{RUN}/{server}.started"
