"""Files below /proc, whose contents others choose in part, and which go with their process."""


def read(path: str) -> str:
    """Return the text of a file; nothing where it is gone, as of a process that has ended."""
    try:
        # In a name the kernel leaves all ends of lines but its own.
        with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
            return file.read()
    except OSError:
        return ""
