"""What a server may see and change, asked from inside: a probe runs in the unit in the game's place."""

from __future__ import annotations

import signal

from tests.boxes.boxes import Box
from tests.integration.harness import overlays, properties, wait_for, wait_for_server
from tests.integration.probe import DROP_IN, MERGED, UNIT, VAR, as_user, inside, main_pid


def reaching(pid: int) -> list[str]:
    """Return attempts to reach another server's process: its files, itself, its place in /proc."""
    return [
        f"os.listdir('/proc/{pid}/root/')",
        f"os.listdir('/proc/{pid}/cwd/')",
        f"os.listdir('/proc/{pid}/fd/')",
        f"read('/proc/{pid}/environ')",
        f"os.kill({pid}, 0)",
        f"os.kill({pid}, signal.SIGCONT)",
    ]


def test_a_server_cannot_reach_another(drop_in: Box) -> None:
    box, pid = drop_in, main_pid(drop_in, "4")
    *proc, signal_none, signal_cont = reaching(pid)
    everybody = "[pid for pid in os.listdir('/proc') if pid.isdigit() and int(pid) != os.getpid()]"
    said = inside(box, [*proc, signal_none, signal_cont, everybody, f"os.stat('/proc/{pid}')"])
    assert said[everybody] == []
    assert said[f"os.stat('/proc/{pid}')"] == "ENOENT"
    assert {said[each] for each in proc} == {"ENOENT"}
    assert said[signal_none] == said[signal_cont] == "EPERM"
    assert main_pid(box, "4") == pid


def test_one_servers_user_cannot_reach_another_even_in_no_sandbox(probed: Box) -> None:
    for one, other in (("3", "4"), ("4", "3")):
        pid = main_pid(probed, other)
        *proc, signal_none, signal_cont = reaching(pid)
        said = as_user(probed, f"left4me-{one}", [*proc, signal_none, signal_cont])
        assert {said[each] for each in proc} == {"EACCES"}
        assert said[signal_none] == said[signal_cont] == "EPERM"
        # The attempt is one that its own user can make.
        assert as_user(probed, f"left4me-{other}", [signal_cont]) == {signal_cont: None}


def test_the_layers_and_the_servers_are_closed_to_the_users_of_the_servers(probed: Box) -> None:
    release = probed.run(f"readlink -f {VAR}/installation").stdout.strip()
    kept = [f"{VAR}/{name}" for name in ("releases", "overlays", "secrets", "attic", "runtime/3", "runtime/4")]
    attempts = [f"os.listdir({path!r})" for path in kept]
    attempts += [f"read('{release}/srcds_run')", f"write('{release}/srcds_run')", f"write('{MERGED}/x')"]
    assert set(as_user(probed, "left4me-3", attempts).values()) == {"EACCES"}


def test_a_server_writes_in_merged_and_nowhere_else(drop_in: Box) -> None:
    box = drop_in
    places = ["/", "/etc", "/etc/left4me", "/usr/local/lib", "/var", "/var/lib", VAR, f"{VAR}/runtime", "/opt", "/srv"]
    places += [f"{VAR}/runtime/3", f"{MERGED}/left4dead2/cfg/left4me", "/home", "/root", "/mnt", "/media", "/run/lock"]
    attempts = [f"write('{place}/left-by-3')" for place in places]
    shared = [f"os.path.exists('{VAR}/{each}')" for each in ("runtime/4", "releases", "overlays", "secrets", "attic")]
    # Of these it has its own, which end with it.
    private = ["/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue"]
    walk = f"writable('/', {['/proc', '/sys', MERGED, *private]})"
    box.run(f"for place in {' '.join(private)}; do echo host >$place/of-the-host || true; done")
    seen = [f"os.path.exists('{place}/of-the-host')" for place in private]
    own = [f"write('{place}/left-by-3')" for place in private[:3]]
    said = inside(box, [*attempts, *shared, walk, *seen, *own])
    assert {key: said[key] for key in attempts if said[key] not in ("EROFS", "EACCES", "ENOENT")} == {}
    assert {said[each] for each in (*shared, *seen)} == {False}
    assert said[walk] == []
    assert {said[each] for each in own} == {None}
    find = "find / -xdev -name left-by-3; find /tmp /dev /run /var/lib -name left-by-3; true"
    wait_for("what was private has gone, and nothing is left", lambda: box.run(find).stdout == "")
    box.run(f"rm -f {' '.join(f'{place}/of-the-host' for place in private)}")


