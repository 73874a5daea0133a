"""The settings of questions that a model writes."""

from __future__ import annotations

from dataclasses import dataclass

from hf_ar2.settings.fields import LARGEST_SEED, Documented, setting


@dataclass
class GenerationConfig(Documented):
    """How a model writes questions, and which of them are kept."""

    generate_model: str | None = setting(None, "The endpoint's model. Its key is read from OPENAI_API_KEY.")
    generate_prompt: str | None = setting(None, "Prompt with {passage}. None: the default of the model type.")
    queries_per_passage: int = setting(
        1, "Questions per passage; more than one are sampled.", unit="questions", minimum=1
    )
    passages_limit: int = setting(
        5_000, "Passages to write questions for, drawn at random.", unit="passages", minimum=1
    )
    generate_seed: int = setting(42, "Seed of the draws and of generation.", minimum=0, maximum=LARGEST_SEED)
    filter_model: str | None = setting(
        None,
        "Retriever for the filter: questions that do not find their passage are dropped. None: all-MiniLM-L6-v2 "
        "(English).",
    )
    filter_depth: int = setting(
        10, "Results among which a question has to find its passage.", unit="passages", minimum=1
    )
