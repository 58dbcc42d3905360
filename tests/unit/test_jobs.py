"""The records of jobs, on hosts that cannot write or lost their power too; and the locks of servers."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from left4me_host import builds, commands, instance, job_output, jobs, layout, server_lock, show, status_stream

KEYS = {
    *("job", "verb", "servers", "words", "who", "origin", "begun", "ended", "steps", "result", "seconds", "error"),
    *("lines", "line_count"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host's directories below a temporary directory; return the one of the jobs."""
    monkeypatch.setattr(layout, "JOBS", str(tmp_path / "jobs"))
    monkeypatch.setattr(layout, "RUN", str(tmp_path / "run"))
    monkeypatch.setenv("SUDO_USER", "anna")
    (tmp_path / "jobs").mkdir()
    return tmp_path / "jobs"


def run(*lines: str, verb: str = "reset") -> jobs.Job:
    """Run a job that prints lines."""
    with jobs.recorded(jobs.Job(verb, ["3"], f"{verb} 3", origin="a test")) as job:
        for line in lines:
            print(line)
    return job


def test_a_job_is_recorded_and_announced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with jobs.recorded(jobs.Job("reset", ["3"], "reset 3", origin="a test")) as job:
        running = jobs.read(1)
        with jobs.timed("stop"):
            print("one\ntwo")
        print("three", file=sys.stderr)
    found = jobs.read(1)
    assert running
    assert found
    assert running.keys() == found.keys() == KEYS
    assert (running["result"], running["ended"], running["lines"]) == ("running", None, [])
    assert job.number == found["job"] == 1
    assert found["lines"] == ["one", "two", "three"]
    assert (found["who"], found["origin"], found["words"]) == ("anna", "a test", "reset 3")
    assert (found["result"], found["error"], [*found["steps"]]) == ("succeeded", "", ["stop"])
    assert found["begun"] <= found["ended"]
    printed = capsys.readouterr()
    assert printed.out == f"one\ntwo\njob 1 succeeded in {found['seconds']:.2f} s\n"
    assert printed.err == "three\n"
    [row] = jobs.listed(jobs.latest())
    assert row == {key: value for key, value in found.items() if key != "lines"}
    assert [path.name for path in folder.iterdir()] == ["1.json"]


@pytest.mark.parametrize(
    ("error", "result", "said"),
    [
        (instance.Failed("no\nluck"), "failed", "l4d2ctl: no\nluck\njob 1 failed after # s\n"),
        (OSError("no disk"), "failed", "l4d2ctl: no disk\njob 1 failed after # s\n"),
        (jobs.Cancelled("by a stop"), "cancelled", "l4d2ctl: by a stop\njob 1 was cancelled\n"),
        (KeyboardInterrupt(), "interrupted", ""),
        (ZeroDivisionError(), "failed", "job 1 failed after # s\n"),
    ],
)
def test_how_a_job_ends(error: BaseException, result: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    streams = sys.stdout, sys.stderr
    with (
        pytest.raises(instance.Failed if isinstance(error, instance.Failed | OSError) else type(error)) as raised,
        jobs.recorded(jobs.Job("stop", ["3"], "stop 3")),
    ):
        raise error
    if isinstance(raised.value, instance.Failed):
        assert str(raised.value) == ""  # it is printed already
    job = jobs.read(1)
    assert job
    assert job["result"] == result
    assert job["lines"] == said.splitlines()[: job["line_count"]]
    assert re.sub(r"\d+\.\d\d s", "# s", capsys.readouterr().err) == said
    assert (sys.stdout, sys.stderr) == streams


def test_lines_are_the_last_200_short_and_printable() -> None:
    run(*map(str, range(250)), "\x1b[31m" + "x" * 600, "half")
    job = jobs.read(1)
    assert job
    assert (len(job["lines"]), job["line_count"], job["lines"][0]) == (200, 252, "52")
    assert (len(job["lines"][-2]), job["lines"][-2][:5]) == (500, "?[31m")


def test_the_latest_500_are_kept(folder: Path) -> None:
    for number in range(1, 503):
        (folder / f"{number}.json").write_text("{}")
    (folder / "foreign").touch()
    (folder / ".99999999").touch()  # of a command that was killed as it wrote
    (folder / f".{os.getppid()}").touch()  # of one that writes
    assert run().number == 503
    assert sorted(path.name for path in folder.glob(".*")) == [f".{os.getppid()}"]
    left = sorted(int(path.stem) for path in folder.glob("*.json"))
    assert left == list(range(4, 504))
    assert run().number == 504
    assert (folder / "foreign").exists()


def test_no_fault_if_another_command_removes_an_old_record_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "600.json").write_text("{}")
    listdir = os.listdir
    monkeypatch.setattr(
        os, "listdir", lambda path: [*listdir(path), "1.json"] if path == layout.JOBS else listdir(path)
    )
    assert run().number == 601
    assert capsys.readouterr().err == ""


