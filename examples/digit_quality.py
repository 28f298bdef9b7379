"""How good drawn digits are, as a network says that reads the real ones. `gan.py` and `diffusion.py` use it.

Two numbers that the field judges samples by, of the network of `digits.py` in the place of Inception:

- the score exp E KL(p(y|x) ‖ p(y)) of Salimans et al. 2016, arXiv 1606.03498: from 1, no or always the same
  digit to be read, to 10, each read clearly and as often as the others;
- the distance |μ - μ'|² + tr(Σ + Σ' - 2 (ΣΣ')^½) of Heusel et al. 2017, arXiv 1706.08500, between features of
  real digits and of drawn ones, as if both were normally distributed. It sees what the score does not: ten
  clear digits drawn again and again are far away.
"""

from __future__ import annotations

from typing import NamedTuple

import digits
import matplotlib.pyplot as plt
import torch

import fluxlike as fl


class Quality(NamedTuple):
    score: float
    distance: float

    def __str__(self):
        return f"score {self.score:5.2f}, Fréchet distance {self.distance:6.1f}"


class Judge:
    """A network that reads digits, and the features that it finds in real ones: ``judge(images)``.

    Images are (N, 1, 8, 8) from 0 to 1. `real` is what the held-out digits get, and `shuffled` what they get
    when each pixel is taken from another of them: every pixel is right for itself, and no digit is left.
    """

    def __init__(self, data, held_out, epochs=6):
        self.reader, _, _ = digits.train(digits.network(), data, held_out, epochs, lambda point: None)
        self.features = self.reader[:-1](data[0])
        self.held_out, _ = held_out
        pixels = self.held_out.flatten(1)
        others = torch.rand_like(pixels).argsort(0)
        self.real = self(self.held_out)
        self.shuffled = self(pixels.gather(0, others).view_as(self.held_out))

    @torch.no_grad()
    def __call__(self, images):
        p = fl.softmax(self.reader(images))
        score = fl.losses.kldivergence(p.mean(0, keepdim=True).expand_as(p), p).exp()
        return Quality(score.item(), frechet(self.features, self.reader[:-1](images)).item())

    def require(self, drawn, goal, path):
        """Print what drawn images get, and draw some of them to a PNG file.

        The program ends where they miss the goal: a score, and a share of the distance of shuffled pixels.
        """
        found = self(drawn)
        rows = {"held-out digits": self.real, "drawn digits": found, "shuffled pixels": self.shuffled}
        print(*(f"{name}: {quality}" for name, quality in rows.items()), sep="\n")
        draw({"held out": self.held_out[:15], "drawn": drawn[:15], "drawn too": drawn[15:30]}, path)
        print(f"some of them are in {path}")
        farthest = goal.distance * self.shuffled.distance
        if not (found.score > goal.score and found.distance < farthest):
            raise SystemExit(f"expected a score above {goal.score} and a distance below {farthest:.1f}")


def frechet(a, b):
    """The Fréchet distance of two normal distributions with the moments of features (N, D) and (M, D)."""
    a, b = a.double(), b.double()
    cov_a, cov_b = a.T.cov(), b.T.cov()
    # The eigenvalues of ΣΣ' are those of the symmetric Σ^½ Σ' Σ^½.
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * mixed


def draw(rows, path):
    """Rows of images (N, 1, 8, 8) as a PNG file."""
    columns = min(map(len, rows.values()))
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(0.6 * columns + 1, 0.65 * len(rows)), squeeze=False, layout="constrained"
    )
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
