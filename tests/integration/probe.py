"""A probe that runs in a server's unit in the game's place, or as its user without a sandbox."""

from __future__ import annotations

import json
import shlex
from typing import Any

from tests.boxes.boxes import Box
from tests.integration.harness import properties

UNIT = "left4me-server@3.service"
DROP_IN = f"/run/systemd/system/{UNIT}.d"
VAR = "/var/lib/left4me"
MERGED = f"{VAR}/runtime/3/merged"
PROBE = "/usr/local/lib/probe.py"
# Each attempt is a line of Python; what comes of it is its value, or the name of its errno.
ATTEMPT = """
import ctypes, errno, json, mmap, os, resource, signal, socket, stat, sys, time
def write(path, text="x"):
    with open(path, "w") as file:
        file.write(text)
def read(path):
    with open(path) as file:
        return file.read()
def writable(top, leave):
    found = []
    for base, names, files in os.walk(top):
        names[:] = [name for name in names if os.path.join(base, name) not in leave]
        found += [p for p in (os.path.join(base, n) for n in [".", *files]) if os.access(p, os.W_OK) and place(p)]
    return found
def place(path):
    kind = os.lstat(path).st_mode
    return stat.S_ISDIR(kind) or stat.S_ISREG(kind)
def connect(path, kind):
    with socket.socket(socket.AF_UNIX, kind) as each:
        each.connect(path)
def reach(address, port, kind=socket.SOCK_STREAM, sends=2):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as each:
        each.settimeout(3)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        each.connect((address, port))
        for _ in range(sends if kind == socket.SOCK_DGRAM else 0):  # a refusal comes with the next one
            each.send(b"x")
            time.sleep(0.1)
        return "reached"
def call(number):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, 0, 0, 0, 0, 0, 0) == -1:
        raise OSError(ctypes.get_errno(), "")
def bind(port, family=socket.AF_INET, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as each:
        each.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
def socketcall(family, kind):
    # As a 32-bit program creates a socket: int 0x80 with the arguments in memory, both below 4 GB (MAP_32BIT).
    pages = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, 7)
    at = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    # push rbx; mov eax, 102; mov ebx, 1; mov ecx, edi; int 0x80; pop rbx; ret
    pages[:17] = bytes.fromhex("53 b866000000 bb01000000 89f9 cd80 5b c3")
    pages[64:76] = b"".join(each.to_bytes(4, "little") for each in (family, kind, 0))
    result = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint)(at)(at + 64)
    if result < 0:
        raise OSError(-result, "")
    os.close(result)
def fill(top, count):
    for number in range(count):
        os.close(os.open(f"{top}/{number}", os.O_CREAT | os.O_WRONLY))
said = {}
for line in json.loads(sys.argv[1]):
    try:
        said[line] = eval(line)
    except OSError as error:
        said[line] = errno.errorcode[error.errno] if error.errno else type(error).__name__
print(json.dumps(said))
"""


def main_pid(box: Box, server: str) -> int:
    """Return the PID of a server's game, as its own box numbers it."""
    return int(properties(box, f"left4me-server@{server}", "MainPID")["MainPID"])


def inside(box: Box, attempts: list[str], *settings: str) -> dict[str, Any]:
    """Return what came of attempts made in server 3's unit, by its user, in the place of its game.

    `settings` are lines that change the unit's own for this once.
    """
    program = shlex.join(["/usr/bin/python3", "-I", PROBE, json.dumps(attempts)]).replace("%", "%%")
    lines = [
        "[Service]",
        "Type=oneshot",
        "Restart=no",
        "RestartForceExitStatus=",
        "ExecStart=",
        f"ExecStart={program}",
        *settings,
    ]
    lines += ["StandardOutput=append:/root/said", "StandardError=append:/root/failed"]
    box.run(f"cat >{DROP_IN}/probe.conf; systemctl daemon-reload", input="\n".join([*lines, ""]).encode())
    box.run(f"""
        rm -f /root/said /root/failed; systemctl reset-failed
        systemctl start {UNIT} || {{ cat /root/failed >&2; false; }}
    """)
    said: dict[str, Any] = json.loads(box.run("cat /root/said").stdout)
    assert said.keys() == set(attempts)
    assert properties(box, UNIT, "ActiveState") == {"ActiveState": "inactive"}
    return said


def as_user(box: Box, user: str, attempts: list[str]) -> dict[str, Any]:
    """Return what came of attempts made by a user of the host, in no sandbox."""
    command = ["setpriv", f"--reuid={user}", "--regid=left4me", "--clear-groups", "python3", "-I", PROBE]
    said: dict[str, Any] = json.loads(box.run(shlex.join([*command, json.dumps(attempts)])).stdout)
    return said
