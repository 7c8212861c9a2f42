"""The emitted training module of ``tiny`` against the plain loop of ``bench/train_loop.py``: same dims, same loss.

Both are compiled; a step is the loss and its gradients (the optimisers are the trainer's matter).  Tokens per
CPU-second, interleaved.  First the two losses of equal weights are compared, so that the work is the same.

python bench/train_ratio.py [--batch 8] [--length 256] [--steps 2] [--rounds 21] [--threads 1] [--bf16]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
import train_loop
from common import interleaved, ratio, record, row, show
from torch import Tensor, nn

from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.spec import load_spec
from omnic.targets.torch.training import load_training_module

BAR = 0.95


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """The loss of the plain loop, on the emitted module."""
    tokens, targets = batch[:, :-1], batch[:, 1:]
    out = model(tokens)
    loss = F.cross_entropy(out["logits"].flatten(0, 1), targets.flatten())
    rows = max(1, batch.shape[0] // 4)
    drafted, _ = model.mtp_forward(out["hidden"][:rows, :-1], tokens[:rows, 1:])
    return loss + 0.1 * F.cross_entropy(drafted.flatten(0, 1), targets[:rows, 1:].flatten())


def copy_weights(net: nn.Module, model: nn.Module) -> None:
    """Give the plain loop the weights of the emitted module."""
    renamed = {
        "final_norm": "norm",
        "mtp.hidden_norm": "hidden_norm",
        "mtp.embed_norm": "embed_norm",
        "mtp.proj": "proj",
        "mtp.final_norm": "mtp_norm",
    }
    own = dict(net.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            plain = renamed.get(name, name.replace("mtp.block.", "mtp.").replace("attn.", "").replace("ffn.", ""))
            own[f"{plain}.weight"].copy_(parameter)


def step(
    module: nn.Module, loss: Callable[[Tensor], Tensor], batch: Tensor, steps: int, bf16: bool
) -> Callable[[], float]:
    """Return a run of ``steps`` steps that returns CPU seconds a token."""

    def run() -> float:
        began = time.process_time()
        for _ in range(steps):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                value = loss(batch)
            value.backward()
            module.zero_grad()
        return (time.process_time() - began) / (steps * batch.shape[0] * (batch.shape[1] - 1))

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("batch", 8), ("length", 256), ("steps", 2), ("rounds", 21), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    front = build(load_spec("tiny"))
    ours, plain = load_training_module(front, WeightStore.random(front, 0)), train_loop.Net(args.length)
    copy_weights(plain, ours)
    batch = torch.randint(train_loop.VOCAB, (args.batch, args.length + 1))
    with torch.no_grad():
        difference = abs(float(loss_of(ours, batch) - plain.loss(batch)))
    if difference > 1e-3:
        print(f"the two losses differ by {difference:.2e}: not the same model", file=sys.stderr)
        return 1
    runs = {
        "emitted": step(ours, torch.compile(lambda b: loss_of(ours, b), fullgraph=True), batch, args.steps, args.bf16),
        "plain": step(plain, torch.compile(plain.loss, fullgraph=True), batch, args.steps, args.bf16),
    }
    for run in runs.values():
        run()
    found = interleaved(runs, args.rounds)
    speed = ratio(found["plain"], found["emitted"])
    rate = {n: 1 / sorted(v)[len(v) // 2] for n, v in found.items()}
    figure = f"{speed} ({rate['emitted']:.0f} against {rate['plain']:.0f} tokens per CPU-second)"
    rows = [
        row("the two losses differ by", f"{difference:.1e}"),
        row(
            "emitted training module over the plain compiled loop",
            figure,
            f">= {BAR}x",
            speed.reaches(BAR),
            ratio=speed,
        ),
    ]
    conditions = {**vars(args), "torch": torch.__version__, "model": "tiny with its MTP block"}
    show(record("train_ratio", conditions, rows))
    return 0 if speed.reaches(BAR) else 1


if __name__ == "__main__":
    sys.exit(main())
