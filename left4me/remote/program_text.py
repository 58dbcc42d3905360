"""Builds the text of the programs that a deploy sends to a host, which runs `python3 -I -c TEXT`.

A new host does not have the library left4me_host, so the text includes the library's modules that a program imports.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_CONTROL = Path(__file__).parent.parent
_HOST = _CONTROL.parent / "files/lib/left4me_host"
# Modules of the library that run before it is installed.
_OF_THE_HOST = ("cockpit.py", "daemon_reload.py", "filetree.py", "gc.py")
_PROGRAMS = {
    path.stem: path
    for path in [*_CONTROL.glob("remote/*.py"), _CONTROL / "lock/holder.py", *(_HOST / name for name in _OF_THE_HOST)]
}
_TEXT = """\
import sys, types
package = sys.modules["left4me_host"] = types.ModuleType("left4me_host")
for name, text in {modules!r}.items():
    module = sys.modules[f"left4me_host.{{name}}"] = types.ModuleType(f"left4me_host.{{name}}")
    exec(text, module.__dict__)
    setattr(package, name, module)
exec({program!r}, {{"__name__": "__main__"}})
"""


def _modules(program: str) -> dict[str, str]:
    """Return the texts of the left4me_host modules that a program imports at its top, after those that they import."""
    found: dict[str, str] = {}
    for line in re.findall("^from left4me_host import (.+)$", program, re.MULTILINE):
        for name in line.split(", "):
            text = (_HOST / f"{name}.py").read_text(encoding="utf-8")
            found |= {**_modules(text), name: text}
    return found


@cache
def program_text(name: str) -> str:
    """Return the text of a program, with its left4me_host modules; `name` is the stem of its file."""
    program = _PROGRAMS[name].read_text(encoding="utf-8")
    modules = _modules(program)
    return _TEXT.format(modules=modules, program=program) if modules else program


def program_command(name: str, *arguments: str) -> list[str]:
    """Return the command that runs a program on a host, in UTF-8 mode whatever the locale."""
    return ["python3", "-I", "-X", "utf8", "-c", program_text(name), *arguments]
