"""Who owns the game, and who runs it."""

from pyinfra.api.deploy import deploy

from left4me import operations


@deploy("Accounts")
def accounts() -> None:
    """Make the group, its owner, and a user for each server."""
    operations.accounts(name="Make the group left4me and a user for each server")
