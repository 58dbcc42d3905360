"""The network of the boxes: a bridge for the checkout, an address for each box, and a proxy to the Debian mirror."""

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
# RFC 2544's range for network benchmarks, which is not routed. A checkout takes one /24.
_RANGE = list(ipaddress.IPv4Network("198.18.0.0/15").subnets(new_prefix=24))
_PROXY = Group(f"left4me-proxy-{CHECKOUT_ID}")
_PROXY_PORT = 3128
_PROXY_CONFIG = STATE / "tinyproxy.conf"
_PROXY_FILTER = STATE / "tinyproxy.filter"
_PROXY_LOG = STATE / "tinyproxy.log"
_SUBNET = STATE / "subnet"


def veth(index: int) -> str:
    """Return the name of a box's veth interface on this machine."""
    return f"{BRIDGE}-{index}"


def mac(index: int) -> str:
    """Return a box's MAC address. It is constant, because this machine's ARP cache outlives a reboot of the box."""
    return f"02:{CHECKOUT_ID[:2]}:{CHECKOUT_ID[2:4]}:{CHECKOUT_ID[4:]}:00:{index:02x}"


def address(index: int) -> str:
    return str(_subnet()[10 + index])


def gateway() -> str:
    """Return this machine's address on the boxes' network."""
    return str(_subnet()[1])


def proxy_url() -> str:
    return f"http://{gateway()}:{_PROXY_PORT}"


def ensure() -> None:
    """Bring up the bridge and the proxy. Raises BoxError."""
    # Two checkouts must not choose the same network.
    with locked(Path("/run/lock/left4me-boxes.lock")):
        taken = _taken()
        if not _SUBNET.exists():
            start = int(CHECKOUT_ID, 16)
            order = (_RANGE[(start + step) % len(_RANGE)] for step in range(len(_RANGE)))
            write(_SUBNET, str(next(net for net in order if not any(net.overlaps(t) for t in taken))))
        elif clash := [net for net in taken if net.overlaps(_subnet())]:
            raise BoxError(f"network {clash[0]} is now used elsewhere on this machine: run ./box down, then ./box up")
        if not Path("/sys/class/net", BRIDGE).exists():
            tool("ip", "link", "add", BRIDGE, "type", "bridge")
        tool("ip", "address", "replace", f"{_subnet()[1]}/24", "dev", BRIDGE)
        tool("ip", "link", "set", BRIDGE, "up")
    if not _PROXY.alive():
        _start_proxy()


def remove() -> None:
    """Remove the proxy and the bridge, if they exist."""
    _PROXY.remove()
    for path in Path("/sys/class/net").glob(f"{BRIDGE}-*"):
        unplug(int(path.name.removeprefix(f"{BRIDGE}-")))
    if Path("/sys/class/net", BRIDGE).exists():
        tool("ip", "link", "delete", BRIDGE)
    for path in (_PROXY_CONFIG, _PROXY_FILTER, _PROXY_LOG, _SUBNET):
        path.unlink(missing_ok=True)


def unplug(index: int) -> None:
    """Remove a box's veth interface; the kernel itself would do it only some time after the box ended."""
    if Path("/sys/class/net", veth(index)).exists():
        delete = 'ip link delete "$0" 2>/dev/null || test ! -e "/sys/class/net/$0"'
        tool("/bin/sh", "-c", delete, veth(index))


def _subnet() -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(_SUBNET.read_text())


def _taken() -> list[ipaddress.IPv4Network]:
    """Return the networks in this machine's routes, without our bridge's and the default routes."""
    used = set()
    for route in json.loads(tool("ip", "-json", "-4", "route", "show", "table", "all")):
        if route.get("dev") not in (BRIDGE, "lo") and route["dst"] != "default":
            used.add(ipaddress.IPv4Network(route["dst"], strict=False))
    return sorted(used)


def _start_proxy() -> None:
    """Start a tinyproxy that serves only the boxes and reaches only the mirror. Raises BoxError."""
    write(_PROXY_FILTER, f"^{re.escape(mirror.host())}$\n")
    config = [
        *("User nobody", "Group nogroup", f"Listen {_subnet()[1]}", f"Port {_PROXY_PORT}"),
        *(f"Allow {_subnet()}", "MaxClients 100", "Timeout 600", "DisableViaHeader Yes", "LogLevel Connect"),
        *(f'Filter "{_PROXY_FILTER}"', "FilterDefaultDeny Yes", "ConnectPort 443"),
    ]
    if upstream := mirror.upstream_proxy():
        config.append(f"Upstream http {upstream.removeprefix('http://').rstrip('/')}")
    write(_PROXY_CONFIG, "\n".join(config) + "\n")
    _PROXY.start(["tinyproxy", "-d", "-c", str(_PROXY_CONFIG)], _PROXY_LOG)
    try:
        await_port(str(_subnet()[1]), _PROXY_PORT, 10, _PROXY)
    except BoxError as error:
        raise BoxError(f"the proxy for boxes does not start: {error}; see {_PROXY_LOG}") from None


def await_port(host: str, port: int, seconds: float, owner: Group) -> None:
    """Wait until a port accepts connections. Raises BoxError after ``seconds``, or if ``owner`` has no process."""
    deadline = time.monotonic() + seconds
    while True:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((host, port)) == 0:
                return
        # A listening socket in another network namespace raises no event, so poll.
        if not owner.alive():
            raise BoxError("its process has ended")
        if time.monotonic() > deadline:
            raise BoxError(f"nothing listens on {host}:{port} after {seconds:.0f} s")
        time.sleep(0.05)
