"""Importers: made-up weights in the published layouts give the same outputs from the standard checkpoints."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny_tokenizer, tiny_config
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoConfig, BertModel, ErnieConfig

from hf_ar2 import load_ranker, load_retriever
from hf_ar2.cards.card import model_card
from hf_ar2.cards.facts import Stage, Training
from hf_ar2.command_line import main as cli
from hf_ar2.importing.checkpoints import import_checkpoint, read_torch
from hf_ar2.importing.layouts import from_paddle_name
from hf_ar2.importing.paddle import DTYPES, read_paddle, read_tensor
from hf_ar2.models.joint import score_pairs
from hf_ar2.models.loading import has_separate_towers
from hf_ar2.models.saved import read_ranker

QUERIES = ["where does the badger guard the apple ?", "what does the lynx carry"]
PASSAGES = ["the brave badger guards a apple in the attic at dawn", "the calm lynx carries a drum"]


def make_encoder(seed: int, eps: float = 1e-12) -> BertModel:
    torch.manual_seed(seed)
    model = BertModel(tiny_config(layer_norm_eps=eps)).eval()
    for parameter in model.parameters():  # biases and norms that are not at their start
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration and tokenizer, and no weights: an importer must not need them."""
    folder = tmp_path_factory.mktemp("base")
    make_encoder(0).config.save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def first_states(model: BertModel, *texts: list[str]) -> torch.Tensor:
    features = make_tiny_tokenizer()(*texts, padding=True, return_tensors="pt")
    return model(**features).last_hidden_state[:, 0]


def prefixed(prefix: str, model: BertModel) -> dict[str, torch.Tensor]:
    return {prefix + name: value.clone() for name, value in model.state_dict().items()}


def paddle_names(model: BertModel, prefix: str, pooler: bool = False) -> dict[str, np.ndarray]:
    """A BERT's parameters under the names and in the layout that Paddle's ERNIE has."""
    plain = ["word_embedding", "pos_embedding", "sent_embedding"]
    plain += [f"pre_encoder_layer_norm_{end}" for end in ("scale", "bias")]
    for layer in range(model.config.num_hidden_layers):
        start = f"encoder_layer_{layer}_"
        linear = [f"multi_head_att_{part}_fc" for part in ("query", "key", "value", "output")]
        for name in [*linear, "ffn_fc_0", "ffn_fc_1"]:
            plain += [f"{start}{name}.w_0", f"{start}{name}.b_0"]
        for name in ("post_att", "post_ffn"):
            plain += [f"{start}{name}_layer_norm_scale", f"{start}{name}_layer_norm_bias"]
    if pooler:
        plain += ["pooled_fc.w_0", "pooled_fc.b_0"]
    state, found = model.state_dict(), {}
    for name in plain:
        standard, transposed = from_paddle_name(name) or ("", False)
        value = state[standard].numpy()
        found[prefix + name] = np.ascontiguousarray(value.T if transposed else value)
    return found


def write_tensor(file: Path, array: np.ndarray) -> None:
    """The inverse of `read_tensor`."""
    types = {np.dtype(name): number for number, name in DTYPES.items()}
    description = bytes([0x08, types[array.dtype]])
    for size in array.shape:
        description += b"\x10"
        while size > 127:
            description += bytes([size & 127 | 128])
            size >>= 7
        description += bytes([size])
    head = struct.pack("<IQIi", 0, 0, 0, len(description))
    file.write_bytes(head + description + np.ascontiguousarray(array).tobytes())


