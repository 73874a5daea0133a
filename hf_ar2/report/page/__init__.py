"""One or several runs as one HTML page: results, what changed for each query, and how training went.

The page contains its style, its script and its data. It makes no requests and needs no server.
"""

from hf_ar2.report.page.page import render_page
from hf_ar2.report.page.run_folder import read_runs

__all__ = ["read_runs", "render_page"]
