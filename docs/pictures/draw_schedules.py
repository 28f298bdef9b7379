"""Draws schedules.svg: every schedule over its steps."""

from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from fluxlike import schedules as s

EXAMPLES = {
    "Constant(1)": s.Constant(1.0),
    "Step(1, 0.5, 25)": s.Step(1.0, 0.5, 25),
    "Exp(1, 0.96)": s.Exp(1.0, 0.96),
    "Inv(1, 0.1, 1)": s.Inv(1.0, 0.1, 1),
    "Poly(1, 2, 80)": s.Poly(1.0, 2, 80),
    "Cosine(1, 0, 80)": s.Cosine(1.0, 0.0, 80),
    "Cosine(1, 0, 33, restart=True)": s.Cosine(1.0, 0.0, 33, restart=True),
    "Triangle(0, 1, 40, decay=0.6)": s.Triangle(0.0, 1.0, 40, decay=0.6),
    "Sin(0, 1, 40, decay=0.6)": s.Sin(0.0, 1.0, 40, decay=0.6),
    "OneCycle(90, 1)": s.OneCycle(90, 1.0),
    'OneCycle(90, 1, shape="sine")': s.OneCycle(90, 1.0, shape="sine"),
    "Warmup(Cosine(1, 0, 70), 20)": s.Warmup(s.Cosine(1.0, 0.0, 70), 20),
    "Sequence((Constant(1), 40), (Exp(1, 0.95), 50))": s.Sequence(
        (s.Constant(1.0), 40), (s.Exp(1.0, 0.95), 50)
    ),
    "Loop(Exp(1, 0.9), 25)": s.Loop(s.Exp(1.0, 0.9), 25),
    "Shifted(Poly(1, 1, 80), 30)": s.Shifted(s.Poly(1.0, 1, 80), 30),
    "Interpolate(Step(1, 0.5, 1), 25)": s.Interpolate(s.Step(1.0, 0.5, 1), 25),
}


def main() -> None:
    matplotlib.rcParams["svg.hashsalt"] = "fluxlike"  # the same file every time
    steps = torch.arange(100.0)
    figure, axes = plt.subplots(4, 4, figsize=(12, 7.5), sharex=True, sharey=True, layout="constrained")
    for axis, (name, schedule) in zip(axes.flat, EXAMPLES.items(), strict=True):
        axis.plot(steps, schedule(steps), color="#4063d8")
        axis.set_title(name, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    figure.savefig(Path(__file__).parent / "schedules.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
