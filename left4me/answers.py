"""What hosts answer: bounded in size, of its type, safe to print. A host may be in others' hands."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from contextlib import suppress
from typing import Annotated, Any, NoReturn, TypeVar

from annotated_types import Len
from pydantic import Field, TypeAdapter, ValidationError

from left4me.connection import Command
from left4me_host import layout
from left4me_host.instance import plain

STATUS = 1 << 20
"""Bytes that a host may print for its status, or for any other short command."""
MOST = 64 << 20
"""Bytes that a host may print for one command."""
STREAM = 16 << 20
"""Bytes of a command whose output is shown as it arrives."""
LONGEST = 300
"""Characters of a reason that are shown."""
T = TypeVar("T")

Count = Annotated[int, Field(strict=True, ge=-(1 << 63), lt=1 << 63)]
Id = Annotated[str, Field(pattern=rf"\A{layout.SERVER_ID}\z")]
"""The id of a server; messages show it in commands."""
Pair = Annotated[list[T], Len(2, 2)]


class Wrong(ValueError):
    """A host's answer cannot be used; the message is one line that is safe to print."""


def short(text: str) -> str:
    """Return text from a host as the one line of a message."""
    line = plain(" ".join(text[: 4 * LONGEST].split()))
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def read(text: str, shape: TypeAdapter[T], most: int = MOST) -> T:
    """Return the JSON in an answer, which must have this type. Raises Wrong."""
    if len(text) > most:
        raise Wrong(f"its answer has more than {most >> 20} MB")
    try:
        # pydantic's own parser refuses lone surrogates, but a path on a host need not be UTF-8.
        return shape.validate_python(json.loads(text, parse_constant=_no_number))
    except RecursionError:
        raise Wrong("its answer is nested too deeply") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = "".join(f"{each}: " for each in first["loc"])
        raise Wrong(short(f"its answer is not as expected: {where}{first['msg']}")) from None
    except ValueError:
        raise Wrong(short(f"its answer is no JSON: {text[:100]!r}")) from None


def require(found: Any, keys: Any) -> None:
    """Raise Wrong unless a mapping in an answer has these keys."""
    if missing := sorted(set(keys) - set(found)):
        raise Wrong(short(f"its answer has no {', '.join(missing)}"))


def communicate(process: subprocess.Popen[Any], stdin: str, seconds: float | None, most: int | None) -> tuple[str, str]:
    """Return what a process prints on stdout and on stderr; both have pipes, `stdin` must fit into one.

    Raises TimeoutExpired after `seconds`, and Wrong if it prints more than `most` bytes on either. The process then
    still runs.
    """
    end = None if seconds is None else time.monotonic() + seconds
    with suppress(OSError):  # it has ended already; the output has the reason
        process.stdin.write(stdin if getattr(process.stdin, "encoding", None) else stdin.encode())  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    with suppress(OSError):
        process.stdin.close()  # type: ignore[union-attr]
    pipes = [pipe.fileno() for pipe in (process.stdout, process.stderr) if pipe]
    printed = {pipe: bytearray() for pipe in pipes}

    def left() -> float | None:
        if end is None or seconds is None:
            return None
        if (found := end - time.monotonic()) <= 0:
            raise subprocess.TimeoutExpired(process.args, seconds)
        return found

    with selectors.DefaultSelector() as waiting:
        for pipe in pipes:
            waiting.register(pipe, selectors.EVENT_READ)
        while waiting.get_map():
            for key, _events in waiting.select(left()):
                if not (data := os.read(key.fd, 1 << 16)):
                    waiting.unregister(key.fd)
                printed[key.fd] += data
                if most is not None and len(printed[key.fd]) > most:
                    raise Wrong(f"it printed more than {most >> 20} MB")
    process.wait(left())
    out, err = (printed[pipe].decode(errors="replace") for pipe in pipes)
    return out, err


def run(command: Command, seconds: float | None = None, most: int = STATUS) -> subprocess.CompletedProcess[str]:
    """Run a command on a host; see communicate(). Kills it before an error."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command.words, env=command.full_environment, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            out, err = communicate(process, command.stdin, seconds, most)
        except BaseException:
            with suppress(PermissionError):  # it runs under sudo, and ends when its output is closed
                process.kill()
            raise
    return subprocess.CompletedProcess(command.words, process.returncode, out, err)
