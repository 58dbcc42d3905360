"""Validates a host's data before the first connection, with one line for each mistake.

check_hosts() of pyinfra_hooks.py refuses a run with mistakes.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS
from pyinfra.connectors.ssh import connector_data_meta

from left4me import model
from left4me_host import filetree, game_paths, layout

_OF_PYINFRA = {*connector_data_meta, *CONNECTOR_ARGUMENT_KEYS}
"""pyinfra's keys. Not every part of left4me would follow those that model.PyinfraKeys does not have."""
_PYINFRA_KEYS = TypeAdapter(model.PyinfraKeys)


@dataclass(frozen=True, order=True)
class Mistake:
    """One mistake in a host's data, printed as one line."""

    host: str
    key: str
    value: str
    reason: str

    def __str__(self) -> str:
        line = f"{self.host}: {self.key}: {self.value}: {self.reason}"
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


class InvalidData(Exception):
    """The data of one or more hosts are invalid; `mistakes` has all of them."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("\n".join(map(str, mistakes)))
        self.mistakes = mistakes


_REASONS = {
    "missing": "is missing",
    "extra_forbidden": "is not a known key",
    "union_tag_not_found": "has no `source`",
    "union_tag_invalid": "`source` must be one of {expected_tags}",
    "string_pattern_mismatch": "must match {pattern}",
}
"""Messages that replace pydantic's own, by error type."""


def _mistake(host: str, error: ErrorDetails) -> Mistake:
    # pydantic adds the branch of a union (host, control), and [key] for a dictionary's key.
    parts = [str(part) for part in error["loc"] if part != "[key]"]
    branch = {"game": 1, "layers": 2}.get(parts[0])
    if branch and len(parts) > branch:
        del parts[branch]
    if error["type"] == "missing":
        value = "(nothing)"
    elif error["type"] == "extra_forbidden" or "webhook" in parts or any(map(model.is_secret, parts)):
        value = "(hidden)"  # a misspelt key may belong to a password
    else:
        value = _shown(error["input"])
    message = error["msg"].removeprefix("Value error, ")
    known = _REASONS.get(error["type"])
    reason = known.format(**error.get("ctx", {})) if known else message[0].lower() + message[1:]
    return Mistake(host, ".".join(parts), value, reason)


def _shown(value: object) -> str:
    """Return the first 60 characters of a value's repr, with secrets hidden."""
    try:
        text = re.sub(r"://[^/\s]+@", "://(hidden)@", repr(value))
    except ValueError:  # Python does not print an integer of more than 4300 digits
        return "(too long to show)"
    return "(hidden)" if "password" in text.lower() else text[:60]


