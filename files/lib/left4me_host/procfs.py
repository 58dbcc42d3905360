"""Read files below /proc and /sys. Their contents are partly untrusted, and they disappear with their process."""

from left4me_host import layout

SYSCTL = "/proc/sys"
APPARMOR = "/sys/kernel/security/apparmor"


def read(path: str) -> str:
    """Return the text of a file; empty if it cannot be read, for example because the process has ended."""
    try:
        # The kernel escapes no line end in names except "\n".
        with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
            return file.read()
    except OSError:
        return ""


def profile_mode() -> str:
    """Return the mode of the servers' AppArmor profile in the kernel, such as enforce; empty if it is not loaded."""
    profiles = dict(line.rstrip(")").partition(" (")[::2] for line in read(f"{APPARMOR}/profiles").splitlines())
    return profiles.get(layout.PROFILE.rpartition("/")[2], "")


def sysctl(name: str) -> int | None:
    """Return a setting of the kernel, such as net.core.rmem_default; None if it has none, or no number."""
    text = read(f"{SYSCTL}/{name.replace('.', '/')}").strip()
    return int(text) if text.isdecimal() else None
