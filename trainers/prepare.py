"""Prepares the models of a trainer: frozen or trainable, in float32, with adapters that can be loaded again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from hf_ar2.cards.hub import check_base_is_public
from hf_ar2.encoding.processes import Processes
from hf_ar2.folders import complete_folder, temporary_folder
from hf_ar2.models.bf16_on_cpu import train_fast_in_bf16
from hf_ar2.models.joint import JointModel
from hf_ar2.models.loading import has_separate_towers, one_tower, to_float32, weights_fingerprint
from hf_ar2.models.lora import adapted, check_adapters, has_adapters, remove_adapters
from hf_ar2.trainers.sharding import check_sharding, whole_copy

if TYPE_CHECKING:
    from hf_ar2.trainers.config import JointConfig
    from hf_ar2.trainers.joint import JointTrainer

logger = logging.get_logger(__name__)

# The folder in `output_dir` for base models that cannot be loaded by their names.
_BASES = "base"


def prepare_models(trainer: JointTrainer) -> JointModel:
    """Freeze the models that are not trained, convert the others to float32, and check the adapters of all.

    A folder with adapters names its base model. Where loading that name would not return the weights in memory (layers
    were removed, the model was trained before the adapters were added), the base is saved in `output_dir/base`.

    Returns:
        The models that encode the corpus and are saved: the trainer's own, or a whole copy if they will be sharded.

    Raises:
        NotImplementedError: `shard_weights` does not work for these models.
        ValueError: nothing is trainable in a model, `matryoshka_dims` exceeds the retriever's dimension, or adapters
            could not be loaded again.
    """
    for role, model in trainer.model.models.items():
        if role not in trainer.trained:
            model.requires_grad_(False)
        elif not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(f"{role}: all its parameters are frozen (requires_grad=False); nothing to train")
        elif trainer.args.float32_weights and to_float32(model):
            logger.warning(f"The {role} was loaded in half precision; it is trained in float32.")
        if has_adapters(model):
            check_adapters(role, model)
            # Two towers are saved merged; LTRe also saves the query tower by itself.
            alone: Any = model
            if isinstance(model, SentenceTransformer) and has_separate_towers(model):
                alone = one_tower(model, "query")
            if has_adapters(alone):
                _provide_base(trainer, role, alone)
    args = trainer.args
    train_fast_in_bf16(trainer.model, args.device, args.bf16)
    if "retriever" in trainer.trained and trainer.model.retriever is not None:
        args.check_dimension(trainer.model.retriever.get_embedding_dimension())
    if not args.shard_weights:
        return trainer.model
    check_sharding(trainer)
    return whole_copy(trainer.model, trainer.trained) if args.world_size > 1 else trainer.model


def saves_merged(args: JointConfig, folder: Path) -> bool:
    """Whether models are saved in this folder with their adapters merged: by `merge_adapters`, and in no checkpoint."""
    return args.merge_adapters and not folder.name.startswith(PREFIX_CHECKPOINT_DIR)


def _provide_base(trainer: JointTrainer, role: str, model: SentenceTransformer | CrossEncoder) -> None:
    (config,) = [config for module in adapted(model) for config in module.peft_config.values()]
    named = config.base_model_name_or_path
    if named and Path(named).is_dir():
        # Models that are saved in other folders refer to it, too.
        config.base_model_name_or_path = str(Path(named).resolve())
    if _difference(model) is None:
        return
    folder = (trainer.output_folder / _BASES / role).resolve()
    if trainer.args.push_to_hub and not trainer.args.merge_adapters and role in trainer.trained:
        check_base_is_public(role, str(folder))
    if trainer.args.should_save:
        base = copy.deepcopy(model)
        remove_adapters(base, merge=False)
        with complete_folder(folder, replace=True) as new:
            base.save_pretrained(str(new), create_model_card=False)
    Processes.current(trainer.args.device).share(folder.parent, role)
    config.base_model_name_or_path = str(folder)
    difference = _difference(model)
    if difference is not None:
        raise ValueError(f"{role}: its adapters cannot be saved so that they load again: {difference}")


def _difference(model: SentenceTransformer | CrossEncoder) -> str | None:
    """Why the model would differ after saving and loading; None if the weights stay the same."""
    loader = CrossEncoder if isinstance(model, CrossEncoder) else SentenceTransformer
    name = adapted(model)[0].active_adapters()[0]
    with temporary_folder() as folder:
        model.save_pretrained(str(folder), create_model_card=False)
        try:
            saved = loader(str(folder), device="cpu", model_kwargs={"adapter_name": name})
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            return str(error)
    same = weights_fingerprint(saved) == weights_fingerprint(model)
    return None if same else "the weights that were loaded are not those that were saved"
