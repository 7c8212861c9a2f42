"""A spec becomes a trained model within a budget of hours: the whole run, resumable at any moment.

Order: corpus, tokenizer, memory plan, probe, main training, MTP distillation, export, evaluation.
Every decision that shapes the curve is made once and stored in the checkpoint; the learning rate
and the data are functions of the step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnic.errors import InputError
from omnic.models import build
from omnic.runtime.score import xz_bits_per_byte
from omnic.runtime.tokenizer import Tokenizer
from omnic.spec import Spec
from omnic.training import evaluate as evaluation
from omnic.training.checkpoint import latest, load_checkpoint
from omnic.training.compile_cache import CompileCache
from omnic.training.config import TrainConfig
from omnic.training.corpus import load_corpus
from omnic.training.data import tokenize
from omnic.training.distill import DistillLoss, freeze_trunk
from omnic.training.files import write_json
from omnic.training.heldout import heldout
from omnic.training.losses import Experts, TrainingLoss, experts_of, update_select_bias, wants_choices
from omnic.training.memory import available_memory, plan_memory, require_memory
from omnic.training.module import build_module, export_weights, load_weights, parameter_counts
from omnic.training.optim import Optimizer
from omnic.training.phase import Clock, Phase, PhaseState
from omnic.training.probe import Mode, parse_mode, probe, time_steps, wrap
from omnic.training.progress import Progress
from omnic.training.progress import clock as as_clock
from omnic.training.protocol import has_block_mtp
from omnic.training.run_folder import RunFolder
from omnic.training.schedule import Schedule
from omnic.training.tokenizer_build import build_tokenizer
from omnic.training.versions import versions

__all__ = ["Request", "Result", "train"]

# A second seed's data order for the distillation: it must not repeat the last batches of training.
_DISTILL_SEED = 1_000_003

_EVALUATION_WINDOW = 256  # evaluate.bits_per_byte's length: the published figures need this context
_PREFIXES = 320
"""Held-out prefixes of the MTP measure."""


@dataclass(frozen=True)
class Request:
    """What to train and how long.

    Attributes:
        spec: the model.
        out: folder of the run.
        hours: budget of wall time, everything included; None with ``steps``.
        steps: steps of the main training; None takes them from the budget.
        decay_start: first step of the decay; None follows the recipe's share.
        distill_steps: steps of the MTP distillation; None takes them from the budget.
        seed: of the initial weights and the data order.
        threads: of torch.
        mode: ``eager-f32``, ``compile-f32``, ...; None asks the probe.
        memory: bytes the run may take; None takes what the machine has available.
        config: the recipe.
        force: replace a run of another identity in ``out``.
        compiled: folder that keeps compiled code beyond the run, shared with other runs; None keeps it in
            ``out`` until the run is finished.
    """

    spec: Spec
    out: Path
    hours: float | None = None
    steps: int | None = None
    decay_start: int | None = None
    distill_steps: int | None = None
    seed: int = 0
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    mode: str | None = None
    memory: int | None = None
    config: TrainConfig = field(default_factory=TrainConfig)
    force: bool = False
    compiled: Path | None = None

    def __post_init__(self) -> None:
        """Refuse a request that cannot be carried out."""
        if self.steps is not None and self.steps < 1:
            raise InputError(
                f"a training needs at least one step, not {self.steps}", "give --steps N, or --budget-hours H"
            )
        if self.hours is not None and self.steps is not None:
            raise InputError(
                "a training needs a budget or a number of steps, not both", "give --budget-hours H or --steps N"
            )
        if self.hours is None and self.steps is None:
            raise InputError("a training needs a budget or a number of steps", "give --budget-hours H or --steps N")
        if self.hours is not None and not self.hours > 0:
            raise InputError(f"a budget of {self.hours} hours leaves no time to train")
        needed = max(self.config.sequence, _EVALUATION_WINDOW)
        if self.spec.context < needed:
            raise InputError(
                f"{self.spec.model} has a context of {self.spec.context} tokens; training reads windows of "
                f"{self.config.sequence} and the evaluation windows of {_EVALUATION_WINDOW}",
                f"set context: {needed} or more",
            )
        if self.threads < 1:
            raise InputError(f"a training needs at least one thread, not {self.threads}")
        if self.mode is not None:
            parse_mode(self.mode)

    def identity(self) -> dict[str, Any]:
        """Return everything that decides the result, as JSON values."""
        return {
            "spec": json.loads(self.spec.model_dump_json(exclude={"weights"})),
            "hours": self.hours,
            "steps": self.steps,
            "decay_start": self.decay_start,
            "distill_steps": self.distill_steps,
            "seed": self.seed,
            "threads": self.threads,
            "mode": self.mode,
            "config": self.config.to_dict(),
        }


@dataclass(frozen=True)
class Result:
    """A finished run; ``facts`` is what ``result.json`` holds."""

    out: Path
    facts: dict[str, Any]


def train(request: Request, progress: Progress | None = None) -> Result:
    """Train, or go on with a training that was cut off.

    Raises:
        InputError: the request, the corpus, the memory or the folder do not allow it.
        BundleError: a checkpoint or the tokenizer is damaged.
        CheckFailed: the loss diverged, or a signal stopped the run (which can be resumed).
    """
    return _Run(request, progress or Progress()).run()


class _Run:
    def __init__(self, request: Request, progress: Progress) -> None:
        self.request, self.progress = request, progress
        self.spec, self.config = request.spec, request.config
        self.folder = RunFolder(request.out)
        self.clock = Clock()
        torch.set_num_threads(request.threads)
        # Sums in parallel loops must not depend on which thread comes first.
        torch.use_deterministic_algorithms(True)
        torch.manual_seed(request.seed)

    def run(self) -> Result:
        resumed = self.folder.open(self.request.identity(), self.request.force, {"config": TrainConfig().to_dict()})
        finished = self.folder.path / "result.json"
        if resumed and finished.exists():
            self.progress.say(f"{self.folder.path} is finished; --force trains anew")
            return Result(self.folder.path, json.loads(finished.read_text("utf-8")))
        with CompileCache(self.folder.path, self.progress.say, self.request.compiled) as cache:
            result = self._train()
            cache.drop()
        return result

    def _train(self) -> Result:
        self.corpus = load_corpus(self.config.corpus)
        front = build(self.spec)
        self.experts = experts_of(front)
        matrices, rest = parameter_counts(front)
        self.tokenizer = self._tokenizer()
        self.tokens = tokenize(self.corpus, self.tokenizer, self.folder.path)
        self.plan = plan_memory(self.spec, self.config, matrices, rest, len(self.tokens.ids))
        require_memory(self.spec, self.config, self.plan, self.request.memory or available_memory())
        self.progress.say(
            f"{self.spec.model}: {(matrices + rest) / 1e6:.2f} M parameters, {len(self.tokens.ids) / 1e6:.2f} M tokens "
            f"({self.corpus.size / 1e6:.1f} MB of {self.corpus.source}), plan {self.plan.total / 1e9:.2f} GB"
        )
        self.model = build_module(front, self.request.seed, wants_choices(self.config, self.experts))
        self.model.train()
        self.facts = self._start()
        self._main()
        if has_block_mtp(self.model):
            self._distill()
        return self._finish()

    # -- the start ----------------------------------------------------------------------------

    def _tokenizer(self) -> Tokenizer:
        shipped = self.spec.tokenizer and Path(self.spec.place("tokenizer")[0]).parent / self.spec.tokenizer
        if self.folder.tokenizer.exists():
            tokenizer = Tokenizer.load(self.folder.tokenizer)
        elif shipped and shipped.exists():
            tokenizer = Tokenizer.load(shipped)
            tokenizer.save(self.folder.tokenizer)
        else:
            self.progress.say(f"tokenizer: {self.spec.vocab.size} entries from {self.corpus.size / 1e6:.1f} MB")
            tokenizer = build_tokenizer(self.corpus, self.spec.vocab.size, self.folder.tokenizer)
        if tokenizer.size != self.spec.vocab.size:
            raise InputError(
                f"the tokenizer has {tokenizer.size} entries, the spec says vocab.size {self.spec.vocab.size}",
                "make them equal: omnic tokenizer build --vocab-size N",
            )
        return tokenizer

    def _start(self) -> dict[str, Any]:
        """Return what the run has decided: from its newest checkpoint, or by the probe."""
        newest = latest(self.folder.checkpoints)
        if newest is not None:
            checkpoint = load_checkpoint(newest)
            load_weights(self.model, checkpoint.weights)
            self._kept_optimizer: dict[str, Tensor] | None = checkpoint.optimizer
            self.clock = Clock(checkpoint.facts["seconds"], checkpoint.facts["cpu_seconds"])
            self.folder.rewind_log(checkpoint.step)
            self.progress.say(f"going on from {newest.name}, {as_clock(self.clock.seconds)} used")
            return checkpoint.facts
        self._kept_optimizer = None
        self.folder.rewind_log(0)
        return self._decide()

    def _decide(self) -> dict[str, Any]:
        request, config = self.request, self.config
        loss = TrainingLoss(self.model, config, self.experts)
        batch = self.tokens.batch(request.seed, 0, config.batch, config.sequence)
        wanted = parse_mode(request.mode) if request.mode else None
        budget = self._budget
        share = 1 - (config.distill_share if has_block_mtp(self.model) else 0)
        left = (budget - self.clock.seconds) * share if budget is not None else 1e9
        if budget is None and wanted is not None:
            found = None
            self._mode, forward = wanted, 0.0
        else:
            found = probe(loss, batch, self.model, config, left, wanted)
            self._mode, forward = found.mode, found.forward_seconds
            self.progress.say(
                f"probe: {found.mode}, {found.step_seconds:.3f} s a step "
                f"({', '.join(f'{name} {value:.3f} s' for name, value in found.measured.items())})"
            )
        reserve = self._evaluation_seconds(forward)
        steps = request.steps
        if steps is None:
            assert budget is not None and found is not None
            # A few more than fit: the count can only be lowered, when the decay starts.
            left = (budget - self.clock.seconds - reserve) * share
            steps = int(1.04 * left / found.step_seconds)
            if steps < 10:
                raise InputError(
                    f"{as_clock(budget)} leave time for {max(steps, 0)} steps of {found.step_seconds:.2f} s",
                    f"give at least {(budget - left + 30 * found.step_seconds / share) / 3600:.3f} hours",
                )
        schedule = Schedule.of(steps, config.warmup, config.decay)
        if request.decay_start is not None:
            schedule = Schedule(steps, schedule.warmup, request.decay_start)
        return {
            "mode": str(self._mode),
            "probe": found.to_dict() if found else None,
            "reserve": reserve,
            "train": PhaseState(schedule).to_dict(),
        }

    @property
    def _budget(self) -> float | None:
        return self.request.hours * 3600 if self.request.hours is not None else None

    def _evaluation_seconds(self, forward: float) -> float:
        """Plan the final evaluation: passes over the held-out text and over the MTP prefixes."""
        batches = 2 * len(self.tokenizer.encode(heldout().text)) / self.config.tokens
        if has_block_mtp(self.model):
            batches += _PREFIXES * 194 * 3.5 / self.config.tokens
        return 1.2 * batches * forward + 2.0

    # -- the phases ---------------------------------------------------------------------------

    def _main(self) -> None:
        state = PhaseState.from_dict(self.facts["train"])
        if self.facts.get("phase") == "distill" or state.step >= state.schedule.steps:
            self.facts["train"] = state.to_dict()
            return
        biased = [layer for layer in self.experts if layer.select_bias is not None]
        optimizer = Optimizer(self.model.named_parameters(), self.config, self.config.muon_rate, self.config.adam_rate)
        self._restore(optimizer, "train")
        deadline = None
        if self._budget is not None and self.request.steps is None:
            end = self._budget - self.facts["reserve"]
            share = self.config.distill_share if has_block_mtp(self.model) else 0.0
            deadline = end - share * self._budget
        phase = Phase(
            name="train",
            model=self.model,
            step=wrap(TrainingLoss(self.model, self.config, self.experts), parse_mode(self.facts["mode"])),
            optimizer=optimizer,
            tokens=self.tokens,
            config=self.config,
            seed=self.request.seed,
            windows=self.config.batch,
            state=state,
            facts=self.facts,
            steps_before=0,
            deadline=deadline,
            evaluate=self._sampled,
            balance=self._balancer(biased) if biased else None,
        )
        phase.run(self.folder, self.clock, self.progress)
        self.facts["train"] = state.to_dict()
        self._kept_optimizer = None

    def _distill(self) -> None:
        made = self.facts["train"]["step"]
        freeze_trunk(self.model)
        # Eager: the unrolled graph would take as long to compile as it then saves.
        mode = Mode(bf16=parse_mode(self.facts["mode"]).bf16)
        step = wrap(DistillLoss(self.model, self.config.distill_unroll), mode)
        if "distill" in self.facts:
            state = PhaseState.from_dict(self.facts["distill"])
        else:
            state = PhaseState(Schedule.of(self._distill_steps(step), 5, 0.8))
        optimizer = Optimizer(
            self.model.named_parameters(), self.config, self.config.distill_muon_rate, self.config.distill_adam_rate
        )
        if self.facts.get("phase") == "distill":
            self._restore(optimizer, "distill")
        phase = Phase(
            name="distill",
            model=self.model,
            step=step,
            optimizer=optimizer,
            tokens=self.tokens,
            config=self.config,
            seed=self.request.seed + _DISTILL_SEED,
            windows=self.config.distill_batch,
            state=state,
            facts=self.facts,
            steps_before=made,
            deadline=None if self._budget is None else self._budget - self.facts["reserve"],
        )
        phase.run(self.folder, self.clock, self.progress)
        self.facts["distill"] = state.to_dict()
        self.facts["phase"] = "distill"

    def _distill_steps(self, step: Callable[[Tensor], Any]) -> int:
        if self.request.distill_steps is not None:
            return self.request.distill_steps
        if self._budget is None:
            # Without a budget, the share of the budget becomes one of the steps.
            share = self.config.distill_share / (1 - self.config.distill_share)
            return max(1, round(share * self.facts["train"]["step"] / 2))
        batch = self.tokens.batch(self.request.seed + _DISTILL_SEED, 0, self.config.distill_batch, self.config.sequence)
        seconds = time_steps(step, batch, self.model, count=2)
        left = self._budget - self.facts["reserve"] - self.clock.seconds
        return max(10, int(left / (1.05 * seconds)))

    def _restore(self, optimizer: Optimizer, phase: str) -> None:
        if self._kept_optimizer is not None and self.facts.get("phase") == phase:
            optimizer.load_state(self._kept_optimizer)
            self._kept_optimizer = None

    def _balancer(self, layers: Sequence[Experts]) -> Callable[[list[Tensor]], None]:
        parameters = dict(self.model.named_parameters())
        biases = [parameters[layer.select_bias] for layer in layers if layer.select_bias is not None]

        def balance(loads: list[Tensor]) -> None:
            for bias, load in zip(biases, loads, strict=True):
                update_select_bias(bias, load)

        return balance

    def _sampled(self) -> float:
        return evaluation.bits_per_byte(
            self.model, self.tokenizer, heldout().text, sample=self.config.evaluate_windows
        ).value

    # -- the end ------------------------------------------------------------------------------

    def _finish(self) -> Result:
        weights = self.folder.path / f"{self.spec.model}.safetensors"
        stored = export_weights(self.model, self.spec, weights)
        # What is measured is what was stored: rounded to the spec's dtype.
        load_weights(self.model, stored)
        held = heldout()
        figure = evaluation.bits_per_byte(self.model, self.tokenizer, held.text)
        xz = xz_bits_per_byte(held.text)
        self.progress.say(f"held out: {figure.value:.4f} bits per byte, {figure.value / xz:.3f} of xz -9e ({xz:.4f})")
        tokens_a_pass = None
        if has_block_mtp(self.model):
            found = evaluation.tokens_per_pass(self.model, self.tokenizer, held, prefixes=_PREFIXES)
            tokens_a_pass = found.to_dict()
            self.progress.say(
                f"block MTP: {found.value:.2f} +- {found.error:.2f} tokens a pass with {found.drafts} drafts"
            )
        facts = {
            "schema_version": 1,
            "model": self.spec.model,
            "weights": {"file": weights.name, "bytes": weights.stat().st_size},
            "bits_per_byte": figure.to_dict(),
            "xz_bits_per_byte": xz,
            "ratio_to_xz": figure.value / xz,
            "tokens_per_pass": tokens_a_pass,
            "heldout": {"sha256": held.sha256, "bytes": held.size, "modules": len(held.modules)},
            "corpus": {
                "source": self.corpus.source,
                "sha256": self.corpus.sha256,
                "bytes": self.corpus.size,
                "documents": len(self.corpus.documents),
                "tokens": len(self.tokens.ids),
            },
            "tokenizer": {"sha256": self.tokenizer.sha256, "size": self.tokenizer.size},
            "seed": self.request.seed,
            "threads": self.request.threads,
            "mode": self.facts["mode"],
            "probe": self.facts["probe"],
            "train": self.facts["train"],
            "distill": self.facts.get("distill"),
            "config": self.config.to_dict(),
            "memory_plan": self.plan.to_dict(),
            "budget_hours": self.request.hours,
            **self.clock.to_dict(),
            "versions": versions(),
            "reproduce": self._command(),
        }
        write_json(self.folder.path / "result.json", facts)
        from omnic.training.card import write_card

        write_card(self.folder, facts)
        self.progress.say(f"{self.folder.path}: done in {as_clock(self.clock.seconds)}")
        return Result(self.folder.path, facts)

    def _command(self) -> str:
        """Return the command that repeats this run bit for bit on a like machine."""
        train_state = self.facts["train"]["schedule"]
        parts = [f"omnic train {self.spec.model} --steps {train_state['steps']}"]
        parts.append(f"--decay-start {train_state['decay_start']}")
        if "distill" in self.facts:
            parts.append(f"--distill-steps {self.facts['distill']['schedule']['steps']}")
        parts.append(f"--seed {self.request.seed} --threads {self.request.threads} --mode {self.facts['mode']}")
        default = TrainConfig().to_dict()
        parts += [f"--set {k}={v}" for k, v in self.config.to_dict().items() if v != default[k]]
        return " ".join(parts)
