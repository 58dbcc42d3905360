"""The game itself, the lowest layer of every server, and the layers over it."""

from pyinfra.api.deploy import deploy

from left4me import declared, facts, operations


@deploy("Layers")
def layers() -> None:
    """Bring the layers that servers have into overlays/ and make them current."""
    operations.layers(name="Put the layers in place", _timeout=7200)


@deploy("Game")
def game() -> None:
    """Bring the declared build into releases/, try it, and make it current."""
    operations.place(name="Write what a build is tried with", items=declared.trials(facts.declared_here()))
    operations.game(name="Put the game in place", _timeout=14400)


@deploy("Unused versions")
def prune() -> None:
    """Remove what no server uses any more."""
    operations.prune(name="Remove versions that nobody uses", _timeout=600)
