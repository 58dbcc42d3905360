"""He deploys from a checkout that is older than what is on the host: he is told before anything goes back."""

from __future__ import annotations

from tests.stories.operator import COMMIT, Operator


def test_a_deploy_from_an_older_checkout_is_warned(operator: Operator) -> None:
    host = operator.host()
    deploy, only_errors = f"pyinfra {operator.inventory} deploy.py", "2>&1 >/dev/null"
    warnings = ("its revision", "git pull", "git fetch")

    # Somebody else has pulled, and deployed what is new.
    other = operator.clones("other")
    old = operator.types("git rev-parse --short HEAD", at=other).strip()
    operator.types(f"{COMMIT} --allow-empty --message 'Something new'", at=other)
    new = operator.types("git rev-parse --short HEAD", at=other).strip()
    operator.types(f"{deploy} -y", never=warnings, at=other)
    operator.on(host, "cat /etc/left4me/revision", new)

    # Whoever has pulled no more than the old revision is told by each way to see what a deploy would do.
    operator.types("git checkout --quiet HEAD~1", at=other)
    line = f"[{host.name}] its revision {new} is newer than this checkout ({old}): this deploy downgrades it. "
    line += "If that is not intended: git pull"
    for how in ("--dry", "--json", "-y"):
        said = operator.types(f"{deploy} {how} {only_errors}", line, at=other)
        assert said.count("its revision") == 1
    operator.on(host, "cat /etc/left4me/revision", old)

    # A checkout that has not even fetched the host's revision cannot tell what would be lost.
    operator.types("git checkout --quiet -", at=other)
    operator.types(f"{deploy} -y", never=warnings, at=other)  # forward is nothing to be warned of
    operator.types(f"{deploy} --dry {only_errors}", f"its revision {new} is unknown to this checkout", "git fetch")
