"""Keep the BPF programs of a server's SocketBindDeny= attached until the server ends.

systemd 257 detaches them at each daemon-reload and attaches none again: it passes their links to itself under
`ipv4-socket-bind-bpf-link`, but looks for `ipv4-socket-bind-bpf-link-fd`. A link that is pinned in bpffs stays until
its cgroup is removed; then only its name is left. Structures and numbers: linux/bpf.h.
"""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import suppress

from left4me_host import layout

SYS_BPF = 321  # x86-64
OBJ_PIN, OBJ_GET_INFO_BY_FD, LINK_GET_FD_BY_ID, LINK_GET_NEXT_ID = 6, 15, 30, 31  # enum bpf_cmd
LINK_TYPE_CGROUP = 3  # enum bpf_link_type
BINDS = {8: "bind4", 9: "bind6"}  # enum bpf_attach_type: BPF_CGROUP_INET4_BIND, BPF_CGROUP_INET6_BIND
ATTRIBUTES = 128  # bytes; the kernel ignores those that it does not know if they are zero

_LIBC = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """Return the result of bpf(2), and the attributes after it. Raises OSError."""
    buffer = ctypes.create_string_buffer(attributes, ATTRIBUTES)
    result = int(_LIBC.syscall(SYS_BPF, command, buffer, ATTRIBUTES))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result, buffer.raw


def links() -> Iterator[int]:
    """Yield a descriptor of each BPF link; it is closed before the next one. Raises OSError."""
    number = 0
    while True:
        try:
            [number] = struct.unpack_from("=4xI", bpf(LINK_GET_NEXT_ID, struct.pack("=I", number))[1])
        except FileNotFoundError:
            return  # it was the last one
        try:
            link = bpf(LINK_GET_FD_BY_ID, struct.pack("=I", number))[0]
        except FileNotFoundError:
            continue  # it has ended
        yield link
        os.close(link)


def bind_of(link: int, cgroup: int) -> str:
    """Return which bind of a cgroup, by its inode, a link's program decides on: bind4, bind6 or none."""
    information = ctypes.create_string_buffer(64)
    bpf(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", link, len(information), ctypes.addressof(information)))
    kind, of, attached = struct.unpack_from("=I12xQI", information.raw)
    return BINDS.get(attached, "") if (kind, of) == (LINK_TYPE_CGROUP, cgroup) else ""


def keep(server: str) -> None:
    """Pin the links of a server whose unit is starting, instead of those of its last run.

    Raises OSError, in containers because they may not use BPF.
    """
    os.makedirs(layout.PINS, 0o700, exist_ok=True)
    for bind in BINDS.values():
        with suppress(FileNotFoundError):
            os.unlink(f"{layout.PINS}/{server}-{bind}")
    cgroup = os.stat(layout.cgroup(server)).st_ino
    for link in links():
        if bind := bind_of(link, cgroup):
            path = ctypes.create_string_buffer(f"{layout.PINS}/{server}-{bind}".encode())
            bpf(OBJ_PIN, struct.pack("=QI", ctypes.addressof(path), link))
    if missing := [bind for bind in BINDS.values() if not os.path.exists(f"{layout.PINS}/{server}-{bind}")]:
        raise OSError(f"systemd has attached no program for {' and '.join(missing)}")
