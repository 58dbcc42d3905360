"""left4me-overlay by itself, on a host whose server 3 is stopped: what it mounts, unmounts and refuses."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boxes.boxes import Box
from tests.integration.harness import overlays, properties, wait_for, wait_for_server

HELPER = "/usr/local/libexec/left4me/left4me-overlay"
VAR = "/var/lib/left4me"
OVERLAYS = f"{VAR}/overlays"
RUNTIME = f"{VAR}/runtime/3"
MERGED = f"{RUNTIME}/merged"
LAYERS = "/etc/left4me/servers/3/layers"
ROUNDS = 200 if os.environ.get("SOAK") else 20
# By these a process waits for time to pass.
WAITS = "nanosleep,clock_nanosleep,select,pselect6,poll,ppoll,epoll_wait,epoll_pwait,epoll_pwait2,pause,rt_sigtimedwait"
CHANGED = (LAYERS, RUNTIME, OVERLAYS, f"{VAR}/installation")


@pytest.fixture(scope="module")
def stopped(deployed: Box) -> Box:
    """The module's box with server 3 stopped, and a copy of all that the tests change."""
    wait_for_server(deployed, 27015)
    deployed.run(f"systemctl stop left4me-server@3; tar -C / --create --file /root/kept {' '.join(CHANGED)}")
    return deployed


@pytest.fixture
def box3(stopped: Box) -> Iterator[Box]:
    """A box whose server 3 has two layers, `high` over `low`; afterwards it is as it was."""
    stopped.run(f"""
        mkdir -p {OVERLAYS}/high/1 {OVERLAYS}/high/2/left4dead2/cfg {OVERLAYS}/low/2024.1
        ln -s 2 {OVERLAYS}/high/current; ln -s 2024.1 {OVERLAYS}/low/current
        echo high >{OVERLAYS}/high/2/both; echo low >{OVERLAYS}/low/2024.1/both; echo low >{OVERLAYS}/low/2024.1/one
        echo high >{OVERLAYS}/high/2/left4dead2/cfg/valve.rc
        chown -R left4me:left4me {OVERLAYS}/*/*[0-9]; chmod -R g+w {OVERLAYS}/*/*[0-9]
        printf 'high\\nlow\\n' >{LAYERS}
    """)
    yield stopped
    stopped.run(f"""
        while umount -q {MERGED}; do :; done
        while umount -q {RUNTIME}; do :; done
        rm -f /run/left4me/3.overlay
        rm -rf {" ".join(CHANGED)}
        tar -C / --extract --preserve-permissions --file /root/kept
    """)


def helper(box: Box, *arguments: str, status: int = 0) -> str:
    """Run the helper, which has to end with `status`, and say one line where that is not 0; return the line."""
    done = box.run(shlex.join([HELPER, *arguments]), check=False)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    said = done.stderr.splitlines()
    assert len(said) == (1 if status else 0), done.stderr
    assert all(line.startswith("left4me-overlay: ") for line in said)
    return done.stderr.strip()