def test_files_in_the_servers_tmp_are_not_the_hosts_on_debian_13(drop_in: Box, debian: int) -> None:
    """On Debian 12 they are, which docs/threats.md says."""
    box, count = drop_in, 400_000 if debian == 13 else 1_000
    # The last command of a stop runs before systemd removes a server's /tmp.
    files = "find /tmp /var/tmp -path '*left4me-server@3*' -type f | wc -l"
    late = f'ExecStopPost=+/usr/bin/nsenter --mount=/proc/1/ns/mnt -- /bin/sh -c "{files} >/root/files"'
    mounts = box.run("wc -l </proc/1/mountinfo").stdout
    attempts = [f"fill('/tmp', {count})", "fill('/var/tmp', 5_000)"]
    said = inside(box, attempts, late)
    assert said == dict.fromkeys(attempts)
    assert int(box.run("cat /root/files").stdout) == (0 if debian == 13 else count + 5_000)
    find = "find /tmp /var/tmp -name '*left4me-server@3*'"
    wait_for("its /tmp and /var/tmp are gone", lambda: box.run(find).stdout == "")
    assert box.run("wc -l </proc/1/mountinfo").stdout == mounts


def test_a_server_reaches_no_socket_of_journald_systemd_and_dbus(drop_in: Box) -> None:
    stream, datagram = "socket.SOCK_STREAM", "socket.SOCK_DGRAM"
    sockets = [("/run/systemd/journal/stdout", stream), ("/run/dbus/system_bus_socket", stream)]
    sockets += [("/run/systemd/journal/socket", datagram), ("/run/systemd/notify", datagram), ("/dev/log", datagram)]
    attempts = [f"connect({path!r}, {kind})" for path, kind in sockets]
    assert set(as_user(drop_in, "left4me-3", attempts).values()) == {None}  # each is open to any user of the host
    drop_in.run("mkdir -p /run/systemd/resolve && echo nameserver 192.0.2.1 >/run/systemd/resolve/stub-resolv.conf")
    resolver, below, logs = (
        "read('/run/systemd/resolve/stub-resolv.conf')",
        "os.listdir('/run')",
        "os.listdir('/var/log')",
    )
    said = inside(drop_in, [*attempts, resolver, below, logs, "os.listdir('/boot')"])
    assert {said[each] for each in attempts} == {"ENOENT"}
    assert said[resolver] == "nameserver 192.0.2.1\n"
    assert said[below] == ["systemd"]
    assert (said[logs], said["os.listdir('/boot')"]) == ("EACCES", "EACCES")


def test_a_server_makes_no_io_uring_and_dumps_no_core(drop_in: Box) -> None:
    numbers = {"io_setup": 206, "io_uring_setup": 425, "add_key": 248, "mlockall": 151, "pkey_alloc": 330}
    attempts = [f"call({number})" for number in numbers.values()]  # of x86-64, as the probe is
    assert "EPERM" not in as_user(drop_in, "left4me-3", attempts[:2]).values()
    said = inside(drop_in, [*attempts, "resource.getrlimit(resource.RLIMIT_CORE)"])
    assert {said[each] for each in attempts} == {"EPERM"}
    assert said["resource.getrlimit(resource.RLIMIT_CORE)"] == [0, 0]


def test_in_merged_a_server_does_what_it_could_in_an_installation_of_its_own(drop_in: Box) -> None:
    box = drop_in
    everything = (
        f"cd {VAR}/installation/ && find . -type f -print0 | sort -z | xargs -0 sha256sum; find . -printf '%M %u %p\\n'"
    )
    before = box.run(everything).stdout
    game = f"{MERGED}/left4dead2"
    attempts = [
        f"write('{game}/new')",
        f"os.mkdir('{game}/addons/new')",
        f"write('{MERGED}/srcds_linux', 'changed')",
        f"write('{game}/cfg/valve.rc', 'changed')",
        f"write('{game}/replacing', 'replaced'), os.replace('{game}/replacing', '{game}/gameinfo.txt')",
        f"os.unlink('{game}/steam.inf')",
        f"os.rename('{game}/maps/c1m1_hotel.bsp', '{game}/maps/renamed.bsp')",
        f"read('{game}/cfg/valve.rc') + read('{game}/gameinfo.txt')",
        f"os.path.exists('{game}/steam.inf')",
    ]
    said = inside(box, attempts)
    assert [said[each] for each in attempts[-2:]] == ["changedreplaced", False]
    assert not [each for each in said.values() if isinstance(each, str) and each.isupper()], said
    upper = box.run(f"cd {VAR}/runtime/3/upper && find . -type f -printf '%u %p\\n'").stdout.splitlines()
    assert {"left4me-3 ./left4dead2/new", "left4me ./srcds_linux"} <= set(upper)
    assert box.run(everything).stdout == before


