"""A box that is a full machine: Debian's own kernel under qemu, on a disk that keeps what was synced at a power cut."""

import subprocess
import sys
from pathlib import Path

from tests.boxes.image import CACHE
from tests.boxes.system import BoxError, environment, tool, write

PACKAGES = ("linux-image-cloud-amd64", "udev")
"""What the image of a machine has beyond that of a box."""
START_SECONDS = 600
"""Emulated (TCG) it takes half a minute on an idle machine, several times that beside other work."""
STOP_SECONDS = 240
_DISK = "8G"  # sparse
_MEMORY_MB, _CPUS = 2048, 2
_PROOF_SECONDS = 20
_MAKE_DISK = """
mount -t overlay box -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
exec mkfs.ext4 -q -F -d "$2/root" "$2/disk.img" "$3"
"""
_LAUNCH = """
set -eu
tap=$1 bridge=$2; shift 2
ip tuntap add dev "$tap" mode tap
ip link set "$tap" master "$bridge" up
exec "$@" </dev/null
"""


def write_network(upper: Path, address: str, gateway: str, mac: str) -> None:
    """Give a machine its address below `upper`, and no name server: it is cut off, as boxes are."""
    etc = upper / "etc/systemd"
    (etc / "network").mkdir(parents=True)
    lines = [f"[Match]\nMACAddress={mac}", f"[Network]\nAddress={address}/24\nGateway={gateway}"]
    write(etc / "network/10-box.network", "\n".join(lines) + "\n")
    wants = etc / "system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "systemd-networkd.service").symlink_to("/lib/systemd/system/systemd-networkd.service")


def make_disk(image: Path, disk: Path) -> None:
    """Make disk.img of an image with `disk`/upper over it. Raises BoxError."""
    script = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", _MAKE_DISK, "sh"]
    tool(*script, image, disk, _DISK, timeout=300)


def command(image: Path, disk: Path, tap: str, bridge: str, mac: str) -> list[str]:
    """Return what runs the machine until it ends or wants to reboot. Raises BoxError where the image has no kernel."""
    kernel, initrd = _kernel(disk if (disk / "boot").exists() else image)
    qemu = [
        *_qemu(accelerator(kernel, initrd), kernel, initrd, "root=/dev/vda rw console=ttyS0"),
        *("-smp", str(_CPUS), "-m", str(_MEMORY_MB), "-device", "virtio-rng-pci"),
        # Past this machine's page cache: what the guest did not sync is lost with the process.
        *("-drive", f"file={disk / 'disk.img'},if=virtio,format=raw,cache=none"),
        *("-netdev", f"tap,id=n0,ifname={tap},script=no,downscript=no"),
        *("-device", f"virtio-net-pci,netdev=n0,mac={mac}"),
    ]
    return ["sh", "-c", _LAUNCH, "sh", tap, bridge, *qemu]


def take_kernel(ssh_config: Path, name: str, disk: Path) -> None:
    """Let the machine boot the kernel that it installed last: qemu loads a kernel from here, not from the disk."""
    (disk / "boot").mkdir(exist_ok=True)
    for link in ("vmlinuz", "initrd.img"):
        tool("scp", "-q", "-F", ssh_config, f"{name}:/{link}", disk / "boot" / f"{link}-taken", timeout=300)


def accelerator(kernel: Path, initrd: Path) -> str:
    """Return kvm where it boots a kernel here, which a /dev/kvm alone does not promise, else tcg."""
    if not Path("/dev/kvm").exists():
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    known = CACHE / f"accelerator-{boot}"
    if not known.exists():
        for old in CACHE.glob("accelerator-*"):
            old.unlink()
        write(known, "kvm" if _kvm_boots(kernel, initrd) else "tcg")
        print(f"machines run with {known.read_text()}", file=sys.stderr, flush=True)
    return known.read_text(encoding="ascii")


def _kvm_boots(kernel: Path, initrd: Path) -> bool:
    argv = [*_qemu("kvm", kernel, initrd, "console=ttyS0 panic=-1"), "-m", "512"]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, env=environment(), timeout=_PROOF_SECONDS, check=False
        )
        said = done.stdout
    except subprocess.TimeoutExpired as slow:
        said = slow.stdout or b""
    return b"Linux version" in said


def _kernel(image: Path) -> tuple[Path, Path]:
    kernels, initrds = sorted(image.glob("boot/vmlinuz-*")), sorted(image.glob("boot/initrd.img-*"))
    if not kernels or not initrds:
        raise BoxError(f"{image} has no kernel: delete it to have it built afresh")
    return kernels[-1], initrds[-1]


def _qemu(accelerated_by: str, kernel: Path, initrd: Path, parameters: str) -> list[str]:
    return [
        *("qemu-system-x86_64", "-machine", f"q35,accel={accelerated_by}", "-cpu", "max", "-display", "none"),
        *("-serial", "stdio", "-monitor", "none", "-no-reboot"),
        *("-kernel", str(kernel), "-initrd", str(initrd), "-append", parameters),
    ]
