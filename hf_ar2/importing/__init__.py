"""Standard checkpoints from those that the papers published."""

from hf_ar2.importing.checkpoints import import_checkpoint

__all__ = ["import_checkpoint"]
