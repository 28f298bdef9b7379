"""Memory for time: a deep network whose gradient fits into a quarter of the memory, by checkpoints.

    python examples/checkpointing.py            64 layers of width 512 on 4096 rows, about a minute
    python examples/checkpointing.py --quick    64 layers of width 64 on 1024 rows

After Chen et al. 2016, arXiv 1604.06174: of n layers, √n go into each checkpoint. The backward pass then
holds √n inputs, and the activations of the one segment that it computes again.
"""

from __future__ import annotations

import argparse
import time

import torch

import fluxlike as fl

DEPTH = 64


def loss(model, x):
    return model(x).square().mean()


def in_segments(layers, length):
    """The same layers, each run of some as one checkpoint."""
    runs = [layers[i : i + length] for i in range(0, len(layers), length)]
    return fl.Chain(*[fl.checkpoint(fl.Chain(*run)) for run in runs])


def peak(call):
    """What a call returns, and the most bytes of tensors that it held at once."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        result = call()
    events = profile.profiler.kineto_results.events()
    now = top = 0
    for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        now += change
        top = max(top, now)
    return result, top


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller layers")
    width, rows = (64, 1024) if parser.parse_args().quick else (512, 4096)

    torch.manual_seed(0)
    layers = [fl.Dense(width, width, fl.tanh) for _ in range(DEPTH)]
    x = torch.randn(rows, width)
    whole, bytes_whole = peak(lambda: fl.gradient(loss, fl.Chain(*layers), x))
    expected = fl.trainables(whole)

    print(f"{'segments of':>12} {'peak':>10} {'ratio':>7} {'seconds':>9}")
    print(f"{'-':>12} {bytes_whole / 2**20:>6.0f} MiB {1:>7.2f}")
    ratios = {}
    for length in (1, 4, 8, 16, 64):
        model = in_segments(layers, length)
        start = time.perf_counter()
        grads, most = peak(lambda model=model: fl.gradient(loss, model, x))
        taken = time.perf_counter() - start
        ratios[length] = most / bytes_whole
        print(f"{length:>12} {most / 2**20:>6.0f} MiB {ratios[length]:>7.2f} {taken:>9.1f}")
        if not all(map(torch.equal, fl.trainables(grads), expected)):
            raise SystemExit("expected the same gradients, to the bit")

    if not ratios[8] < 0.35:
        raise SystemExit("expected at most 0.35 of the memory in segments of 8")
    print(f"the same gradients in {ratios[8]:.2f} of the memory")


if __name__ == "__main__":
    main()
