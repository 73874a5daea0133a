"""The software and hardware of a run: Python, packages, processor, GPU."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "hf-ar2 torch transformers sentence-transformers datasets accelerate numpy faiss-cpu faiss-gpu".split()
)


def describe_environment() -> dict[str, Any]:
    """Versions and hardware, as in a run's environment.json."""
    import torch

    packages = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        "python": platform.python_version(),
        "packages": packages,
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def processor_name() -> str:
    """The processor's name, from the operating system."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
