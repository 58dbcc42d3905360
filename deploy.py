"""pyinfra INVENTORY deploy.py: brings each host to the state that its data declares."""

from left4me.deploys import accounts, content, layout, packages, preflight, programs, servers, units

preflight.preflight()
packages.packages()
accounts.accounts()
layout.layout()
programs.programs()
content.game()
content.layers()
units.units()
servers.files()
servers.removal()
units.reload()
servers.start()
content.prune()
servers.revision()
