"""The peer of the trainer: a plain, hand-written, compiled training loop of tiny's dims.

3 layers of width 256, GQA 4/2 of 64, SwiGLU 512, vocabulary 4096 tied, and a block-MTP loss on a
quarter of the batch, as the recipe has it.  No checkpoint, no evaluation, no budget: what someone
would write for this one model.  Prints tokens per CPU-second, the measure of the bar in
``docs/benchmarks.md``.

    python bench/train_loop.py --steps 20 --threads 1
"""

import argparse
import json
import math
import time

import torch
import torch.nn.functional as F
from torch import nn

D, LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, VOCAB = 256, 3, 4, 2, 64, 512, 4096


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Block(nn.Module):  # noqa: D101
    def __init__(self):
        super().__init__()
        self.attn_norm, self.ffn_norm = nn.RMSNorm(D, 1e-6), nn.RMSNorm(D, 1e-6)
        self.q, self.o = nn.Linear(D, HEADS * HEAD_DIM, bias=False), nn.Linear(HEADS * HEAD_DIM, D, bias=False)
        self.k, self.v = (nn.Linear(D, KV_HEADS * HEAD_DIM, bias=False) for _ in range(2))
        self.gate, self.up = nn.Linear(D, HIDDEN, bias=False), nn.Linear(D, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, D, bias=False)

    def forward(self, x, cos, sin):  # noqa: D102
        batch, length, _ = x.shape
        h = self.attn_norm(x)
        q, k, v = (w(h).view(batch, length, -1, HEAD_DIM).transpose(1, 2) for w in (self.q, self.k, self.v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(batch, length, -1))
        h = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Net(nn.Module):  # noqa: D101
    def __init__(self, length):
        super().__init__()
        self.embed, self.norm = nn.Embedding(VOCAB, D), nn.RMSNorm(D, 1e-6)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.hidden_norm, self.embed_norm = nn.RMSNorm(D, 1e-6), nn.RMSNorm(D, 1e-6)
        self.proj, self.mtp, self.mtp_norm = nn.Linear(2 * D, D, bias=False), Block(), nn.RMSNorm(D, 1e-6)
        angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        self.register_buffer("cos", angles.cos()), self.register_buffer("sin", angles.sin())
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def loss(self, batch):  # noqa: D102
        tokens, targets = batch[:, :-1], batch[:, 1:]
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        loss = F.cross_entropy((self.norm(x) @ self.embed.weight.T).flatten(0, 1), targets.flatten())
        rows = max(1, batch.shape[0] // 4)
        joined = torch.cat([self.hidden_norm(x[:rows, :-1]), self.embed_norm(self.embed(tokens[:rows, 1:]))], -1)
        drafted = self.mtp_norm(self.mtp(self.proj(joined), self.cos[:-1], self.sin[:-1])) @ self.embed.weight.T
        return loss + 0.1 * F.cross_entropy(drafted.flatten(0, 1), targets[:rows, 1:].flatten())


def newton_schulz(x):
    x = x / x.norm(dim=(-2, -1), keepdim=True)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("batch", 8), ("length", 256), ("steps", 20), ("warm", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    net = Net(args.length)
    matrices = [p for n, p in net.named_parameters() if p.ndim == 2 and n != "embed.weight"]
    taken = {id(p) for p in matrices}
    adam = torch.optim.AdamW([p for p in net.parameters() if id(p) not in taken], lr=3e-3, fused=True)
    groups = {}
    for p in matrices:
        groups.setdefault(tuple(sorted(p.shape)), []).append((p, torch.zeros_like(p)))
    loss_of = torch.compile(net.loss)
    for step in range(args.warm + args.steps):
        if step == args.warm:
            began, cpu = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            loss = loss_of(torch.randint(VOCAB, (args.batch, args.length + 1)))
        loss.backward()
        adam.step()
        with torch.no_grad():
            for shape, pairs in groups.items():
                updates = []
                for p, momentum in pairs:
                    momentum.lerp_(p.grad, 0.05)
                    update = p.grad.lerp(momentum, 0.95)
                    updates.append(update if p.shape[0] <= p.shape[1] else update.mT)
                for (p, _), update in zip(pairs, newton_schulz(torch.stack(updates)), strict=True):
                    p.add_(update if p.shape[0] <= p.shape[1] else update.mT, alpha=-6e-3 * 0.2 * math.sqrt(shape[1]))
        net.zero_grad()
    tokens = args.steps * args.batch * args.length
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    rates = {"tokens_per_cpu_second": tokens / cpu, "tokens_per_second": tokens / seconds}
    print(json.dumps({**rates, "loss": loss.item()}))


if __name__ == "__main__":
    main()
