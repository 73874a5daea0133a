"""The steps of test_hub.py that use the stub: a script, because huggingface_hub reads HF_ENDPOINT at import.

Writes results.json: step → its results.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import sys
import urllib.request
from pathlib import Path
from typing import Any

# before conftest, which takes it offline
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download

# isort: split
import torch
import yaml
from conftest import make_tiny_collection, with_passages
from sentence_transformers import CrossEncoder, SentenceTransformer
from tiny_ar2 import SETTINGS, settings_of
from transformers import AutoModel, AutoModelForSequenceClassification
from two_processes import leave

from hf_ar2.cards import hub
from hf_ar2.cards.card import model_card
from hf_ar2.cards.facts import Stage, Training
from hf_ar2.command_line import main as cli
from hf_ar2.index.frozen import FrozenIndex
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.trainers import AR2Config, AR2Trainer, LTReConfig, LTReTrainer

hub.WAITS = (0.01, 0.01)
TEXTS = ["where does the otter hide the drum ?", "the calm lynx builds a candle"]


def stub(path: str, content: Any = None) -> Any:
    """Ask the stub for its commits, or to cut a connection."""
    data = None if content is None else json.dumps(content).encode()
    with urllib.request.urlopen(os.environ["HF_ENDPOINT"] + path, data=data) as answer:
        return json.load(answer)


def said(action: Any, *arguments: Any, **options: Any) -> str:
    """The type and the message of the error that a call raises."""
    try:
        action(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def run_blocks(card: str, folder: Path = Path(".")) -> list[list[float]]:
    """The scores that each block of Python on a card computes, in a folder."""
    found = []
    for code in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        names: dict[str, Any] = {}
        with contextlib.chdir(folder):
            exec(code, names)
        found.append(torch.as_tensor(names["scores"]).flatten().tolist())
    return found


def missing_keys(loader: Any, *arguments: Any, **options: Any) -> list[str]:
    report = loader.from_pretrained(*arguments, output_loading_info=True, **options)[1]
    return sorted([*report["missing_keys"], *report["unexpected_keys"]])


def command(*arguments: str) -> dict[str, Any]:
    """`hf-ar2` in this process: exit code, output, errors."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(list(arguments))
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def push_a_run(run: Path) -> dict[str, Any]:
    """Push, load back by every loader, push again."""
    first = command(
        "push", str(run), "tester/mine", "--private", "--what", "all", "--data_license", "our own"
    )
    assert first["code"] == 0, first["err"]
    retriever, ranker = "tester/mine-retriever", "tester/mine-ranker"
    saved, saved_ranker = SentenceTransformer(str(run / "retriever")), CrossEncoder(str(run / "ranker"))
    pairs = [(TEXTS[0], text) for text in TEXTS]
    cards = {name: ModelCard.load(name) for name in (retriever, ranker)}
    differences = {
        "SentenceTransformer": saved.encode(TEXTS) - SentenceTransformer(retriever).encode(TEXTS),
        "load_retriever": saved.encode(TEXTS) - load_retriever(retriever).encode(TEXTS),
        "CrossEncoder": saved_ranker.predict(pairs) - CrossEncoder(ranker).predict(pairs),
        "load_ranker": saved_ranker.predict(pairs) - load_ranker(ranker).predict(pairs),
    }
    folder = Path(snapshot_download("tester/mine-index", repo_type="dataset"))
    collection = make_tiny_collection()
    index = FrozenIndex.from_files(folder, list(collection.corpus["id"]))
    query = saved.encode_query([collection.queries["text"][0]], normalize_embeddings=True)
    best = int(index.search(query, 1)[1][0, 0])
    passages = [f"{row['title']} {row['text']}".strip() for row in collection.corpus]
    exact = saved.encode_document(passages, normalize_embeddings=True) @ query[0]
    before = stub("/_commits")
    again = command("push", str(run), "tester/mine", "--private", "--data_license", "our own")
    return {
        "first": first,
        "again": again,
        "differences": {name: float(abs(value).max()) for name, value in differences.items()},
        "missing": missing_keys(AutoModel, retriever)
        + missing_keys(AutoModelForSequenceClassification, ranker),
        "blocks": {name: run_blocks(card.content) for name, card in cards.items()},
        "cards": {name: card.content for name, card in cards.items()},
        "files": {name: sorted(HfApi().list_repo_files(name)) for name in (retriever, ranker)},
        "index_files": sorted(path.name for path in folder.iterdir() if path.is_file()),
        "index_finds_the_best": best == int(exact.argmax()),
        "commits": [before, stub("/_commits")],
        "public_now": command("push", str(run), "tester/open"),
        "private_later": command("push", str(run), "tester/open", "--private"),
    }


