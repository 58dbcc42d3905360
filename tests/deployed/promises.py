"""The expected unit properties, as systemd reports them: a copy independent of the templates."""

from __future__ import annotations

import re

CHECK = "left4me-server@_check.service"  # no server can have this id: it shows how systemd reads the template
TEMPLATE = "/usr/local/lib/systemd/system/left4me-server@.service"

# The properties of an instance with the id {id}, as `systemctl show` prints them.
PROMISES = {
    "LoadState": "loaded",
    "FragmentPath": TEMPLATE,
    "NeedDaemonReload": "no",
    "Description": "Left 4 Dead 2 server {id}",
    "Type": "exec",
    "User": "left4me-{id}",
    "Group": "left4me",
    "Slice": "left4me.slice",
    "EnvironmentFiles": "/etc/left4me/servers/{id}/server.env (ignore_errors=no)",
    "Environment": "HOME=/var/lib/left4me/runtime/{id}/merged",
    "WorkingDirectory": "!/var/lib/left4me/runtime/{id}/merged/left4dead2",
    "KillSignal": "2",  # SIGINT
    "KillMode": "control-group",
    "SendSIGKILL": "yes",
    "TimeoutStopUSec": "15s",
    "Restart": "on-failure",
    "OnFailure": "left4me-notify@{id}.service",
    "SuccessExitStatus": "SEGV",
    "RestartForceExitStatus": "SEGV",
    "RestartUSec": "5s",
    "StartLimitIntervalUSec": "5min",
    "StartLimitBurst": "5",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "PrivateIPC": "yes",
    "PrivateUsers": "yes",
    "PrivateMounts": "yes",
    "TemporaryFileSystem": "/var/lib:ro /etc/left4me:ro /srv:ro /opt:ro /mnt:ro /media:ro /run:ro /dev/shm:mode=1777",
    "InaccessiblePaths": "-/boot -/var/log",
    "ReadWritePaths": "",
    "BindPaths": "/var/lib/left4me/runtime/{id}/merged:/var/lib/left4me/runtime/{id}/merged:rbind",
    "BindReadOnlyPaths": "-/run/systemd/resolve:/run/systemd/resolve:rbind "
    "-/run/NetworkManager:/run/NetworkManager:rbind -/run/resolvconf:/run/resolvconf:rbind "
    "/etc/left4me/servers/{id}:/var/lib/left4me/runtime/{id}/merged/left4dead2/cfg/left4me:rbind "
    "/var/lib/left4me/secrets/{id}:/var/lib/left4me/runtime/{id}/merged/left4dead2/cfg/left4me/secret:rbind",
    "ProtectProc": "invisible",
    "ProcSubset": "all",
    "ProtectClock": "yes",
    "ProtectControlGroups": "yes",
    "ProtectHostname": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "KeyringMode": "private",
    "LockPersonality": "yes",
    "RemoveIPC": "yes",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "MemoryDenyWriteExecute": "no",  # the game has text relocations, SourceMod compiles at run time
    "SystemCallErrorNumber": "1",  # EPERM
    "UMask": "0077",
    "LimitNOFILE": "4096",
    "LimitCORE": "0",
    "TasksMax": "256",
    "LogRateLimitIntervalUSec": "30s",
    "LogRateLimitBurst": "10000",
}
# Lists that systemd prints in an order of its own.
SETS = {
    "SystemCallArchitectures": "native x86",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
}
NSENTER = "/usr/bin/nsenter --mount=/proc/1/ns/mnt --"
HELPER = f"{NSENTER} /usr/local/libexec/left4me/left4me-overlay"
MERGED = "/var/lib/left4me/runtime/{id}/merged"
# Exec lines: program, arguments, flags; `privileged` is the + before it, `ignore-failure` the -.
COMMANDS = {
    "ExecStartPreEx": [("/usr/bin/nsenter", HELPER + " mount {id}", "privileged")],
    "ExecStartEx": [
        (
            MERGED + "/srcds_run",
            MERGED + "/srcds_run -game left4dead2 -norestart -strictportbind"
            " -ip ${{LEFT4ME_ADDRESS}} -port ${{LEFT4ME_PORT}} -maxplayers ${{LEFT4ME_MAX_PLAYERS}}"
            " -tickrate ${{LEFT4ME_TICKRATE}} $LEFT4ME_ARGUMENTS"
            " +servercfgfile left4me/server.cfg +mp_gamemode ${{LEFT4ME_GAMEMODE}} +map ${{LEFT4ME_MAP}}",
            "",
        )
    ],
    "ExecStopPostEx": [
        (
            "/usr/bin/nsenter",
            f"{NSENTER} /bin/sh -c case $$SERVICE_RESULT,$$EXIT_STATUS in success,SEGV) ;; success,*) exit ;; esac; "
            'exec systemctl --no-block start "left4me-notify@{id}:$$SERVICE_RESULT:$$EXIT_CODE:$$EXIT_STATUS.service"',
            "ignore-failure privileged",
        ),
        ("/usr/bin/nsenter", HELPER + " umount {id}", "privileged"),
    ],
}
# What only this system's systemd can do. Debian 12's rejects `disconnected`.
PROMISES_OF = {"debian 12": {}, "debian 13": {"PrivateTmpEx": "disconnected"}}
# The drop-ins of all instances.
DROP_INS_OF = {
    "debian 12": [],
    "debian 13": [f"/etc/systemd/system/left4me-server@.service.d/{name}.conf" for name in ("ports", "sandbox")],
}
NO_COMMANDS = ("ExecConditionEx", "ExecStartPostEx", "ExecReloadEx", "ExecStopEx")
# Some calls that a game needs, and one or two of each denied group (systemd-analyze syscall-filter).
ALLOWED = {"read", "mmap2", "socketcall", "execve", "clone", "futex", "prlimit64"}
DENIED = {
    "mount",
    "umount2",
    "chroot",
    "pivot_root",
    "chown",
    "setuid",
    "ptrace",
    "bpf",
    "reboot",
    "init_module",
    "iopl",
}
DENIED |= {"sched_setaffinity", "setpriority"}
DENIED |= {"io_setup", "io_uring_setup", "keyctl", "mlock", "pkey_alloc"}
DENIED |= {"swapon", "clock_settime", "kexec_load", "capset", "perf_event_open"}
# Lines that today only repeat a default of systemd, or that systemctl does not show: checked in the text.
LINES = {
    "AppArmorProfile=-left4me-server",
    *("AmbientCapabilities=", "KeyringMode=private", "StartLimitBurst=5"),
    "ConditionPathExists=!/var/lib/left4me/held/%i",
    "ConditionPathExists=!/var/lib/left4me/runtime/%i/reset",
}
NETWORK = "network-online.target"
FINISH_RESETS = "left4me-finish-resets.service"
# A oneshot that servers wait for at the boot; it must end in time.
FINISHES = {
    "FragmentPath": f"/usr/local/lib/systemd/system/{FINISH_RESETS}",
    "DropInPaths": "",
    "UnitFileState": "enabled",
    "WantedBy": "multi-user.target",
    "Type": "oneshot",
    "TimeoutStartUSec": "2min",
    "OnFailure": "left4me-notify@_finish-resets.service",
    "ProtectSystem": "strict",
    "ReadWritePaths": "/var/lib/left4me",
    "NoNewPrivileges": "yes",
}
LIMITS = ["CPUWeight", "MemoryMax", "CPUQuotaPerSecUSec", "Nice"]
STATES = ["ActiveState", "SubState", "UnitFileState", "DropInPaths", "WantedBy", "MainPID", "Result", "NRestarts"]
STATES += ["ExecMainStartTimestampMonotonic"]
PROPERTIES = [*PROMISES, *SETS, *COMMANDS, *NO_COMMANDS, *LIMITS, *STATES, "SystemCallFilter", "After", "Wants"]
PROPERTIES += ["TimeoutStartUSec", "Requires", *PROMISES_OF["debian 13"]]
PROPERTIES += ["SocketBindAllow", "SocketBindDeny"]


