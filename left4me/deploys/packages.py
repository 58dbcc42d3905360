"""What the game needs of Debian."""

from pyinfra.api.deploy import deploy

from left4me import declared, operations
from left4me.deploys import declared_here


@deploy("Packages")
def packages() -> None:
    """Install the 32-bit libraries that srcds is linked against."""
    host = declared_here()
    name = "Install the i386 libraries that srcds needs"
    operations.packages(name=name, names=declared.packages(host), declares=host, _timeout=900)