def _with_tuples(value: Any) -> Any:
    """Return a value with its lists as tuples, which the immutable model requires."""
    if isinstance(value, dict):
        return {key: _with_tuples(each) for key, each in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _merged(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the host's data without pyinfra's keys, and with server_defaults merged into each server."""
    merged = {key: _with_tuples(value) for key, value in data.items() if key not in _OF_PYINFRA}
    defaults, servers = merged.pop("server_defaults", None), merged.get("servers")
    if isinstance(defaults, dict) and isinstance(servers, dict):
        defaults = {**model.shipped_server_defaults(), **defaults}
        merged["servers"] = {
            name: {**defaults, **own} if isinstance(own, dict) else own for name, own in servers.items()
        }
    return merged


def _outside_the_model(data: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield key, value and reason of each mistake in keys that model.Host does not have."""
    if not isinstance(data.get("server_defaults"), dict):
        yield "server_defaults", _shown(data.get("server_defaults")), "must be a dictionary"
    for key in (_OF_PYINFRA & data.keys()) - model.PyinfraKeys.__annotations__.keys():
        if value := data[key]:
            reason = "is not supported: remove it; for root use _sudo, for the connection ~/.ssh/config"
            yield key, "(hidden)" if model.is_secret(key) or isinstance(value, dict) else _shown(value), reason
    for key, needs in (("_sudo_password", "_sudo"), ("ssh_key_password", "ssh_key")):
        if data.get(key) and not data.get(needs):
            yield key, "(hidden)", f"has no effect without {needs}: set both"


def _conflicts(host: model.Host) -> Iterator[tuple[str, str, str]]:
    """Yield key, value and reason of each conflict between valid values."""
    first, last = host.port_range
    if last < first:
        yield "port_range", str(host.port_range), "has a last port that is lower than the first"
    elif len(host.present) > last - first + 1:
        yield "port_range", str(host.port_range), f"is too small for {len(host.present)} servers"
    if first <= host.trial_port <= last:
        yield "trial_port", str(host.trial_port), f"must be outside port_range, {first} to {last}"
    if host.update_at and host.game.source != "steamcmd":
        yield "update_at", repr(host.update_at), 'requires a game from Steam: set game.source to "steamcmd"'
    if host.trial_server and host.trial_server not in host.present:
        yield "trial_server", repr(host.trial_server), f"is not one of the host's servers: {', '.join(host.present)}"
    yield from _web_conflicts(host)
    for key in ("rcon_from", "game_may_reach"):
        if getattr(host, key) and not host.firewall:
            yield key, str(list(getattr(host, key))), "has no effect while firewall is False: remove it"
    sizes = [server.memory_max for server in host.present.values()]
    if sum(map(model.bytes_of, sizes)) > model.bytes_of(host.memory_max):
        reason = f"is less than the sum of its servers' memory_max: {' + '.join(sizes)}"
        yield "memory_max", repr(host.memory_max), reason
    owners: dict[int, str] = {}
    for server_id, server in host.present.items():
        port = server.port
        if port and owners.setdefault(port, server_id) != server_id:
            yield f"servers.{server_id}.port", str(port), f"is already the port of server {owners[port]}"
        elif port and first <= last and not first <= port <= last:
            yield f"servers.{server_id}.port", str(port), f"is outside port_range, {first} to {last}"
        for key, value, reason in _list_conflicts(host, server_id, server):
            yield f"servers.{server_id}.{key}", value, reason


def _web_conflicts(host: model.Host) -> Iterator[tuple[str, str, str]]:
    if host.web is None:
        return
    if not host.operators:
        yield "web", repr(host.web.listen), "needs operators: set it to the group whose members may use the page"
    first, last = host.port_range
    if first <= host.web.port <= last or host.web.port == host.trial_port:
        yield "web.listen", repr(host.web.listen), f"has a port of the servers: {first} to {last} or {host.trial_port}"


def _list_conflicts(host: model.Host, server_id: str, server: model.Server) -> Iterator[tuple[str, str, str]]:
    for path in server.keep:
        if any(path.startswith(f"{other}/") for other in server.keep) or server.keep.count(path) > 1:
            yield "keep", repr(path), "is already kept by another entry"
    for layer, count in Counter(server.layers).items():
        if count > 1:
            yield "layers", repr(layer), f"is listed {count} times"
        elif layer not in host.layers:
            known = ", ".join(host.layers) or "it has none"
            yield "layers", repr(layer), f"is not one of the host's layers: {known}"
    if (fit := _layers_that_fit(server_id, server)) < len(server.layers):
        yield "layers", f"{len(server.layers)} layers", f"are too many for one mount: the first {fit} fit"


def _layers_that_fit(server_id: str, server: model.Server) -> int:
    """Return how many of a server's layers fit into mount(2)'s data, as left4me-overlay writes it."""
    runtime = f"{layout.runtime(server_id)}/"
    # The name of a release has at most 20 characters.
    rest = f"lowerdir={layout.RELEASES}/{'r' * 20},upperdir={runtime}upper,workdir={runtime}work,"
    rest += "index=off,metacopy=off,redirect_dir=off,xino=off"
    lengths = (len(f"{layout.OVERLAYS}/{layer}/:") + model.VERSION_LENGTH for layer in server.lowers)
    fit = sum(length < model.PAGE - len(rest) for length in accumulate(lengths))
    return fit - (len(server.lowers) - len(server.layers))


def _directories(host: model.Host) -> Iterator[tuple[str, str, str]]:
    """Yield key, value and reason of each unusable directory on this machine; preflight.py checks hosts."""
    for key, source in {"game": host.game, **{f"layers.{name}": each for name, each in host.layers.items()}}.items():
        if isinstance(source, model.GameOnControl | model.LayerOnControl) and (reason := _unusable(source)):
            yield f"{key}.path", repr(source.path), reason


def _unusable(source: model.GameOnControl | model.LayerOnControl) -> str:
    if not os.path.isdir(source.path):
        return "is not a directory on this machine"
    if isinstance(source, model.LayerOnControl):
        return _unreadable(source.path) or _no_effect(source.path, source.into)
    if not os.access(Path(source.path, "srcds_run"), os.X_OK):
        return "has no executable srcds_run: it must be the directory of an installed L4D2 server"
    return _unreadable(source.path)


@cache
def _unreadable(path: str) -> str:
    """Return why a directory cannot be sent, or "". Opens no files; cached for hosts that share the directory."""
    try:
        for _, full, status in filetree.walk(path, model.TOOLS_OWN):
            if stat.S_ISREG(status.st_mode) and not os.access(full, os.R_OK, effective_ids=True):
                return f"{full} cannot be read: change its owner or mode"
    except (OSError, ValueError) as error:
        return f"cannot be sent: {error}"
    return ""


@cache
def _no_effect(path: str, into: str | None) -> str:
    """Return why the game would not see anything in a layer's directory, or ""."""
    above = f"{into}/" if into else ""
    entries = filetree.walk(path, model.TOOLS_OWN)
    return game_paths.no_effect(above + name for name, _, status in entries if not stat.S_ISDIR(status.st_mode))


def _as_written(mistake: Mistake, data: Mapping[str, Any]) -> Mistake:
    """Return the mistake; `key` is in server_defaults if its value comes from there."""
    defaults, servers = data.get("server_defaults"), data.get("servers")
    if isinstance(defaults, dict) and isinstance(servers, dict):
        for server, own in servers.items():
            key = mistake.key.removeprefix(f"servers.{server}.")
            first = key.partition(".")[0]
            if key != mistake.key and isinstance(own, dict) and first in defaults and first not in own:
                return replace(mistake, key=f"server_defaults.{key}")
    return mistake


def validate(name: str, data: Mapping[str, Any]) -> model.Host:
    """Return the model of the host `name`.

    Raises InvalidData with all mistakes. Conflicts are checked only if each value is valid by itself.
    """
    mistakes = {Mistake(name, *each) for each in _outside_the_model(data)}
    try:
        _PYINFRA_KEYS.validate_python(dict(data))  # ignores other keys
    except ValidationError as error:
        mistakes |= {_mistake(name, each) for each in error.errors()}
    try:
        host = model.Host.model_validate(_merged(data))
        mistakes |= {Mistake(name, *each) for each in (*_conflicts(host), *_directories(host))}
    except ValidationError as error:
        mistakes |= {_mistake(name, each) for each in error.errors()}
    if mistakes:
        raise InvalidData(sorted({_as_written(each, data) for each in mistakes}))
    return host


def validate_all(hosts: Mapping[str, Mapping[str, Any]]) -> dict[str, model.Host]:
    """Return the model of each host by name. Raises InvalidData with the mistakes of all hosts."""
    models, mistakes = {}, []
    for name, data in hosts.items():
        try:
            models[name] = validate(name, data)
        except InvalidData as invalid:
            mistakes += invalid.mistakes
    if mistakes:
        raise InvalidData(mistakes)
    return models
