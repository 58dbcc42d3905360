"""What hosts may answer: each reader of an answer takes any bytes, and knows one error."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from left4me import answers, connection, fleet_status, shapes
from left4me.rollout import children
from left4me_host.status import table
from tests.deployed import reader
from tests.deployed.found import CYCLED, FOUND
from tests.deployed.hosts import NotRead, Target

ESCAPE = "\x1b]0;owned\x07\x1b[2J"
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
WORDS = st.text(max_size=5) | st.sampled_from(
    [*shapes.HostState.__annotations__, "error", "items", "url", "id", "name"]
)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4))
SHAPES: dict[str, TypeAdapter[Any]] = {
    **shapes.SHAPES,
    "fleet": fleet_status.ROWS,
    "found": FOUND,
    "cycled": CYCLED,
}
WORST = [
    "[" * 200_000,
    '{"a":' * 200_000,
    "9" * 100_000,
    "[1e999]",
    "NaN",
    '"\\ud800"',
    "\ud800",
    "",
    '{"python": [3]}',
]


def is_plain(text: str) -> bool:
    return text.isprintable() and len(text) < 400


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("text", WORST)
def test_the_worst_answers_are_one_short_line(name: str, text: str) -> None:
    with pytest.raises(answers.Wrong) as wrong:
        answers.read(text, SHAPES[name])
    assert is_plain(str(wrong.value))


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60).map(lambda data: data.decode(errors="replace")) | JSON.map(json.dumps))
def test_any_answer_is_of_its_type_or_wrong(name: str, text: str) -> None:
    with contextlib.suppress(answers.Wrong):
        answers.read(text, SHAPES[name])


STATUS: dict[str, Any] = {
    **{"id": "3", "state": "active", "since": "", "held": False, "port": 27015, "map": None, "players": 0, "slots": 8},
    **{"unanswered_since": None, "layers": [], "memory": 1 << 20, "restart_due": False, "next_map": False},
}


def ended(out: str, code: int = 0, err: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], code, f"{connection.MARK}\n{out}", err)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*STATUS]), JSON)
@example("memory", 10**400)
@example("map", "x" * 100_000)
@example("port", int("9" * 4000))
@example("id", 3)
@example("layers", [["a"]])
def test_a_lie_in_a_status_is_that_hosts_line(key: str, lie: Any) -> None:
    found = fleet_status.ask("h", {}, lambda *_: ended(json.dumps([{**STATUS, key: lie}])))
    if isinstance(found, fleet_status.Unreachable):
        assert is_plain(str(found).removeprefix("its l4d2ctl printed no valid status: deploy this host "))
    else:
        assert all(isinstance(cell, str) for line in table(found) for cell in line)


def test_a_good_status_is_read_and_an_unknown_key_ignored() -> None:
    found = fleet_status.ask("h", {}, lambda *_: ended(json.dumps([{**STATUS, "newer": [1]}])))
    assert isinstance(found, list)
    assert (found[0].id, found[0].port, found[0].restart_for) == ("3", 27015, [])


def test_what_a_host_says_of_its_failure_shows_no_escapes() -> None:
    found = fleet_status.ask("h", {}, lambda *_: ended("", 1, f"{ESCAPE}no such file\n"))
    assert "no such file" in str(found)
    assert is_plain(str(found))
    assert all(map(is_plain, children.last_lines(ESCAPE, f"a{ESCAPE}b\nc")))
    with pytest.raises(ValueError, match="no answer") as wrong:
        connection.answer(ESCAPE)
    assert is_plain(str(wrong.value))


@pytest.mark.parametrize("run", [answers.run, children.run])
@pytest.mark.parametrize("where", ["", " >&2"])
def test_endless_output_ends_the_command(run: Any, where: str) -> None:
    begun = time.monotonic()
    with pytest.raises(answers.Wrong, match="printed more than 1 MB"):
        run(connection.Command(["sh", "-c", f"yes{where}"]), 30)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("run", [answers.run, children.run])
def test_a_command_is_run_with_its_input_and_within_its_time(run: Any) -> None:
    done = run(connection.Command(["sh", "-c", "cat; echo x >&2; exit 3"], stdin="é\n"), 30)
    assert (done.returncode, done.stdout, done.stderr) == (3, "é\n", "x\n")
    done = run(connection.Command(["printf", "\\377"]), 30)
    assert done.stdout == "\ufffd"
    for line in ("sleep 60", "exec >&- 2>&-; sleep 60", "while echo; do sleep 0.1; done"):
        with pytest.raises(subprocess.TimeoutExpired):
            run(connection.Command(["sh", "-c", f"exec 0<&-; {line}"]), 0.5)


# -- verification


def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Target:
    """Return a host that prints this text whatever it is asked."""
    (tmp_path / "answer").write_text(text, errors="surrogatepass")
    said = f"cat {shlex.quote(str(tmp_path / 'answer'))}"
    monkeypatch.setattr(connection, "command", lambda *_: connection.Command(["sh", "-c", said]))
    return Target("h", {}, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [*(f"{connection.MARK}\n{each}" for each in WORST), ESCAPE, "", "{}"])
def test_a_host_that_lies_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    with pytest.raises(NotRead) as reason:
        target(tmp_path, monkeypatch, text).ask({}, FOUND)
    assert is_plain(str(reason.value))


def test_a_reader_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = target(tmp_path, monkeypatch, "")
    monkeypatch.setattr(connection, "command", lambda *_: connection.Command(["yes"]))
    with pytest.raises(NotRead, match="printed more than 64 MB"):
        host.ask({}, FOUND)


@given(st.binary(max_size=60))
@example(b"")
@example(b"\0\0\0\0" + b"abcd")
def test_an_a2s_answer_of_any_bytes_is_read_or_none(data: bytes) -> None:
    found = reader.parse(data)
    assert found is None or found["players"] >= 0


# -- the deploy


LIES = {
    "type": "echo '[1]'",
    "deep": "head -c 200000 /dev/zero | tr '\\0' '['",
    "endless": "yes 0123456789",
    "line": "cat /dev/zero",
    "errors": "yes >&2",
    "bytes": "printf '\\377\\033]0;x\\007'",
    "partial": """echo '{"python": [3, 11], "system": "debian 12", "root": true}'""",
    "silent": "true",
    "failing": "printf '\\033]0;x\\007\\377\\n' >&2; exit 1",
}


@pytest.fixture
def refused(tmp_path: Path) -> dict[str, str]:
    """Deploy to hosts of which each lies in another way; return what was said of each, by name."""
    lies = {**{f"@fake/{name}": lie for name, lie in LIES.items()}, "@fake/good": None}
    data = {"game": {"source": "host", "path": "/srv/l4d2"}, "servers": {}}
    (tmp_path / "hosts").write_text(f"hosts = {[(name, data) for name in lies]!r}\n")
    (tmp_path / "lies").write_text(json.dumps(lies))
    command = [sys.executable, "-m", "tests.unit.test_answers", str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, "PYINFRA_PROGRESS": "off"}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "\x1b" not in done.stderr
    assert "@fake/good] Ready" in done.stderr.replace(" ", "").replace("Ready", " Ready"), done.stderr
    assert (tmp_path / "rss").exists()
    assert int((tmp_path / "rss").read_text()) < 2 << 20  # KB
    lines = done.stderr.splitlines()
    return {name: "\n".join(line for line in lines if f"@fake/{name}]" in line) for name in LIES}


def test_a_host_that_lies_is_refused_alone(refused: dict[str, str]) -> None:
    for name, said in refused.items():
        assert "cannot read this host (gather)" in said, (name, said)
        assert "Ready" not in said
    assert "nested too deeply" in refused["deep"]
    assert "printed more than 64 MB" in refused["endless"]
    assert "printed more than 64 MB" in refused["line"]
    assert "has no apparmor" in refused["partial"]


def main(folder: Path) -> None:
    """Be pyinfra on hosts of which all but one lie about their state, over pyinfra's own local connection."""
    import resource

    from pyinfra.api.command import StringCommand
    from pyinfra.connectors.fake import FakeConnector
    from pyinfra.connectors.local import LocalConnector
    from pyinfra.connectors.util import CommandOutput, OutputLine
    from pyinfra_cli.cli import cli

    from left4me.lock import client, protocol
    from left4me.remote.program_text import program_text
    from tests.unit.test_fake import Other, bare

    lies = json.loads((folder / "lies").read_text())
    good = Other(bare())

    def run(connector: Any, command: Any, **arguments: Any) -> tuple[bool, Any]:
        lie = lies[connector.host.name]
        if not lie:
            words = command.get_raw_value().removeprefix(f"{protocol.fence(client.TOKEN)} ")
            return True, CommandOutput([OutputLine("stdout", good.run(words, arguments.get("_stdin")))])
        assert program_text("gather")[:20] in command.get_raw_value()
        local = LocalConnector(connector.state, connector.host)
        return LocalConnector.run_shell_command(local, StringCommand(lie), **arguments)

    FakeConnector.run_shell_command = run  # type: ignore[method-assign, assignment]
    try:
        cli([str(folder / "hosts"), "deploy.py", "-y"])
    finally:
        (folder / "rss").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