def load_adapters(output: Path) -> dict[str, float]:
    """Adapters of the pushed models, as repositories of their own: the largest difference to the local folders."""
    differences = {}
    for role, load in (("retriever", load_retriever), ("ranker", load_ranker)):
        torch.manual_seed(1)
        model = load(f"tester/mine-{role}", lora={"r": 2})
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=5.0)
        folder, repository = output / f"adapters-{role}", f"tester/adapters-{role}"
        model.save_pretrained(str(folder), create_model_card=False)
        HfApi().create_repo(repository)
        HfApi().upload_folder(repo_id=repository, folder_path=folder)
        found = [load(name, device="cpu") for name in (folder, repository)]
        read = [
            one.encode(TEXTS) if role == "retriever" else one.predict([(TEXTS[0], text) for text in TEXTS])
            for one in (*found, load(f"tester/mine-{role}", device="cpu"))
        ]
        differences[role] = float(abs(read[0] - read[1]).max())
        differences[f"{role} without"] = float(abs(read[0] - read[2]).max())
    return differences


def push_results(run: Path) -> dict[str, str]:
    """The results of a model on a data set with an eval.yaml, and on one without, as the repository has them."""
    api = HfApi()
    for name in ("benchmark", "other"):
        api.create_repo(f"tester/{name}", repo_type="dataset")
    tasks = {"tasks": [{"id": "retrieval", "config": "default", "split": "test"}]}
    content = yaml.safe_dump(tasks).encode()
    api.upload_file(
        path_or_fileobj=content, path_in_repo="eval.yaml", repo_id="tester/benchmark", repo_type="dataset"
    )
    found = {}
    for name in ("benchmark", "other"):
        training = Training(
            "retriever",
            "mine",
            f"tester/{name}",
            [Stage("a", "retriever", {"retriever": "b"})],
            "b",
            metrics={
                "a": {split: {"retriever": {"mrr@10": 0.5, "ndcg@10": 0.75}} for split in ("dev", "test")}
            },
            test_metric="ndcg@10",
            on_the_hub=[f"tester/{name}"],
        )
        card = model_card(training, run / "retriever")
        hub.publish({"retriever": run / "retriever"}, f"tester/on-{name}", lambda what, ids, card=card: card)
        files = api.list_repo_files(f"tester/on-{name}-retriever")
        found |= {
            place: Path(hf_hub_download(f"tester/on-{name}-retriever", place)).read_text()
            for place in files
            if place.startswith(".eval_results/")
        }
    return found


def push_what_cannot_be(run: Path) -> dict[str, Any]:
    """Without permission, without a token, over a broken connection, and an incomplete folder."""
    found = {
        "another's name": command("push", str(run), "someone/mine"),
        "another's repository": command("push", str(run), "readonly/mine"),
        "a wrong token": said(hub.publish, {"ranker": run / "ranker"}, "tester/x", str, token="hf_wrong"),
    }
    stub("/_break", {"times": 2})
    found["a break that heals"] = command("push", str(run), "tester/healed", "--what", "ranker")
    stub("/_break", {"times": 3})
    found["a break that stays"] = command("push", str(run), "tester/broken", "--what", "ranker")
    stub("/_break", {"times": 1, "at": "preupload", "of": "-ranker"})
    found["a break at the second's files"] = command("push", str(run), "tester/both")
    stub("/_break", {"times": 0})
    found["a name with two slashes"] = command("push", str(run), "tester/my/run")
    torn = run.with_name("torn")
    shutil.copytree(run, torn)
    (torn / "ranker" / "model.safetensors").unlink()
    found["a ranker without weights"] = command("push", str(torn), "tester/torn")
    found["commits"] = stub("/_commits")
    return found


