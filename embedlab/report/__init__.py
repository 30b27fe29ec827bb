"""The report of a set of runs: an HTML page and its figures. This package does not need torch."""
