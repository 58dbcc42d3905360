"""What is wrong with an operator's data: every mistake of every host in one line, before anything is connected to.

The refusal itself is check_hosts of pyinfra_hooks.py, which config.py installs.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from left4me import connection, model
from left4me_host import filetree, game_paths, layout

PYINFRA_KEYS = frozenset([*connection.KEYS, *connection.REFUSED_KEYS, "_env", "_timeout"])
"""What belongs to pyinfra in a host's data: how to reach the host, and arguments of all operations."""


@dataclass(frozen=True, order=True)
class Mistake:
    """One thing in the data that cannot be deployed."""

    host: str
    key: str
    value: str
    reason: str

    def __str__(self) -> str:
        """One line, whatever the data hold: host, key, value, reason."""
        line = f"{self.host}: {self.key}: {self.value}: {self.reason}"
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


class InvalidData(Exception):
    """A host's data does not validate; `mistakes` has all of them."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("\n".join(map(str, mistakes)))
        self.mistakes = mistakes


_REASONS = {
    "missing": "is missing",
    "extra_forbidden": "is not a known key",
    "union_tag_not_found": "is missing",
}


def _reason(error: Mapping[str, Any]) -> str:
    if error["type"] == "string_pattern_mismatch":
        return f"must match {error['ctx']['pattern']}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return _REASONS.get(error["type"], message[0].lower() + message[1:])


def _mistake(host: str, error: Mapping[str, Any]) -> Mistake:
    # pydantic names the branch of a union (host, control) and marks a dictionary's key as [key].
    parts = [str(part) for part in error["loc"] if part != "[key]"]
    branch = {"game": 1, "layers": 2}.get(parts[0])
    if branch and len(parts) > branch:
        del parts[branch]
    if error["type"] == "missing":
        value = "(nothing)"
    elif error["type"] == "extra_forbidden" or "webhook" in parts or any(map(model.is_secret, parts)):
        value = "(hidden)"  # a misspelt key may be a password's
    else:
        value = _shown(error["input"])
    return Mistake(host, ".".join(parts), value, _reason(error))


def _causes(error: ValidationError) -> Iterator[ErrorDetails]:
    """Yield the errors but that of a list that is too short only since what is in it is wrong."""
    errors = error.errors()
    for each in errors:
        below = [other for other in errors if len(other["loc"]) > len(each["loc"])]
        if each["type"] != "too_short" or not any(other["loc"][: len(each["loc"])] == each["loc"] for other in below):
            yield each


def _shown(value: object) -> str:
    """Return the beginning of a value, without what may be secret in it."""
    try:
        text = re.sub(r"://[^/\s]+@", "://(hidden)@", repr(value))
    except ValueError:  # what Python does not print: an integer of more than 4300 digits
        return "(too long to be shown)"
    return "(hidden)" if "password" in text.lower() else text[:60]


def _unlisted(value: Any) -> Any:
    """Return lists, which are what operators write, as tuples: the model holds what cannot change."""
    if isinstance(value, dict):
        return {key: _unlisted(each) for key, each in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _merged(data: Mapping[str, Any]) -> dict[str, Any]:
    """The host's data with server_defaults, over the shipped ones, under each of its servers."""
    merged = {key: _unlisted(value) for key, value in data.items() if key not in PYINFRA_KEYS}
    defaults, servers = merged.pop("server_defaults", None), merged.get("servers")
    if isinstance(defaults, dict) and isinstance(servers, dict):
        defaults = {**model.shipped_server_defaults(), **defaults}
        merged["servers"] = {
            name: {**defaults, **own} if isinstance(own, dict) else own for name, own in servers.items()
        }
    return merged