def push_two_towers(models: Path, output: Path) -> dict[str, Any]:
    """LTRe's two towers over a repository with one, by the trainer's own method, and its index."""
    settings = settings_of(LTReConfig) | {
        "num_negatives": 0,
        "rerank_depth": 0,
        "list_depth": 10,
        "max_steps": 2,
    }
    trainer = LTReTrainer(
        models / "tiny-retriever",
        args=LTReConfig(output_dir=str(output), save_strategy="no", **settings),
        collection=with_passages(make_tiny_collection(), 60),
    )
    trainer.train()
    commits = trainer.push_to_hub("tester/mine", license="mit", index=True, commit_message="Two towers")
    id = commits["retriever"].repo_url.repo_id
    loaded = SentenceTransformer(id)
    towers = [loaded.encode_query(TEXTS), loaded.encode_document(TEXTS)]
    retriever = trainer.model.retriever
    assert retriever is not None
    own = [retriever.encode_query(TEXTS), retriever.encode_document(TEXTS)]
    card = ModelCard.load(id)
    return {
        "ids": {what: commit.repo_url.repo_id for what, commit in commits.items()},
        "difference": max(float(abs(a - b).max()) for a, b in zip(towers, own, strict=True)),
        "apart": float(abs(own[0] - own[1]).max()),
        "missing": [
            key
            for tower in ("query_0_Transformer", "document_0_Transformer")
            for key in missing_keys(AutoModel, id, subfolder=tower)
        ],
        "files": sorted(HfApi().list_repo_files(id)),
        "blocks": run_blocks(card.content),
        "card": card.content,
        "license": card.data.license,
        "query_encoder": run_blocks(
            (output / "query_encoder" / "README.md").read_text(encoding="utf-8"), output
        ),
        "local_card": (output / "query_encoder" / "README.md").read_text(encoding="utf-8"),
        "commits": stub("/_commits")["models/tester/mine-retriever"],
        "index_card": Path(
            hf_hub_download(commits["index"].repo_url.repo_id, "README.md", repo_type="dataset")
        ).read_text(),
    }


def push_while_training(models: Path, output: Path) -> dict[str, Any]:
    """`push_to_hub=True`: at every save, the checkpoint too, and at the end; then with one push that fails."""
    settings = {**SETTINGS, "push_to_hub": True, "hub_always_push": True, "eval_on_start": False}

    def trainer(name: str, **more: Any) -> AR2Trainer:
        return AR2Trainer(
            models / "tiny-retriever",
            models / "tiny-ranker",
            args=AR2Config(output_dir=str(output / name), **{**settings, **more}),
            collection=make_tiny_collection(),
        )

    every = trainer("every", hub_model_id="tester/every", hub_strategy="checkpoint", hub_private_repo=True)
    every.train()
    ranker = every.model.ranker
    assert ranker is not None
    pair = [(TEXTS[0], TEXTS[1])]
    difference = ranker.predict(pair) - CrossEncoder("tester/every-ranker").predict(pair)
    checkpoint = Path(snapshot_download("tester/every-retriever", allow_patterns="last-checkpoint/*"))
    resumed = trainer("resumed", push_to_hub=False, num_rounds=3)
    resumed.train(resume_from_checkpoint=str(checkpoint / "last-checkpoint"))
    at_end = trainer("at-end", hub_strategy="end")
    at_end.train()
    at_end.save_model()
    stub("/_break", {"times": 3})
    failing = trainer("failing", hub_model_id="tester/failing")
    failing.train()
    return {
        "commits": stub("/_commits"),
        "difference": float(abs(difference).max()),
        "files": sorted(HfApi().list_repo_files("tester/every-retriever")),
        "private": HfApi().repo_info("tester/every-ranker").private,
        "resumed": [entry["step"] for entry in resumed.state.log_history if "loss" in entry],
        "refused": said(trainer, "refused", hub_model_id="someone/mine"),
        "left_behind": (output / "every" / "_uploaded").exists(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr):
        results["run"] = push_a_run(options.run)
        results["adapters"] = load_adapters(options.output)
        results["eval_results"] = push_results(options.run)
        results["refused"] = push_what_cannot_be(options.run)
        results["towers"] = push_two_towers(options.models, options.output / "ltre")
        results["training"] = push_while_training(options.models, options.output)
    (options.output / "results.json").write_text(json.dumps(results))
    leave()


if __name__ == "__main__":
    main()
