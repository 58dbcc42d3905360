"""The state of deployed hosts, read from outside: pytest tests/deployed --inventory inventory --limit NAME.

Nothing here comes from the deploy but the model of the data. What is promised stands in these tests as literals.
"""
