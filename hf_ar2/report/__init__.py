"""The plot of a run, and its HTML page."""
