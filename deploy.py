"""pyinfra INVENTORY deploy.py: brings each host to the state that its data declares."""

from left4me.deploys import accounts, game, helper, layout, packages, preflight, servers, units

preflight.preflight()
packages.packages()
accounts.accounts()
layout.layout()
game.game()
helper.helper()
units.units()
servers.files()
units.reload()
servers.start()
