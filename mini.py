"""Masked diffusion in one file: hide words, learn to guess them, write by guessing.

    python mini.py                     learns for a minute or two, then writes before your eyes
    python mini.py --text notes.txt    learns a text of yours, in which every line is a document

Noise: from time t = 0 to t = 1, the tokens of a row x0 disappear behind masks. At time t each is
hidden with probability t, and seen with probability alpha_t = 1 - t. This makes the row x_t.
Learning: a network sees x_t and guesses x0.
Writing: begin at t = 1, with masks alone, and go back to t = 0. On the way, reveal guesses.
"""
import argparse
import math
import re
import sys
import time

import torch
from torch import nn, optim

from sources.toyworld import passages

MASK = 0  # a hidden token
END = 1   # fills a row behind its document; is hidden and guessed like any other token


def make_rows(documents):
    """Strings -> different rows (N, L) of their first 64 tokens, and what the tokens stand for."""
    pattern = r" ?\w+| ?[^\w\s]"  # a word or a mark, with the space before it
    texts = sorted({tuple(re.findall(pattern, line)[:64]) for line in documents if line.strip()})
    vocabulary = [" __", "", *sorted(set().union(*texts))]  # MASK, END, words and marks
    number = {word: i for i, word in enumerate(vocabulary)}
    length = max(map(len, texts), default=0)
    rows = torch.full((len(texts), length), END)
    for row, words in zip(rows, texts):
        row[:len(words)] = torch.tensor([number[word] for word in words])
    return rows, vocabulary


class Denoiser(nn.Module):
    """p(x0 | x_t): which token may stand at each place. t is not told: the masks show it."""
    def __init__(self, size, length, width=128):
        super().__init__()
        self.token = nn.Embedding(size, width)
        self.place = nn.Parameter(torch.randn(length, width))
        self.blocks = nn.Sequential()
        for _ in range(4):
            self.blocks.append(nn.TransformerEncoderLayer(  # no causal mask
                width, nhead=4, dim_feedforward=4 * width, dropout=0.0,
                batch_first=True, norm_first=True))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))

    def forward(self, x_t):  # (B, L)
        logits = self.head(self.blocks(self.token(x_t) + self.place))  # (B, L, V)
        logits[..., MASK] = -torch.inf  # behind a mask there is never a mask
        return logits


def loss(net, x0, rng):
    """E_t[1/t * sum of -log2 p(x0 | x_t) over the masked tokens] / L (MDLM, 2406.07524, eq. 11).

    Its mean is at least -log2 p(x0) / L. Why: the mean over all orders of the sum of -log2 p(next
    token | tokens seen) is at least -log2 p(x0). While k tokens are masked, each is next with
    probability 1/k, which is the integral over t of C(L, k) t^k (1 - t)^(L - k) / t.
    """
    B, L = x0.shape
    t = (torch.arange(B, 0, -1)[:, None] - torch.rand(B, 1, generator=rng)) / B
    masked = torch.rand(B, L, generator=rng) < t  # t: one in each B-th of (0, 1], for less noise
    x_t = x0.masked_fill(masked, MASK)
    nll = nn.functional.cross_entropy(net(x_t).mT, x0, reduction="none")  # (B, L)
    # 1/t makes up for the tokens that are seen. Divided by the masked ones alone it is no bound
    return (nll * masked / t).mean() / math.log(2)


@torch.no_grad()
def sample(net, length, steps, rng):
    """Yield x_t (L,), t = 1 to 0: L / steps tokens a step, in random order (MDLM eq. 7 by count)"""
    x = torch.full((length,), MASK)
    yield x.clone()
    order = torch.randperm(length, generator=rng)
    for places in order.tensor_split(steps):  # tokens of one step do not know of each other
        p = net(x[None])[0, places].double().softmax(-1)  # (places, V); float64 for rare tokens
        x[places] = torch.multinomial(p, 1, generator=rng).flatten()
        yield x.clone()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=argparse.FileType(encoding="utf-8"), help="a text file")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of 32 rows")
    args = parser.parse_args()
    torch.manual_seed(0)  # the weights the network begins with
    rng = torch.Generator().manual_seed(0)  # all other randomness

    rows, vocabulary = make_rows(args.text or passages(20000, seed=0))
    if len(rows) < 2:
        parser.error("--text: give two different lines or more")
    rows = rows[torch.randperm(len(rows), generator=rng)]
    held, rows = rows.tensor_split([len(rows) // 10 + 1])  # no row is in both
    length = rows.shape[1]
    net = Denoiser(len(vocabulary), length)
    optimizer = optim.AdamW(net.parameters(), lr=2e-3)
    schedule = optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, args.steps)
    for step in range(args.steps):
        batch = torch.randint(len(rows), (32,), generator=rng)
        optimizer.zero_grad()
        loss(net, rows[batch], rng).backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            print(f"step {step}: {loss(net, held[:200], rng):.2f} bits a token")

    bits = sum(part.numel() * loss(net, part, rng).item() for part in held.split(100))
    characters = len("".join(vocabulary[token] for token in held.flatten()))
    print(f"held out: {bits / held.numel():.2f} bits a token, {bits / characters:.2f} a character")
    terminal = sys.stdout.isatty()  # there \0337 notes a place, \0338\033[J clears all behind it
    for steps in (4, length):
        print(f"\nwritten in {steps} steps:" + terminal * "\n\n\n\n\n\n\033[5A\0337")
        for x in sample(net, length, steps, rng):
            print(terminal * "\0338\033[J" + "".join(vocabulary[token] for token in x))
            time.sleep(terminal * 0.1)