def commands(shown: str) -> list[tuple[str, str, str]]:
    """Return the program, arguments and flags of each command in an Exec property."""
    found = []
    for line in filter(None, shown.splitlines()):
        fields = dict(part.strip().partition("=")[::2] for part in line.strip("{} ").split(" ; "))
        found.append((fields.get("path", ""), " ".join(fields.get("argv[]", "").split()), fields.get("flags", "")))
    return found


def ports(shown: str) -> set[int] | None:
    """Return the ports of SocketBindAllow= or SocketBindDeny=.

    None if a rule is not for all families and protocols, or the rules are more than a host can have.
    """
    rules = [re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", line) for line in shown.splitlines()[:1000]]
    ranges = [range(int(rule[1]), int(rule[2] or rule[1]) + 1) for rule in rules if rule]
    if len(ranges) < len(rules) or sum(map(len, ranges)) > 1 << 16:
        return None
    return {port for each in ranges for port in each}


def broken(unit: dict[str, str], server: str, system: str) -> list[str]:
    """Return a line for each property of an instance that is not as expected on this system, such as debian 12."""
    wrong = []

    def shown(key: str) -> str:
        return unit.get(key, "")  # systemctl omits empty lists

    for key, promised in {**PROMISES, **PROMISES_OF[system]}.items():
        expected = promised.format(id=server)
        if shown(key) != expected:
            wrong.append(f"{key} is {shown(key)!r}, must be {expected!r}")
    for key, promised in SETS.items():
        if sorted(shown(key).split()) != sorted(promised.split()):
            wrong.append(f"{key} is {shown(key)!r}, must be {promised!r}")
    for key, promised_commands in COMMANDS.items():
        lines = [tuple(part.format(id=server) for part in command) for command in promised_commands]
        if commands(shown(key)) != lines:
            wrong.append(f"{key} is {commands(shown(key))}, must be {lines}")
    wrong += [f"{key} is {shown(key)!r}, must be empty" for key in NO_COMMANDS if shown(key)]
    calls = set(shown("SystemCallFilter").split())
    if not calls >= ALLOWED or calls & DENIED or any(call.startswith("~") for call in calls):
        wrong.append(
            f"SystemCallFilter must allow {sorted(ALLOWED - calls)} and not {sorted(DENIED & calls)}: "
            "it must be @system-service without @privileged, @aio, @keyring, @memlock and @pkey"
        )
    wrong += [
        f"{key} is {shown(key)!r}, must contain {NETWORK}" for key in ("After", "Wants") if NETWORK not in shown(key)
    ]
    wrong += [f"After is {shown('After')!r}, must contain {FINISH_RESETS}"] * (FINISH_RESETS not in shown("After"))
    # A start must not depend on its result.
    wrong += [f"Requires is {shown('Requires')!r}, must not contain {FINISH_RESETS}"] * (
        FINISH_RESETS in shown("Requires")
    )
    return wrong


def broken_template(unit: dict[str, str], system: str) -> list[str]:
    """Return what is wrong with the template, read from the instance CHECK."""
    wrong = broken(unit, "_check", system)
    if (found := unit.get("DropInPaths", "").split()) != DROP_INS_OF[system]:
        wrong.append(f"has the drop-ins {found}, must have {DROP_INS_OF[system]}")
    if unit["UnitFileState"] != "disabled":
        wrong.append(f"UnitFileState is {unit['UnitFileState']!r}, must be 'disabled': [Install] is missing")
    return wrong
