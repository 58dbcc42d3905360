"""What the page in Cockpit needs of a host, and how operators reach it."""

from __future__ import annotations

from collections.abc import Iterator

from left4me import manifest, model, shapes
from left4me.manifest import Item
from left4me_host import cockpit


def is_foreign(seen: shapes.Cockpit) -> bool:
    """Return whether somebody else has installed Cockpit: a deploy neither reconfigures nor removes it."""
    return "cockpit-ws" in seen["installed"] and "cockpit-ws" not in seen["recorded"]


def settings(web: model.Web, seen: shapes.Cockpit) -> Item | None:
    """Return the cockpit.conf that the host must have, or None; somebody else's stays."""
    return manifest.cockpit_settings(web) if seen["settings"] in ("", "ours") else None


def reached(web: model.Web, host: str) -> str:
    """Return how an operator's browser reaches the page on a host that Cockpit was installed on for it."""
    if web.url:
        return f"{web.url}/left4me"
    if web.address in ("0.0.0.0", "::"):
        return f"https://{host}:{web.port}/left4me"
    if web.is_public:
        return f"https://{web.listen}/left4me"
    return f"ssh -L {web.port}:{web.listen} {host}, then https://localhost:{web.port}/left4me"


def plan(web: model.Web, seen: shapes.Cockpit) -> Iterator[str]:
    """Yield what a deploy will do to Cockpit."""
    if missing := [name for name in cockpit.PACKAGES if name not in seen["installed"]]:
        yield f"installs {' and '.join(missing)}, and lets Cockpit listen on {web.listen}"
    elif seen["listens"] != [web.listen]:
        before = ", ".join(seen["listens"]) or "nothing"
        yield f"lets Cockpit listen on {web.listen} instead of {before}: sessions in Cockpit end"
    elif seen["outdated"]:
        yield f"restarts Cockpit, which has not read {cockpit.SETTINGS}: sessions in Cockpit end"
    if seen["unbound"] == "no address":
        yield f"web.listen: this host has no address {web.address} now; Cockpit answers when it has"


def warnings(declares: model.Host, seen: shapes.Cockpit) -> Iterator[str]:
    """Yield what keeps the page from being safe or usable, with what to do; `seen` is from after the deploy."""
    web = declares.web
    if web is None:
        return
    if is_foreign(seen):
        where = ", ".join(seen["listens"]) or "nothing: systemctl enable --now cockpit.socket"
        yield "web.listen has no effect: cockpit-ws was installed before, and its own configuration stays"
        yield f"that Cockpit listens on {where}"
        if "cockpit-system" not in seen["installed"]:
            yield "cockpit-system is not installed, which the page needs: apt-get install cockpit-system"
        return
    if web.is_public and seen["settings"] == "open":
        yield (
            f"{cockpit.SETTINGS} is not left4me's, and stays: set LoginTo = false in its [WebService], so that "
            "strangers do not use this host's login for other hosts"
        )
    if seen["root_may"]:
        yield f"root may log in to Cockpit: write root into {cockpit.REFUSED}"


def login(declares: model.Host, seen: shapes.Cockpit) -> str:
    """Return who can log in."""
    line = f"log in as a user of group {declares.operators} with a password"
    names = seen["without_password"]
    return f"{line}; without one: {', '.join(names)}; to set it: passwd {names[0]}" if names else line
