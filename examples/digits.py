"""A convolutional network reads scikit-learn's 1,797 handwritten digits.

    python examples/digits.py            three seeds, twenty epochs each, under a minute
    python examples/digits.py --quick    one seed, five epochs

The two lines of a training step are in `train`. The rest loads the data, draws the learning curve and
the misread digits to PNG files, saves model and optimiser state, and loads them back.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib
import torch
from rich.progress import Progress
from sklearn.datasets import load_digits

import fluxlike as fl

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def digits():
    """Images (N, 1, 8, 8) from 0 to 1, and labels, split into training and a held-out fifth."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    return fl.splitobs((images, torch.tensor(data.target)), at=0.8, shuffle=True)


def network():
    def block(channels_in, channels_out):
        conv = fl.Conv((3, 3), channels_in, channels_out, pad=1, init=fl.init.kaiming_normal)
        return fl.Chain(conv, fl.BatchNorm(channels_out, fl.relu))

    return fl.Chain(
        block(1, 48),
        block(48, 48),
        fl.MaxPool((2, 2)),
        fl.Dropout(0.1),
        block(48, 96),
        block(96, 96),
        fl.MaxPool((2, 2)),
        fl.flatten,
        fl.Dropout(0.4),
        fl.Dense(96 * 2 * 2, 10),
    )


def loss(model, x, y):
    return fl.losses.logitcrossentropy(model(x), y)


def accuracy(model, data):
    x, y = data
    with torch.no_grad():
        return (fl.onecold(model(x)) == y).float().mean().item()


def rule():
    return fl.OptimiserChain(fl.ClipGlobalNorm(5.0), fl.AdamW(3e-3, weight_decay=1e-2))


def train(model, data, held_out, epochs, tick):
    state = fl.setup(rule(), model)
    curve = []
    for epoch in range(epochs):
        state = fl.adjust(state, 3e-3 * (1 - epoch / epochs))
        total = 0.0
        loader = fl.DataLoader(data, batch_size=64, shuffle=True)
        for x, y in loader:
            value, grads = fl.withgradient(loss, model, x, y)
            model, state = fl.update(state, model, grads)
            total += value.item()
        curve.append((total / len(loader), accuracy(model, held_out)))
        tick(curve[-1])
    return model, state, curve


def draw_curve(curves, path):
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for seed, curve in curves.items():
        losses, accuracies = zip(*curve, strict=True)
        epochs = range(1, len(curve) + 1)
        left.semilogy(epochs, losses, label=f"seed {seed}")
        right.plot(epochs, [100 * a for a in accuracies], label=f"seed {seed}")
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="held-out accuracy (%)", ylim=(90, 100.2))
    right.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_misread(model, held_out, path):
    x, y = held_out
    with torch.no_grad():
        read = fl.onecold(model(x))
    wrong = (read != y).nonzero().flatten()[:10].tolist()
    figure, axes = plt.subplots(
        1, max(len(wrong), 1), figsize=(1.3 * max(len(wrong), 3), 1.8), squeeze=False, layout="constrained"
    )
    for axis in axes[0]:
        axis.axis("off")
    for axis, i in zip(axes[0], wrong, strict=False):
        axis.imshow(x[i, 0], cmap="gray_r")
        axis.set_title(f"{y[i]} read as {read[i]}", fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return len(wrong)


def save_and_load(model, state, x, folder):
    """Save model and state, load them into new ones, and compare the predictions to the bit."""
    file = folder / "digits.safetensors"
    fl.save(file, {"model": model, "state": state})
    torch.manual_seed(12345)
    other = network()
    loaded = fl.load(file, like={"model": other, "state": fl.setup(rule(), other)})
    with torch.no_grad():
        same = torch.equal(loaded["model"](x), model(x))
    return file, same and fl.tree.allclose(loaded["state"], state, rtol=0, atol=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, five epochs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    seeds, epochs, goal = ([0], 5, 0.95) if options.quick else ([0, 1, 2], 20, 0.985)

    start = time.perf_counter()
    curves, accuracies = {}, []
    with Progress() as progress:
        for seed in seeds:
            torch.manual_seed(seed)
            data, held_out = digits()
            task = progress.add_task(f"seed {seed}", total=epochs)

            def tick(point, seed=seed, task=task):
                text = f"seed {seed}: loss {point[0]:.3f}, held-out {point[1]:.2%}"
                progress.update(task, advance=1, description=text)

            model, state, curves[seed] = train(network(), data, held_out, epochs, tick)
            accuracies.append(accuracy(model, held_out))
    seconds = time.perf_counter() - start

    print(model)
    draw_curve(curves, options.out / "digits_curve.png")
    misread = draw_misread(model, held_out, options.out / "digits_misread.png")
    file, same = save_and_load(model, state, held_out[0], options.out)
    for seed, value in zip(seeds, accuracies, strict=True):
        print(f"seed {seed}: {value:.2%} of {len(held_out[1])} held-out digits read right")
    print(f"{seconds:.0f} s; the last network misreads {misread}, drawn in {options.out}/digits_misread.png")
    print(f"the learning curve is in {options.out}/digits_curve.png")
    print(f"saved to {file}, loaded back: predictions {'equal to the bit' if same else 'DIFFER'}")
    if not same or min(accuracies) < goal:
        raise SystemExit(f"expected at least {goal:.1%} on every seed, and equal predictions")


if __name__ == "__main__":
    main()
