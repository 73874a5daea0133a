"""A run, or several, as one HTML page: results, what changed for each query, how training went.

The page holds its style, its script and its data, asks the network for nothing, and needs no server.
"""

from hf_ar2.report.page.page import render_page
from hf_ar2.report.page.run_folder import RunFolder, read_runs

__all__ = ["RunFolder", "read_runs", "render_page"]
