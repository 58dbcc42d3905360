"""The boxes' network: one bridge for the checkout, one address for each box, and a proxy to the Debian mirror."""

import ipaddress
import json
import re
import socket
import time
from pathlib import Path

from tests.boxes import mirror
from tests.boxes.cgroup import Group
from tests.boxes.system import CHECKOUT_ID, STATE, BoxError, locked, tool, write

BRIDGE = f"l4m{CHECKOUT_ID}"
# RFC 2544's range for tests of networks: on no sane machine's way to anywhere. One /24 of it for a checkout.
_RANGE = list(ipaddress.IPv4Network("198.18.0.0/15").subnets(new_prefix=24))
_PROXY = Group(f"left4me-proxy-{CHECKOUT_ID}")
_PROXY_PORT = 3128
_PROXY_CONFIG = STATE / "tinyproxy.conf"
_PROXY_FILTER = STATE / "tinyproxy.filter"
_SUBNET = STATE / "subnet"


def veth(index: int) -> str:
    """The name of the outer end of a box's cable."""
    return f"{BRIDGE}-{index}"


def mac(index: int) -> str:
    """A hardware address that stays the same over the box's restarts, as the outer machine remembers it."""
    return f"02:{CHECKOUT_ID[:2]}:{CHECKOUT_ID[2:4]}:{CHECKOUT_ID[4:]}:00:{index:02x}"


def address(index: int) -> str:
    """The address of the box with that index."""
    return str(_subnet()[10 + index])


def proxy_url() -> str:
    """Where boxes find the proxy."""
    return f"http://{_subnet()[1]}:{_PROXY_PORT}"


def ensure() -> None:
    """Have the bridge up with its address and the proxy listening on it. Raises BoxError if it cannot be had."""
    # Two checkouts that choose at once must not choose the same.
    with locked(Path("/run/lock/left4me-boxes.lock")):
        taken = _taken()
        if not _SUBNET.exists():
            start = int(CHECKOUT_ID, 16)
            order = (_RANGE[(start + step) % len(_RANGE)] for step in range(len(_RANGE)))
            write(_SUBNET, str(next(net for net in order if not any(net.overlaps(t) for t in taken))))
        elif clash := [net for net in taken if net.overlaps(_subnet())]:
            raise BoxError(f"network {clash[0]} is now used elsewhere on this machine: ./box down, then up again")
        if not Path("/sys/class/net", BRIDGE).exists():
            tool("ip", "link", "add", BRIDGE, "type", "bridge")
        tool("ip", "address", "replace", f"{_subnet()[1]}/24", "dev", BRIDGE)
        tool("ip", "link", "set", BRIDGE, "up")
    if not _PROXY.alive():
        _start_proxy()


def remove() -> None:
    """Take away the proxy and the bridge; nothing happens if they are not there."""
    _PROXY.remove()
    if Path("/sys/class/net", BRIDGE).exists():
        tool("ip", "link", "delete", BRIDGE)
    for path in (_PROXY_CONFIG, _PROXY_FILTER, _SUBNET):
        path.unlink(missing_ok=True)


def unplug(index: int) -> None:
    """Remove what is left of a box's cable: after a box's death the kernel takes its own time to do it."""
    if Path("/sys/class/net", veth(index)).exists():
        gone = 'ip link delete "$0" 2>/dev/null || test ! -e "/sys/class/net/$0"'
        tool("/bin/sh", "-c", gone, veth(index))


def _subnet() -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(_SUBNET.read_text())


def _taken() -> list[ipaddress.IPv4Network]:
    """Networks that this machine's interfaces and routes use, our bridge's and the default routes apart."""
    used = set()
    for route in json.loads(tool("ip", "-json", "-4", "route", "show", "table", "all")):
        if route.get("dev") not in (BRIDGE, "lo") and route["dst"] != "default":
            used.add(ipaddress.IPv4Network(route["dst"], strict=False))
    return sorted(used)


def _start_proxy() -> None:
    """Start tinyproxy for the boxes only, to the mirror's hosts only. Raises BoxError if it does not listen."""
    write(_PROXY_FILTER, f"^{re.escape(mirror.host())}$\n")
    config = [
        *("User nobody", "Group nogroup", f"Listen {_subnet()[1]}", f"Port {_PROXY_PORT}"),
        *(f"Allow {_subnet()}", "MaxClients 100", "Timeout 600", "DisableViaHeader Yes", "LogLevel Connect"),
        *(f'Filter "{_PROXY_FILTER}"', "FilterDefaultDeny Yes", "ConnectPort 443"),
    ]
    if upstream := mirror.upstream_proxy():
        config.append(f"Upstream http {upstream.removeprefix('http://').rstrip('/')}")
    write(_PROXY_CONFIG, "\n".join(config) + "\n")
    log = STATE / "tinyproxy.log"
    _PROXY.start(["tinyproxy", "-d", "-c", str(_PROXY_CONFIG)], log)
    try:
        await_port(str(_subnet()[1]), _PROXY_PORT, 10, _PROXY)
    except BoxError as error:
        raise BoxError(f"the proxy for boxes does not start: {error}; see {log}") from None


def await_port(host: str, port: int, seconds: float, owner: Group) -> None:
    """Wait until something listens there. Raises BoxError after ``seconds``, or when ``owner`` has no process."""
    deadline = time.monotonic() + seconds
    while True:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((host, port)) == 0:
                return
        # Nothing tells us of a listening socket in another network namespace: ask again, with a limit.
        if not owner.alive():
            raise BoxError("it has ended")
        if time.monotonic() > deadline:
            raise BoxError(f"nothing listens on {host}:{port} after {seconds:.0f} s")
        time.sleep(0.05)
