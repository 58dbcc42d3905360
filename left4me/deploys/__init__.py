"""The concerns of a deploy, one module each; deploy.py calls them in order."""

from __future__ import annotations

from pyinfra.api.exceptions import PyinfraError
from pyinfra.context import host

from left4me import model, startup


def declared_here() -> model.Host:
    """Return what the host at hand declares; raises PyinfraError where config.py has not been read."""
    if host.name not in startup.MODELS:
        raise PyinfraError("config.py was not read: start pyinfra in the repository's root")
    return startup.MODELS[host.name]
