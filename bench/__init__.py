"""Benchmarks. Each measures a baseline in the same run: the ratio counts, not the seconds of this machine."""
