"""A server with disk_max on Debian's own kernels, which have project quotas; boxes share a kernel that may not.

By hand, `make soak-vm`. An attacker who runs code as server 3's user fills its disk space; server 4 does not notice.
"""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.boxes.boxes import Box
from tests.integration.ctl import LAYER, LAYERS, main_pid, state
from tests.integration.harness import wait_for, wait_for_server
from tests.stories.operator import Operator
from tests.vm.conftest import SLOW, WAIT, machine

PORTS = {"3": 27015, "4": 27016}
MEGABYTES = 200
"""disk_max of server 3. The filesystem has 1,500 MiB."""
FILES = MEGABYTES * 64
BIG = 60
"""Megabytes of a file in a layer, which a write copies up."""
VAR = "/var/lib/left4me"
UPPER, MERGED = f"{VAR}/runtime/{{}}/upper/left4dead2", f"{VAR}/runtime/{{}}/merged/left4dead2"
KEPT = ("left4dead2/cfg/banned_user.cfg", "left4dead2/link", "left4dead2/data")
FULL = "Disk quota exceeded"

# Tries to leave the project of a directory and of a file, by the calls of chattr -p and chattr -P (linux/fs.h).
ESCAPE = """
import fcntl, os, struct, sys
for path in sys.argv[1:]:
    fd, about, flags = os.open(path, os.O_RDONLY), bytearray(28), bytearray(8)
    fcntl.ioctl(fd, 0x801C581F, about)
    fcntl.ioctl(fd, 0x80086601, flags)
    inherit, project = struct.unpack_from('=I', about)[0] & 0x200, struct.unpack_from('=I', about, 12)[0]
    without = struct.pack('=q', struct.unpack('=q', flags)[0] & ~0x20000000)
    calls = [(0x401C5820, about[:12] + bytes(4) + about[16:])]
    calls += [(0x401C5820, bytes(4) + about[4:]), (0x40086602, without)] if inherit else []
    for number, argument in calls:
        try:
            fcntl.ioctl(fd, number, bytes(argument))
            sys.exit(f'{path}: left project {project}')
        except OSError as error:
            print('refused', error.errno)
"""
# Makes what the game may have made before there was a limit: no walk may follow, hang, or run out of files.
HOSTILE = """
import os, socket
os.mkdir('hostile'); os.chdir('hostile')
os.symlink('/etc/passwd', 'link'); os.symlink('.', 'self'); os.mkfifo('fifo'); socket.socket(1).bind('socket')
os.close(os.open('secret', os.O_CREAT | os.O_WRONLY, 0)); os.link('secret', 'again')
for _ in range(3000):
    os.mkdir('d'); os.chdir('d')
os.mkdir('locked', 0)
"""


