"""Every default, and what it does. A host's own data, or its group's, replaces a value here whole.

`servers` is a dictionary by id, `servers = {"3": {"port": 27015, "map": "c1m1_hotel"}}`: the id is what follows
the @ of left4me-server@3.service. A server that is not in it any more is stopped when nobody plays there, and what it
wrote goes to the attic.
"""

# Where the game comes from; a host's own replaces this one whole.
#   {"source": "steamcmd"}                                    from Steam; `l4d2ctl game update` on the host updates it
#   {"source": "host", "path": "/home/steam/serverfiles"}             on the host already; only read
#   {"source": "control", "path": "../l4d2"}                          on this machine; sent to the host
#   {"source": "archive", "url": "https://…/l4d2.tar.gz", "sha256": "…", "strip": 0}     the host downloads it
# Each may have a "build", such as "14716838": that one is current, whatever is newer. `l4d2ctl game status` names those
# that are on the host. A build becomes current when a trial of it has answered on trial_port, which no server may have;
# with trial_server, such as "3", once more with that server's layers.
game = {"source": "steamcmd"}
trial_port = 27200
trial_server = None

# Where a host gets SteamCMD, and the sum that it has to have, or None: Valve changes it without notice.
steamcmd_url = "https://steamcdn-a.akamaihd.net/client/installer/steamcmd_linux.tar.gz"
steamcmd_sha256 = None

# When a host asks Steam for a new build and prepares it, each day, such as "04:30" of its own time; None: only when
# told. What becomes of the servers then says `restart` below.
update_at = None

# How many builds stay on a host that nothing uses any more, for `l4d2ctl game rollback`.
builds_kept = 1

# What the servers bind. 0.0.0.0 is every IPv4 address of the host.
address = "0.0.0.0"

# The first and the last port for them. A server without a port of its own gets the next free one, and keeps it.
port_range = [27015, 27114]

# Where mod layers come from, by a name that servers' `layers` then use. Such a tree has left4dead2/ on top, or with
# "into": "left4dead2" what belongs in there, as SourceMod's own archives have it: addons/ and cfg/.
#   {"source": "control", "path": "../layers/evening"}          on this machine; what changed is sent, but no .git in it
#   {"source": "archive", "url": "https://…/sm.tar.gz", "sha256": "…", "strip": 0}    the host downloads it: tar.gz,
#                                             tar.xz, zip or 7z; strip is how many leading directories are left out
#   {"source": "git", "url": "https://…", "ref": "v1.2"}             a commit, or a tag, which is taken not to move
#   {"source": "workshop", "items": [1643520526]}                    as .vpk files in left4dead2/addons, kept up to date
layers = {}  # type: ignore[var-annotated]

# Steam's web API, which is asked for workshop items.
workshop_api = "https://api.steampowered.com"

# The user and the group left4me, which own the game.
uid = 980
gid = 980

# All servers of the host together: memory in bytes (K, M, G, T; "infinity" for no limit), and their share of the
# CPU against everything else on the host, whose weight is 100. cpu_quota bounds it, in percent of one CPU, or None.
# The servers' own memory_max together may not be more than the host's.
memory_max = "infinity"
cpu_weight = 1000
cpu_quota = None

# The group whose members may run `sudo l4d2ctl` without a password; None: only root. The group has to exist.
operators = None

# Told when a server crashes, cannot start or cannot be stopped: an address that takes what Discord takes, or None.
webhook = None

# How many of each server's resets stay in the attic, where `l4d2ctl reset --undo` finds the latest; beside them stay as
# many of what undos put aside.
attic_keep = 3

# What each server has that does not say otherwise. Dictionaries are merged here alone: server_defaults of your own,
# such as {"gamemode": "versus"} for all hosts, go over these, and what a server says of itself goes over both.
server_defaults = {
    # UDP for the game, TCP for RCON; None: the next free one of port_range.
    "port": None,
    # The name in the server browser.
    "hostname": "Left 4 Dead 2",
    # The map it starts with, and mp_gamemode: coop, versus, survival, mutation12 …
    "map": "c1m1_hotel",
    "gamemode": "coop",
    # Player slots: 4 for campaign, 8 for versus, more only with a mod that allows it.
    "max_players": 8,
    # Ticks per second; the game stays at 30 without a mod for more.
    "tickrate": 30,
    # Mod layers over the game, the topmost first: names of `layers` above.
    "layers": [],
    # At each map load: cfg files that layers brought, such as "versus.cfg", then cvars, such as {"sv_gravity": 700}.
    "exec": [],
    "cvars": {},
    # More words for the game's command line, such as ["-nohltv"].
    "arguments": [],
    # SourceMod's admins with all rights, such as ["STEAM_1:0:1234"].
    "admins": [],
    # None: made on the host, where `l4d2ctl rcon` uses it. One of your own does not belong in a file; this is Python:
    #   subprocess.check_output(["pass", "left4me/rcon"], text=True).strip()    or    os.environ["RCON_PASSWORD"]
    "rcon_password": None,
    # What a reset keeps, as paths below the game's directory, such as "left4dead2/cfg/banned_user.cfg".
    "keep": [],
    # This server's own memory in bytes, its share of the CPU among the servers, and its nice level.
    "memory_max": "2G",
    "cpu_weight": 100,
    "nice": -5,
    # A build that this server has, whichever is current: held back, or sent ahead. None: the current one.
    "build": None,
    # After an update: "never" restarts it, "when-empty" once nobody has played for a minute, "at 05:30" whoever plays.
    "restart": "never",
    # "running"; "stopped": there, and down; "absent": taken away at once, whoever plays there.
    "state": "running",
}

# No servers until a host names some.
servers = {}  # type: ignore[var-annotated]

# Seconds that a command on a host may take unless the operation says otherwise: one frozen host holds up nobody.
_timeout = 60
