"""Names the declared versions of the game and its layers, and describes how the host builds them.

A name is a digest of the content or of the content's source: equal data give equal names on every host.
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
    """Return filetree's listing of a local directory; `into/` precedes all names, as on the host.

    Each directory is read once, in a thread, so that connections stay alive. Raises OSError.
    """
    entries: dict[str, str] | OSError = _listed(path).get()
    if isinstance(entries, OSError):
        raise entries
    if into is None:
        return entries
    parts = into.split("/")
    parents = {"/".join(parts[:depth]): "d" for depth in range(1, len(parts) + 1)}
    return parents | {f"{into}/{name}": entry for name, entry in entries.items()}


@dataclass(frozen=True)
class Tree:
    """A version that must be current on the host. left4me-content reads this as JSON."""

    what: str
    place: str
    link: str
    name: str
    source: Mapping[str, Any]

    @property
    def target(self) -> str:
        """The target of the symlink to the current version."""
        return f"releases/{self.name}" if self.link == layout.INSTALLATION else self.name


def _digest(*parts: object, length: int = model.VERSION_LENGTH) -> str:
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()
    return base64.b32encode(digest).decode("ascii").lower()[:length]


def game(declares: model.Host) -> Tree:
    """Return the declared build of the game. Its name is empty before the first build from Steam."""
    source = declares.game.model_dump(exclude={"build"})
    name = declares.game.build or _name_of_build(declares.game)
    return Tree("game", layout.RELEASES, layout.INSTALLATION, name, source)


def _name_of_build(game: model.Game) -> str:
    match game:
        case model.GameFromSteam():
            # A deploy keeps the current build; the host updates it.
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
    """Return the declared version of each layer that a server uses."""
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


def _items(layer: model.LayerWorkshop) -> dict[str, dict[str, Any]]:
    """Return Steam's answer for each item of a layer and its collections, by item id."""
    answer, items = facts.workshop(), {}
    if "error" in answer:
        facts.refuse(f"Steam's workshop: {answer['error']}. Layers are unchanged; deploy again")
    queue, seen = [str(item) for item in layer.items], set()
    while queue:
        item = queue.pop(0)
        if item in seen:
            continue  # a collection may contain itself
        seen.add(item)
        if "items" in answer[item]:
            queue = [*answer[item]["items"], *queue]
        else:
            items[item] = answer[item]
    return items


def missing_items(declares: model.Host) -> Iterator[str]:
    """Yield a line for each workshop item that is not available from Steam or not usable by the game."""
    for name, layer in manifest.layers(declares).items():
        for item, about in _items(layer).items() if isinstance(layer, model.LayerWorkshop) else ():
            if "why" in about:
                yield f"layer {name}: workshop item {item} {about['why']}; skipped"
            elif not about["url"]:
                yield f"layer {name}: workshop item {item} is not available from Steam; keeping its file"


class Upload(list[str]):
    """The standard input of left4me-content: the trees as JSON, then a tar of the local files that the host lacks.

    It is a list because pyinfra accepts only text and lists of text, but its lines are generated while they are sent.
    `bases` maps Tree.place to the path in the current version that `source` fills and to its listing; `on_host` has the
    paths of all versions.
    """

    def __init__(
        self, trees: Sequence[Tree], bases: Mapping[str, tuple[str, Mapping[str, str]]], on_host: set[str]
    ) -> None:
        super().__init__()
        self.trees, self.bases, self.on_host = trees, bases, on_host

    def __iter__(self) -> Iterator[str]:
        """Yield the lines. Raises OSError if tar fails."""
        request, tars = [], []
        for each in self.trees:
            source = dict(each.source)
            if source["source"] == "control":
                base, known = self.bases.get(each.place, ("", {}))
                is_new = f"{each.place}/{each.name}" not in self.on_host
                files = listing(source["path"]) if is_new else {}
                names = [name for name in files if known.get(name) != files[name]]
                if names:  # tar refuses to create an empty archive
                    tars.append((source["path"], names))
                # Without files, `base` may not exist.
                source |= {"send": bool(names), "base": base if known else "", "files": files}
            request.append({**asdict(each), "source": source})
        yield json.dumps(request)
        for path, names in tars:
            yield from _tar(path, names)

    def __bool__(self) -> bool:
        return True  # an empty list would be false, and pyinfra would send nothing


def _tar(directory: str, names: Sequence[str]) -> Iterator[str]:
    """Yield a tar of these paths in `directory` as lines of base64, then a line with a dot."""
    with tempfile.NamedTemporaryFile() as listed:
        listed.write("\0".join(names).encode("utf-8", "surrogateescape"))
        listed.flush()
        command = ["tar", "--create", "--directory", directory, "--no-recursion", "--null"]
        command += ["--verbatim-files-from", "--files-from", listed.name]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
            assert tar.stdout
            while chunk := tar.stdout.read(48 * 1024):
                yield base64.b64encode(chunk).decode("ascii")
    if tar.returncode:
        raise OSError(f"{' '.join(command)} failed with exit code {tar.returncode}")
    yield "."
