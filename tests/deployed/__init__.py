"""Verification of deployed hosts: pytest tests/deployed --inventory inventory --limit NAME.

It shares only the model of the data with the deploy. The expected values are literals in these tests.
"""
