"""A function that does nothing: `cadenza shell` starts its container with it, so that none of the user's code runs."""

from __future__ import annotations


def hold() -> None:
    """Do nothing."""
