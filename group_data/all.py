"""This file explains every default. A value in the data of a host or group replaces the whole default.

`servers` maps ids to servers, such as `servers = {"3": {"port": 27015, "map": "c1m1_hotel"}}`. Server 3 is
left4me-server@3.service. If you remove a server, a deploy stops it once it has no players and moves its files to the
attic.
"""

# The source of the game:
#   {"source": "steamcmd"}                                            from Steam; update with `l4d2ctl game update`
#   {"source": "host", "path": "/home/steam/serverfiles"}             already on the host; only read
#   {"source": "control", "path": "../l4d2"}                          on this machine; sent to the host
#   {"source": "archive", "url": "https://…/l4d2.tar.gz", "sha256": "…", "strip": 0}     the host downloads it
# Each source may have a "build", such as "14716838", which the host then uses instead of newer builds; `l4d2ctl game
# status` lists the builds. Before a build becomes current, a smoke test starts it on trial_port, which no server may
# use. If trial_server is set, such as "3", a second smoke test uses the layers of that server.
game = {"source": "steamcmd"}
trial_port = 27200
trial_server = None

# SteamCMD's archive and its checksum. None: not checked, since Valve changes the archive at any time.
steamcmd_url = "https://steamcdn-a.akamaihd.net/client/installer/steamcmd_linux.tar.gz"
steamcmd_sha256 = None

# Time of the daily update from Steam, such as "04:30" (host's time). None: update only with `l4d2ctl game update`.
# A server's `restart` (below) says when the server changes to the new build.
update_at = None

# How many unused builds stay on a host, for `l4d2ctl game rollback`.
builds_kept = 1

# The address that the servers bind. 0.0.0.0: every IPv4 address of the host.
address = "0.0.0.0"

# The first and last port for servers. A server without `port` gets the next free port and keeps it.
port_range = [27015, 27114]

# The sources of mod layers, by name; a server's `layers` lists these names. A layer has left4dead2/ on top. If it has
# addons/ and cfg/ on top instead, as SourceMod's archives do, set "into": "left4dead2".
#   {"source": "control", "path": "../layers/evening"}          on this machine; only changes are sent, never .git
#   {"source": "archive", "url": "https://…/sm.tar.gz", "sha256": "…", "strip": 0}    the host downloads it: tar.gz,
#                                             tar.xz, zip or 7z; strip is the number of leading directories to remove
#   {"source": "git", "url": "https://…", "ref": "v1.2"}         a commit or tag; a moved tag is not noticed
#   {"source": "workshop", "items": [1643520526]}                .vpk files in left4dead2/addons; a deploy updates them
layers = {}  # type: ignore[var-annotated]

# URL of Steam's web API, for workshop items.
workshop_api = "https://api.steampowered.com"

# uid and gid of the user and group left4me, which own the game.
uid = 980
gid = 980

# Limits for all servers of the host together. memory_max: bytes (K, M, G, T), at least the sum of the servers'
# memory_max; or a percentage of the host's memory, which is not compared with that sum; or "infinity". If the servers
# together need more, the kernel ends only the largest one. With "infinity", the whole host can run out of memory.
# cpu_weight: the CPU share. The rest of the host has 100, and needs it to stop a server beside one that takes all CPU:
# that took twice as long as otherwise, and with a cpu_weight of 1000 six times. cpu_quota: the maximum CPU time in
# percent of one CPU. None: no limit.
memory_max = "90%"
cpu_weight = 100
cpu_quota = None

# An existing group on the host whose members may run `sudo l4d2ctl` without a password. None: only root.
operators = None

# A page for the operators, in Debian's Cockpit: {"listen": "127.0.0.1:9090"}. A deploy installs Cockpit, and removes it
# if this is None again. "listen" is an address and a port: with 127.0.0.1, a browser reaches it through `ssh -L`; with
# 0.0.0.0 or [::], everybody sees its login. If browsers reach it elsewhere, such as through a proxy, add "url":
# "https://…". Operators log in with their password on the host. See docs/web.md.
web = None