def mount_with_quotas(host: Box, folder: Path) -> None:
    """Mount a filesystem with project quotas at /var/lib/left4me: Debian's cloud image has no mkfs."""
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(1500 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    subprocess.run(["tune2fs", "-O", "project,quota", str(image)], check=True)  # as in docs/servers.md
    with image.open("rb") as file:
        packed = gzip.compress(file.read(), 1)
    image.unlink()
    host.run("gzip -d | dd of=/root/disk.img bs=64k conv=sparse status=none", input=packed, timeout=300)
    host.run(f"echo '/root/disk.img {VAR} ext4 loop,prjquota 0 0' >>/etc/fstab && mkdir {VAR} && mount {VAR}")


def inside(host: Box, server: str, *words: str, text: str = "") -> str:
    """Run a command in a server's own namespaces as its user, in left4dead2; return what it prints and says.

    Without the unit's system call filter and capability bounding set.
    """
    user = f"--setuid $(id -u left4me-{server}) --setgid $(id -g left4me-{server})"
    enter = f"nsenter --target {main_pid(host, server)} --user --mount {user} -- env -C {MERGED.format(server)}"
    quoted = " ".join(f"'{word}'" for word in words)
    done = host.run(f"{enter} {quoted} 2>&1", input=text.encode(), check=False, timeout=300)
    return done.stdout


def megabytes_free(host: Box) -> int:
    return int(host.run(f"df --output=avail -m {VAR} | tail -1").stdout)


def used(host: Box, server: str) -> tuple[int, int]:
    """Return megabytes and inodes that du counts in a server's upper and work."""
    paths = " ".join(f"{VAR}/runtime/{server}/{name}" for name in ("upper", "work"))
    found = [host.run(f"du -sc {each} {paths} | tail -1").stdout.split()[0] for each in ("-m", "--inodes")]
    return int(found[0]), int(found[1])


def counted(host: Box, server: str) -> int:
    """Return the inodes that the kernel counts for a server's project, which df shows."""
    return int(host.run(f"df --output=iused {VAR}/runtime/{server}/upper | tail -1").stdout)


def declare(operator: Operator, folder: Path, limits: Sequence[str]) -> None:
    """Declare both servers, with these values of disk_max, and a layer with a big file."""
    layer = folder / "big/left4dead2"
    layer.mkdir(parents=True, exist_ok=True)
    if not (layer / "big.vpk").exists():
        (layer / "big.vpk").write_bytes(bytes(BIG << 20))
        (layer / "game.txt").write_text("of the game\n", encoding="utf-8")
    common = {"layers": [LAYER, "big"], "keep": [*KEPT]}
    servers = {
        server: {"port": PORTS[server], "disk_max": most, **common} for server, most in zip(PORTS, limits, strict=True)
    }
    operator.declare(servers, layers={**LAYERS, "big": {"source": "control", "path": str(layer.parent)}})


def test_a_server_fills_its_own_disk_space_alone(operator: Operator, tmp_path: Path) -> None:
    host = machine(operator)
    deploy, verify = f"pyinfra {operator.inventory} deploy.py -y", f"make verify INVENTORY={operator.inventory}"
    declare(operator, tmp_path, (f"{MEGABYTES}M", "infinity"))

    # Without project quotas the host is refused, unchanged.
    refused = "refused, nothing changed: servers.3.disk_max: the filesystem of /var/lib/left4me enforces no project"
    operator.types(deploy, refused, code=1, seconds=SLOW)
    assert host.run(f"ls -d {VAR} /etc/left4me", check=False).stdout == ""

    # A limit that is not below the size of the filesystem would limit nothing.
    mount_with_quotas(host, tmp_path)
    declare(operator, tmp_path, ("1500M", "infinity"))
    refused = "refused, nothing changed: servers.3.disk_max: 1500M limits nothing"
    operator.types(deploy, refused, code=1, seconds=SLOW)
    declare(operator, tmp_path, (f"{MEGABYTES}M", "infinity"))
    operator.types(deploy, seconds=SLOW)
    for port in PORTS.values():
        wait_for_server(host, port, WAIT)
    operator.types(verify, "passed", never=["failed"], seconds=SLOW)
    operator.on(host, "l4d2ctl show 3", f"of {MEGABYTES} MiB", f"of {FILES:,} files")
    assert "disk " not in operator.on(host, "l4d2ctl show 4")

    # Server 3 writes all that it may: data, then a big file of a layer, then empty files.
    free = megabytes_free(host)
    assert (
        inside(host, "3", "sh", "-c", "echo kept >cfg/banned_user.cfg; ln -s nowhere link; mkdir data; rm game.txt")
        == ""
    )
    assert FULL in inside(host, "3", "dd", "if=/dev/zero", "of=fill", "bs=1M")
    assert MEGABYTES - 2 <= used(host, "3")[0] <= MEGABYTES + 2
    assert free - megabytes_free(host) <= MEGABYTES + 2
    assert FULL in inside(host, "3", "sh", "-c", "echo 1 >>big.vpk")
    assert inside(host, "3", "sh", "-c", "rm fill; echo 1 >>big.vpk") == ""
    assert BIG <= used(host, "3")[0] <= BIG + 5
    assert FULL in inside(host, "3", "dd", "if=/dev/zero", "of=fill", "bs=1M")
    assert MEGABYTES - 2 <= used(host, "3")[0] <= MEGABYTES + 2
    assert inside(host, "3", "rm", "fill") == ""
    assert FULL in inside(host, "3", "sh", "-c", "mkdir many; cd many; seq 30000 | xargs touch")
    assert FILES - 2 <= used(host, "3")[1] <= FILES + 2
    assert FULL in inside(host, "3", "dd", "if=/dev/zero", "of=fill", "bs=1M")  # no inode is left
    assert FULL in inside(host, "3", "dd", "if=/dev/zero", "of=big.vpk", "bs=1M")

    # It cannot leave its project with what it owns: EINVAL.
    assert inside(host, "3", "python3", "-", "many", "many/1", text=ESCAPE).split() == ["refused", "22"] * 4

    # The neighbour has a normal evening.
    assert inside(host, "4", "sh", "-c", "echo evening >evening.txt; head -c 300M /dev/zero >demo.dem") == ""
    operator.on(host, "l4d2ctl stop 4", seconds=120)
    assert state(host, "4") == "inactive"
    operator.on(host, "l4d2ctl start 4", seconds=120)
    wait_for_server(host, PORTS["4"], WAIT)
    assert inside(host, "4", "sh", "-c", "cat evening.txt; rm demo.dem") == "evening\n"
    operator.on(host, "l4d2ctl doctor", "3", "almost all that disk_max allows", "l4d2ctl reset 3", code=1)
    operator.types(verify, "passed", never=["failed"], seconds=SLOW)

    # The game does not start without space for its logs.
    assert inside(host, "3", "sh", "-c", "rm many/10*; truncate -s -4M big.vpk") == ""

    # A reset gives all of it back, at once, and what is kept belongs to the new project.
    def evening(does: str) -> None:
        operator.on(host, f"l4d2ctl reset {does} 3", seconds=120)
        wait_for_server(host, PORTS["3"], WAIT)
        assert inside(host, "3", "sh", "-c", "cat cfg/banned_user.cfg; readlink link") == "kept\nnowhere\n"
        assert counted(host, "3") == used(host, "3")[1]

    evening("")
    operator.on(host, "l4d2ctl doctor")
    assert inside(host, "3", "sh", "-c", f"head -c {MEGABYTES - 10}M /dev/zero >fill && rm fill") == ""
    assert FULL in inside(host, "3", "dd", "if=/dev/zero", "of=fill", "bs=1M")

    # An undo brings the full upper back, still limited, and the kept files cross from one project into the other.
    evening("--undo")
    assert FULL in inside(host, "3", "dd", "if=/dev/zero", "of=fill", "bs=1M")
    assert inside(host, "3", "sh", "-c", "rm -r many fill; mkdir game.txt; rmdir game.txt") == ""
    operator.types(verify, "passed", never=["failed"], seconds=SLOW)

    # Full again, when its limit is removed: a reset leaves nothing of it behind, also not in what is kept.
    assert FULL in inside(host, "3", "dd", "if=/dev/zero", "of=fill", "bs=1M")

    # A limit that is declared later counts what is there already; one that is removed ends.
    assert inside(host, "4", "python3", "-", text=HOSTILE) == ""
    assert inside(host, "4", "rm", "game.txt") == ""
    declare(operator, tmp_path, ("infinity", f"{2 * MEGABYTES}M"))
    operator.types(deploy, "restart required: 3, 4", seconds=SLOW)
    operator.on(host, "l4d2ctl show 3", "restart required (disk_max)")
    operator.on(host, "l4d2ctl reset 3", seconds=120)
    operator.on(host, "l4d2ctl restart 4", seconds=120)
    for port in PORTS.values():
        wait_for_server(host, port, WAIT)
    assert counted(host, "4") == used(host, "4")[1] > 3000
    assert inside(host, "4", "sh", "-c", "mkdir game.txt && rmdir game.txt; readlink hostile/link") == "/etc/passwd\n"
    assert FULL in inside(host, "4", "dd", "if=/dev/zero", "of=fill", "bs=1M")
    assert 2 * MEGABYTES - 2 <= used(host, "4")[0] <= 2 * MEGABYTES + 2
    assert inside(host, "3", "sh", "-c", f"cd data; head -c {MEGABYTES + 100}M /dev/zero >fill && rm fill") == ""
    operator.types(verify, "passed", never=["failed"], seconds=SLOW)

    # A later mount without quotas: the server starts, and three places say that its limit is gone.
    operator.on(host, "l4d2ctl stop --all", seconds=120)
    host.run(f"umount {VAR} && mount -o loop /root/disk.img {VAR}")
    operator.on(host, "l4d2ctl start --all", seconds=120)
    for port in PORTS.values():
        wait_for_server(host, port, WAIT)
    without = "enforces no project quotas"
    wait_for("the journal has it", lambda: without in host.run("journalctl -o cat -u left4me-server@4").stdout)
    operator.on(host, "l4d2ctl doctor", "its disk_max is not in force", without, code=1)
    operator.types(verify, "server 4 may write", code=2, seconds=SLOW)
