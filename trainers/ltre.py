"""LTRe: every step retrieves from the whole corpus, and only the query encoder is trained."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from hf_ar2.cards.card import model_card
from hf_ar2.collections import Collection, Source
from hf_ar2.evaluation.own import deeper, without_own
from hf_ar2.files import write_text, writing
from hf_ar2.index.codebook import Codebook
from hf_ar2.index.frozen import FrozenIndex
from hf_ar2.index.search import search_in_ranges
from hf_ar2.losses import retrieval_pairwise_loss
from hf_ar2.losses.list_scores import ListScores
from hf_ar2.models.loading import load_retriever, one_tower, tower
from hf_ar2.models.lora import remove_adapters, save_model
from hf_ar2.settings.fields import setting
from hf_ar2.terminal import counted
from hf_ar2.trainers.arguments import TrainerOptions
from hf_ar2.trainers.checkpoints import read_run
from hf_ar2.trainers.config import JointConfig
from hf_ar2.trainers.frozen_retrieval import FrozenRetrieval, with_missed
from hf_ar2.trainers.joint import JointTrainer
from hf_ar2.trainers.phases import Phase, PhaseCycle
from hf_ar2.trainers.prepare import saves_merged

_CODEBOOK = "codebook.safetensors"


@dataclass
class LTReConfig(JointConfig):
    """Settings of `LTReTrainer`; of `JointConfig`'s those about queries, passages, index and evaluation count.

    Example:
        >>> args = LTReConfig(output_dir="runs/ltre", index_factory="OPQ48,PQ48", train_centroids=True)
        >>> args.list_depth, args.weighting, args.vectors
        (200, 'lambda_mrr', 'index')
    """

    learning_rate: float = setting(
        5e-6, "Peak learning rate of the query encoder.", paper="ADORE, JPQ: 5e-6", minimum=0
    )
    weight_decay: float = setting(
        0.01,
        "Weight decay of AdamW, not applied to biases, norms and centroids.",
        paper="ADORE: 0.01",
        minimum=0,
    )
    per_device_train_batch_size: int = setting(
        32,
        "Queries per step and process.",
        unit="queries",
        paper="LTRe, ADORE, JPQ: 32",
        checked_on_resume=False,
        minimum=1,
    )
    num_negatives: int = setting(
        0, "No negatives are sampled: they are what the search finds.", unit="passages", minimum=0
    )
    rerank_depth: int = setting(
        0, "No ranker is evaluated here.", unit="passages", minimum=0, checked_on_resume=False
    )
    list_depth: int = setting(
        200,
        "Passages retrieved per query and step, from the whole corpus.",
        unit="passages",
        paper="ADORE, JPQ: 200",
        minimum=1,
    )
    weighting: Literal["lambda_mrr", "lambda_ndcg", "ranknet"] = setting(
        "lambda_mrr",
        "How a pair of passages is weighted: by the change of MRR, by that of DCG, or all equally (RankNet).",
        paper="ADORE: lambda_mrr",
    )
    cut: int | None = setting(
        None,
        "Ranks that count in that weight. None: list_depth.",
        unit="ranks",
        paper="ADORE: 200",
        minimum=1,
    )
    missed: Literal["all", "if_none"] = setting(
        "all",
        "Which relevant passages that were not retrieved are appended: all of them, or only if none was retrieved.",
        paper="JPQ: all, ADORE: if_none",
    )
    vectors: Literal["exact", "index"] = setting(
        "exact",
        "Passage vectors of the loss: as they were encoded, or as the index decodes them in search.",
    )
    train_centroids: bool = setting(
        False, "JPQ: train the centroids of a product-quantised index ('OPQ48,PQ48') too; codes stay."
    )
    centroid_learning_rate: float = setting(
        1e-4,
        "Peak learning rate of the centroids.",
        paper="JPQ: 1e-4 for 48 bytes and more, 2e-5 for 32, 5e-6 below",
        minimum=0,
    )
    index: str | None = setting(
        None,
        "A FAISS file to train against, or a folder that `hf-ar2 index` wrote or that has index.faiss and ids.json. "
        "None: the corpus is encoded.",
        checked_on_resume=False,  # its content is compared instead
    )
    index_ids: str | None = setting(
        None,
        "File with the ids of its passages, in its order. None: ids.json next to it.",
        checked_on_resume=False,
    )
    search_parameters: str | None = setting(None, "How the index is searched: 'nprobe=16', 'efSearch=256'.")
    steps_per_round: int | None = setting(
        None, "Steps between evaluations. None: one pass over the queries.", unit="steps", minimum=1
    )

    def __post_init__(self) -> None:
        self._check("missed", self.missed, ("all", "if_none"))
        if self.num_negatives:
            raise ValueError(
                f"num_negatives={self.num_negatives}: LTRe samples none; list_depth is how many passages it retrieves"
            )
        if self.refresh_mode == "async":
            raise ValueError("refresh_mode='async': LTRe's index stays as it is; leave the setting out")
        if self.train_lists:
            raise ValueError("train_lists: LTRe takes its lists from the search of each step, not from files")
        is_pq = self.index is not None or re.search(r"(^|,)PQ\d+\w*$", self.index_factory)
        if self.train_centroids and not is_pq:
            raise ValueError(
                f"train_centroids=True trains those of a product quantiser, but index_factory={self.index_factory!r}; "
                "use an index like 'PQ48' or 'OPQ48,PQ48', where 48 bytes are kept of each passage"
            )
        if self.train_centroids and self.matryoshka_dims:
            raise ValueError(
                f"matryoshka_dims={self.matryoshka_dims} cannot be combined with train_centroids=True: the codes of "
                "the index represent embeddings of the full width; leave one of them out"
            )
        if self.train_centroids:
            self.vectors = "index"  # scores come from the codes and the current centroids
        super().__post_init__()


class LTReTrainer(JointTrainer):
    """Trains the query encoder on the passages that it retrieves, at every step, from a fixed index.

    A step encodes a batch of queries, searches the whole index with them, appends relevant passages that were missed,
    and lowers `retrieval_pairwise_loss` over the lists. The passage encoder is a frozen copy of the
    retriever. With `train_centroids` the centroids of a product-quantised index are trained as well (JPQ), and the
    search of the next step already uses them.

    Saved are `retriever/`, both towers as one `SentenceTransformer` (`encode_query`, `encode_document`),
    `query_encoder/`, the trained tower, and by `save_index` the index.

    Args:
        retriever: a name, folder or `SentenceTransformer`.
        collection: a `Collection` or what `load_collection` takes.
        loss: replaces the pairwise loss. Its lists hold the passages that the query retrieves now, in that order, and
            then the relevant ones that were missed; `passage_embeddings` is None with `train_centroids`.
        args, compute_metrics, callbacks, optimizers: as in `JointTrainer`.

    Raises:
        ValueError: an index that this retriever cannot have made; a checkpoint that belongs to another index.

    Source: LTRe (arXiv 2010.10469); ADORE (arXiv 2104.08051); JPQ (arXiv 2108.00644). LTRe's loss is that of ADORE's
    released code.

    Example:
        ```python
        from hf_ar2 import LTReConfig, LTReTrainer

        trainer = LTReTrainer(
            "sentence-transformers/all-MiniLM-L6-v2",
            args=LTReConfig(output_dir="runs/ltre", learning_rate=2e-5, num_train_epochs=2),
            collection="BeIR/scifact",
        )
        trainer.train()
        trainer.save_model()  # runs/ltre/retriever (both towers) and runs/ltre/query_encoder
        trainer.save_index("runs/ltre/index")
        ```
    """

    args: LTReConfig
    config_class = LTReConfig
    retrieval: FrozenRetrieval
    retrieval_class = FrozenRetrieval
    phases = PhaseCycle(Phase("retriever", trained=("retriever",), inputs=("queries",)))
    method = "ltre"
    _search_seconds = 0.0

    def __init__(
        self,
        retriever: SentenceTransformer | str | Path,
        args: LTReConfig,
        collection: Collection | Source,
        **options: Unpack[TrainerOptions],
    ) -> None:
        if "sampler" in options:
            raise TypeError(
                "LTReTrainer() takes no argument 'sampler'; its negatives are what the search finds"
            )
        super().__init__(retriever, None, args, collection, **options)

    def load_retriever(self, retriever: SentenceTransformer | str | Path) -> SentenceTransformer:
        """Load the retriever with a tower each for queries and passages, the latter frozen and without adapters."""
        towers = load_retriever(retriever, separate_towers=True)
        passages = tower(towers, "document")
        remove_adapters(passages, merge=True)
        passages.requires_grad_(False)
        return towers

    @property
    def index(self) -> FrozenIndex:
        """The index, opened or built on first use."""
        return self.retrieval.refresh()

    @property
    def index_is_its_own(self) -> bool:
        """Whether a rebuilt index could differ, because this one was compressed here, or trained."""
        return self.args.train_centroids or (self.args.index is None and self.args.index_factory != "Flat")

    @property
    def codebook(self) -> Codebook | None:
        """The centroids that are trained; None without `train_centroids`."""
        codebook = self.model.codebook
        assert codebook is None or isinstance(codebook, Codebook)
        return codebook

    # ---- Step -------------------------------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train. The index is opened first, because its centroids may be trained too."""
        self.prepare()
        return super().train(*args, **kwargs)

    def prepare(self) -> None:
        """Build or open the index, and with `train_centroids` make its centroids a part of the model."""
        index = self.index
        if self.args.train_centroids and self.model.codebook is None:
            self.model.codebook = Codebook(index.faiss_index).to(self.args.device)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """As in `JointTrainer`; also measures which share of the step's time the search takes."""
        started = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        sums = self.step_log.sums["search_share"]
        sums[0] += self._search_seconds
        sums[1] += time.perf_counter() - started
        self._search_seconds = 0.0
        return loss

    def list_scores(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> ListScores:
        """The scores of the passages that the queries retrieve now, followed by the relevant ones that were missed."""
        queries = outputs["query_embeddings"]
        known = batch["known_positives"].cpu().numpy()
        own_rows = self.collection.own_rows[batch["query_rows"].cpu().numpy()]
        # The query itself is neither relevant nor a negative.
        known = np.where(known == own_rows[:, None], -1, known)
        started = time.perf_counter()
        ranges = self.collection.searched_rows(batch["query_rows"].cpu().numpy())
        depth = deeper(own_rows, self.args.list_depth)
        scored, found = search_in_ranges(self.index.search, queries, depth, ranges)
        _, found = without_own(scored, found, own_rows, self.args.list_depth)
        self._search_seconds += time.perf_counter() - started
        rows, relevant = with_missed(found, known, only_if_none=self.args.missed == "if_none")
        mask = (rows >= 0) & ~self.retrieval.duplicates(rows, known, relevant)
        passages = None
        if self.codebook is not None:
            positions = torch.from_numpy(self.index.positions(np.maximum(rows, 0))).to(queries.device)
            scores = self.codebook(queries, positions, outputs.get("centroids"))
        else:
            passages = self.index.vectors(rows)
            scores = torch.einsum("bd,bld->bl", queries, passages)
        return ListScores(
            mask=torch.from_numpy(mask).to(queries.device),
            positives=torch.from_numpy(relevant).to(queries.device),
            query_rows=batch["query_rows"],
            passage_rows=torch.from_numpy(rows).to(queries.device),
            known_positives=torch.from_numpy(known).to(queries.device),
            retriever_scores=scores / self.retrieval.retriever_temperature,
            query_embeddings=queries,
            passage_embeddings=passages,
            retriever_temperature=self.retrieval.retriever_temperature,
        )

    def phase_loss(self, phase: str, scores: ListScores) -> tuple[Tensor, dict[str, Tensor]]:
        """The pairwise loss over the passages that the queries retrieve now."""
        args = self.args
        assert scores.retriever_scores is not None
        lists, cut = (scores.retriever_scores, scores.positives), args.cut or args.list_depth
        return retrieval_pairwise_loss(*lists, args.weighting, cut, scores.mask), {}

    def diagnostics(self, phase: str, scores: ListScores) -> dict[str, Tensor]:
        """MRR@10 of the search, and the share of relevant passages that it missed."""
        known = scores.known_positives.cpu().numpy()
        retrieved = scores.positives.cpu().numpy()[:, : scores.positives.shape[1] - known.shape[1]]
        first = np.where(retrieved[:, :10].any(axis=1), 1 / (1.0 + retrieved[:, :10].argmax(axis=1)), 0.0)
        return {
            "train_mrr@10": torch.tensor(first.mean()),
            "missed_positives": torch.tensor(1 - retrieved.sum() / (known >= 0).sum()),
        }

    def after_step(self) -> None:
        """After an optimizer step: the index that the next step searches has the new centroids."""
        if self.codebook is not None:
            self.codebook.write_back()

    # ---- Saved ------------------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Metrics of the query encoder on `eval_split`, against the index."""
        self.prepare()
        return super().evaluate(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.output_folder)
        assert self.model.retriever is not None
        query_encoder = one_tower(self.model.retriever, "query")
        save_model(query_encoder, folder / "query_encoder", saves_merged(self.args, folder))
        training, passages = self.publisher.training("retriever"), str(folder / "retriever")
        card = model_card(training, folder / "query_encoder", query_side_of=passages)
        write_text(folder / "query_encoder" / "README.md", card)

    def training_summary(self) -> dict[str, Any]:
        """As in `JointTrainer`, with the index, which the query encoder belongs to."""
        index = self.index
        trained_against = {
            "type": type(index.faiss_index).__name__,
            "passages": index.ntotal,
            "dimension": index.dim,
            "fingerprint": index.fingerprint,
            "retriever": self.publisher.sources["retriever"],
        }
        return {**super().training_summary(), "index": trained_against}

    @property
    def run_metadata(self) -> dict[str, Any]:
        """As in `JointTrainer`, with the index."""
        frozen = {"fingerprint": self.index.fingerprint, "passages": self.index.ntotal}
        return {**super().run_metadata, "frozen_index": frozen}

    def save_index(self, folder: str | Path) -> None:
        """Write the index that was searched, trained centroids included: `index.faiss`, `ids.json`, `index.json`."""
        about = {
            "collection": self.collection.name,
            "retriever": self.publisher.sources["retriever"],
            "search": self.args.search_parameters,
        }
        self.index.save(folder, self.collection.corpus["id"], about)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.should_save and self.codebook is not None:
            folder = self.output_folder / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            centroids = self.codebook.centroids.detach().cpu().contiguous()
            with writing(folder / _CODEBOOK, centroids.nbytes):
                save_file({"centroids": centroids}, folder / _CODEBOOK)
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        noted = read_run(folder)["run"].get("frozen_index", {"passages": 0, "fingerprint": "none"})
        if noted["fingerprint"] != self.index.fingerprint:
            raise ValueError(
                f"{folder}: trained against another index ({counted(noted['passages'], 'passages')}, "
                f"{noted['fingerprint']}) than this one ({self.index.ntotal:,}, {self.index.fingerprint}); "
                "resume with the index, the passage encoder and the index settings it was started with"
            )
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_centroids(folder)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        assert self.state.best_model_checkpoint is not None
        self._load_centroids(Path(self.state.best_model_checkpoint))

    def _load_centroids(self, folder: Path) -> None:
        """Load the centroids of a checkpoint into the model and the index."""
        if self.codebook is not None:
            with torch.no_grad():
                self.codebook.centroids.copy_(load_file(folder / _CODEBOOK)["centroids"])
            self.codebook.write_back()
