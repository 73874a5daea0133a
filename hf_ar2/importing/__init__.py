"""Converts published checkpoints to standard ones."""

from hf_ar2.importing.checkpoints import import_checkpoint

__all__ = ["import_checkpoint"]
