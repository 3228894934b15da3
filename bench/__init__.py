"""Benchmarks: one file a journey, each against a peer or the bare floor in the same run. They print ratios."""