def _begin(many: int, folder: str, numbers: Any) -> None:
    layout.JOBS = folder
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    numbers.put([run(str(os.getpid())).number for _ in range(many)])


def test_no_two_jobs_have_one_number(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    numbers: Any = context.Queue()
    processes = [context.Process(target=_begin, args=(40, str(folder), numbers)) for _ in range(8)]
    for process in processes:
        process.start()
    taken = [numbers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(number for each in taken for number in each) == list(range(1, 321))
    for each in taken:
        assert len({tuple((jobs.read(number) or {})["lines"]) for number in each}) == 1


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"verb": 3}', "\0" * 4096, "[" * 100_000, '{"verb": "reset", "servers": "3"}']
)
def test_a_damaged_record_is_an_interrupted_job(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "7.json").write_text(text)
    os.utime(folder / "7.json", (1000, 1000))
    job = jobs.read(7)
    assert job
    assert (job["result"], job["begun"], job["error"]) == ("interrupted", 1000, "its record is damaged")
    assert job.keys() == KEYS
    job_output.show(job)
    assert "job 7 was interrupted: its record is damaged" in capsys.readouterr().out
    assert [row["job"] for row in jobs.listed(jobs.latest())] == [7]
    assert job_output.table(jobs.listed(jobs.latest()))[1][0] == "7"
    assert run().number == 8


