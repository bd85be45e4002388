"""How fast training is, on random documents that are laid out as the default run's.

    python -m tools.bench --preset small --batch-tokens 16384 --json bench.json

Timed are the step of train.py, that of its autoregressive twin (the same network with a causal
mask, a loss at every token), and one large matrix product. The flags of train.py are taken, too:
python train.py --help. --steps: of a lap (20).
"""
import dataclasses
import resource
import sys
import time
import timeit

import files  # before torch: it tells OpenMP how to wait
import numpy as np
import torch

import data
import train
from tools.plan import flops_per_token

WARM_UP = 3  # steps
CODES = {"text": (1, 436), "image": (1, 625), "speech": (3, 200)}  # groups, size
SLOTS = {"image-text": [19, 12], "speech-text": [72, 8]}  # tokens of each member, ends included


def random_documents(config, count=300):
    """Stream and {kind: documents} of random codes, `count` of each kind in the mix."""
    room = config.text_length - data.HEAD
    stream = data.Stream(CODES, {"text": [room], **SLOTS})
    random = data.rng(config.seed, 31)

    def codes(modality, n):
        return random.integers(0, CODES[modality][1], n)

    made = {"text": [], "image-text": [], "speech-text": []}
    for _ in range(count):
        length = random.integers(room // 5, room // 2, endpoint=True)
        made["text"] += stream.texts(codes("text", length))
        pair = codes("image", 19), codes("text", 11)
        made["image-text"].append(stream.document("image-text", pair))
        pair = codes("speech", 69), codes("text", 7)
        made["speech-text"].append(stream.document("speech-text", pair))
    kinds = [kind for kind in made if config.mix.get(kind)]
    return stream, {kind: made[kind] for kind in kinds}


def wait(device):
    """Until the device has done all that it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def matmul_rate(device, dtype):
    """FLOP/s of a large matrix product: the best of ten."""
    n = 8192
    if device.type == "cpu":
        n = 1024
    a = torch.ones(n, n, dtype=dtype, device=device)

    def product():
        a @ a
        wait(device)

    return 2 * n ** 3 / min(timeit.repeat(product, number=1, repeat=10))


def lap(training, steps):
    """Median seconds that a batch takes to make and a step to run: (2,)."""
    config = training.config
    rule = train.batch_rule(training.step_tokens, train.BASE["tokens"], config)
    optimizers = training.optimizers(rule)
    seconds = []
    for step in range(WARM_UP + steps):
        start = time.perf_counter()
        batch = training.batch(step)
        made = time.perf_counter()
        batch = batch.to(training.device)
        train.train_step(training.net, optimizers, batch, config, training.autocast)
        wait(training.device)
        seconds.append((made - start, time.perf_counter() - made))
    return np.median(seconds[WARM_UP:], 0)


def figures(name, training, laps, rate):
    """Print and return what the laps of a Training say: medians, tokens without padding."""
    making, seconds = np.median(laps, 0).tolist()
    whole = seconds
    if training.device.type == "cpu":
        whole += making  # a GPU works meanwhile
    looked = float((training.batch(0).weight > 0).sum()) / training.step_tokens
    flops = training.step_tokens * flops_per_token(training.net, training.batches.length, looked)
    result = dict(batch_ms=1000 * making, step_ms=1000 * seconds,
                  tokens_per_second=training.step_tokens / whole, flops_per_step=flops,
                  utilised=flops / seconds / rate, laps_ms=[1000 * step for _, step in laps])
    print("{0:15}{batch_ms:7.1f} ms{step_ms:8.1f} ms{tokens_per_second:11,.0f}{utilised:10.0%}"
          .format(name, **result), flush=True)
    return result


def peak_memory(device):
    """Most bytes held so far: of the device on CUDA, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main():
    parser = files.Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--laps", type=files.number(int, 1), default=3, help="of each, in turn (3)")
    args, rest = parser.parse_known_args()
    config, _ = train.parse(rest)
    train.check_settings(config)
    steps = config.steps or 20
    config.steps = 0  # or few of them would not be compiled
    device = files.pick_device(config.device)
    torch.set_float32_matmul_precision("high")
    name = f"{device.type}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    stream, documents = random_documents(config)
    training = train.Training(config, stream, documents, device)
    rate = matmul_rate(device, training.dtype)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    result = dict(device=name, torch=torch.__version__, dtype=config.dtype, preset=config.preset,
                  rows=training.rows, length=training.batches.length,
                  padding=training.padding(), tokens_per_step=training.step_tokens,
                  matmul_flops=rate)
    print("{device}, {dtype}, preset {preset}: a step is {rows} rows of {length} tokens, "
          "{padding:.1%} of them padding".format(**result))
    print("                    batch       step   tokens/s  utilised", flush=True)
    training.compile()
    lap(training, steps)
    result["peak_bytes"] = peak_memory(device)
    causal = dataclasses.replace(config, shape={**config.shape, "causal": True}, complement=False)
    twin = train.Training(causal, stream, documents, device)
    twin.compile()
    timed = [(lap(training, steps), lap(twin, steps)) for _ in range(args.laps)]
    first, second = zip(*timed)
    result["diffusion"] = figures("diffusion", training, first, rate)
    result["autoregressive"] = figures("autoregressive", twin, second, rate)
    print("batch: made while a GPU works. utilised: 6 N a token and attention (PaLM, appendix "
          f"B), as a share of a large matrix product's {rate / 1e12:.3g} TFLOP/s. peak memory "
          f"of diffusion: {result['peak_bytes'] / 2**30:.2f} GiB")
    if args.json:
        files.write_json(args.json, result)


if __name__ == "__main__":
    files.command_line(main, "bench")
