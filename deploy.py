"""pyinfra INVENTORY deploy.py: brings each host to the state that its data declares.

config.py has already validated the data (left4me/validation.py). docs/architecture.md is a map of the modules;
CONTRIBUTING.md says how to add a setting or a source.
"""

from left4me import facts, manifest, operations
from left4me.preflight import preflight

# Lock and check the host; a host that cannot be deployed ends here.
preflight()

data, system = facts.declared_host(), facts.host_state()["system"]

operations.packages(name="Install the i386 libraries that srcds needs", _timeout=900)
operations.accounts(name="Create the group left4me and a user for each server")
operations.apply_files(name="Create the directories", items=manifest.directories(data))
operations.apply_files(name="Install the overlay helper and l4d2ctl", items=manifest.programs(data))
operations.apparmor(name="Restrict the servers' address families by AppArmor")
operations.record_starts(name="Record what running servers were started with")
operations.apply_files(name="Install the systemd units", items=manifest.units(data, system))

operations.layers(name="Put the layers in place", _timeout=7200)
trial_files = manifest.test_instances(data, system)
operations.apply_files(name="Write the configuration of the test instances", items=trial_files)
operations.game(name="Put the game in place", _timeout=14400)

server_files = manifest.servers(data.with_ports(facts.host_state()["ports"]), system)
operations.apply_files(name="Write the servers' files", items=server_files)
operations.remove_servers(name="Remove the servers that are not declared", _timeout=300)
operations.remove_cockpit(name="Remove the page and its Cockpit if not declared", _timeout=900)
operations.remove_undeclared(name="Remove files that are not declared")
operations.reload_systemd(name="Reload systemd if needed")
operations.sysctl(name="Apply the declared settings of the kernel")
operations.firewall(name="Protect the servers' ports by a firewall", _timeout=120)
operations.stop_servers(name="Stop the servers that are declared stopped", _timeout=120)
operations.start_servers(name="Start the servers that are not running", _timeout=120)
operations.collect_garbage(name="Remove versions that nothing uses", _timeout=600)

# After the servers: they run even if a package cannot be installed.
operations.apply_files(name="Install the page", items=manifest.page(data))
operations.cockpit(name="Let Cockpit show the page", _timeout=900)

# A host on which an operation failed does not get here.
operations.apply_files(name="Record the revision", items=manifest.noted_revision())
operations.report_pending(name="Report what is pending", items=server_files)
