"""Where things are on a host, and which names servers may have: stated here once, for both sides of the wire.

The programs on the host import it, the control machine does, and what a deploy sends as text brings it along. No
import, for left4me-overlay has this in the way of every stop.
"""

VAR = "/var/lib/left4me"
ETC = "/etc/left4me"
"""What the deploy declares, wholly managed."""
RUN = "/run/left4me"

SERVERS = f"{ETC}/servers"
REVISION = f"{ETC}/revision"
GAME_SETTINGS = f"{ETC}/game"
WEBHOOK = f"{ETC}/webhook"

RELEASES = f"{VAR}/releases"
INSTALLATION = f"{VAR}/installation"
"""The symlink to the current build."""
CANDIDATE = f"{VAR}/candidate"
"""The symlink to the build that is tried before it becomes current."""
OVERLAYS = f"{VAR}/overlays"
RUNTIME = f"{VAR}/runtime"
ATTIC = f"{VAR}/attic"
SECRETS = f"{VAR}/secrets"
HELD = f"{VAR}/held"
GAME = f"{VAR}/game"
"""SteamCMD with its home and log, the stage of the next build, and the verdicts."""
VERDICTS = f"{GAME}/verdicts"
FAILED_UPDATE = f"{GAME}/failed-update"
"""Why the last update from Steam did not end well, until one does or the game comes from elsewhere."""

GAME_UNIT = "left4me-game.service"
"""What brings a build from Steam."""

DEPLOY_LOCK = f"{RUN}/deploy.lock"

CTL = "/usr/local/sbin/l4d2ctl"
LIB = "/usr/local/lib/left4me"
LIBEXEC = "/usr/local/libexec/left4me"
OVERLAY_HELPER = ("/usr/bin/nsenter", "--mount=/proc/1/ns/mnt", "--", f"{LIBEXEC}/left4me-overlay")
"""In PID 1's mount namespace, as the unit's own Exec lines have it."""
UNITS = "/usr/local/lib/systemd/system"
OWN_UNITS = "/etc/systemd/system"
WANTS = f"{OWN_UNITS}/multi-user.target.wants"

ADDONS = "left4dead2/addons"
"""Where the game looks for .vpk files, below its own directory."""

SERVER_ID = r"[a-z0-9][a-z0-9_-]{0,19}"
"""What may follow the @ of a unit's name. With the prefix left4me- it fits a user name (32 characters)."""
BARE, MODDED = "_bare", "_modded"
"""The instances that try a build, without layers and with a server's: no server can be called so."""


def is_server_id(text: str) -> bool:
    """Tell whether SERVER_ID matches the whole of `text`, without the import of re."""
    plain = text.isascii() and text == text.lower() and text[:1].isalnum()
    return plain and len(text) <= 20 and all(character.isalnum() or character in "_-" for character in text)


def unit(server: str) -> str:
    """Return the name of a server's unit."""
    return f"left4me-server@{server}.service"


def user(server: str) -> str:
    """Return the name of the user that runs a server."""
    return f"left4me-{server}"


def runtime(server: str) -> str:
    """Return the directory of a server's upper, work and merged."""
    return f"{RUNTIME}/{server}"


def merged(server: str) -> str:
    """Return where a server's overlay is mounted."""
    return f"{RUNTIME}/{server}/merged"


def overlay_note(server: str) -> str:
    """Return the symlink in which left4me-overlay notes the device of a server's overlay, or OVERLAY_GONE."""
    return f"{RUN}/{server}.overlay"


OVERLAY_GONE = "gone"


def started_record(server: str) -> str:
    """Return the file in which left4me-overlay records what a server was started with, as lines of KEY=VALUE."""
    return f"{RUN}/{server}.started"
