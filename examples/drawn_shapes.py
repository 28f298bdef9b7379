"""Images of circles, squares and triangles, for the examples that find and segment them."""

from __future__ import annotations

import torch

__all__ = ["NAMES", "drawn_shapes"]

NAMES = ("circle", "square", "triangle")


def drawn_shapes(count, size, seed, *, most=4):
    """Noisy images, each with one to `most` shapes of any colour and size.

    Args:
        count: how many images.
        size: their height and width in pixels.
        seed: of the drawing.
        most: how many shapes an image has at most. (default: 4)

    Returns:
        Images (count, 3, size, size); for each pixel the number of its shape's class, from 1 on, or 0
        (count, size, size); and for each image the boxes (M, 4) of its shapes and their classes (M,).
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return torch.rand(shape, generator=generator) * (high - low) + low

    images = uniform(0, 0.25, count, 3, 1, 1) + 0.05 * torch.randn(count, 3, size, size, generator=generator)
    labels = torch.zeros(count, size, size, dtype=torch.long)
    objects = []
    for image, label in zip(images, labels, strict=True):
        boxes, classes = [], []
        for _ in range(int(torch.randint(1, most + 1, (), generator=generator))):
            radius = uniform(0.08, 0.2).item() * size
            x, y = uniform(radius, size - radius, 2).tolist()
            kind = int(torch.randint(len(NAMES), (), generator=generator))
            box = torch.tensor([x - radius, y - radius, x + radius, y + radius])
            if any((torch.minimum(box[2:], b[2:]) > torch.maximum(box[:2], b[:2])).all() for b in boxes):
                continue  # it would hide another one
            inside = shape(NAMES[kind], x, y, radius, size)
            image[:, inside] = uniform(0.4, 1, 3, 1)
            label[inside] = kind + 1
            boxes.append(box)
            classes.append(kind)
        objects.append((torch.stack(boxes), torch.tensor(classes)))
    return images, labels, objects


def shape(name, x, y, radius, size):
    """The pixels of a shape whose box is a square around (x, y)."""
    at = torch.arange(size) + 0.5
    right, down = at - x, (at - y)[:, None]
    if name == "circle":
        return right.square() + down.square() <= radius**2
    if name == "square":
        return torch.maximum(right.abs(), down.abs()) <= radius
    return (down <= radius) & (2 * right.abs() <= down + radius)
