"""What `hf-ar2 import` does once the command line is read."""

from __future__ import annotations

import argparse

from hf_ar2.importing.checkpoints import import_checkpoint


def import_published(arguments: argparse.Namespace) -> int:
    """Convert a published checkpoint to a standard one and print what happened to every parameter."""
    result = import_checkpoint(
        arguments.format, arguments.file, arguments.out, base=arguments.base, max_length=arguments.max_length
    )
    print(result)
    role = "--ranker" if result.kind == "ranker" else "--retriever"
    print(f"Next: hf-ar2 evaluate {role} {arguments.out} --collection ...")
    return 0
