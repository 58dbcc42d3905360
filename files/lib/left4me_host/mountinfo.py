"""Read the mounts of a mount namespace from /proc/PID/mountinfo (proc_pid_mountinfo(5)).

The names in the file are untrusted. The kernel escapes only space, tab, newline and backslash, so only "\\n" ends a
line. Names stay escaped; bytes that are not UTF-8 become surrogates, which os.fsencode turns back into bytes.
"""


class Mount:
    """A line of mountinfo: the filesystem's `device` (major:minor) and type (`kind`), and the mount point (`point`).

    `root` is the mounted directory of the filesystem. `peers` are the mount's peer groups: an unmount in one
    of them also happens here. `options` are the filesystem's own, such as an overlay's lowerdir=….
    """

    __slots__ = ("device", "kind", "options", "peers", "point", "root")

    def __init__(self, line: str) -> None:
        fields = line.split(" ")
        dash = fields.index("-")
        self.device, self.root, self.point = fields[2:5]
        self.peers = frozenset(field.partition(":")[2] for field in fields[6:dash])
        self.kind, self.options = fields[dash + 1], fields[-1].split(",")

    def lowers(self) -> list[str]:
        """Return the lower layers of an overlay, topmost first; none for other filesystems."""
        pairs = [option.partition("=") for option in self.options]
        return [path for key, _, value in pairs if key in ("lowerdir", "lowerdir+") for path in value.split(":")]


def mounts(file: str | int = "/proc/1/mountinfo") -> list[Mount]:
    """Return the mounts in a mountinfo file, given as a path or as a descriptor, which is then closed.

    Raises OSError, for example if the process has ended.
    """
    with open(file, encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        return [Mount(line.rstrip("\n")) for line in lines]
