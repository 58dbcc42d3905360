"""Every default, and what it does. A host's own data, or its group's, replaces a value here whole.

`game` has no default: say where the game comes from,
    game = {"source": "host", "path": "/home/steam/serverfiles"}     on the host already; only read
    game = {"source": "control", "path": "../l4d2"}                  on this machine; sent to the host
`servers` is a dictionary by id, `servers = {"3": {"port": 27015, "map": "c1m1_hotel"}}`: the id is what follows
the @ of left4me-server@3.service.
"""

# What the servers bind. 0.0.0.0 is every IPv4 address of the host.
address = "0.0.0.0"

# The user and the group left4me, which own the game.
uid = 980
gid = 980

# All servers of the host together: memory in bytes (K, M, G, T; "infinity" for no limit), and their share of the
# CPU against everything else on the host, whose weight is 100.
memory_max = "infinity"
cpu_weight = 1000

# The group whose members may run `sudo l4d2ctl` without a password; None: only root. The group has to exist.
operators = None

# Told when a server crashes, cannot start or cannot be stopped: an address that takes what Discord takes, or None.
webhook = None

# How many of each server's resets stay in the attic, where `l4d2ctl reset --undo` finds the latest.
attic_keep = 3

# What each server has that does not say otherwise: the one place where dictionaries are merged.
server_defaults = {
    # The name in the server browser.
    "hostname": "Left 4 Dead 2",
    # The map it starts with.
    "map": "c1m1_hotel",
    # Player slots: 4 for campaign, 8 for versus, more only with a mod that allows it.
    "max_players": 8,
    # Mod layers over the game, the topmost first: names of directories below /var/lib/left4me/overlays/.
    "layers": [],
    # What a reset keeps, as paths below the game's directory, such as "left4dead2/cfg/banned_user.cfg".
    "keep": [],
    # This server's own memory in bytes, its share of the CPU among the servers, and its nice level.
    "memory_max": "2G",
    "cpu_weight": 100,
    "nice": -5,
}

# No servers until a host names some.
servers = {}  # type: ignore[var-annotated]

# Seconds that a command on a host may take unless the operation says otherwise: one frozen host holds up nobody.
_timeout = 60
