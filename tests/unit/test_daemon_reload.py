"""Limits that systemd has loaded are compared with those that the kernel has."""

from __future__ import annotations

from pathlib import Path

import pytest

from left4me_host import daemon_reload

LOADED = {"CPUWeight": "100", "CPUQuotaPerSecUSec": "infinity", "MemoryMax": "infinity"}
DEFAULTS = {"cpu.weight": "100", "cpu.max": "max 100000", "memory.max": "max"}


@pytest.mark.parametrize(
    ("loaded", "kernel", "differs"),
    [
        ({}, {}, False),
        ({"CPUWeight": "[not set]"}, {}, False),
        ({"CPUWeight": "400"}, {}, True),
        ({"CPUWeight": "400"}, {"cpu.weight": "400"}, False),
        ({"CPUQuotaPerSecUSec": "400ms"}, {"cpu.max": "40000 100000"}, False),
        ({"CPUQuotaPerSecUSec": "1min 2.500s"}, {"cpu.max": "6250000 100000"}, False),
        ({"CPUQuotaPerSecUSec": "2s"}, {"cpu.max": "100000 100000"}, True),
        ({}, {"cpu.max": "40000 100000"}, True),
        ({"MemoryMax": "1073741824"}, {"memory.max": "1073741824"}, False),
        ({"MemoryMax": "1073741825"}, {"memory.max": "1073741824"}, False),  # the kernel rounds to pages
        ({"MemoryMax": "1073741824"}, {"memory.max": "2147483648"}, True),
        ({}, {"memory.max": "2147483648"}, True),
    ],
)
def test_other_limits_are_found(loaded: dict[str, str], kernel: dict[str, str], differs: bool, tmp_path: Path) -> None:
    for name, value in (DEFAULTS | kernel).items():
        (tmp_path / name).write_text(f"{value}\n", encoding="ascii")
    unit = {**LOADED, **loaded, "ControlGroup": f"/../../..{tmp_path}"}
    assert daemon_reload.has_other_limits(unit) == differs


@pytest.mark.parametrize("unit", [{}, {"ControlGroup": ""}], ids=("a timer", "a unit that does not run"))
def test_what_has_no_cgroup_has_no_other_limits(unit: dict[str, str]) -> None:
    assert not daemon_reload.has_other_limits(unit)


def test_a_unit_without_limits_in_the_kernel_has_no_others(tmp_path: Path) -> None:
    assert not daemon_reload.has_other_limits({**LOADED, "MemoryMax": "5", "ControlGroup": f"/../../..{tmp_path}"})
