"""Versions of the game and of its layers: what each is called, and what the host is told to come by it.

A name follows from the content, or from what determines it, so that the same data give the same names on every host.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, assert_never

import gevent
from gevent.util import wrap_errors

from left4me import facts, manifest, model
from left4me_host import filetree, layout


@cache
def _listed(path: str) -> Any:
    return gevent.get_hub().threadpool.spawn(wrap_errors((OSError,), filetree.listing), path, model.TOOLS_OWN)


def listing(path: str, into: str | None = None) -> dict[str, str]:
    """Return what a directory of this machine gives a host, by its names there: those here, below `into`.

    Read once, and all connections go on meanwhile. Raises OSError.
    """
    found: dict[str, str] | OSError = _listed(path).get()
    if isinstance(found, OSError):
        raise found
    if into is None:
        return found
    parts = into.split("/")
    above = {"/".join(parts[:depth]): "d" for depth in range(1, len(parts) + 1)}
    return above | {f"{into}/{name}": what for name, what in found.items()}


@dataclass(frozen=True)
class Tree:
    """A version that has to be on the host and current, as left4me-content reads it."""

    what: str
    place: str
    link: str
    name: str
    source: Mapping[str, Any]

    @property
    def target(self) -> str:
        """What the link to the current version holds."""
        return f"releases/{self.name}" if self.link == layout.INSTALLATION else self.name


def _digest(*parts: object, length: int = model.VERSION_LENGTH) -> str:
    whole = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()
    return base64.b32encode(whole).decode("ascii").lower()[:length]


def game(declares: model.Host) -> Tree:
    """Return the declared build of the game; one without a name is whichever Steam gives."""
    source = declares.game.model_dump(exclude={"build"})
    name = declares.game.build or _name_of_build(declares.game)
    return Tree("game", layout.RELEASES, layout.INSTALLATION, name, source)


def _name_of_build(game: model.Game) -> str:
    match game:
        case model.GameFromSteam():
            # What is current stays so: an update is asked for on the host.
            link = facts.host_state()["entries"].get(layout.INSTALLATION)
            return link["content"].removeprefix("releases/") if link else ""
        case model.GameOnControl():
            return f"control-{_digest(listing(game.path), length=12)}"
        case model.GameArchive():
            return f"archive-{_digest(game.sha256, game.strip, length=12)}"
        case model.GameOnHost():
            return f"host-{facts.host_state()['installation']['name']}"
    assert_never(game)


def layers(declares: model.Host) -> list[Tree]:
    """Return the declared version of each layer that a server has."""
    return [_layer(name, layer) for name, layer in manifest.layers(declares).items()]


def _layer(name: str, layer: model.Layer) -> Tree:
    source = layer.model_dump()
    if isinstance(layer, model.LayerOnControl):
        version = _digest(listing(layer.path, layer.into))
    elif isinstance(layer, model.LayerWorkshop):
        source["items"] = {item: about for item, about in _items(layer).items() if "time" in about}
        version = _digest({item: about["time"] for item, about in source["items"].items()})
    else:
        named_by = ("source", *layer.named_by, *(["into"] if layer.into else []))
        version = _digest({key: source[key] for key in named_by})
    return Tree(f"layer {name}", f"{layout.OVERLAYS}/{name}", manifest.link_of(name), version, source)


def _workshop() -> dict[str, Any]:
    found = facts.workshop()
    if "error" in found:
        facts.refuse(f"Steam's workshop cannot be asked: {found['error']}. Layers are as they were: deploy again")
    return found


def _items(layer: model.LayerWorkshop) -> dict[str, dict[str, Any]]:
    """Return what Steam says of each item of a layer, those of its collections too, by its number."""
    told, items = _workshop(), {}
    wanted, seen = [str(item) for item in layer.items], set()
    while wanted:
        item = wanted.pop(0)
        if item in seen:
            continue  # as where a collection holds itself
        seen.add(item)
        if "items" in told[item]:
            wanted = [*told[item]["items"], *wanted]
        else:
            items[item] = told[item]
    return items


def missing_items(declares: model.Host) -> Iterator[str]:
    """Yield a line for each workshop item that Steam does not give, or that is nothing for the game."""
    for name, layer in manifest.layers(declares).items():
        for item, about in _items(layer).items() if isinstance(layer, model.LayerWorkshop) else ():
            if "why" in about:
                yield f"layer {name}: workshop item {item} {about['why']}: left out"
            elif not about["url"]:
                yield f"layer {name}: workshop item {item} is not to be had from Steam: left as it was"


class Upload(list[str]):
    """What left4me-content reads: the trees, and of those on this machine what the host has not, made as it is sent.

    pyinfra takes lists of text only. `bases` are listings on the host, by path.
    """

    def __init__(
        self, trees: Sequence[Tree], bases: Mapping[str, tuple[str, Mapping[str, str]]], there: set[str]
    ) -> None:
        super().__init__()
        self.trees, self.bases, self.there = trees, bases, there

    def __iter__(self) -> Iterator[str]:
        """Yield the lines. Raises OSError where tar fails."""
        told, tars = [], []
        for each in self.trees:
            source = dict(each.source)
            if source["source"] == "control":
                base, known = self.bases.get(each.place, ("", {}))
                is_new = f"{each.place}/{each.name}" not in self.there
                path, into = source["path"], source.get("into")
                files = listing(path, into) if is_new else {}
                names = [name for name in files if known.get(name) != files[name]]
                source = {"source": "control", "send": bool(names), "base": base, "files": files}
                if into:  # what is above the directory is made with what is in it
                    names = [name for name in names if name.startswith(f"{into}/")]
                if names:  # tar makes none of nothing
                    tars.append((path, into, names))
            told.append({**asdict(each), "source": source})
        yield json.dumps(told)
        for path, into, names in tars:
            yield from _tar(path, into, names)

    def __bool__(self) -> bool:
        """There is always something to send."""
        return True


def _tar(directory: str, into: str | None, names: Sequence[str]) -> Iterator[str]:
    """Yield a tar of some of a directory's names in lines of base64, the last of them a dot: all is there.

    Its members are called as on the host, where the directory is `into`.
    """
    prefix = f"{into}/" if into else ""
    names = [name.removeprefix(prefix) for name in names]
    with tempfile.NamedTemporaryFile() as listed:
        listed.write("\0".join(names).encode("utf-8", "surrogateescape"))
        listed.flush()
        command = ["tar", "--create", "--directory", directory, "--no-recursion", "--null"]
        command += ["--verbatim-files-from", "--files-from", listed.name]
        # Of the names alone, not of what symlinks and hard links lead to.
        command += [f"--transform=flags=r;s,^,{prefix},"] if prefix else []
        with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
            assert tar.stdout
            while chunk := tar.stdout.read(48 * 1024):
                yield base64.b64encode(chunk).decode("ascii")
    if tar.returncode:
        raise OSError(f"{' '.join(command)} failed with exit code {tar.returncode}")
    yield "."
