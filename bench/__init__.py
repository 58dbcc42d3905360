"""Measurements, each against a floor in the same run: what counts is the ratio, not this machine's seconds."""
