"""RocketQA's, RocketQAv2's and PAIR's checkpoints: ERNIE as Paddle names its parameters."""

from __future__ import annotations

import re

from sentence_transformers import CrossEncoder, SentenceTransformer

from hf_ar2.importing.builder import Builder, Weights, listed

_PADDLE_NAMES = (
    (r"word_embedding", "embeddings.word_embeddings.weight"),
    (r"pos_embedding", "embeddings.position_embeddings.weight"),
    (r"sent_embedding", "embeddings.token_type_embeddings.weight"),
    (r"task_embedding", "embeddings.task_type_embeddings.weight"),
    (r"pre_encoder_layer_norm_(scale|bias)", "embeddings.LayerNorm.{0}"),
    (
        r"encoder_layer_(\d+)_multi_head_att_(query|key|value)_fc\.(w_0|b_0)",
        "encoder.layer.{0}.attention.self.{1}.{2}",
    ),
    (
        r"encoder_layer_(\d+)_multi_head_att_output_fc\.(w_0|b_0)",
        "encoder.layer.{0}.attention.output.dense.{1}",
    ),
    (
        r"encoder_layer_(\d+)_post_att_layer_norm_(scale|bias)",
        "encoder.layer.{0}.attention.output.LayerNorm.{1}",
    ),
    (r"encoder_layer_(\d+)_ffn_fc_0\.(w_0|b_0)", "encoder.layer.{0}.intermediate.dense.{1}"),
    (r"encoder_layer_(\d+)_ffn_fc_1\.(w_0|b_0)", "encoder.layer.{0}.output.dense.{1}"),
    (r"encoder_layer_(\d+)_post_ffn_layer_norm_(scale|bias)", "encoder.layer.{0}.output.LayerNorm.{1}"),
    (r"pooled_fc\.(w_0|b_0)", "pooler.dense.{0}"),
)
_ENDINGS = {"w_0": "weight", "b_0": "bias", "scale": "weight", "bias": "bias"}
_HEAD = re.compile(r"(?:qtp_)?_?cls_out_([wb])")
# What a training program keeps beside the parameters, and heads of pre-training.
_NOT_USED = re.compile(
    r"@.*|learning_rate.*|num_seqs.*|.*_(moment[12]|beta[12]_pow_acc|velocity)_\d+.*|(mask_lm|next_sent)_.*"
)


def from_paddle_name(name: str) -> tuple[str, bool] | None:
    """The standard name of an ERNIE parameter without its model's prefix, and whether it is to be transposed.

    Paddle keeps a linear layer's weight as [in, out].
    """
    for pattern, standard in _PADDLE_NAMES:
        match = re.fullmatch(pattern, name)
        if match:
            parts = [_ENDINGS.get(part, part) for part in match.groups()]
            return standard.format(*parts), name.endswith(".w_0")
    return None


def _rocketqa_parts(published: Weights, build: Builder) -> tuple[dict[str, Weights], Weights]:
    """Model's prefix -> its parameters by standard name, and the head's (`w`, `b`)."""
    towers: dict[str, Weights] = {}
    head: Weights = {}
    unknown = []
    for name, value in published.items():
        prefix = next((prefix for prefix in ("query_", "titlepara_", "qtp_") if name.startswith(prefix)), "")
        found, is_head = from_paddle_name(name.removeprefix(prefix)), _HEAD.fullmatch(name)
        if is_head:
            head[is_head[1]] = value
        elif found:
            towers.setdefault(prefix, {})[found[0]] = value.T.contiguous() if found[1] else value
        elif _NOT_USED.fullmatch(name.removeprefix(prefix)):
            build.result.left_out[name] = "of training or pre-training"
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"{build.source}: unexpected {listed(sorted(unknown))}; expected ERNIE's parameters with the prefixes "
            "query_, titlepara_, qtp_ or none, and a head cls_out_w, cls_out_b"
        )
    return towers, head


def rocketqa_retriever(published: Weights, build: Builder) -> SentenceTransformer:
    """RocketQA's dual encoder, RocketQAv2's, or PAIR's, which has one tower."""
    towers, head = _rocketqa_parts(published, build)
    passage, query = towers.pop("titlepara_", None), towers.pop("query_", None)
    if passage is None:
        raise ValueError(
            f"{build.source}: found no titlepara_*; expected the passages' encoder. A ranker is imported as "
            "rocketqa-ranker"
        )
    _leave_ranker_out(published, build, bool(towers or head))
    document = build.encoder(passage, "titlepara_")
    return (
        build.retriever(document, None)
        if query is None
        else build.retriever(build.encoder(query, "query_"), document)
    )


def _leave_ranker_out(published: Weights, build: Builder, there: bool) -> None:
    """The ranker in a folder with both models is for the other format."""
    for name in published if there else ():
        if name not in build.result.left_out and not name.startswith(("query_", "titlepara_")):
            build.result.left_out[name] = "of the ranker: import it as rocketqa-ranker"


def rocketqa_ranker(published: Weights, build: Builder) -> CrossEncoder:
    """RocketQAv2's ranker, linear in the first token's state; or RocketQA's, two classes over a pooler.

    Of two classes one logit is kept, the second less the first: its sigmoid is the probability that RocketQA
    gives.
    """
    towers, head = _rocketqa_parts(published, build)
    prefix = "qtp_" if "qtp_" in towers else ""
    if prefix not in towers or set(head) != {"w", "b"}:
        raise ValueError(
            f"{build.source}: found encoders {sorted(towers)} and of a head {sorted(head)}; expected one with the "
            "prefix qtp_ or none, and cls_out_w, cls_out_b. A dual encoder is imported as rocketqa"
        )
    for name in published:
        if name.startswith(("query_", "titlepara_")):
            build.result.left_out[name] = "of the retriever: import it as rocketqa"
    weight, bias = head["w"].T.contiguous(), head["b"]
    if "pooler.dense.weight" not in towers[prefix]:
        return build.linear_ranker(build.encoder(towers[prefix], prefix), weight, bias, "cls_out")
    if weight.shape[0] == 2:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    return build.classifier(towers[prefix], weight, bias)
