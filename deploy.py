"""pyinfra INVENTORY deploy.py: brings each host to the state that its data declares."""

from left4me.deploys import accounts, content, layout, packages, preflight, programs, servers, units

preflight.preflight()
packages.packages()
accounts.accounts()
layout.layout()
programs.programs()
servers.record()
units.units()
content.layers()
content.game()
servers.files()
servers.removal()
units.reload()
servers.start()
content.prune()
servers.revision()
servers.report()
