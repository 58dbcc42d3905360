"""The mounts of a mount namespace, from /proc/PID/mountinfo (proc_pid_mountinfo(5)).

Others choose the names in it. The kernel escapes the space, the tab, the newline and the backslash of a name, and no
other end of a line: so only its own newline ends a line here, names stay escaped as the kernel has them, and bytes that
are no UTF-8 become surrogates, which a file name can be made of again.
"""


class Mount:
    """One line: the filesystem's `device` as major:minor, where it is mounted (`point`), and its `kind`.

    `root` is what of the filesystem is mounted there. `peers` are the numbers of the peer groups that the mount sends
    unmounts to or gets them from. `options` are the filesystem's own, such as an overlay's lowerdir=….
    """

    __slots__ = ("device", "kind", "options", "peers", "point", "root")

    def __init__(self, line: str) -> None:
        fields = line.split(" ")
        dash = fields.index("-")
        self.device, self.root, self.point = fields[2:5]
        self.peers = frozenset(field.partition(":")[2] for field in fields[6:dash])
        self.kind, self.options = fields[dash + 1], fields[-1].split(",")

    def lowers(self) -> list[str]:
        """Return the lower layers of an overlay, the topmost first; none of anything else."""
        pairs = [option.partition("=") for option in self.options]
        return [path for key, _, value in pairs if key in ("lowerdir", "lowerdir+") for path in value.split(":")]


def mounts(file: str | int = "/proc/1/mountinfo") -> list[Mount]:
    """Return the mounts in a mountinfo, by its path or as an open file, which is then closed.

    PID 1's is the host's own. Raises OSError, as where a process has ended.
    """
    with open(file, encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        return [Mount(line.rstrip("\n")) for line in lines]