# A Discord-compatible webhook to call when a server crashes or cannot start or stop. None: no notification.
webhook = None

# A firewall for the ports of the servers only: it drops floods, closes RCON to other machines, and keeps servers from
# connecting to the host itself. Other rules of the host stay.
firewall = True

# Who may use RCON besides the host itself, such as ["203.0.113.7", "10.0.0.0/8"]. RCON sends passwords in clear text.
rcon_from = []  # type: ignore[var-annotated]

# IPv4 addresses and ports on the host that servers may connect to, such as ["127.0.0.1:3306"] for a plugin's database.
# Write the same address in the plugin's configuration: not localhost, which MySQL takes for a socket in /run. A DNS
# resolver on the host needs no entry.
game_may_reach = []  # type: ignore[var-annotated]

# Packets per second that the firewall lets through to each server. known: queries and joins of one client whose query
# the server has answered. newcomers: queries of all other clients together, and as many joins. player: packets of one
# player.
firewall_limits = {"known": 60, "newcomers": 100, "player": 500}

# Settings of the host's kernel, as in /etc/sysctl.d, whose later files win. A key that you remove keeps its value until
# the next boot. {}: change none. net.core.rmem_default: srcds leaves the receive buffer of its socket at this default.
# Of 396 packets that arrive at once, a socket with the kernel's 212992 bytes loses 140, with these none.
sysctl = {"net.core.rmem_default": 524288}

# The attic keeps this many resets per server for `l4d2ctl reset --undo`, and as many states replaced by undos. If the
# entries of one server use more than attic_max bytes on disk (K, M, G, T or "infinity"), the oldest are removed first.
# The latest reset and the latest undo always stay.
attic_keep = 3
attic_max = "10G"

# Defaults for every server. Your own server_defaults, such as {"gamemode": "versus"}, extend these; no other
# dictionary is merged. A server's own values override both.
server_defaults = {
    # UDP for the game, TCP for RCON. None: the next free port in port_range.
    "port": None,
    # The name in the server browser.
    "hostname": "Left 4 Dead 2",
    # The first map, and mp_gamemode: coop, versus, survival, mutation12 …
    "map": "c1m1_hotel",
    "gamemode": "coop",
    # Player slots: 4 for campaign, 8 for versus. More slots need a mod.
    "max_players": 8,
    # Ticks per second. More than 30 need a mod.
    "tickrate": 30,
    # Mod layers over the game, topmost first: names from `layers` above.
    "layers": [],
    # Each map load executes these cfg files of layers, such as "versus.cfg", then sets the cvars ({"sv_gravity": 700}).
    "exec": [],
    "cvars": {},
    # Additional command-line arguments of the game, such as ["-nohltv"].
    "arguments": [],
    # Steam IDs of SourceMod admins with all rights, such as ["STEAM_1:0:1234"].
    "admins": [],
    # None: the host generates one for `l4d2ctl rcon`. Do not write a password into a file: this is Python, so use
    #   subprocess.check_output(["pass", "left4me/rcon"], text=True).strip()    or    os.environ["RCON_PASSWORD"]
    "rcon_password": None,
    # Paths in the game's directory that a reset keeps, such as "left4dead2/cfg/banned_user.cfg".
    "keep": [],
    # This server's memory limit in bytes, CPU share among the servers, and nice level.
    "memory_max": "2G",
    "cpu_weight": 100,
    "nice": -5,
    # Bytes that this server may write to disk (K, M, G, T), at least "64M", and a file for each 16 KiB of them. Needs a
    # filesystem with project quotas: see docs/servers.md. "infinity": no limit.
    "disk_max": "infinity",
    # The build that this server uses. None: the current build.
    "build": None,
    # Restart after an update: "never", "when-empty" (a minute without players) or "at 05:30" (even with players).
    "restart": "never",
    # "running", "stopped" (installed but not running) or "absent" (removed at once, even with players).
    "state": "running",
}

# Each host declares its own servers.
servers = {}  # type: ignore[var-annotated]

# Limit of a command on a host in seconds: a hung host must not block a deploy. Some operations set their own limit.
_timeout = 60
