"""A neural ordinary differential equation forecasts a spiral.

    python examples/neural_ode.py            half a minute
    python examples/neural_ode.py --quick    fewer steps

After Chen et al. 2018, arXiv 1806.07366: the layers are a field f, and a solver, here torchdiffeq's,
follows dy/dt = f(y). A tree is a function, so its call is the field, and the gradient through all steps of
the solver is a tree like it. The data is the spiral of the authors' own example, dy/dt = y³A, whose
network also sees the cubes. The last two fifths of it are held out. They are forecast from the last
point that is known, and compared with the forecast of a linear field that was fitted in the same way.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib
import torch

import fluxlike as fl
from fluxlike.optional import optional

matplotlib.use("Agg")
import matplotlib.pyplot as plt

torchdiffeq = optional("torchdiffeq", "this example", install="'fluxlike[examples]'")

TIMES = torch.linspace(0, 25, 1001)
KNOWN, PIECE, BATCH = 600, 20, 32  # points that are known, points of a piece, pieces of a batch


def cube(y):
    return y**3


def network():
    return fl.Chain(cube, fl.Dense(2, 50, fl.tanh), fl.Dense(50, 2))


def linear():
    return fl.Dense(2, 2, bias=False)


def path(field, start, times):
    """Where the field leads from (…, 2): (T, …, 2), by backpropagation through the solver."""
    return torchdiffeq.odeint(lambda t, y: field(y), start, times, method="rk4")


def path_by_adjoint(field, start, times):
    """The same path, whose gradient solves a second equation back in time and stores no steps (section 2)."""
    parameters = tuple(fl.trainables(field))
    return torchdiffeq.odeint_adjoint(
        lambda t, y: field(y), start, times, method="rk4", adjoint_params=parameters
    )


def spiral():
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
    with torch.no_grad():
        return path(lambda y: cube(y) @ matrix, torch.tensor([2.0, 0.0]), TIMES)


def pieces(y):
    """Short pieces (PIECE, BATCH, 2) of what is known, each to be followed from its first point."""
    first = torch.randint(KNOWN - PIECE + 1, (BATCH,))
    return y[first + torch.arange(PIECE).unsqueeze(1)]


def loss(field, observed, solve=path):
    return fl.losses.mae(solve(field, observed[0], TIMES[:PIECE]), observed)


def fit(field, y, steps):
    rule = fl.Scheduled(fl.Adam(), lr=fl.schedules.Cosine(1e-2, 0.0, steps))
    state = fl.setup(rule, field)
    for _ in range(steps):
        grads = fl.gradient(loss, field, pieces(y))
        field, state = fl.update(state, field, grads)
    return field


def forecast(field, y):
    """The path from the last known point, and how far it is from the truth in the mean."""
    with torch.no_grad():
        ahead = path(field, y[KNOWN - 1], TIMES[KNOWN - 1 :])
    return ahead, (ahead - y[KNOWN - 1 :]).norm(dim=1)[1:].mean().item()


def draw(y, paths, file):
    figure, axis = plt.subplots(figsize=(5, 4.6), layout="constrained")
    axis.plot(*y[:KNOWN].T, color="lightgray", label="known")
    axis.plot(*y[KNOWN - 1 :].T, color="black", label="held out")
    for name, ahead in paths.items():
        axis.plot(*ahead.T, "--", label=f"forecast: {name}")
    axis.set(aspect="equal")
    figure.legend(frameon=False, ncols=2, loc="outside lower center")
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    steps, goal = (300, 0.1) if options.quick else (2000, 0.02)

    torch.manual_seed(options.seed)
    y, field = spiral(), network()
    batch = pieces(y)
    through = fl.gradient(loss, field, batch)
    adjoint = fl.gradient(loss, field, batch, path_by_adjoint)
    apart = (fl.tree.norm(fl.tree.sub(through, adjoint)) / fl.tree.norm(through)).item()
    print(f"gradient through the solver and by the adjoint equation: {apart:.1e} apart")

    start = time.perf_counter()
    still = (y[KNOWN:] - y[KNOWN - 1]).norm(dim=1).mean().item()
    paths, errors = {}, {"stays where it is": still, "network, not trained": forecast(field, y)[1]}
    for name, untrained in (("linear field", linear()), ("network", field)):
        paths[name], errors[name] = forecast(fit(untrained, y, steps), y)
    print(f"{steps} steps, {time.perf_counter() - start:.0f} s; distance of the forecast from the truth:")
    print("\n".join(f"  {name:<20} {error:.4f}" for name, error in errors.items()))
    draw(y, paths, options.out / "neural_ode.png")
    print(f"drawn in {options.out}/neural_ode.png")
    network_error = errors.pop("network")
    if not (network_error < goal * min(errors.values()) and apart < 1e-4):
        raise SystemExit(f"expected at most {goal:.0%} of the error of the others, and equal gradients")


if __name__ == "__main__":
    main()
