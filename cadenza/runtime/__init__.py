"""Containers on one machine: see `cadenza.runtime.driver`."""
