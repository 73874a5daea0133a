"""Which settings affect the result: for this library's the metadata says it, those of transformers are listed here."""

from __future__ import annotations

from dataclasses import fields

from hf_ar2.settings.fields import settings_of_class
from hf_ar2.settings.text import StorageConfig

# Prefixes of the fields of `transformers.TrainingArguments` that do not affect the trained models.
_NO_EFFECT = (
    "output_dir",
    "report_to",
    "logging_",
    "disable_tqdm",
    "run_name",
    "hub_",
    "push_to_hub",
    "save_",
    "debug",
    "do_",
    "dataloader_",
    "use_cpu",
    "gradient_checkpointing",
    "activation_checkpointing",
)
# Fields that must not change when a run is resumed. Those of the optimizer come from the checkpoint, whatever is given.
_CHECKED_ON_RESUME = (
    "seed",
    "data_seed",
    "lr_scheduler_type",
    "max_grad_norm",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
)
# Fields that a model card always names; it names the others if they are not the default.
ALWAYS_NAMED = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "seed",
    "lr_scheduler_type",
    "max_grad_norm",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
)
# Fields that evaluation shares with training.
OF_THE_MACHINE = ("fp16", "use_cpu", "ddp_backend", "ddp_timeout", "disable_tqdm")


def affects_result(name: str) -> bool:
    """Whether the trained models depend on the setting of this name."""
    ours = settings_of_class(StorageConfig)
    if name in ours:
        return bool(ours[name].field.metadata["affects_result"])
    return not name.startswith(_NO_EFFECT)


def checked_on_resume(config: type) -> list[str]:
    """The settings that must not change when a run is resumed."""
    return [
        field.name
        for field in fields(config)
        if field.metadata.get("checked_on_resume", field.name in _CHECKED_ON_RESUME)
    ]
