"""A run that trains a finished model in few bits: within a budget, resumable at any moment, with a card of its own."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnic.errors import BundleError, InputError
from omnic.ir.packing import QTensor
from omnic.ir.types import ElementType, Storage
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.runtime.files import sha256_file
from omnic.runtime.tokenizer import Tokenizer
from omnic.spec import Spec
from omnic.targets.torch.training import load_training_module
from omnic.training import evaluate as evaluation
from omnic.training.checkpoint import latest, load_checkpoint
from omnic.training.config import TrainConfig
from omnic.training.corpus import load_corpus
from omnic.training.data import tokenize
from omnic.training.files import replace_file, write_json
from omnic.training.heldout import heldout
from omnic.training.module import load_weights
from omnic.training.phase import Clock, Phase, PhaseState
from omnic.training.progress import Progress
from omnic.training.progress import clock as as_clock
from omnic.training.qat import Latents, QatConfig, export_codes, starting_codes
from omnic.training.run_folder import RunFolder
from omnic.training.schedule import Schedule
from omnic.training.student import Distillation, Student
from omnic.training.trainer import Result
from omnic.training.versions import versions

__all__ = ["QatRequest", "train_in_few_bits"]

Start = Callable[[], tuple[Mapping[str, ElementType], Mapping[str, QTensor]]]


@dataclass(frozen=True)
class QatRequest:
    """What to train in few bits and how long.

    Attributes:
        spec: the model; it names weights and tokenizer.
        out: folder of the run.
        what: the types in words, as the command named them.
        start: makes the storage type of each weight, and codes to begin with; called when a run begins, not when it
            goes on.
        hours: budget of wall time, everything included; None with ``steps``.
        steps: updates; None takes them from the budget.
        seed: of the order of the text.
        threads: of torch.
        config: the recipe.
        force: replace a run of another identity in ``out``.
    """

    spec: Spec
    out: Path
    what: str
    start: Start
    hours: float | None = None
    steps: int | None = None
    seed: int = 0
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    config: QatConfig = field(default_factory=QatConfig)
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse a request that cannot be carried out."""
        if (self.hours is None) == (self.steps is None):
            both = ", not both" if self.hours is not None else ""
            raise InputError(
                f"a training needs a budget or a number of steps{both}", "give --budget-hours H or --steps N"
            )
        if self.steps is not None and self.steps < 1:
            raise InputError(f"a training needs at least one step, not {self.steps}")
        if self.hours is not None and not self.hours > 0:
            raise InputError(f"a budget of {self.hours} hours leaves no time to train")
        if self.threads < 1:
            raise InputError(f"a training needs at least one thread, not {self.threads}")
        if self.spec.resolve("weights") is None:
            raise InputError(f"{self.spec.model} has no weights to train in few bits", "train it first, without --qat")
        if self.spec.resolve("tokenizer") is None:
            raise InputError(f"{self.spec.model} names no tokenizer, so there is no text to train on")


def train_in_few_bits(request: QatRequest, progress: Progress | None = None) -> Result:
    """Train, or go on with a training that was cut off.

    Raises:
        InputError: the request, the weights or the folder do not allow it.
        BundleError: a checkpoint, the weights or the tokenizer are damaged.
        CheckFailed: the loss diverged, or a signal stopped the run (which can be resumed).
    """
    return _Run(request, progress or Progress()).run()


class _Run:
    def __init__(self, request: QatRequest, progress: Progress) -> None:
        self.request, self.progress = request, progress
        self.spec, self.config = request.spec, request.config
        self.folder, self.clock = RunFolder(request.out), Clock()
        source, tokenizer = request.spec.resolve("weights"), request.spec.resolve("tokenizer")
        assert source is not None and tokenizer is not None
        self.source, self.tokenizer = source, Tokenizer.load(tokenizer)
        torch.set_num_threads(request.threads)
        torch.use_deterministic_algorithms(True)
        torch.manual_seed(request.seed)

    def identity(self) -> dict[str, Any]:
        """Return everything that decides the result, as JSON values."""
        request = self.request
        return {
            "spec": json.loads(self.spec.model_dump_json(exclude={"weights"})),
            "qat": request.what,
            "weights": sha256_file(self.source),
            "hours": request.hours,
            "steps": request.steps,
            "seed": request.seed,
            "threads": request.threads,
            "config": self.config.to_dict(),
        }

    def run(self) -> Result:
        resumed = self.folder.open(self.identity(), self.request.force, {"config": QatConfig().to_dict()})
        finished = self.folder.path / "result.json"
        if resumed and finished.exists():
            self.progress.say(f"{self.folder.path} is finished; --force trains anew")
            return Result(self.folder.path, json.loads(finished.read_text("utf-8")))
        self.corpus = load_corpus(self.config.corpus)
        self.tokenizer.save(self.folder.tokenizer)
        self.tokens = tokenize(self.corpus, self.tokenizer, self.folder.path)
        self.front = build(self.spec)
        self.store = WeightStore.load(self.front, self.source)
        facts, kept = self._begin()
        self.loss = Distillation(self.front, self.store, self.student, self.config.trunk_share)
        # The cheap loss takes its metric from the first text it sees: the same for a run that goes on.
        first = self.tokens.batch(self.request.seed, 0, self.config.batch, self.config.sequence)[:, :-1]
        with torch.no_grad():
            self.loss(first, 0.0)
        optimizer = Latents(self.student, self.config)
        if kept is not None:
            optimizer.load_state(kept)
        if "train" not in facts:
            facts["train"] = PhaseState(self._schedule(facts)).to_dict()
        state = PhaseState.from_dict(facts["train"])

        def step(batch: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
            value = self.loss(batch[:, :-1], state.step / state.schedule.steps)
            return value, value.detach(), []

        budget = self.request.hours
        Phase(
            name="train", model=self.student, step=step, optimizer=optimizer, tokens=self.tokens,
            config=TrainConfig(sequence=self.config.sequence, checkpoint_seconds=self.config.checkpoint_seconds),
            seed=self.request.seed, windows=self.config.batch, state=state, facts=facts, steps_before=0,
            deadline=None if budget is None else budget * 3600 - facts["reserve"],
        ).run(self.folder, self.clock, self.progress)  # fmt: skip
        facts["train"] = state.to_dict()
        return self._finish(facts)

    def _begin(self) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        """Make the student, from the newest checkpoint or from the codes to begin with; return facts and optimiser."""
        newest = latest(self.folder.checkpoints)
        if newest is None:
            self.folder.rewind_log(0)
            elements, codes = self.request.start()
            begun = starting_codes(self.front, self.store, elements, codes)
            self.student = Student(self.front, self.store, begun, elements)
            return {"elements": {n: str(e) for n, e in elements.items()}}, None
        checkpoint = load_checkpoint(newest)
        elements = {n: _storage(text) for n, text in checkpoint.facts["elements"].items()}
        self.student = Student(self.front, self.store, starting_codes(self.front, self.store, elements), elements)
        load_weights(self.student, checkpoint.weights)
        self.clock = Clock(checkpoint.facts["seconds"], checkpoint.facts["cpu_seconds"])
        self.folder.rewind_log(checkpoint.step)
        self.progress.say(f"going on from {newest.name}, {as_clock(self.clock.seconds)} used")
        return checkpoint.facts, checkpoint.optimizer

    def _schedule(self, facts: dict[str, Any]) -> Schedule:
        """Return the schedule, warm-up and then a fall to 0, of the steps asked for or those that fit the budget."""
        batch = self.tokens.batch(self.request.seed, 0, self.config.batch, self.config.sequence)[:, :-1]
        seconds, forward = self._measured(batch)
        # Both models over the held-out text, whose windows overlap by half.
        facts["reserve"] = 2.0 + 5 * forward * len(self.tokenizer.encode(heldout().text)) / batch.numel()
        steps = self.request.steps
        if steps is None:
            assert self.request.hours is not None
            left = self.request.hours * 3600 - self.clock.seconds - facts["reserve"]
            steps = int(1.04 * left / seconds)
            if steps < 10:
                least = (self.clock.seconds + facts["reserve"] + 20 * seconds) / 3600
                raise InputError(
                    f"{self.request.hours:g} hours leave time for {max(steps, 0)} steps of {seconds:.2f} s",
                    f"give at least {least:.3f} hours",
                )
        return Schedule(steps, min(self.config.warmup, max(1, steps // 10)), min(self.config.warmup, steps - 1))

    def _measured(self, batch: Tensor) -> tuple[float, float]:
        """Return the mean seconds of a step, and those of a forward pass; nothing is updated."""
        found: list[float] = []
        for share in (0.0, 1.0):
            times: list[float] = []
            for _ in range(3):
                began = time.perf_counter()
                self.loss(batch, share).backward()
                times.append(time.perf_counter() - began)
            found.append(min(times))
        for parameter in self.student.parameters():
            parameter.grad = None
        began = time.perf_counter()
        with torch.no_grad():
            self.loss.teacher(batch)
        forward = time.perf_counter() - began
        share = self.config.trunk_share
        return 1.05 * (share * found[0] + (1 - share) * found[1]), forward

    def _finish(self, facts: dict[str, Any]) -> Result:
        weights = self.folder.path / f"{self.spec.model}.safetensors"
        codes = export_codes(self.student, self.spec, weights)
        # What is measured is what was stored.
        stored = WeightStore.load(self.front, weights)
        held = heldout()
        after, before = (
            evaluation.bits_per_byte(load_training_module(s.module, s), self.tokenizer, held.text)
            for s in (stored, self.store)
        )
        self.progress.say(f"held out: {after.value:.4f} bits per byte, {before.value:.4f} before: "
                          f"{100 * (after.value / before.value - 1):+.2f} %")
        kinds = Counter(str(q.type) for q in codes.values())
        result: dict[str, Any] = {
            "schema_version": 1,
            "model": self.spec.model,
            "weights": {"file": weights.name, "bytes": weights.stat().st_size},
            "qat": {"asked": self.request.what, "types": dict(kinds), "from": sha256_file(self.source)},
            "bits_per_byte": after.to_dict(),
            "bits_per_byte_before": before.to_dict(),
            "heldout": {"sha256": held.sha256, "bytes": held.size, "modules": len(held.modules)},
            "corpus": {"source": self.corpus.source, "sha256": self.corpus.sha256, "bytes": self.corpus.size},
            "seed": self.request.seed,
            "threads": self.request.threads,
            "train": facts["train"],
            "config": self.config.to_dict(),
            "budget_hours": self.request.hours,
            **self.clock.to_dict(),
            "versions": versions(),
            "reproduce": self._command(facts),
        }
        write_json(self.folder.path / "result.json", result)
        replace_file(self.folder.path / "card.md", card_text(result, self.folder.curve()).encode())
        self.progress.say(f"{self.folder.path}: done in {as_clock(self.clock.seconds)}")
        return Result(self.folder.path, result)

    def _command(self, facts: dict[str, Any]) -> str:
        """Return the command that repeats this run on a like machine."""
        steps, default = facts["train"]["schedule"]["steps"], QatConfig().to_dict()
        named = f" '{self.request.what}'" if self.request.what else ""
        parts = [f"omnic train {self.spec.model} --qat{named} --steps {steps} --seed {self.request.seed}"]
        parts.append(f"--threads {self.request.threads}")
        parts += [f"--set {k}={v}" for k, v in self.config.to_dict().items() if v != default[k]]
        return " ".join(parts)


def card_text(facts: Mapping[str, Any], curve: list[dict[str, Any]]) -> str:
    """Return the card of a training in few bits, in Markdown.

    Args:
        facts: ``result.json``.
        curve: the log's entries.
    """
    before, after = facts["bits_per_byte_before"]["value"], facts["bits_per_byte"]["value"]
    types = ", ".join(f"{count} in {type}" for type, count in facts["qat"]["types"].items())
    losses = [entry["loss"] for entry in curve]
    steps, config, corpus = facts["train"]["schedule"]["steps"], facts["config"], facts["corpus"]
    tail = losses[-10:] or [float("nan")]
    lines = [
        f"# {facts['model']}, trained in few bits",
        "",
        f"{facts['weights']['file']}: {facts['weights']['bytes']:,} bytes, front parameter names; trained matrices as "
        f"codes and scales ({types}), which a compile keeps.",
        "",
        "| measure | value |",
        "|---|---|",
        f"| bits per byte of the held-out text | **{after:.4f}** |",
        f"| of the model as it was | {before:.4f} |",
        f"| change | **{100 * (after / before - 1):+.2f} %** |",
        f"| loss of the last steps, nats a token from the model as it was | {sum(tail) / len(tail):.4f} |",
        "",
        "Tables, heads and the MTP block are not trained; drafts of the block fit the model as it was.",
        "",
        "## How it was made",
        "",
        "```",
        facts["reproduce"],
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| weights before | sha256 `{facts['qat']['from']}` |",
        f"| time used | {facts['seconds'] / 60:.1f} minutes of wall time, {facts['cpu_seconds'] / 60:.1f} of processor "
        "time |",
        f"| machine | {facts['versions']['processor']}; {facts['threads']} threads |",
        f"| versions | Python {facts['versions']['python']}, torch {facts['versions']['torch']} |",
        f"| corpus | {corpus['source']}: {corpus['bytes']:,} bytes; sha256 `{corpus['sha256']}` |",
        f"| steps | {steps} of {config['batch']} windows of {config['sequence']} tokens |",
        "",
    ]
    return "\n".join(lines)


def _storage(text: str) -> ElementType:
    from omnic.ir.types import parse_element

    element = parse_element(text)
    if not isinstance(element, Storage):
        raise BundleError(f"a checkpoint of a training in few bits names the type {text}", "--force starts anew")
    return element