def _across_servers(name: str, data: Mapping[str, Any]) -> Iterator[Mistake]:
    """Find what no single value shows, in data of which any part may be wrong."""
    servers = data.get("servers")
    if not isinstance(servers, dict):
        return
    present = {
        server_id: server
        for server_id, server in servers.items()
        if isinstance(server, dict) and server.get("state") != "absent"
    }
    yield from _ports(name, data.get("port_range"), data.get("trial_port"), present)
    yield from _memory(name, data.get("memory_max"), present)
    game = data.get("game")
    if data.get("update_at") and isinstance(game, dict) and game.get("source") != "steamcmd":
        yield Mistake(name, "update_at", repr(data["update_at"]), "is for a game from Steam alone: game.source")
    if isinstance(trial := data.get("trial_server"), str) and trial not in present:
        yield Mistake(name, "trial_server", repr(trial), f"is none of its servers: {', '.join(map(str, present))}")
    for server_id, server in present.items():
        keep = [os.path.normpath(str(each)) for each in server["keep"]] if isinstance(server.get("keep"), tuple) else []
        for path in keep:
            if any(path.startswith(f"{other}/") for other in keep) or keep.count(path) > 1:
                yield Mistake(name, f"servers.{server_id}.keep", repr(path), "is kept already by another line")
        if isinstance(server.get("layers"), tuple):
            names = [str(layer) for layer in server["layers"]]
            key = f"servers.{server_id}.layers"
            own = [model.ADMINS_LAYER] if server.get("admins") else []
            yield from (Mistake(name, key, *why) for why in _layers(server_id, own, names, data.get("layers")))


def _ports(name: str, allowed: Any, trial: Any, servers: Mapping[Any, dict[str, Any]]) -> Iterator[Mistake]:
    owners: dict[int, str] = {}
    ranged = isinstance(allowed, tuple) and len(allowed) == 2 and all(isinstance(port, int) for port in allowed)
    if ranged and allowed[1] < allowed[0]:
        ranged = False
        yield Mistake(name, "port_range", _shown(allowed), "has its last port before its first")
    elif ranged and len(servers) > allowed[1] - allowed[0] + 1:
        yield Mistake(name, "port_range", _shown(allowed), f"is too short for {len(servers)} servers")
    if ranged and isinstance(trial, int) and allowed[0] <= trial <= allowed[1]:
        yield Mistake(name, "trial_port", str(trial), f"is in port_range, {_shown(allowed)}")
    for server_id, server in servers.items():
        port = server.get("port")
        if not isinstance(port, int) or isinstance(port, bool):
            continue
        if owners.setdefault(port, server_id) != server_id:
            reason = f"is the port of server {owners[port]} too"
            yield Mistake(name, f"servers.{server_id}.port", _shown(port), reason)
        elif ranged and 1024 <= port <= 65535 and not allowed[0] <= port <= allowed[1]:
            reason = f"is not in port_range, {allowed[0]} to {allowed[1]}"
            yield Mistake(name, f"servers.{server_id}.port", str(port), reason)


def _memory(name: str, budget: Any, servers: Mapping[Any, dict[str, Any]]) -> Iterator[Mistake]:
    sizes = [str(server.get("memory_max")) for server in servers.values()]
    if budget == "infinity" or not all(re.fullmatch(model.SIZE, each) for each in [str(budget), *sizes]):
        return
    if sum(map(model.bytes_of, sizes)) > model.bytes_of(str(budget)):
        reason = f"is less than the memory_max of its servers together: {' + '.join(sizes)}"
        yield Mistake(name, "memory_max", repr(budget), reason)


def _layers(server_id: Any, own: list[str], names: list[str], declared: Any) -> Iterator[tuple[str, str]]:
    """Yield value and reason of what is wrong with a server's layers; `own` are left4me's."""
    for layer, count in Counter(names).items():
        if count > 1:
            yield repr(layer), f"is there {count} times"
        elif isinstance(declared, dict) and layer not in declared and re.fullmatch(model.LAYER_NAME, layer):
            yield repr(layer), f"is not one of the host's layers: {', '.join(map(str, declared)) or 'it has none'}"
    # As left4me-overlay writes them for mount(2), which takes one page (mount(2), "data"); 20 is the longest release.
    runtime = f"{layout.runtime(server_id)}/"
    rest = f"lowerdir={layout.RELEASES}/{'r' * 20},upperdir={runtime}upper,workdir={runtime}work,"
    rest += "index=off,metacopy=off,redirect_dir=off,xino=off"
    left = model.PAGE - 1 - len(rest) - sum(map(_lower, own))
    for count, layer in enumerate(names):
        left -= _lower(layer)
        if left < 0:
            yield f"{len(names)} layers", f"is too many for one mount: with these names {count} fit"
            return


def _lower(layer: str) -> int:
    """Return how many characters a layer takes in the list of lowers."""
    return len(f"{layout.OVERLAYS}/{layer}/:") + model.VERSION_LENGTH