def test_the_servers_own_files_are_there_to_read_and_fresh_after_a_rename(probed: Box) -> None:
    seen = f"nsenter --target {main_pid(probed, '3')} --mount cat {MERGED}/left4dead2/cfg/left4me/server.cfg"
    theirs = "/etc/left4me/servers/3"
    assert 'hostname "three"' in probed.run(seen).stdout
    probed.run(f"cp -p {theirs}/server.cfg /root/kept; sed s/three/3rd/ {theirs}/server.cfg >{theirs}/new")
    probed.run(f"mv {theirs}/new {theirs}/server.cfg")
    try:
        assert 'hostname "3rd"' in probed.run(seen).stdout
    finally:
        probed.run(f"mv /root/kept {theirs}/server.cfg")
    # On the host, where nothing is bound there, the directory is empty.
    assert probed.run(f"ls {MERGED}/left4dead2/cfg/left4me").stdout == ""


def test_the_game_is_a_32_bit_process_and_native_alone_would_kill_it(drop_in: Box) -> None:
    box = drop_in
    box.run(f"systemctl start {UNIT}")
    wait_for_server(box, 27015)
    program = box.run(f"od -An -tx1 -j4 -N1 /proc/{main_pid(box, '3')}/exe").stdout.strip()
    assert program == "01"  # EI_CLASS of elf(5): ELFCLASS32
    box.run(f"systemctl stop {UNIT}; cat >{DROP_IN}/native.conf; systemctl daemon-reload", input=NATIVE)
    # Type=exec: it is started as soon as srcds_run, a 64-bit shell, is; and then becomes the game.
    box.run(f"systemctl start {UNIT}", check=False)
    wait_for("the unit fails", lambda: properties(box, UNIT, "ActiveState") == {"ActiveState": "failed"})
    ended = properties(box, UNIT, "Result", "ExecMainStatus")
    assert ended["Result"] in ("signal", "core-dump")
    assert ended["ExecMainStatus"] == str(int(signal.SIGSYS))
    assert MERGED not in overlays(box)


NATIVE = b"""[Service]
Restart=no
SystemCallArchitectures=
SystemCallArchitectures=native
"""


def test_the_unit_has_what_a_sandbox_needs_and_not_what_srcds_cannot_bear(probed: Box) -> None:
    names = ["MemoryDenyWriteExecute", "ProcSubset", "PrivateUsers", "ProtectSystem", "ProtectProc", "NoNewPrivileges"]
    names += ["CapabilityBoundingSet", "AmbientCapabilities", "SystemCallArchitectures", "User", "Group"]
    assert properties(probed, UNIT, *names) == {
        "MemoryDenyWriteExecute": "no",
        "ProcSubset": "all",
        "PrivateUsers": "yes",
        "ProtectSystem": "strict",
        "ProtectProc": "invisible",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "AmbientCapabilities": "",
        "SystemCallArchitectures": "native x86",
        "User": "left4me-3",
        "Group": "left4me",
    }
    assert properties(probed, UNIT, "PrivatePIDs").get("PrivatePIDs", "no") == "no"


def test_systemd_finds_no_mistake_in_the_unit_and_little_exposure(probed: Box) -> None:
    said = probed.run(f"systemd-analyze verify {UNIT} left4me.slice 2>&1").stdout
    assert said == ""
    said = probed.run(f"systemd-analyze security {UNIT} --no-pager").stdout
    assert "Overall exposure level" in said
    assert float(said.rpartition(UNIT + ":")[2].split()[0]) <= 1.2


def test_each_server_is_run_by_a_system_user_of_its_own(probed: Box) -> None:
    uids = set()
    for server in ("3", "4"):
        name, _, uid, gid, _, _, shell = probed.run(f"getent passwd left4me-{server}").stdout.strip().split(":")
        assert (int(uid) < 1000, int(gid), shell) == (True, 980, "/usr/sbin/nologin")
        assert probed.run(f"id -nG {name}").stdout.split() == ["left4me"]
        assert probed.run(f"getent shadow {name}").stdout.split(":")[1].startswith("!")
        status = probed.run(f"cat /proc/{main_pid(probed, server)}/status").stdout
        fields = dict(line.split(":\t", 1) for line in status.splitlines())
        assert (set(fields["Uid"].split()), set(fields["Gid"].split())) == ({uid}, {"980"})
        assert (int(fields["CapEff"], 16), int(fields["CapBnd"], 16), fields["NoNewPrivs"]) == (0, 0, "1")
        uids.add(uid)
    assert len(uids) == 2