def traced(box: Box, *arguments: str, status: int = 0, inject: str = "") -> list[str]:
    """Run the helper under this machine's strace, which may `inject`; return its calls about mounts and time."""
    enter = ["nsenter", "--target", str(box.leader), "--mount", "--pid", "--uts", "--ipc", "--net", "--"]
    what = f"trace=/^u?mount|^fs(open|config|mount)|^move_mount,{WAITS}"
    command = ["strace", "-f", "-qq", "-s", "5000", "-e", what, "-e", "signal=none"]
    command += [*(["-e", f"inject={inject}"] if inject else []), *enter, HELPER, *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    calls = [re.sub(r"^\[pid +\d+\] ", "", line) for line in done.stderr.splitlines()]
    return [line for line in calls if re.match(r"\w+\(", line)]


def mountinfo(box: Box) -> str:
    """Return all mounts of a box's PID 1, read from outside."""
    return Path(f"/proc/{box.leader}/mountinfo").read_text(encoding="utf-8")


def options(box: Box) -> dict[str, str]:
    """Return the options of the one overlay on merged, as the kernel reports them."""
    [line] = [line for line in mountinfo(box).splitlines() if line.split()[4] == MERGED]
    return dict(option.partition("=")[::2] for option in line.split()[-1].split(","))


def release(box: Box) -> str:
    """Return the directory that `installation` names."""
    return f"{VAR}/{box.run(f'readlink {VAR}/installation').stdout.strip()}"


def test_layers_are_mounted_by_their_versions_the_topmost_first(box3: Box) -> None:
    helper(box3, "mount", "3")
    found = options(box3)
    assert found["lowerdir"].split(":") == [f"{OVERLAYS}/high/2", f"{OVERLAYS}/low/2024.1", release(box3)]
    assert (found["upperdir"], found["workdir"]) == (f"{RUNTIME}/upper", f"{RUNTIME}/work")
    seen = box3.run(f"cd {MERGED} && cat both one left4dead2/cfg/valve.rc && test -f srcds_run").stdout
    assert seen.split() == ["high", "low", "high"]


def test_a_layer_changes_its_version_between_two_mounts_and_not_under_one(box3: Box) -> None:
    helper(box3, "mount", "3")
    box3.run(f"ln -s 1 {OVERLAYS}/high/new && mv -T {OVERLAYS}/high/new {OVERLAYS}/high/current")
    assert "other layers than declared" in helper(box3, "mount", "3", status=1)
    assert options(box3)["lowerdir"].startswith(f"{OVERLAYS}/high/2:")
    helper(box3, "umount", "3")
    helper(box3, "mount", "3")
    assert options(box3)["lowerdir"].startswith(f"{OVERLAYS}/high/1:")


def test_mount_and_umount_again_change_nothing(box3: Box) -> None:
    before = mountinfo(box3)
    helper(box3, "mount", "3")
    once = mountinfo(box3)
    assert MERGED in once
    helper(box3, "mount", "3")
    assert mountinfo(box3) == once
    helper(box3, "umount", "3")
    assert mountinfo(box3) == before
    helper(box3, "umount", "3")
    assert mountinfo(box3) == before


@pytest.mark.soak
def test_two_at_once_end_as_one(box3: Box) -> None:
    box3.run(
        f"""
        both() {{
            {HELPER} $1 3 & first=$!
            {HELPER} $2 3 & second=$!
            wait $first || exit 1
            wait $second || exit 2
        }}
        mounts() {{ grep -c ' {MERGED} ' /proc/1/mountinfo; }}
        for round in $(seq {ROUNDS}); do
            both mount mount; [ $(mounts) = 1 ] || exit 3
            both umount umount; [ $(mounts) = 0 ] || exit 4
            both umount mount; [ $(mounts) -le 1 ] || exit 5
        done
        """,
        timeout=ROUNDS * 3,
    )


def test_the_kernel_is_asked_for_the_four_features_off_and_for_no_flag_more(box3: Box) -> None:
    [call] = traced(box3, "mount", "3")
    name, target, kind, flags, data = call.removesuffix(") = 0").split(", ", 4)
    assert (name, target, kind) == ('mount("overlay"', f'"{MERGED}"', '"overlay"')
    assert flags == "MS_NOSUID|MS_NODEV"
    assert data.endswith(',index=off,metacopy=off,redirect_dir=off,xino=off"')
    # The kernel reports what is not its default.
    where = "/sys/module/overlay/parameters"
    defaults = box3.run(f"cd {where} && cat index metacopy redirect_dir xino_auto").stdout.split()
    reported = options(box3)
    for option, default in zip(("index", "metacopy", "redirect_dir", "xino"), defaults, strict=True):
        assert reported.get(option, "off" if default == "N" else default) == "off"


def test_a_hundred_layers(box3: Box) -> None:
    names = [f"layer{number:03}" for number in range(100)]
    box3.run(f"""
        cd {OVERLAYS}
        for name in {" ".join(names)}; do
            mkdir -p $name/1.0; ln -s 1.0 $name/current; echo $name | tee $name/1.0/top >$name/1.0/$name
            echo $name
        done >{LAYERS}
    """)
    helper(box3, "mount", "3")
    lowers = options(box3)["lowerdir"].split(":")
    assert lowers == [*(f"{OVERLAYS}/{name}/1.0" for name in names), release(box3)]
    seen = box3.run(f"cd {MERGED} && cat top {' '.join(names)}").stdout.split()
    assert seen == ["layer000", *names]
    helper(box3, "umount", "3")
    assert MERGED not in overlays(box3)


def test_more_than_a_page_is_refused_before_the_kernel_is_asked(box3: Box) -> None:
    box3.run(f"""
        cd {OVERLAYS}
        for number in $(seq 60); do
            name=$(printf 'a-layer-whose-name-is-as-long-as-a-name-of-a-layer-may-be-%05d' $number)
            mkdir -p $name/1; ln -s 1 $name/current; echo $name
        done >{LAYERS}
    """)
    assert "mount(2) takes one page" in helper(box3, "mount", "3", status=2)
    assert traced(box3, "mount", "3", status=2) == []
    assert MERGED not in overlays(box3)


def test_what_overlayfs_leaves_in_work_is_removed(box3: Box) -> None:
    helper(box3, "mount", "3")
    helper(box3, "umount", "3")
    assert box3.run(f"ls -A {RUNTIME}/work").stdout == ""
    box3.run(f"""
        mkdir -p {RUNTIME}/work/work/a/b; touch {RUNTIME}/work/work/a/file; mknod {RUNTIME}/work/work/#1 c 0 0
        ln -s {VAR}/installation/ {RUNTIME}/work/work/a/link; chmod 0 {RUNTIME}/work/work
    """)
    helper(box3, "umount", "3")
    assert box3.run(f"ls -A {RUNTIME}/work").stdout == ""
    box3.run(f"test -f {VAR}/installation/srcds_run")
    # It mounts over what a power cut left, too.
    box3.run(f"mkdir -m 0 {RUNTIME}/work/work; touch {RUNTIME}/work/work/#2")
    helper(box3, "mount", "3")


@pytest.mark.parametrize("server", ["../x", "", ".", "A", "a" * 21, "_check", "-3", "a/b", "3 ", "3\n", "ä", "٣"])
def test_what_is_no_id_is_refused(box3: Box, server: str) -> None:
    before = mountinfo(box3)
    for action in ("mount", "umount"):
        assert "is not a server id" in helper(box3, action, server, status=2)
    assert mountinfo(box3) == before


def test_an_interrupt_is_one_line(box3: Box) -> None:
    """As systemd sends it to a helper that takes longer than a stop may."""
    done = box3.run(
        f"""
        flock --no-fork {RUNTIME} sleep 50 & holder=$!
        env --default-signal=INT {HELPER} umount 3 & helper=$!
        until grep -q -- "-> FLOCK .* $helper " /proc/locks; do sleep 0.1; done
        kill -INT $helper; wait $helper; code=$?
        kill $holder; exit $code
        """,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n"), "interrupted" in done.stderr) == (1, 1, True), done.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["mount"], ["mount", "3", "4"], ["remount", "3"], ["3", "mount"], ["--help"]]
)
def test_wrong_usage_is_refused(box3: Box, arguments: list[str]) -> None:
    assert helper(box3, *arguments, status=2) == "left4me-overlay: usage: left4me-overlay mount|umount ID"
    assert MERGED not in overlays(box3)


def test_a_server_that_nobody_declared_is_refused(box3: Box) -> None:
    assert f"{VAR}/runtime/nobody must be a directory" in helper(box3, "mount", "nobody", status=2)


CURRENT = f"{OVERLAYS}/high/current"
# What is done to a host, and the path that the refusal has to name.
DAMAGES = {
    "layers-are-a-symlink": (f"mv {LAYERS} /etc/layers && ln -s /etc/layers {LAYERS}", LAYERS),
    "layers-are-missing": (f"rm {LAYERS}", LAYERS),
    "layers-are-a-directory": (f"rm {LAYERS} && mkdir {LAYERS}", LAYERS),
    "layers-are-a-fifo": (f"rm {LAYERS} && mkfifo {LAYERS}", LAYERS),
    "layers-are-the-games": (f"chown left4me {LAYERS}", LAYERS),
    "layers-are-group-writable": (f"chmod g+w {LAYERS}", LAYERS),
    "layers-are-everybodys": (f"chmod o+w {LAYERS}", LAYERS),
    "layer-is-named-twice": (f"echo high >>{LAYERS}", "'high' is listed twice"),
    "layer-leads-up": (f"echo ../x >>{LAYERS}", "'../x'"),
    "layer-has-a-slash": (f"mkdir {OVERLAYS}/a/b && echo a/b >>{LAYERS}", "'a/b'"),
    "layer-has-a-comma": (f"cp -a {OVERLAYS}/high {OVERLAYS}/a,b && echo a,b >>{LAYERS}", "'a,b'"),
    "layer-has-a-colon": (f"cp -a {OVERLAYS}/high {OVERLAYS}/a:b && echo a:b >>{LAYERS}", "'a:b'"),
    "layer-is-hidden": (f"cp -a {OVERLAYS}/high {OVERLAYS}/.high && echo .high >>{LAYERS}", "'.high'"),
    "layer-is-not-ascii": (f"cp -a {OVERLAYS}/high {OVERLAYS}/hïgh && echo hïgh >>{LAYERS}", LAYERS),
    "layer-is-too-long": (
        f"name=$(printf %065d 0); cp -a {OVERLAYS}/high {OVERLAYS}/$name; echo $name >>{LAYERS}",
        LAYERS,
    ),
    "layer-is-not-there": (f"echo absent >>{LAYERS}", f"{OVERLAYS}/absent/current"),
    "layer-is-a-symlink": (f"mv {OVERLAYS}/high {VAR} && ln -s ../high {OVERLAYS}/high", f"{OVERLAYS}/high"),
    "current-is-missing": (f"rm {CURRENT}", CURRENT),
    "current-is-a-directory": (f"rm {CURRENT} && mkdir {CURRENT}", CURRENT),
    "current-is-absolute": (f"ln -sfn {OVERLAYS}/high/2 {CURRENT}", CURRENT),
    "current-leads-out": (f"ln -sfn ../low/2024.1 {CURRENT}", CURRENT),
    "current-leads-to-its-parent": (f"ln -sfn .. {CURRENT}", CURRENT),
    "current-leads-deeper": (f"ln -sfn 2/left4dead2 {CURRENT}", CURRENT),
    "current-leads-to-itself": (f"ln -sfn current {CURRENT}", CURRENT),
    "current-dangles": (f"ln -sfn 3 {CURRENT}", f"{OVERLAYS}/high/3"),
    "current-leads-to-a-file": (f"touch {OVERLAYS}/high/3 && ln -sfn 3 {CURRENT}", f"{OVERLAYS}/high/3"),
    "current-leads-to-a-symlink": (f"ln -s 2 {OVERLAYS}/high/3 && ln -sfn 3 {CURRENT}", f"{OVERLAYS}/high/3"),
    "current-is-the-games": (f"chown -h left4me {CURRENT}", CURRENT),
    "installation-is-missing": (f"rm {VAR}/installation", f"{VAR}/installation"),
    "installation-is-absolute": (
        f"ln -sfn $(readlink -f {VAR}/installation) {VAR}/installation",
        f"{VAR}/installation",
    ),
    "installation-leads-out": (f"ln -sfn overlays/high {VAR}/installation", f"{VAR}/installation"),
    "installation-is-the-games": (f"chown -h left4me {VAR}/installation", f"{VAR}/installation"),
    "upper-is-missing": (f"rm -r {RUNTIME}/upper", f"{RUNTIME}/upper"),
    "upper-is-a-symlink": (f"mv {RUNTIME}/upper {RUNTIME}/u && ln -s u {RUNTIME}/upper", f"{RUNTIME}/upper"),
    "work-is-missing": (f"rmdir {RUNTIME}/work", f"{RUNTIME}/work"),
    "work-is-a-symlink": (f"mv {RUNTIME}/work {RUNTIME}/w && ln -s w {RUNTIME}/work", f"{RUNTIME}/work"),
    "work-is-the-games": (f"chown left4me-3 {RUNTIME}/work", f"{RUNTIME}/work"),
    "merged-is-missing": (f"rm -r {MERGED}", MERGED),
    "merged-is-a-symlink": (f"mv {MERGED} {RUNTIME}/m && ln -s m {MERGED}", MERGED),
    "merged-is-a-file": (f"rm -r {MERGED} && touch {MERGED}", MERGED),
    "runtime-is-a-symlink": (f"mv {RUNTIME} {VAR}/r && ln -s {VAR}/r {RUNTIME}", RUNTIME),
    "runtime-is-the-games": (f"chown left4me-3 {RUNTIME}", RUNTIME),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_as_the_deploy_makes_it_is_refused(box3: Box, damage: str) -> None:
    command, named = DAMAGES[damage]
    helper(box3, "mount", "3")  # as it is, it mounts: what is refused below is the damage
    helper(box3, "umount", "3")
    before = mountinfo(box3)
    box3.run(f"rm -rf /etc/layers {VAR}/high {VAR}/r; mkdir -p {OVERLAYS}/a; {command}")
    assert named in helper(box3, "mount", "3", status=2)
    assert mountinfo(box3) == before


def test_a_busy_overlay_is_a_failure_at_once(box3: Box) -> None:
    helper(box3, "mount", "3")
    holder = box3.run(f"cd {MERGED}/left4dead2 && {{ setsid sleep 300 >/dev/null 2>&1 & echo $!; }}").stdout.strip()
    wait_for("the holder is there", lambda: "left4dead2" in box3.run(f"readlink /proc/{holder}/cwd").stdout)
    try:
        began = time.monotonic()
        assert f"Device or resource busy: held by pid {holder} (sleep) by its cwd" in helper(
            box3, "umount", "3", status=1
        )
        assert time.monotonic() - began < 10
        [call] = traced(box3, "umount", "3", status=1)
        assert re.fullmatch(rf'umount2\("{MERGED}", 0\) += -1 EBUSY .*', call)
        assert MERGED in overlays(box3)
    finally:
        box3.run(f"kill {holder}")
    wait_for("the holder is gone", lambda: box3.run(f"test -e /proc/{holder}", check=False).returncode != 0)
    [call] = traced(box3, "umount", "3")
    assert re.fullmatch(rf'umount2\("{MERGED}", 0\) += 0', call)
    assert MERGED not in overlays(box3)


def test_busy_for_an_instant_though_nobody_holds_it_is_tried_once_more(box3: Box) -> None:
    helper(box3, "mount", "3")
    calls = traced(box3, "umount", "3", inject="umount2:error=EBUSY:when=1")
    assert [re.sub(r" +", " ", call) for call in calls] == [
        f'umount2("{MERGED}", 0) = -1 EBUSY (Device or resource busy) (INJECTED)',
        f'umount2("{MERGED}", 0) = 0',
    ]
    assert MERGED not in overlays(box3)


def test_there_is_no_third_time(box3: Box) -> None:
    helper(box3, "mount", "3")
    calls = traced(box3, "umount", "3", status=1, inject="umount2:error=EBUSY")
    assert [re.sub(r" +", " ", call) for call in calls] == [
        f'umount2("{MERGED}", 0) = -1 EBUSY (Device or resource busy) (INJECTED)'
    ] * 2
    assert MERGED in overlays(box3)
    helper(box3, "umount", "3")


def test_a_symlink_of_the_game_where_systemd_binds_its_cfg_is_refused(box3: Box) -> None:
    cfg = f"{RUNTIME}/upper/left4dead2/cfg"
    box3.run(f"rm -rf {cfg} && mkdir -p {RUNTIME}/upper/left4dead2 && ln -s /etc {cfg}")
    try:
        for _ in range(2):  # also where it is mounted already
            assert "behind a symlink of the game" in helper(box3, "mount", "3", status=2)
    finally:
        helper(box3, "umount", "3")
        box3.run(f"rm {cfg}")


def test_its_own_working_directory_does_not_hold_the_overlay(box3: Box) -> None:
    helper(box3, "mount", "3")
    box3.run(f"cd {MERGED}/left4dead2 && exec {HELPER} umount 3")
    assert MERGED not in overlays(box3)


def test_a_full_disk_is_a_failure_and_no_overlay_that_cannot_be_written(box3: Box) -> None:
    box3.run(f"""
        mount -t tmpfs -o mode=0700,nr_inodes=8 full {RUNTIME}
        mkdir {RUNTIME}/upper {RUNTIME}/work {RUNTIME}/merged
        until ! touch $(mktemp -u -p {RUNTIME}) 2>/dev/null; do :; done
    """)
    assert "disk full" in helper(box3, "mount", "3", status=1)
    assert MERGED not in overlays(box3)
    box3.run(f"rm {RUNTIME}/tmp.*")
    helper(box3, "mount", "3")


def test_a_power_cut_while_mounted_is_no_obstacle(box3: Box) -> None:
    helper(box3, "mount", "3")
    box3.run(f"echo kept >{MERGED}/left4dead2/kept; sync {MERGED}/left4dead2/kept")
    # Named by no layer of the data, and the boot starts the server as it is declared.
    box3.crash()
    box3.start()
    wait_for_server(box3, 27015)
    assert options(box3)["lowerdir"].startswith(f"{OVERLAYS}/high/2:")
    assert box3.run(f"cat {MERGED}/left4dead2/kept").stdout == "kept\n"
    box3.run("systemctl stop left4me-server@3")
    assert properties(box3, "left4me-server@3", "ActiveState") == {"ActiveState": "inactive"}
    assert MERGED not in overlays(box3)
    assert box3.run(f"ls -A {RUNTIME}/work").stdout == ""