def test_a_job_whose_process_is_gone_was_interrupted(folder: Path) -> None:
    program = f"""
import os, sys
sys.path[:0] = {[str(Path(jobs.__file__).parents[1])]!r}
from left4me_host import jobs, layout
layout.JOBS = {str(folder)!r}
with jobs.recorded(jobs.Job("reset", ["3"], "reset 3")):
    print("begun", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        assert (jobs.read(1) or {})["result"] == "running"
        process.kill()
    job = jobs.read(1)
    assert job
    assert (job["result"], job["ended"], job["lines"]) == ("interrupted", None, ["begun"])


@pytest.mark.parametrize("key", ["start", "boot"])
def test_another_process_with_the_same_pid_is_not_the_job(folder: Path, key: str) -> None:
    with jobs.recorded(jobs.Job("reset", ["3"], "reset 3")):
        record = json.loads((folder / "1.json").read_text())
        assert (jobs.read(1) or {})["result"] == "running"
        (folder / "2.json").write_text(json.dumps({**record, key: "other"}))
        assert (jobs.read(2) or {})["result"] == "interrupted"


def fails(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("call", ["link", "rename"])
def test_a_record_that_cannot_be_written_stops_nothing(
    folder: Path, call: str, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, call, fails(number))
    run("one", "two")
    printed = capsys.readouterr()
    what = "this command is not recorded" if call == "link" else "the record of job 1 is incomplete"
    assert printed.err == f"l4d2ctl: {what}: [Errno {number}] {os.strerror(number)}\n"
    assert printed.out.startswith("one\ntwo\n")
    assert [path.name for path in folder.iterdir()] == ([] if call == "link" else ["1.json"])


def test_without_the_directory_a_job_is_not_recorded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.rmdir()
    run("one")
    printed = capsys.readouterr()
    assert printed.out == "one\n"
    assert printed.err.startswith("l4d2ctl: this command is not recorded: [Errno 2] ")


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
def test_a_stream_that_nobody_reads_changes_no_result(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        write = flush = staticmethod(fails(number))

        def isatty(self) -> bool:
            return True

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Closed())
        patch.setattr(sys, "stderr", Closed())
        run("one", "two")
        assert sys.stdout is None
    job = jobs.read(1)
    assert job
    assert (job["result"], job["lines"]) == ("succeeded", ["one", "two"])


def test_another_error_of_a_stream_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        write = flush = staticmethod(fails(errno.EFBIG))

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full())
        with pytest.raises(OSError, match="File too large"):
            run("one")
    assert (jobs.read(1) or {})["result"] == "failed"


def test_a_follower_shows_all_lines_once(capsys: pytest.CaptureFixture[str]) -> None:
    child = os.fork()
    if not child:
        with jobs.recorded(jobs.Job("reset", ["3"], "reset 3")) as job:
            job.says(["one", "two"])
        os._exit(0)
    os.waitpid(child, 0)
    job_output.follow(1)
    assert capsys.readouterr().out.startswith("one\ntwo\njob 1 succeeded in ")
    with pytest.raises(instance.Failed, match="the record of job 2 is gone"):
        job_output.follow(2)


# -- locks


def test_a_second_command_is_refused_by_name() -> None:
    with server_lock.held(["3", "4"]) as lock:
        lock.note(7, "reset by anna")
        with pytest.raises(instance.Failed) as refused, server_lock.held(["5", "4"]):
            pass
        assert str(refused.value).startswith("server 4: job 7 (reset by anna, since ")
        assert str(refused.value).endswith(" is running; follow it with: l4d2ctl jobs -f 7")
        with server_lock.held(["5"]):
            pass
    with server_lock.held(["3", "4", "5"]):
        pass


def test_what_has_no_job_is_named_too() -> None:
    with server_lock.held(["3"]) as lock:
        for about in ("", "left4me-remove"):
            lock.note(0, about)
            with pytest.raises(instance.Failed) as refused, server_lock.held(["3"]):
                pass
            assert f"another command ({about or 'not noted'}, since " in str(refused.value)
            assert str(refused.value).endswith("is running; wait until it ends")


def test_a_stop_goes_on_without_a_lock_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/3.job").mkdir()
    assert [*server_lock.awaited(["3"], 8, "stop by anna")] == [["3"]]
    assert capsys.readouterr().err.startswith("server 3: stopping it without its lock: [Errno 21]")


def test_a_stop_begins_with_the_servers_that_no_command_changes(capsys: pytest.CaptureFixture[str]) -> None:
    with server_lock.held(["4"]) as lock:
        lock.note(7, "restart by anna")
        stops = server_lock.awaited(["3", "4", "5"], 8, "stop by bob")
        assert next(stops) == ["3", "5"]
        with pytest.raises(server_lock.Taken, match=r"server 5: job 8 \(stop by bob"), server_lock.held(["5"]):
            pass
        assert capsys.readouterr().err == ""
    assert [*stops] == [["4"]]
    with server_lock.held(["3", "4", "5"]):
        pass


# -- a job that another process takes over


def _take_over(folder: str, number: int, verb: str, found: Any) -> None:
    layout.JOBS = folder
    job = jobs.Job.take_over(number, verb)
    found.put(job.number if job else 0)
    if job:
        job.announces = False
        with jobs.recorded(job):
            print("done")


def taken_over(folder: Path, number: int, verb: str = "reset") -> int:
    """Have another process take over a job, and return the number that it has."""
    context = multiprocessing.get_context("fork")
    found: Any = context.Queue()
    process = context.Process(target=_take_over, args=(str(folder), number, verb, found))
    process.start()
    process.join()
    return int(found.get(timeout=10))


def test_a_job_goes_on_in_another_process(folder: Path) -> None:
    job = jobs.Job("reset", ["3"], "reset 3", origin="a test")
    job.begin()
    before = jobs.read(1) or {}
    assert not job.is_taken_over()
    assert taken_over(folder, 1) == 1
    assert job.is_taken_over()
    after = jobs.read(1) or {}
    assert (after["result"], after["lines"]) == ("succeeded", ["done"])
    assert {key: after[key] for key in ("who", "origin", "begun", "words")} == {
        key: before[key] for key in ("who", "origin", "begun", "words")
    }


def test_only_a_running_job_of_the_same_verb_is_taken_over(folder: Path) -> None:
    job = jobs.Job("reset", ["3"], "reset 3")
    job.begin()
    assert taken_over(folder, 1, "game update") == 0
    assert taken_over(folder, 2) == 0
    record = json.loads((folder / "1.json").read_text())
    for key in ("boot", "start"):  # of another boot, or of a process that is gone
        (folder / "1.json").write_text(json.dumps({**record, key: "other"}))
        assert taken_over(folder, 1) == 0
    (folder / "1.json").write_text(json.dumps(record))
    assert taken_over(folder, 1) == 1
    assert taken_over(folder, 1) == 0  # it has ended


@pytest.mark.parametrize("text", ["", "no number", "7", "99999999999", "-1"])
def test_a_stale_note_of_an_update_is_not_trusted(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "_UPDATE_JOB", str(tmp_path / "run/update"))
    assert builds.noted_job() == 0
    jobs.Job("reset", ["3"], "reset 3").begin()
    for noted, found in ((1, 0), (2, 2)):
        if noted == 2:
            jobs.Job("game update", [], "game update").begin()
        builds.note_job(noted)
        assert builds.noted_job() == found
    (tmp_path / "run/update").write_text(text)
    assert builds.noted_job() == 0


# -- the command line


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (["stop", "3"], ["stop", "3"]),
        (["--origin", "stop", "stop", "stop"], ["stop", "stop"]),
        (["--origin=stop 3", "reset", "--undo", "3"], ["reset", "--undo", "3"]),
    ],
)
def test_the_words_of_a_job_are_without_its_origin(words: list[str], typed: list[str]) -> None:
    assert commands._typed(words) == typed


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('sv_password "se cret"\nsv_gravity "700"', 'sv_password (not shown)\nsv_gravity "700"'),
        ('LEFT4ME_ARGUMENTS="+sv_password secret +map x"', 'LEFT4ME_ARGUMENTS="+sv_password (not shown) +map x"'),
        ("rcon_password    s3cret", "rcon_password    (not shown)"),
        ("exec left4me/secret/rcon.cfg", "exec left4me/secret/rcon.cfg"),
    ],
)
def test_no_password_is_shown(text: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SERVERS", str(tmp_path))
    (tmp_path / "3/secret").mkdir(parents=True)
    (tmp_path / "3/server.cfg").write_text(text)
    assert show._declared("3") == {"server.cfg": shown}


def test_a_job_that_waits_is_followed_however_many_others_come() -> None:
    waits = jobs.Job("restart", ["3"], "restart --when-empty 3")
    waits.begin()
    waits.becomes(jobs.WAITING)
    for _ in range(25):
        run()
    recent, late = status_stream.RecentJobs(), status_stream.RecentJobs()
    latest = [*range(26, 6, -1)]
    assert [each["job"] for each in recent.rows()] == [*latest, 1]
    waits.end(jobs.CANCELLED)
    run()
    now = recent.rows()
    assert [each["job"] for each in now] == [27, *latest[:-1], 1]
    assert now[-1]["result"] == "cancelled"
    assert [each["job"] for each in recent.rows()] == [each["job"] for each in late.rows()] == [27, *latest[:-1]]


def test_the_record_of_a_job_that_waits_stays_however_many_others_come(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "KEPT", 5)
    waits = jobs.Job("restart", ["3"], "restart --when-empty 3")
    waits.begin()
    for _ in range(9):
        run()
    assert jobs.read(1)
    waits.end(jobs.SUCCEEDED)
    run()
    assert sorted(int(path.stem) for path in folder.iterdir()) == [7, 8, 9, 10, 11]


def test_output_on_a_full_disk_ends_no_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.rmdir()  # nothing can be recorded
    left: list[object] = []
    # They fail to write at their end, too.
    with suppress(OSError), open("/dev/full", "w") as full, open("/dev/full", "w") as errors:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", errors)
        run("one")
        jobs.tell("two")
        jobs.tell("three", "stderr")
        left = [sys.stdout, sys.stderr]
    assert left == [None, None]


@pytest.mark.parametrize(
    "words", [["stop", "3"], ["--origin", "x", "stop", "3"], ["--orig=x", "stop", "3"], ["--version", "stop", "3"]]
)
def test_the_words_of_a_job_begin_with_its_command(words: list[str]) -> None:
    assert commands._typed(words) == ["stop", "3"]


@pytest.mark.parametrize("server", ["deploy", "turn", "update"])
def test_a_servers_lock_is_no_other_file_whatever_its_id(server: str) -> None:
    with server_lock.held([server]) as lock:
        lock.note(1, "reset by anna")
        others = {layout.DEPLOY_LOCK.replace("/run/left4me", layout.RUN), f"{layout.RUN}/turn", f"{layout.RUN}/update"}
        assert server_lock.path(server) not in others


def test_who_asks_at_the_same_moment_is_told_the_job_too(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    said: Any = context.Queue()

    def ask() -> None:
        try:
            with server_lock.held(["3"]):
                said.put("nothing")
        except server_lock.Taken as taken:
            said.put(str(taken))

    with server_lock.held(["3"]) as lock:
        asking = context.Process(target=ask)
        asking.start()
        asking.join(1)
        assert asking.is_alive()  # it waits for the name
        lock.note(7, "reset by anna")
        asking.join()
        assert said.get(timeout=10).startswith("server 3: job 7 (reset by anna, since ")


@pytest.mark.parametrize(
    ("state", "players", "quiet"),
    [
        *(("active", 0, True), ("inactive", None, True), ("failed", None, True)),
        *(("active", 1, False), ("active", None, False), ("activating", None, False)),
    ],
)
def test_a_server_is_asked_less_often_only_while_nobody_plays(state: str, players: int | None, quiet: bool) -> None:
    row: Any = SimpleNamespace(state=state, players=players)
    assert status_stream.is_quiet(row) is quiet
