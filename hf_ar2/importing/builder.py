"""Builds standard models from named weights and records what happened to each parameter."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer, SimilarityFunction
from sentence_transformers.base.modules import Dense, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification

# Parameter name -> value.
Weights = dict[str, Tensor]
# Published prefix of a module -> its parameters. Retriever: [query encoder,] passage encoder; ranker: encoder, head.
Modules = dict[str, Weights]


@dataclass
class ImportResult:
    """A record of which parameters of a checkpoint were used, not used and added."""

    source: Path  # the published file or folder
    folder: Path  # of the standard checkpoint
    kind: str  # "retriever" or "ranker"
    used: int = 0  # number of published parameters in the standard checkpoint
    unused: dict[str, str] = field(default_factory=dict)  # published parameter -> why it is not used
    # Parameter of the standard checkpoint that was not published -> why it is there.
    added: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.folder}: a {self.kind} of {self.used} published parameters"]
        for heading, reasons in (("unused", self.unused), ("added", self.added)):
            lines += [f"  {heading}: {name} ({why})" for name, why in sorted(reasons.items())]
        return "\n".join(lines)


@dataclass
class Builder:
    """Builds models in the configuration of a base model."""

    config: Any  # of the base model, as the next
    tokenizer: Any
    scratch: Path  # folder for the files that sentence-transformers reads models from
    result: ImportResult  # updated with the parameters that are used and added

    def retriever(self, modules: Modules) -> SentenceTransformer:
        """A model with one encoder, or with separate encoders for queries and passages; similarity by dot product."""
        towers: list[list[Any]] = [
            [self._encoder(weights, prefix), self._pooling()] for prefix, weights in modules.items()
        ]
        if len(towers) == 2:
            towers = [[Router.for_query_document(query_modules=towers[0], document_modules=towers[1])]]
        return SentenceTransformer(
            modules=towers[0], device="cpu", similarity_fn_name=SimilarityFunction.DOT_PRODUCT
        )

    def linear_ranker(self, modules: Modules) -> CrossEncoder:
        """A ranker whose head is linear in the state of the first token, without a pooler."""
        (prefix, weights), (name, head) = modules.items()
        width = self.config.hidden_size
        shapes = {parameter: list(value.shape) for parameter, value in head.items()}
        if shapes != {"weight": [1, width], "bias": [1]}:
            raise ValueError(
                f"{self.result.source}: {name}: found {shapes}; expected weight {[1, width]} and bias [1], one score "
                "from the state of the first token"
            )
        dense = Dense(
            width, 1, activation_function=nn.Identity(), init_weight=head["weight"].clone(),
            init_bias=head["bias"].clone(), module_output_name="scores",
        )  # fmt: skip
        self.result.used += 2
        layers: list[nn.Module] = [self._encoder(weights, prefix), self._pooling(), dense]
        return CrossEncoder(modules=layers, activation_fn=nn.Identity(), device="cpu")

    def pooled_ranker(self, modules: Modules) -> CrossEncoder:
        """The base model's own sequence classifier, with one logit over the published pooler."""
        encoder, head = modules.values()
        self.config.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(self.config)
        weights = {f"{model.base_model_prefix}.{name}": value for name, value in encoder.items()}
        self._load(model, weights | {f"classifier.{name}": value for name, value in head.items()}, "")
        place = str(self._save(model, ""))
        return CrossEncoder(place, num_labels=1, activation_fn=nn.Identity(), device="cpu")

    def _encoder(self, weights: Weights, prefix: str) -> Transformer:
        """An encoder whose token states are used; a pooler that was not published is set to zero."""
        model = AutoModel.from_config(self.config)
        pooler = {
            name: torch.zeros_like(value)
            for name, value in model.state_dict().items()
            if name.startswith("pooler.") and name not in weights
        }
        self._load(model, weights | pooler, prefix)
        self.result.used -= len(pooler)
        self.result.added |= {prefix + name: "not published and not used; zero" for name in pooler}
        return Transformer(str(self._save(model, prefix)))

    def _pooling(self) -> Pooling:
        return Pooling(self.config.hidden_size, pooling_mode="cls")

    def _load(self, model: nn.Module, weights: Weights, prefix: str) -> None:
        """Load the weights; names and shapes have to be exactly those of the model."""
        expected = model.state_dict()
        problems = [f"missing {prefix}{name}" for name in sorted(expected.keys() - weights)]
        problems += [f"unexpected {prefix}{name}" for name in sorted(weights.keys() - expected)]
        problems += [
            f"{prefix}{name}: found {list(value.shape)}, expected {list(expected[name].shape)}"
            for name, value in weights.items()
            if name in expected and value.shape != expected[name].shape
        ]
        if problems:
            raise ValueError(
                f"{self.result.source}: its parameters do not match the base model ({type(model).__name__}): "
                f"{shorten(problems)}. Set --base to the model that the checkpoint was trained from, with the same "
                "layers, widths and vocabulary"
            )
        model.load_state_dict(weights, strict=True)
        self.result.used += len(weights)

    def _save(self, model: Any, prefix: str) -> Path:
        place = self.scratch / (re.sub(r"\W", "", prefix) or "model")
        model.save_pretrained(place)
        self.tokenizer.save_pretrained(place)
        return place


def shorten(names: list[str]) -> str:
    """The first twelve names and the number of the others."""
    shown = ", ".join(names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown
