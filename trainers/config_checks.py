"""Checks of settings that depend on each other, so that a bad combination is an error before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_ar2.evaluation.metrics import parse_metric

if TYPE_CHECKING:
    from hf_ar2.trainers.config import JointConfig

# Settings of transformers that no trainer here uses, and why.
_UNUSED = {
    "label_smoothing_factor": "the losses here have no class labels",
    "lr_scheduler_kwargs": "schedules here take warmup_steps and decay_share",
}
_SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "warmup_stable_decay")


def check_combinations(args: JointConfig) -> None:
    """Raise ValueError for settings that contradict each other, have no effect, or are not supported."""
    _check_lists(args)
    _check_evaluation(args)
    _check_refresh(args)
    _check_unsupported(args)


def _check_lists(args: JointConfig) -> None:
    dims = args.matryoshka_dims
    if dims is not None and (not dims or min(dims) < 1 or len(set(dims)) < len(dims)):
        raise ValueError(
            f"matryoshka_dims={dims!r}: expected a list of different whole numbers above 0, such as [256, 128, 64]"
        )
    if not args.train_lists and (not args.mine or args.train_list_kinds):
        raise ValueError(
            "mine=False and train_list_kinds choose among stored lists: name them in train_lists"
        )
    if args.sampler == "simans" and args.train_lists and args.mine:
        raise ValueError(
            "sampler='simans' weighs differences of scores, but mined lists hold the retriever's and stored ones the "
            "ranker's: use mine=False, or another sampler"
        )
    if args.relative_margin is not None and not 0 <= args.relative_margin < 1:
        raise ValueError(
            f"relative_margin={args.relative_margin}: expected a share of the positive's score, from 0 to below 1"
        )


def _check_evaluation(args: JointConfig) -> None:
    """Check what would otherwise fail in the first evaluation, after a round of training."""
    evaluates = args.eval_strategy != "no" or args.eval_on_start
    if args.patience is not None and args.eval_strategy == "no":
        raise ValueError("patience counts evaluations, but eval_strategy='no'; expected 'steps' or 'epoch'")
    if args.rerank_depth > args.eval_depth:
        raise ValueError(f"rerank_depth={args.rerank_depth} is more than eval_depth={args.eval_depth}")
    for metric in args.eval_metrics:
        try:
            cut = parse_metric(metric)[1] or 0
        except ValueError as error:
            raise ValueError(f"eval_metrics: {error}") from None
        if evaluates and cut > args.eval_depth:
            raise ValueError(
                f"eval_metrics={args.eval_metrics}: {metric} needs {cut} passages per query, but "
                f"eval_depth={args.eval_depth}; raise eval_depth or name other eval_metrics"
            )


def _check_refresh(args: JointConfig) -> None:
    if (args.refresh_mode == "async") != (args.max_staleness is not None):
        raise ValueError(
            f"refresh_mode={args.refresh_mode!r}, max_staleness={args.max_staleness}: 'async' needs max_staleness, "
            "the number of steps until the new pool is used; 'sync' has none"
        )
    if args.refresh_device is not None and args.refresh_mode != "async":
        raise ValueError(
            f"refresh_device={args.refresh_device!r} encodes while training goes on, but refresh_mode="
            f"{args.refresh_mode!r}; set refresh_mode='async' and max_staleness, or leave refresh_device out"
        )
    if args.refresh_mode == "async" and not (
        args.refresh and args.mine and args.num_negatives and args.mine_with == "retriever"
    ):
        raise ValueError(
            "refresh_mode='async' needs negatives that the retriever mines in every round, but found "
            f"refresh={args.refresh}, mine={args.mine}, num_negatives={args.num_negatives}, "
            f"mine_with={args.mine_with!r}; expected True, True, at least 1 and 'retriever'"
        )


def _check_unsupported(args: JointConfig) -> None:
    for name, reason in _UNUSED.items():
        if value := getattr(args, name):
            raise ValueError(f"{name}={value!r} would have no effect: {reason}. Leave it out")
    if args.auto_find_batch_size:
        raise ValueError(
            "auto_find_batch_size=True would change the batch in the middle of a run, and rounds, phases and "
            "schedules are counted in batches; set per_device_train_batch_size, and mini_batch_size where memory is "
            "short"
        )
    if args.shard_weights and (args.mini_batch_size or args.step_tokens):
        raise ValueError(
            "shard_weights=True needs the same number of chunks on every process: leave out mini_batch_size and "
            "step_tokens; activation_checkpointing=True lowers the memory of activations"
        )
    if args.dataloader_persistent_workers:
        raise ValueError(
            "dataloader_persistent_workers=True would keep the workers' old candidate pool after a refresh; leave it "
            "False"
        )
    for name in ("lr_scheduler_type", "ranker_lr_scheduler_type"):
        value = getattr(args, name)
        if value is not None and schedule_kind(value) not in _SCHEDULES:
            raise ValueError(
                f"{name}={value!r}: with two models in one optimizer these work: {', '.join(_SCHEDULES)}"
            )


def schedule_kind(chosen: object) -> str:
    """The name of a schedule, from a name or a member of transformers' `SchedulerType`."""
    return str(chosen).split(".")[-1].lower()
