"""What a training would need: sizes, memory, cost, and the settings that the batch rule derives.

    python -m tools.plan --preset 3b --tokens 6.4e12 --batch-tokens 4e6 --throughput 1e6

Nothing is trained. The flags of train.py are taken, too: python train.py --help.
"""
import argparse

import torch

import files
import model as models
import train

# Ids of the stream that we plan with. With 140,000 the pilot has the 320M parameters of the paper,
# 240M of them in tables, and the largest shape its 3B.
VOCAB = {"toy": 1300, "small": 4096, "pilot": 140_000, "3b": 140_000}
GIB = 2 ** 30


def flops_per_token(net, length, looked):
    """Floating-point operations of training a token: 6 N + 12 depth width length.

    N: the weights of the products, so no tables; the head counts for the share `looked` of the
    tokens, since only those with a loss go through it. length: tokens of a row. The convention is
    that of PaLM (arXiv 2204.02311, appendix B).
    """
    counts = models.count_parameters(net)
    weights = counts["hidden"] + looked * counts["unembedding"]
    return 6 * weights + 12 * net.config.depth * net.config.width * length


def frontier(parameters):
    """D* = 7754 N^0.84: tokens of the paper's compute frontier, by second-hand accounts."""
    return 7754 * parameters ** 0.84


def state_bytes(counts, optimizer):
    """Bytes of a training's state in float32: weights, gradients, averaged weights, moments."""
    moments = 2 * counts["total"]
    if optimizer == "muon":
        moments -= counts["hidden"]  # Muon has one, AdamW two
    return 4 * (3 * counts["total"] + moments)


def plan(config, vocab=None, tokens=None, throughput=None):
    """Print the plan. config: train.py's. tokens: D* if None. throughput: tokens a second."""
    length = config.text_length
    with torch.device("meta"):  # shapes without memory
        net = models.Transformer(config.model(vocab or VOCAB[config.preset], places=3 * length))
    shape = net.config
    counts = models.count_parameters(net)
    total = counts["total"]
    inner = total - counts["embedding"] - counts["unembedding"]
    tokens = tokens or frontier(total)
    weights = 4 * total / GIB
    state = state_bytes(counts, config.optimizer) / GIB
    flops = flops_per_token(net, length, looked=0.5)
    print(f"preset {config.preset}: width {shape.width}, depth {shape.depth}, "
          f"{shape.width // shape.head_dim} heads of {shape.head_dim}, {shape.vocab:,} ids")
    print("parameters: " + ", ".join(f"{group} {number:,}" for group, number in counts.items()))
    print(f"memory: weights {weights:.2f} GiB in float32, training {state:.2f} GiB (weights, "
          "gradients, averaged weights, moments), activations on top")
    print(f"cost: {flops:.3e} FLOP a token (6 N + 12 depth width length; {length} tokens a row, "
          f"half of them through the head), {flops * tokens:.3e} in all")
    if throughput:
        days = tokens / throughput / 86_400
        print(f"time: {days:.2f} days at {throughput:,.0f} tokens a second")
    print("D* = 7754 N^0.84, the paper's compute frontier, second-hand; which N is not known:")
    print(f"  {frontier(total):.3e} tokens for all {total:.3g} parameters, {frontier(inner):.3e} "
          f"for the {inner:.3g} outside of tables")
    train.print_derived(config.batch_tokens, tokens, length, config)


def main():
    parser = files.Parser(description=__doc__, allow_abbrev=False,
                          formatter_class=argparse.RawDescriptionHelpFormatter)
    positive = files.number(float, 1)
    parser.add_argument("--tokens", type=positive, help="of the whole training (D*)")
    parser.add_argument("--batch-tokens", type=positive, help="tokens a step (train.py's default)")
    parser.add_argument("--throughput", type=positive, help="tokens a second, to tell the days")
    parser.add_argument("--vocab", type=files.number(int, 1), help="ids of the stream")
    args, rest = parser.parse_known_args()
    config, _ = train.parse(rest)
    train.check_settings(config)
    if args.batch_tokens:
        config.batch_tokens = int(args.batch_tokens)
    plan(config, args.vocab, args.tokens, args.throughput)


if __name__ == "__main__":
    files.command_line(main, "plan")
