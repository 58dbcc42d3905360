"""Each benchmark also measures a baseline: compare the ratios, since seconds depend on the machine."""
