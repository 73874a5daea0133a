"""Standard models of named weights, and the account of what became of each: used, left out, added."""

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

Weights = dict[str, Tensor]


@dataclass
class Imported:
    """What became of a checkpoint.

    Attributes:
        folder: where the standard checkpoint is.
        kind: `"retriever"` or `"ranker"`.
        used: how many published parameters are in it.
        left_out: published parameter -> why it is not in it.
        added: parameter of the standard checkpoint -> why it is there though it was not published.
    """

    folder: Path
    kind: str
    used: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    added: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.folder}: a {self.kind} of {self.used} published parameters"]
        for heading, reasons in (("left out", self.left_out), ("added", self.added)):
            lines += [f"  {heading}: {name} ({why})" for name, why in sorted(reasons.items())]
        return "\n".join(lines)


class Builder:
    """Makes modules of named weights, and keeps the account.

    Args:
        config, tokenizer: of the base model.
        scratch: folder for what sentence-transformers wants to read from disk.
        source: what messages call the published file.
        result: the account.
    """

    def __init__(self, config: Any, tokenizer: Any, scratch: Path, source: str, result: Imported) -> None:
        self.config, self.tokenizer, self.scratch = config, tokenizer, scratch
        self.source, self.result = source, result

    def encoder(self, weights: Weights, called: str) -> Transformer:
        """An encoder of which the token states are used; its pooler, where nobody published one, is zero."""
        model = AutoModel.from_config(self.config)
        wanted = model.state_dict()
        weights = dict(weights)
        for name in sorted(wanted):
            if name.startswith("pooler.") and name not in weights:
                weights[name] = torch.zeros_like(wanted[name])
                self.result.added[called + name] = "not published and not used; zero"
                self.result.used -= 1
        self.load(model, weights, called)
        return Transformer(str(self._saved(model, called)))

    def load(self, model: nn.Module, weights: Weights, called: str) -> None:
        """Load weights, all of them and no other.

        Raises:
            ValueError: a parameter is missing, unexpected, or of another shape.
        """
        wanted = model.state_dict()
        missing, unexpected = sorted(wanted.keys() - weights), sorted(weights.keys() - wanted)
        other = [name for name in weights if name in wanted and weights[name].shape != wanted[name].shape]
        if missing or unexpected or other:
            problems = [f"missing {called + name}" for name in missing]
            problems += [f"unexpected {called + name}" for name in unexpected]
            problems += [
                f"{called + name}: found {list(weights[name].shape)}, expected {list(wanted[name].shape)}"
                for name in other
            ]
            raise ValueError(
                f"{self.source}: its parameters are not those of the base model ({type(model).__name__}): "
                f"{listed(problems)}. Name with --base the model it was trained from; one with other layers, "
                "widths or vocabulary does not fit"
            )
        model.load_state_dict(weights, strict=True)
        self.result.used += len(weights)

    def _saved(self, model: Any, called: str) -> Path:
        place = self.scratch / (re.sub(r"\W", "", called) or "model")
        model.save_pretrained(place)
        self.tokenizer.save_pretrained(place)
        return place

    def pooling(self) -> Pooling:
        """The first token's state."""
        return Pooling(self.config.hidden_size, pooling_mode="cls")

    def linear_ranker(self, encoder: Transformer, weight: Tensor, bias: Tensor, called: str) -> CrossEncoder:
        """A ranker that is linear in the first token's state, with nothing in between."""
        if weight.shape != (1, self.config.hidden_size) or bias.shape != (1,):
            raise ValueError(
                f"{self.source}: {called}: found {list(weight.shape)} and {list(bias.shape)}; expected "
                f"{[1, self.config.hidden_size]} and [1], one score of the first token's state"
            )
        head = Dense(
            self.config.hidden_size,
            1,
            activation_function=nn.Identity(),
            init_weight=weight.clone(),
            init_bias=bias.clone(),
            module_output_name="scores",
        )
        self.result.used += 2
        modules: list[nn.Module] = [encoder, self.pooling(), head]
        return CrossEncoder(modules=modules, activation_fn=nn.Identity(), device="cpu")

    def classifier(self, encoder: Weights, weight: Tensor, bias: Tensor) -> CrossEncoder:
        """A sequence classifier of the base's own kind, with one logit; its pooler is among the weights."""
        self.config.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(self.config)
        prefix = model.base_model_prefix + "."
        weights = {prefix + name: value for name, value in encoder.items()}
        self.load(model, weights | {"classifier.weight": weight, "classifier.bias": bias}, "")
        place = str(self._saved(model, ""))
        return CrossEncoder(place, num_labels=1, activation_fn=nn.Identity(), device="cpu")

    def retriever(self, query: Transformer, passage: Transformer | None) -> SentenceTransformer:
        """One tower, or one for queries and one for passages; dot products."""
        modules: list[Any] = [query, self.pooling()]
        if passage is not None:
            router = Router.for_query_document(
                query_modules=modules, document_modules=[passage, self.pooling()]
            )
            modules = [router]
        return SentenceTransformer(
            modules=modules, device="cpu", similarity_fn_name=SimilarityFunction.DOT_PRODUCT
        )


def listed(names: list[str]) -> str:
    """The first twelve names, and how many there are more."""
    shown = ", ".join(names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown
