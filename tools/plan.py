"""What a training would need: sizes, memory, cost, and the settings that the batch rule derives.

    python -m tools.plan --preset 3b --tokens 6.4e12 --batch-tokens 4000000 --throughput 1e6

Nothing is trained. The flags of train.py are taken, too: python train.py --help.
"""
import files  # before torch: it tells OpenMP how to wait
import torch

import model as models
import train

# Ids of the stream. 140,000 make the paper's 320M parameters and its 3B. Of the 320M, 240M are in
# tables there (second-hand), 251M here.
VOCAB = {"toy": 1673, "small": 4096, "pilot": 140_000, "3b": 140_000}
GIB = 2 ** 30


def flops_per_token(net, length, looked):
    """Floating-point operations of training a token: 6 N + 12 depth width length.

    N: the weights of the products, so no tables; the head counts for the share `looked` of the
    tokens, since only those with a loss go through it. length: tokens of a row. The convention is
    that of PaLM (arXiv 2204.02311, appendix B).
    """
    counts = models.count_parameters(net)
    weights = counts["hidden"] + looked * counts["unembedding"]
    shape = net.config
    return 6 * weights + 12 * shape.depth * shape.width * length


def frontier(parameters):
    """D* = 7754 N^0.84: tokens of the paper's compute frontier, by second-hand accounts."""
    return 7754 * parameters ** 0.84


def state_bytes(counts, optimizer):
    """Bytes of a training's state in float32: weights, gradients, averaged weights, moments."""
    moments = 2 * counts["total"]
    if optimizer == "muon":
        moments -= counts["hidden"]  # Muon has one, AdamW two
    return 4 * (3 * counts["total"] + moments)


def main():
    parser = files.Parser(description=__doc__, allow_abbrev=False)
    positive = files.number(float, 1)
    parser.add_argument("--tokens", type=positive, help="of the whole training (D*)")
    parser.add_argument("--throughput", type=positive, help="tokens a second, to tell the days")
    args, rest = parser.parse_known_args()
    config, _ = train.parse(rest)
    train.check_settings(config)
    length = config.text_length
    vocab = VOCAB[config.preset]
    with torch.device("meta"):  # shapes without memory
        net = models.Transformer(config.model(vocab, places=3 * length))
    shape = net.config
    counts = models.count_parameters(net)
    total = counts["total"]
    tokens = args.tokens or frontier(total)
    state = state_bytes(counts, config.optimizer)
    flops = flops_per_token(net, length, looked=0.5)
    print(f"preset {config.preset}: width {shape.width}, depth {shape.depth}, "
          f"{shape.width // shape.head_dim} heads of {shape.head_dim}, {vocab:,} ids")
    parts = [f"{group} {number:,}" for group, number in counts.items()]
    print("parameters:", ", ".join(parts))
    print(f"memory: weights {4 * total / GIB:.2f} GiB in float32, training {state / GIB:.2f} GiB "
          "(weights, gradients, averaged weights, moments), activations on top")
    print(f"cost: {flops:.3e} FLOP a token (6 N + 12 depth width length; {length} tokens a row, "
          f"half of them through the head), {flops * tokens:.3e} in all")
    if args.throughput:
        days = tokens / args.throughput / 86_400
        print(f"time: {days:.2f} days at {args.throughput:,.0f} tokens a second")
    print(f"D* = 7754 N^0.84 = {frontier(total):.3e} tokens: the paper's compute frontier, "
          f"second-hand; N: all {total:.3g} parameters")
    train.print_derived(config.batch_tokens, tokens, length, config)


if __name__ == "__main__":
    files.command_line(main, "plan")
