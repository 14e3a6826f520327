"""Fail the test during which an emulator of PTX reports a fault, such as a race."""

from __future__ import annotations

import pytest

# Lanes of a warp that write one value, and lanes that run together, are no races on a GPU.
HARMLESS = "race-same-value", "warp-race"


def fail_on(reports: str) -> None:
    """Fail where the emulator saw a race, or a read of what nobody wrote."""
    seen = [line for line in reports.splitlines() if line and not is_harmless(line)]
    if seen:
        pytest.fail("reported by the emulator:\n" + "\n".join(seen), pytrace=False)


def is_harmless(report: str) -> bool:
    """Return whether a report is of a kind that no GPU can show."""
    return report.startswith(HARMLESS)
