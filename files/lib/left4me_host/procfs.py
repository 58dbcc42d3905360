"""Read files below /proc. Their contents are partly untrusted, and they disappear with their process."""

SYSCTL = "/proc/sys"


def read(path: str) -> str:
    """Return the text of a file; empty if it cannot be read, for example because the process has ended."""
    try:
        # The kernel escapes no line end in names except "\n".
        with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
            return file.read()
    except OSError:
        return ""


def sysctl(name: str) -> int | None:
    """Return a setting of the kernel, such as net.core.rmem_default; None if it has none, or no number."""
    text = read(f"{SYSCTL}/{name.replace('.', '/')}").strip()
    return int(text) if text.isdecimal() else None