def write_folder(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    for name, array in arrays.items():
        write_tensor(folder / name, array)
    return folder


def check_retriever(folder: Path, query: BertModel, passage: BertModel) -> SentenceTransformer:
    retriever = SentenceTransformer(str(folder), device="cpu")
    assert retriever.similarity_fn_name == "dot" and list(folder.rglob("*.safetensors"))
    for encode, model, texts in (
        (retriever.encode_query, query, QUERIES),
        (retriever.encode_document, passage, PASSAGES),
    ):
        np.testing.assert_allclose(encode(texts), first_states(model, texts).numpy(), atol=1e-6, rtol=1e-5)
    assert load_retriever(folder).similarity_fn_name == "dot"
    return retriever


# --- torch.save dictionaries


@pytest.mark.parametrize("format", ["dpr", "ar2"])
def test_dual_encoders_become_two_towers(format: str, base: Path, tmp_path: Path) -> None:
    query, passage = make_encoder(1), make_encoder(2)
    weights = prefixed("module.question_model.", query) | prefixed("module.ctx_model.", passage)
    weights["module.ctx_model.embeddings.position_ids"] = torch.arange(64)[None]
    saved = {
        "model_dict": weights,
        "optimizer_dict": {"state": {}},
        "offset": 3,
        "epoch": 1,
        "encoder_params": {},
    }
    torch.save(saved, tmp_path / "published.cp")
    result = import_checkpoint(format, tmp_path / "published.cp", tmp_path / "out", base=base, max_length=48)
    assert result.used == len(weights) - 1 and not result.added
    assert list(result.unused) == ["ctx_model.embeddings.position_ids"]
    retriever = check_retriever(tmp_path / "out", query, passage)
    assert has_separate_towers(retriever) and retriever.max_seq_length == 48


def test_a_ranker_of_ar2_is_linear_in_the_first_state(base: Path, tmp_path: Path) -> None:
    encoder, head, other = make_encoder(3), torch.nn.Linear(32, 1), torch.nn.Linear(32, 2)
    weights = prefixed("encoder.", encoder)
    weights |= {f"qa_classifier.{name}": value for name, value in head.state_dict().items()}
    weights |= {f"binary.{name}": value for name, value in other.state_dict().items()}
    torch.save({"model_dict": weights}, tmp_path / "reranker")
    result = import_checkpoint("ar2-ranker", tmp_path / "reranker", tmp_path / "out", base=base)
    assert set(result.unused) == {"binary.weight", "binary.bias"}
    assert result.used + 2 == len(weights)
    with torch.no_grad():
        expected = head(first_states(encoder, QUERIES, PASSAGES))[:, 0].numpy()
    scores = CrossEncoder(str(tmp_path / "out"), device="cpu").predict(
        list(zip(QUERIES, PASSAGES, strict=True))
    )
    np.testing.assert_allclose(scores, expected, atol=1e-6, rtol=1e-5)
    ranker = load_ranker(tmp_path / "out", device="cpu").eval()
    features = make_tiny_tokenizer()(QUERIES, PASSAGES, padding=True, return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose(score_pairs(ranker, dict(features)), expected, atol=1e-6, rtol=1e-5)
    # AutoModelForSequenceClassification would score with a head made up at random.
    assert not read_ranker(tmp_path / "out").plain
    training = Training("ranker", "mine", "tiny", [Stage("a", "ranker", {"ranker": "b"})], "b")
    assert "transformers alone" not in model_card(training, tmp_path / "out")


@pytest.mark.parametrize("with_tasks", [False, True])
def test_a_base_may_have_task_embeddings_that_were_not_published(
    with_tasks: bool, base: Path, tmp_path: Path
) -> None:
    """As ERNIE 2.0 has them and RocketQA's checkpoints do not."""
    settings = AutoConfig.from_pretrained(base).to_dict()
    settings = {
        name: value for name, value in settings.items() if name not in ("model_type", "architectures")
    }
    config = ErnieConfig(**settings | {"use_task_id": True, "task_type_vocab_size": 3})
    ernie = tmp_path / "ernie"
    config.save_pretrained(ernie)
    make_tiny_tokenizer().save_pretrained(ernie)
    encoder = make_encoder(5, eps=1e-5)
    arrays = paddle_names(encoder, "titlepara_")
    tasks = np.ones((3, 32), np.float32)
    if with_tasks:
        arrays["titlepara_task_embedding"] = tasks
    source = write_folder(tmp_path / "params", arrays)
    result = import_checkpoint("rocketqa", source, tmp_path / "out", base=ernie)
    assert result.used == len(arrays)
    if with_tasks:
        encoder.embeddings.word_embeddings.weight.data += torch.tensor(tasks[0])
    check_retriever(tmp_path / "out", encoder, encoder)


def test_a_path_of_this_machine_is_not_on_the_card(base: Path, tmp_path: Path) -> None:
    import_checkpoint(
        "rocketqa",
        write_folder(tmp_path / "params", paddle_names(make_encoder(2), "titlepara_")),
        tmp_path / "out",
        base=base,
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model" not in card and str(base) not in card and base.name in card


def test_every_parameter_is_accounted_for(base: Path, tmp_path: Path) -> None:
    weights = prefixed("question_model.", make_encoder(1)) | prefixed("ctx_model.", make_encoder(2))

    def check_error(changed: dict, message: str) -> None:
        torch.save({"model_dict": changed}, tmp_path / "changed.cp")
        with pytest.raises(ValueError) as error:
            import_checkpoint("dpr", tmp_path / "changed.cp", tmp_path / "out", base=base)
        assert message in str(error.value) and not (tmp_path / "out").exists()

    name = "ctx_model.encoder.layer.1.output.dense.bias"
    check_error({key: value for key, value in weights.items() if key != name}, f"missing {name}")
    check_error(
        weights | {"ctx_model.encode_proj.weight": torch.ones(2)}, "unexpected ctx_model.encode_proj.weight"
    )
    check_error(weights | {name: torch.ones(31)}, f"{name}: found [31], expected [32]")
    check_error(weights | {"lm_head.bias": torch.ones(2)}, "found lm_head.bias")
    check_error({key: value for key, value in weights.items() if key.startswith("q")}, "no ctx_model.*")


class Foreign:
    """What weights_only does not open."""


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    torch.save({"model_dict": {"a": torch.ones(1)}, "args": Foreign()}, tmp_path / "foreign.cp")
    with pytest.raises(ValueError, match="cannot be read as tensors and plain containers .*Foreign"):
        read_torch(tmp_path / "foreign.cp")
    torch.save({"model": 1}, tmp_path / "other.cp")
    with pytest.raises(ValueError, match=r"found \['model'\]; expected a dictionary of tensors"):
        read_torch(tmp_path / "other.cp")
    (tmp_path / "model.pdparams").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"are pickles(.|\n)*numpy.savez\('model.npz'"):
        read_paddle(tmp_path / "model.pdparams")
    np.savez(tmp_path / "objects.npz", a=np.array([Foreign()], dtype=object))
    with pytest.raises(ValueError, match="cannot be read as arrays"):
        read_paddle(tmp_path / "objects.npz")


# --- Paddle's parameters


def test_a_tensor_is_read_as_paddle_documents_it(tmp_path: Path) -> None:
    # version, no levels of detail, version, 6 bytes of TensorDesc: type 5 (float32), dimensions 2 and 1
    head = b"\0\0\0\0" + b"\0" * 8 + b"\0\0\0\0" + b"\x06\0\0\0" + b"\x08\x05\x10\x02\x10\x01"
    (tmp_path / "w").write_bytes(head + np.array([1.5, -2], "<f4").tobytes())
    assert read_tensor(tmp_path / "w").tolist() == [[1.5], [-2.0]]
    for array in (np.zeros((300, 2), np.float16), np.arange(3), np.array(1.0)):
        write_tensor(tmp_path / "again", array)
        found = read_tensor(tmp_path / "again")
        assert found.dtype == array.dtype and np.array_equal(found, array)
    (tmp_path / "short").write_bytes((tmp_path / "w").read_bytes()[:-1])
    (tmp_path / "text").write_text("no tensor at all, but a text")
    for name in ("short", "text"):
        with pytest.raises(ValueError, match=f"{name}: found .*expected one tensor"):
            read_tensor(tmp_path / name)


@pytest.mark.parametrize("shared", [False, True])
def test_a_dual_encoder_of_rocketqa(shared: bool, base: Path, tmp_path: Path) -> None:
    passage = make_encoder(2, eps=1e-5)
    query = passage if shared else make_encoder(1, eps=1e-5)
    arrays = paddle_names(passage, "titlepara_") | ({} if shared else paddle_names(query, "query_"))
    arrays |= {
        "titlepara_word_embedding_moment1_0": np.zeros(3, np.float32),
        "@LR_DECAY_COUNTER@": np.zeros(1),
    }
    source = write_folder(tmp_path / "params", arrays)
    result = import_checkpoint("rocketqa", source, tmp_path / "out", base=base)
    assert result.used == len(arrays) - 2 and len(result.unused) == 2
    assert {name.rpartition("pooler")[2] for name in result.added} == {".dense.weight", ".dense.bias"}
    assert has_separate_towers(check_retriever(tmp_path / "out", query, passage)) is not shared


def test_both_models_of_rocketqa_v2_from_one_npz(base: Path, tmp_path: Path) -> None:
    query, passage, ranker = (make_encoder(seed, eps=1e-5) for seed in (1, 2, 3))
    arrays = (
        paddle_names(query, "query_") | paddle_names(passage, "titlepara_") | paddle_names(ranker, "qtp_")
    )
    head = torch.nn.Linear(32, 1)
    arrays["qtp__cls_out_w"] = head.weight.detach().numpy().T
    arrays["qtp__cls_out_b"] = head.bias.detach().numpy()
    np.savez(tmp_path / "v2.npz", **arrays)
    import_checkpoint("rocketqa", tmp_path / "v2.npz", tmp_path / "retriever", base=base)
    check_retriever(tmp_path / "retriever", query, passage)
    result = import_checkpoint("rocketqa-ranker", tmp_path / "v2.npz", tmp_path / "ranker", base=base)
    assert result.used + len(result.unused) == len(arrays)
    with torch.no_grad():
        expected = head(first_states(ranker, QUERIES, PASSAGES))[:, 0].numpy()
    scores = load_ranker(tmp_path / "ranker", device="cpu").predict(list(zip(QUERIES, PASSAGES, strict=True)))
    np.testing.assert_allclose(scores, expected, atol=1e-6, rtol=1e-5)


def test_two_classes_become_one_logit(base: Path, tmp_path: Path) -> None:
    encoder, head = make_encoder(4, eps=1e-5), torch.nn.Linear(32, 2)
    arrays = paddle_names(encoder, "", pooler=True)
    arrays |= {"_cls_out_w": head.weight.detach().numpy().T, "_cls_out_b": head.bias.detach().numpy()}
    source = write_folder(tmp_path / "params", {k: np.ascontiguousarray(v) for k, v in arrays.items()})
    import_checkpoint("rocketqa-ranker", source, tmp_path / "out", base=base)
    with torch.no_grad():
        pooled = torch.tanh(encoder.pooler.dense(first_states(encoder, QUERIES, PASSAGES)))
        expected = torch.softmax(head(pooled), 1)[:, 1].numpy()
    scores = CrossEncoder(str(tmp_path / "out"), device="cpu").predict(
        list(zip(QUERIES, PASSAGES, strict=True))
    )
    np.testing.assert_allclose(1 / (1 + np.exp(-scores)), expected, atol=1e-6)


def test_names_that_are_not_ernies_are_named(base: Path, tmp_path: Path) -> None:
    arrays = paddle_names(make_encoder(2), "titlepara_") | {
        "titlepara_new_fc.w_0": np.zeros((2, 2), np.float32)
    }
    source = write_folder(tmp_path / "params", arrays)
    with pytest.raises(ValueError, match="unexpected titlepara_new_fc.w_0"):
        import_checkpoint("rocketqa", source, tmp_path / "out", base=base)
    with pytest.raises(ValueError, match="Import a dual encoder as rocketqa"):
        (source / "titlepara_new_fc.w_0").unlink()
        import_checkpoint("rocketqa-ranker", source, tmp_path / "out", base=base)


def test_the_command(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(
        prefixed("question_model.", make_encoder(1)) | prefixed("ctx_model.", make_encoder(2)), tmp_path / "f"
    )
    arguments = ["import", "dpr", str(tmp_path / "f"), str(tmp_path / "out"), "--base", str(base)]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "a retriever of" in shown and "Next: hf-ar2 " in shown
    assert cli.main(arguments) == 1
    assert "the folder is not empty; expected a new or an empty folder" in capsys.readouterr().err
