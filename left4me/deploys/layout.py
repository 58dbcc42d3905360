"""The directories of /var/lib/left4me."""

from pyinfra.api.deploy import deploy

from left4me import declared, operations
from left4me.deploys import declared_here


@deploy("Layout")
def layout() -> None:
    """Make the directories, with the owners that let the game write in merged/ and nowhere else."""
    host = declared_here()
    operations.place(name="Lay out the directories", items=declared.directories(host), declares=host)
