"""pyinfra INVENTORY deploy.py: brings each host to the state that its data declares."""

from left4me.deploys import accounts, game, layout, packages, preflight, programs, servers, units

preflight.preflight()
packages.packages()
accounts.accounts()
layout.layout()
game.game()
programs.programs()
units.units()
servers.files()
units.reload()
servers.start()
