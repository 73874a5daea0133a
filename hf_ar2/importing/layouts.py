"""Parameter names of the published checkpoints, translated to the names that `transformers` uses."""

from __future__ import annotations

import re

from hf_ar2.importing.builder import ImportResult, Modules, Weights, shorten

_MODULES = {
    "pre_encoder_layer_norm": "embeddings.LayerNorm",
    "multi_head_att_query_fc": "attention.self.query",
    "multi_head_att_key_fc": "attention.self.key",
    "multi_head_att_value_fc": "attention.self.value",
    "multi_head_att_output_fc": "attention.output.dense",
    "post_att_layer_norm": "attention.output.LayerNorm",
    "ffn_fc_0": "intermediate.dense",
    "ffn_fc_1": "output.dense",
    "post_ffn_layer_norm": "output.LayerNorm",
    "pooled_fc": "pooler.dense",
}
_EMBEDDINGS = {"word": "word", "pos": "position", "sent": "token_type", "task": "task_type"}
_PARAMETERS = {"w_0": "weight", "b_0": "bias", "scale": "weight", "bias": "bias"}
_EMBEDDING = re.compile(r"(word|pos|sent|task)_embedding")
_PARAMETER = re.compile(r"(?:encoder_layer_(\d+)_)?(\w+?)(?:\.(w_0|b_0)|_(scale|bias))")
_HEAD = re.compile(r"(?:qtp_)?_?cls_out_([wb])")
# Optimizer state that is saved with the parameters, and heads of pre-training.
_UNUSED = re.compile(
    r"@.*|learning_rate.*|num_seqs.*|.*_(moment[12]|beta[12]_pow_acc|velocity)_\d+.*|(mask_lm|next_sent)_.*"
)


def ar2_modules(published: Weights, result: ImportResult) -> Modules:
    """Modules of a checkpoint of AR2 or DPR: two encoders, or the ranker's encoder and head.

    ValueError if a module is missing, or a parameter belongs to none.
    """
    prefixes = (
        ("encoder.", "qa_classifier.") if result.kind == "ranker" else ("question_model.", "ctx_model.")
    )
    modules: Modules = {prefix: {} for prefix in prefixes}
    unknown = []
    for name, value in published.items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if prefix is not None:
            modules[prefix][name.removeprefix(prefix)] = value
        elif result.kind == "ranker" and name.startswith("binary."):
            result.unused[name] = "a head that AR2 does not train"
        else:
            unknown.append(name)
    absent = [f"{prefix}*" for prefix in prefixes if not modules[prefix]]
    if absent or unknown:
        raise ValueError(
            f"{result.source}: found {shorten(unknown) or 'no other parameters'}"
            f"{' and no ' + ', '.join(absent) if absent else ''}; expected "
            f"{', '.join(f'{prefix}*' for prefix in prefixes)}. Is this a checkpoint of another format?"
        )
    return modules


def from_paddle_name(name: str) -> tuple[str, bool] | None:
    """The `transformers` name of an ERNIE parameter without its prefix, and whether to transpose the parameter.

    Paddle stores the weight of a linear layer as [in, out].
    """
    if match := _EMBEDDING.fullmatch(name):
        return f"embeddings.{_EMBEDDINGS[match[1]]}_embeddings.weight", False
    match = _PARAMETER.fullmatch(name)
    if not match or match[2] not in _MODULES:
        return None
    layer = f"encoder.layer.{match[1]}." if match[1] else ""
    return f"{layer}{_MODULES[match[2]]}.{_PARAMETERS[match[3] or match[4]]}", match[3] == "w_0"


def rocketqa_modules(published: Weights, result: ImportResult) -> Modules:
    """Modules of a checkpoint of RocketQA, RocketQAv2 or PAIR (which has one encoder).

    RocketQA's ranker has two classes over a pooler. One logit is kept, the second less the first: its sigmoid is the
    probability that RocketQA computes. ValueError if a module is missing, or a parameter belongs to none.
    """
    found: Modules = {}
    head: Weights = {}
    unknown = []
    for name, value in published.items():
        prefix = next((prefix for prefix in ("query_", "titlepara_", "qtp_") if name.startswith(prefix)), "")
        translated, is_head = from_paddle_name(name.removeprefix(prefix)), _HEAD.fullmatch(name)
        if result.kind == "ranker" and prefix in ("query_", "titlepara_"):
            result.unused[name] = "part of the retriever: import it as rocketqa"
        if is_head:
            head[is_head[1]] = value
        elif translated:
            standard, transposed = translated
            found.setdefault(prefix, {})[standard] = value.T.contiguous() if transposed else value
        elif _UNUSED.fullmatch(name.removeprefix(prefix)):
            result.unused[name] = "used only in training or pre-training"
            continue
        else:
            unknown.append(name)
        if result.kind == "retriever" and (is_head or prefix in ("qtp_", "")):
            result.unused[name] = "part of the ranker: import it as rocketqa-ranker"
    if unknown:
        raise ValueError(
            f"{result.source}: unexpected {shorten(sorted(unknown))}; expected ERNIE's parameters with the prefixes "
            "query_, titlepara_, qtp_ or none, and a head cls_out_w, cls_out_b"
        )
    if result.kind == "retriever":
        if "titlepara_" not in found:
            raise ValueError(
                f"{result.source}: found no titlepara_*; expected the passage encoder. Import a ranker as "
                "rocketqa-ranker"
            )
        return {prefix: found[prefix] for prefix in ("query_", "titlepara_") if prefix in found}
    prefix = "qtp_" if "qtp_" in found else ""
    if prefix not in found or set(head) != {"w", "b"}:
        raise ValueError(
            f"{result.source}: found encoders {sorted(found)} and head parameters {sorted(head)}; expected an encoder "
            "with the prefix qtp_ or none, and cls_out_w, cls_out_b. Import a dual encoder as rocketqa"
        )
    weight, bias = head["w"].T.contiguous(), head["b"]
    if "pooler.dense.weight" in found[prefix] and weight.shape[0] == 2:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    return {prefix: found[prefix], "cls_out": {"weight": weight, "bias": bias}}
