"""Draws history.png and rates.png: ``python docs/pictures/draw_training.py``."""

from __future__ import annotations

from pathlib import Path

import torch

import fluxlike as fl

HERE = Path(__file__).parent


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, 2)
    y = (x.prod(1) > 0).long()
    train, held_out = fl.splitobs((x, y), at=0.8)
    data = fl.DataLoader(train, batch_size=32, shuffle=True), fl.DataLoader(held_out, batch_size=400)
    model = fl.Chain(fl.Dense(2, 32, fl.relu), fl.Dense(32, 32, fl.relu), fl.Dense(32, 2))
    learner = fl.Learner(
        model, data, fl.AdamW(), fl.losses.logitcrossentropy, metrics=[fl.metrics.accuracy], progress=False
    )
    fl.find_lr(learner).plot().savefig(HERE / "rates.png")
    learner = fl.fit_one_cycle(learner, 10, 1e-2)
    learner.history.plot().savefig(HERE / "history.png")


if __name__ == "__main__":
    main()
