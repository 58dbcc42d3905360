"""SteamCMD's refusals in the forms that public logs have, and what is parsed of its answer."""

from __future__ import annotations

import pytest

from left4me_host.steamcmd_words import app_info, errors, is_final, is_full, meaning, startup_reason

TO_STEAM = "Connecting anonymously to Steam Public..."


@pytest.mark.parametrize(
    ("lines", "told", "final"),
    [
        ([f"{TO_STEAM}Retrying...", "Retrying...", "FAILED (No Connection)"], "no connection to Steam", False),
        ([f"{TO_STEAM}ERROR (No Connection)"], "no connection to Steam", False),
        (["FAILED login with result code Rate Limit Exceeded"], "Steam accepts no more logins", True),
        ([f"{TO_STEAM}FAILED (Rate Limit Exceeded)"], "Steam accepts no more logins", True),
        (
            ["FAILED login with result code Service Unavailable"],
            "SteamCMD: FAILED login with result code Service",
            False,
        ),
        (
            ["Loading Steam API...threadtools.cpp (2420) : Assertion Failed: Permission denied"],
            "SteamCMD crashed (SteamCMD: Loading Steam API...threadtools.cpp (2420)",
            True,
        ),
        (["Segmentation fault (core dumped)"], "SteamCMD crashed", True),
        (["ERROR! Failed to install app '222860' (Missing configuration)"], "SteamCMD: ERROR! Failed", False),
        (["ERROR! Failed to install app '222860' (No subscription)"], "SteamCMD: ERROR! Failed", True),
        (["ERROR! Failed to install app '222860' (Not enough disk space)"], "the disk is full", True),
        (["Error! App '222860' state is 0x202 after update job."], "the disk is full", True),
        (["ERROR! Failed to install app '222860' (Disk write failure)"], "the disk is full", True),
        (["Error! App '222860' state is 0x402 after update job."], "SteamCMD: Error! App", False),
        (["No app info for AppID 222860, requesting..."], "SteamCMD: No app info", False),
    ],
)
def test_a_refusal_is_found_and_told_in_plain_words(lines: list[str], told: str, final: bool) -> None:
    [line] = errors(["Redirecting stderr to '/x/logs/stderr.txt'", *lines, "Unloading Steam API...OK"])
    assert meaning(line).startswith(told)
    assert line in meaning(line)
    assert is_final(line) is final
    assert is_full(line) is (told == "the disk is full")


def test_what_steamcmd_says_when_all_is_well_is_no_refusal() -> None:
    lines = [f"{TO_STEAM}OK", "Waiting for client config...OK", "Success! App '222860' fully installed.", "Error: 0"]
    assert errors(lines) == []


def test_the_bootstrap_says_why_it_did_not_start() -> None:
    log = "[2026-11-28 10:00:00] Startup - updater built\n[2026-11-28 10:00:02] Download failed: http error 0\n"
    assert startup_reason(log) == "no connection to Steam (SteamCMD: Download failed: http error 0)"
    assert startup_reason("[2026-11-28 10:00:00] Startup - updater built\n") == ""


def test_quotes_before_the_answer_are_no_part_of_it() -> None:
    before = 'ILocalize::AddFile() failed to load file "public/steambootstrapper_english.txt".\nAppID : 222860\n'
    answer = '"222860"\n{\n\t"depots"\n\t{\n\t\t"branches" { "public" { "buildid" "14716838" } }\n\t}\n}\n'
    found = app_info(before + answer, "222860")
    assert found["depots"]["branches"]["public"]["buildid"] == "14716838"
    assert app_info(before, "222860") == {}