def _is_here(name: str, key: str, source: Any, needs: str = "") -> Iterator[Mistake]:
    """Look at a directory on this machine; one on the host is looked at by its preflight."""
    if not isinstance(source, dict) or source.get("source") != "control" or not isinstance(source.get("path"), str):
        return
    path = Path(source["path"])
    if not path.is_dir():
        yield Mistake(name, f"{key}.path", repr(source["path"]), "is no directory on this machine")
    elif needs and not os.access(path / needs, os.X_OK):
        reason = f"holds no {needs} that can be executed: it must be the directory of an installed L4D2 server"
        yield Mistake(name, f"{key}.path", repr(source["path"]), reason)
    elif reason := _unreadable(source["path"]) or ("" if needs else _no_effect(source["path"], source.get("into"))):
        yield Mistake(name, f"{key}.path", repr(source["path"]), reason)


@cache
def _unreadable(path: str) -> str:
    """Return why a directory cannot be sent, or nothing. No file is opened, and hosts that share one look once."""
    try:
        for _, full, status in filetree.walk(path, model.TOOLS_OWN):
            if stat.S_ISREG(status.st_mode) and not os.access(full, os.R_OK, effective_ids=True):
                return f"{full} cannot be read by who deploys"
    except (OSError, ValueError) as error:
        return f"cannot be sent: {error}"
    return ""


@cache
def _no_effect(path: str, into: object) -> str:
    """Return why a layer's directory would be nothing to the game, or nothing."""
    above = f"{into}/" if isinstance(into, str) else ""
    there = filetree.walk(path, model.TOOLS_OWN)
    return game_paths.no_effect(above + name for name, _, status in there if not stat.S_ISDIR(status.st_mode))


def _beside_the_types(name: str, data: Mapping[str, Any], merged: Mapping[str, Any]) -> Iterator[Mistake]:
    """Find all that types and limits of single values do not."""
    yield from _across_servers(name, merged)
    yield from _is_here(name, "game", merged.get("game"), "srcds_run")
    if isinstance(merged.get("layers"), dict):
        for layer, source in merged["layers"].items():
            yield from _is_here(name, f"layers.{layer}", source)
    if not isinstance(data.get("server_defaults"), dict):
        yield Mistake(name, "server_defaults", _shown(data.get("server_defaults")), "must be a dictionary")
    for key, reason in connection.mistakes(data).items():
        yield Mistake(name, key, "(hidden)" if "password" in key else _shown(data[key]), reason)
    timeout = data.get("_timeout", 1)
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 1:
        yield Mistake(name, "_timeout", _shown(timeout), "must be a whole number of seconds, 1 or more")


def _where_it_stands(mistake: Mistake, data: Mapping[str, Any]) -> Mistake:
    """Return a mistake with the key that the operator wrote: many servers have one of server_defaults."""
    defaults, servers = data.get("server_defaults"), data.get("servers")
    if isinstance(defaults, dict) and isinstance(servers, dict):
        for server, own in servers.items():
            key = mistake.key.removeprefix(f"servers.{server}.")
            first = key.partition(".")[0]
            if key != mistake.key and isinstance(own, dict) and first in defaults and first not in own:
                return replace(mistake, key=f"server_defaults.{key}")
    return mistake


def validate(name: str, data: Mapping[str, Any]) -> model.Host:
    """Return what the data of the host called `name` declares.

    Raises InvalidData with every mistake there is.
    """
    merged = _merged(data)
    mistakes = set(_beside_the_types(name, data, merged))
    try:
        host = model.Host.model_validate(merged)
    except ValidationError as error:
        mistakes |= {_mistake(name, dict(each)) for each in _causes(error)}
    if mistakes:
        raise InvalidData(sorted({_where_it_stands(each, data) for each in mistakes}))
    return host


def validate_all(hosts: Mapping[str, Mapping[str, Any]]) -> dict[str, model.Host]:
    """Return the model of each host by its name; raise InvalidData with the mistakes of all of them."""
    models, mistakes = {}, []
    for name, data in hosts.items():
        try:
            models[name] = validate(name, data)
        except InvalidData as invalid:
            mistakes += invalid.mistakes
    if mistakes:
        raise InvalidData(mistakes)
    return models
