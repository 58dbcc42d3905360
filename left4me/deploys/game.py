"""The game itself: the lowest layer of every server."""

from pyinfra.api.deploy import deploy

from left4me import operations
from left4me.deploys import declared_here


@deploy("Game")
def game() -> None:
    """Bring the declared game into releases/ and make it current."""
    operations.game(name="Put the game in place", declares=declared_here(), _timeout=7200)
