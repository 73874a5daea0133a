"""Launches that would train something else in silence."""

from __future__ import annotations

from transformers import Trainer


def refuse_what_cannot_work(trainer: Trainer) -> None:
    """Raise NotImplementedError, with the reason, for launches that would train something else in silence."""
    if trainer.is_deepspeed_enabled:
        raise NotImplementedError(
            "DeepSpeed: its optimizers treat a missing gradient as zero, so the model that rests in a phase would "
            "move; launch with plain DDP (accelerate launch --multi_gpu)"
        )
    if trainer.is_fsdp_enabled:
        raise NotImplementedError(
            "FSDP: saving and loading two models from one sharded module is not written; launch with plain DDP"
        )
    if trainer.args.parallel_mode.value == "not_distributed" and trainer.args.n_gpu > 1:
        raise NotImplementedError(
            f"{trainer.args.n_gpu} GPUs in one process would run torch.nn.DataParallel, which cannot split lists; "
            "use accelerate launch --multi_gpu, or show one GPU (CUDA_VISIBLE_DEVICES=0)"
        )
