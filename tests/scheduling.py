"""Scheduling for pytest-xdist: tests that share a box run on one worker."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling


class OneWorkerForEachBox(LoadScopeScheduling):
    """Run the tests of one module and one Debian, which share a box, on one worker."""

    def _split_scope(self, nodeid: str) -> str:
        debian = re.search(r"\bdebian1[23]\b", nodeid.partition("[")[2])
        return nodeid.partition("::")[0] + (debian.group() if debian else "")
