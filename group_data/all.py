"""Every default, explained. A value in a host's or group's own data replaces the value here as a whole.

`servers` is a dictionary by id, `servers = {"3": {"port": 27015, "map": "c1m1_hotel"}}`: server 3 is
left4me-server@3.service. A server that you remove from it is stopped once it has no players, and its files are moved to
the attic.
"""

# The source of the game:
#   {"source": "steamcmd"}                                            from Steam; update with `l4d2ctl game update`
#   {"source": "host", "path": "/home/steam/serverfiles"}             already on the host; only read
#   {"source": "control", "path": "../l4d2"}                          on this machine; sent to the host
#   {"source": "archive", "url": "https://…/l4d2.tar.gz", "sha256": "…", "strip": 0}     the host downloads it
# Each may have a "build", such as "14716838", to use that one even if there are newer ones; `l4d2ctl game status` lists
# the builds on the host. A build becomes current after a smoke test on trial_port, which no server may use, and with
# trial_server, such as "3", after a second one with that server's layers.
game = {"source": "steamcmd"}
trial_port = 27200
trial_server = None

# URL of SteamCMD and its checksum. None: not checked, since Valve changes it without notice.
steamcmd_url = "https://steamcdn-a.akamaihd.net/client/installer/steamcmd_linux.tar.gz"
steamcmd_sha256 = None

# Time of a daily update from Steam, such as "04:30" in the host's time. None: only with `l4d2ctl game update`.
# `restart` below says when the servers then change to the new build.
update_at = None

# How many builds stay on a host that nothing uses, for `l4d2ctl game rollback`.
builds_kept = 1

# The address that the servers bind. 0.0.0.0: every IPv4 address of the host.
address = "0.0.0.0"

# The first and last port for servers. A server without a port of its own gets the next free one, and keeps it.
port_range = [27015, 27114]

# The sources of mod layers, by the names that a server's `layers` uses. A layer has left4dead2/ on top; for a tree that
# belongs inside it, such as SourceMod's archives with addons/ and cfg/, set "into": "left4dead2".
#   {"source": "control", "path": "../layers/evening"}          on this machine; only changes are sent, without .git
#   {"source": "archive", "url": "https://…/sm.tar.gz", "sha256": "…", "strip": 0}    the host downloads it: tar.gz,
#                                             tar.xz, zip or 7z; strip is the number of leading directories to remove
#   {"source": "git", "url": "https://…", "ref": "v1.2"}         a commit or tag; a tag that moves later is not followed
#   {"source": "workshop", "items": [1643520526]}                .vpk files in left4dead2/addons; a deploy updates them
layers = {}  # type: ignore[var-annotated]

# URL of Steam's web API, for workshop items.
workshop_api = "https://api.steampowered.com"

# uid and gid of the user and group left4me, which own the game.
uid = 980
gid = 980

# Limits for all servers of the host together: memory in bytes (K, M, G, T; "infinity" for no limit), at least the sum
# of the servers' own memory_max; the CPU share against the rest of the host, which has 100; and the maximum CPU time in
# percent of one CPU, or None.
memory_max = "infinity"
cpu_weight = 1000
cpu_quota = None

# An existing group on the host whose members may run `sudo l4d2ctl` without a password. None: only root.
operators = None

# URL to notify when a server crashes, or cannot start or stop: a Discord webhook or compatible. None: no notification.
webhook = None

# How many resets of each server the attic keeps for `l4d2ctl reset --undo`, and as many states that undos replaced.
attic_keep = 3

# Defaults for every server. Only here are dictionaries merged: your own server_defaults, such as
# {"gamemode": "versus"}, extend these, and a server's own values override both.
server_defaults = {
    # UDP for the game, TCP for RCON. None: the next free one in port_range.
    "port": None,
    # The name in the server browser.
    "hostname": "Left 4 Dead 2",
    # The first map, and mp_gamemode: coop, versus, survival, mutation12 …
    "map": "c1m1_hotel",
    "gamemode": "coop",
    # Player slots: 4 for campaign, 8 for versus, more only with a mod that allows it.
    "max_players": 8,
    # Ticks per second; more than 30 needs a mod.
    "tickrate": 30,
    # Mod layers over the game, topmost first: names from `layers` above.
    "layers": [],
    # At each map load: cfg files from layers, such as "versus.cfg", then cvars, such as {"sv_gravity": 700}.
    "exec": [],
    "cvars": {},
    # Additional command-line arguments of the game, such as ["-nohltv"].
    "arguments": [],
    # Steam IDs of SourceMod admins with all rights, such as ["STEAM_1:0:1234"].
    "admins": [],
    # None: generated on the host and used by `l4d2ctl rcon`. Do not write your own into a file; this is Python:
    #   subprocess.check_output(["pass", "left4me/rcon"], text=True).strip()    or    os.environ["RCON_PASSWORD"]
    "rcon_password": None,
    # Paths in the game's directory that a reset keeps, such as "left4dead2/cfg/banned_user.cfg".
    "keep": [],
    # This server's memory in bytes, its CPU share among the servers, and its nice level.
    "memory_max": "2G",
    "cpu_weight": 100,
    "nice": -5,
    # The build that this server uses, older or newer than the current one. None: the current one.
    "build": None,
    # Restart after an update: "never", "when-empty" (a minute without players), or "at 05:30", even with players.
    "restart": "never",
    # "running"; "stopped": installed but not running; "absent": removed at once, even with players.
    "state": "running",
}

# Each host declares its own servers.
servers = {}  # type: ignore[var-annotated]

# Seconds that a command on a host may take, so that a hung host blocks no deploy; some operations set their own limit.
_timeout = 60
