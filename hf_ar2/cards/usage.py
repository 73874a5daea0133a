"""The lines of code on a card: how a published model is loaded by each library, to the same scores."""

from __future__ import annotations

from hf_ar2.models.saved import SavedRanker, SavedRetriever

_TEXTS = 'queries = ["why does bread rise"]\npassages = ["Yeast turns sugar into gas.", "Bread is sold in loaves."]\n'


def retriever_usage(name: str, saved: SavedRetriever, query_side_of: str | None = None) -> str:
    """Markdown with a block of Python for sentence-transformers, transformers and hf_ar2.

    Args:
        name: what it is loaded by.
        saved: how it makes embeddings.
        query_side_of: the retriever that encodes passages, where the model is the query side alone.
    """
    passages = f'SentenceTransformer("{query_side_of}")' if query_side_of else "model"
    blocks = [
        "With sentence-transformers:",
        f"""```python
from sentence_transformers import SentenceTransformer

{_TEXTS}
model = SentenceTransformer("{name}")
vectors = {passages}.encode_document(passages)
scores = model.similarity(model.encode_query(queries), vectors)
```""",
    ]
    if saved.plain and not query_side_of:
        blocks += [f"With transformers alone{_pooled(saved)}:", _auto_model(name, saved)]
    if not query_side_of:
        blocks += [
            "With hf_ar2, to train it further:",
            f"""```python
from hf_ar2 import load_retriever

{_TEXTS}
model = load_retriever("{name}")
vectors = model.encode_document(passages)
scores = model.similarity(model.encode_query(queries), vectors)
```""",
        ]
    return "\n\n".join(blocks)


def _pooled(saved: SavedRetriever) -> str:
    how = {
        "cls": "the first token's state is the embedding",
        "mean": "the mean of the tokens' states is the embedding",
    }[saved.pooling]
    unit = ", brought to unit length" if _unit_length(saved) else ""
    return f" ({how}{unit}{'; each tower is a subfolder' if saved.towers else ''})"


def _unit_length(saved: SavedRetriever) -> bool:
    return saved.normalised or saved.similarity == "cosine"


def _auto_model(name: str, saved: SavedRetriever) -> str:
    folder = ", subfolder=tower" if saved.towers else ""
    arguments = "texts, tower" if saved.towers else "texts"
    query, document = (f', "{saved.towers[task]}"' if saved.towers else "" for task in ("query", "document"))
    before = {
        task: f"[{text!r} + text for text in {task_texts}]" for task, task_texts, text in _prompted(saved)
    }
    pooled = {
        "cls": "    embeddings = states[:, 0]",
        "mean": '    mask = batch["attention_mask"].unsqueeze(-1)\n'
        "    embeddings = (states * mask).sum(1) / mask.sum(1)",
    }[saved.pooling]
    returned = "torch.nn.functional.normalize(embeddings, dim=-1)" if _unit_length(saved) else "embeddings"
    return f"""```python
import torch
from transformers import AutoModel, AutoTokenizer

{_TEXTS}
def embed({arguments}):
    tokenizer = AutoTokenizer.from_pretrained("{name}"{folder})
    model = AutoModel.from_pretrained("{name}"{folder})
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
{pooled}
    return {returned}

scores = embed({before.get("query", "queries")}{query}) @ embed({before.get("document", "passages")}{document}).T
```"""


def _prompted(saved: SavedRetriever) -> list[tuple[str, str, str]]:
    """Task, name of its texts, and what stands before them, where something does."""
    texts = {"query": "queries", "document": "passages"}
    return [(task, texts[task], saved.prompts[task]) for task in texts if task in saved.prompts]


def ranker_usage(name: str, saved: SavedRanker) -> str:
    """Markdown with a block of Python for sentence-transformers, transformers and hf_ar2; the scores are logits.

    Args:
        name: what it is loaded by.
        saved: how it reads pairs.
    """
    texts = _TEXTS.replace('queries = ["why does bread rise"]', 'query = "why does bread rise"')
    blocks = [
        "With sentence-transformers:",
        f"""```python
from sentence_transformers import CrossEncoder

{texts}
model = CrossEncoder("{name}")
scores = model.predict([(query, passage) for passage in passages])
```""",
    ]
    if saved.plain:
        blocks += [
            "With transformers alone:",
            f"""```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

{texts}
tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForSequenceClassification.from_pretrained("{name}")
pairs = [query] * len(passages), passages
batch = tokenizer(*pairs, padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    scores = model(**batch).logits[:, 0]
```""",
        ]
    blocks += [
        "With hf_ar2, to train it further:",
        f"""```python
from hf_ar2 import load_ranker

{texts}
model = load_ranker("{name}")
scores = model.predict([(query, passage) for passage in passages])
```""",
    ]
    return "\n\n".join(blocks)
