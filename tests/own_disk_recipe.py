"""Runs a recipe as `recipes/run.py` does, with a run folder for each process: as on machines without a shared disk."""

from __future__ import annotations

import sys
from pathlib import Path

from tiny_ar2 import own_disk

from hf_ar2.recipes.run import main

if __name__ == "__main__":
    recipe, output, *options = sys.argv[1:]
    main([recipe, "--output_dir", str(own_disk(Path(output))), *options])
