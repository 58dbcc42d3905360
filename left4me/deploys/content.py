"""The game itself, the lowest layer of every server, and the layers over it."""

from pyinfra import logger
from pyinfra.api.deploy import deploy
from pyinfra.context import host as at_hand

from left4me import operations, versions
from left4me.deploys import declared_here


@deploy("Game")
def game() -> None:
    """Bring the declared game into releases/ and make it current."""
    host = declared_here()
    operations.bring(name="Put the game in place", trees=[versions.game(host)], declares=host, _timeout=7200)


@deploy("Layers")
def layers() -> None:
    """Bring the layers that servers have into overlays/ and make them current."""
    host = declared_here()
    for line in versions.missing_items(host):
        logger.warning(f"{at_hand.print_prefix}{line}")
    operations.bring(name="Put the layers in place", trees=versions.layers(host), declares=host, _timeout=7200)


@deploy("Unused versions")
def prune() -> None:
    """Remove what no server runs on any more."""
    operations.prune(name="Remove versions that nobody runs", declares=declared_here(), _timeout=600)
