"""The console: statements, cvars and cfg files as Source reads them."""

import os
from collections.abc import Callable

EXEC_DEPTH = 16
"""How deep cfg files may exec each other; the real console overflows its buffer instead."""

# What each is at the start.
CVARS = {
    "hostname": "Left 4 Dead 2",
    "hostport": "27015",
    "ip": "0.0.0.0",
    "motdfile": "motd.txt",
    "mp_disable_autokick": "0",
    "mp_gamemode": "coop",
    "nb_update_frequency": "0.1",
    "rcon_password": "",
    "servercfgfile": "server.cfg",
    "sv_allow_lobby_connect_only": "1",
    "sv_allow_wait_command": "1",
    "sv_alltalk": "0",
    "sv_cheats": "0",
    "sv_consistency": "1",
    "sv_contact": "",
    "sv_gametypes": "coop,realism,survival,versus,scavenge",
    "sv_gravity": "800",
    "sv_lan": "0",
    "sv_logecho": "1",
    "sv_maxrate": "30000",
    "sv_minrate": "5000",
    "sv_password": "",
    "sv_pausable": "0",
    "sv_region": "-1",
    "sv_search_key": "",
    "sv_steamgroup": "",
    "sv_steamgroup_exclusive": "0",
    "sv_tags": "",
    "sv_visiblemaxplayers": "-1",
    "sv_voiceenable": "1",
    "tv_enable": "0",
    "tv_name": "SourceTV",
    "tv_port": "27020",
    "z_difficulty": "Normal",
}
# What A2S_RULES tells.
RULES = [
    "mp_disable_autokick",
    "mp_gamemode",
    "sv_allow_lobby_connect_only",
    "sv_alltalk",
    "sv_cheats",
    "sv_consistency",
    "sv_contact",
    "sv_gravity",
    "sv_pausable",
    "sv_steamgroup",
    "sv_tags",
    "sv_voiceenable",
    "tv_enable",
    "z_difficulty",
]
# The real game has some thousand cvars: a name that looks like one of them is taken for one.
PREFIXES = ("cl_", "director_", "host_", "mp_", "nb_", "net_", "sb_", "survivor_", "sv_", "tv_", "vs_", "z_")


def statements(text: str) -> list[list[str]]:
    """Return the words of each statement: `;` and the line's end divide, `//` comments, quotes keep together."""
    found: list[list[str]] = []
    for line in text.splitlines():
        words: list[str] = []
        word: str | None = None
        quoted = False
        for index, char in enumerate(line):
            if quoted:
                if char == '"':
                    quoted = False
                    words.append(word or "")
                    word = None
                else:
                    word = (word or "") + char
            elif char == "/" and line[index : index + 2] == "//":
                break
            elif char in ' \t;"':
                if word is not None:
                    words.append(word)
                    word = None
                if char == '"':
                    quoted = True
                if char == ";":
                    found.append(words)
                    words = []
            else:
                word = (word or "") + char
        if word is not None:
            words.append(word)
        found.append(words)
    return [words for words in found if words]


class Console:
    """Cvars by their names in lower case, and the commands that a game brings."""

    def __init__(self, cfg: str) -> None:
        """Take the directory that `exec` reads from."""
        self._cfg = cfg
        self._depth = 0
        self.cvars = dict(CVARS)
        self.commands: dict[str, Callable[[list[str]], str]] = {"exec": self._exec, "echo": " ".join}

    def number(self, name: str) -> float:
        """Return a cvar as a number; what is none is 0, as in the game."""
        try:
            return float(self.cvars.get(name, "0"))
        except ValueError:
            return 0.0

    def execute(self, text: str) -> str:
        """Execute statements and return what the console says, each answer on its own line."""
        return "".join(self.run(words) for words in statements(text))

    def run(self, words: list[str]) -> str:
        """Execute one statement and return what the console says."""
        name, values = words[0].lower(), words[1:]
        if name in self.commands:
            try:
                said = self.commands[name](values)
            except (IndexError, ValueError) as error:
                said = f"{name}: {error}"
        elif values and (name in self.cvars or name.startswith(PREFIXES)):
            self.cvars[name] = " ".join(values)
            said = ""
        elif name in self.cvars:
            default = CVARS.get(name, "")
            said = f'"{name}" = "{self.cvars[name]}"' + (
                "" if self.cvars[name] == default else f' ( def. "{default}" )'
            )
        else:
            said = f'Unknown command "{words[0]}"'
        return said + "\n" if said else ""

    def _exec(self, values: list[str]) -> str:
        if len(values) != 1:
            return "exec <filename>: execute a script file"
        name = values[0] if "." in os.path.basename(values[0]) else values[0] + ".cfg"
        if name.startswith("/") or ".." in name.split("/"):
            return f"exec {name}: invalid path."
        if self._depth == EXEC_DEPTH:
            return f"exec: {name} is nested too deep"
        try:
            with open(os.path.join(self._cfg, name), encoding="utf-8", errors="replace") as file:
                text = file.read()
        except OSError:
            return f"exec: couldn't exec {name}"
        self._depth += 1
        try:
            return self.execute(text).rstrip("\n")
        finally:
            self._depth -= 1
