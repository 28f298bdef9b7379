"""Draws the pictures of docs/guides/layouts.md: memory, Julia's two conventions, kernels, and a flatten."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import fluxlike as fl

HERE = Path(__file__).parent
COLOURS = ("#4063d8", "#389826", "#cb3c33")  # one a channel


def shade(colour: str, strength: float) -> tuple[float, ...]:
    """A colour mixed with white: light where `strength` is 0, full where it is 1."""
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    return tuple(1 - (1 - rgb) * (0.25 + 0.6 * strength))


def cells(axis: Axes, at: tuple[float, float], grid: list[list[tuple[str, tuple[float, ...]]]]) -> None:
    """Squares with a text and a colour each, the first row on top."""
    x0, y0 = at
    for row, line in enumerate(grid):
        for column, (text, colour) in enumerate(line):
            square = plt.Rectangle((x0 + column, y0 - row - 1), 1, 1, facecolor=colour, edgecolor="white")
            axis.add_patch(square)
            axis.text(x0 + column + 0.5, y0 - row - 0.5, text, ha="center", va="center", fontsize=8)


def note(axis: Axes, x: float, y: float, text: str, **more: object) -> None:
    axis.text(x, y, text, fontsize=9, **{"va": "center", **more})


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "#555555"})


def bare(figure: Figure, axis: Axes, width: float, height: float) -> None:
    axis.set_xlim(0, width)
    axis.set_ylim(0, height)
    axis.set_aspect("equal")
    axis.axis("off")


def save(figure: Figure, name: str) -> None:
    figure.savefig(HERE / name, metadata={"Date": None})
    plt.close(figure)


def image(width: int = 4, height: int = 3, channels: int = 2) -> np.ndarray:
    """A (W, H, C) image of Julia whose entries number its memory."""
    return np.arange(width * height * channels).reshape((width, height, channels), order="F")


def draw_memory() -> None:
    """One image as Julia's (W, H, C), as ours (C, H, W), and the memory below both; one entry is marked."""
    julia = image()
    ours = fl.permute(julia, "WHC", "CHW")
    figure, axis = plt.subplots(figsize=(9, 4.6), layout="constrained")
    bare(figure, axis, 29, 13)
    w, h, c = 1, 2, 0  # the entry that is followed; Julia counts it from 1
    for left, names in ((1.5, "julia[w, h, {0}]"), (16.5, "ours[{1}, h, w]")):
        for channel in range(len(ours)):
            x = left + 6.5 * channel
            grid = [[entry(v) for v in line] for line in ours[channel]]
            cells(axis, (x, 10), grid)
            note(axis, x, 10.5, names.format(channel + 1, channel))
            arrow(axis, (x, 6.6), (x + 4, 6.6))
            note(axis, x + 4.2, 6.6, "w")
            arrow(axis, (x - 0.4, 10), (x - 0.4, 7))
            note(axis, x - 0.4, 6.6, "h", ha="center")
        frame(axis, left + 6.5 * c + w, 10 - h - 1)
    note(axis, 1.5, 12.3, "Flux: size (W, H, C), the first axis next to each other", weight="bold")
    note(axis, 16.5, 12.3, "here: shape (C, H, W), the last axis next", weight="bold")
    names = f"julia[{w + 1}, {h + 1}, {c + 1}]", f"ours[{c}, {h}, {w}]"
    assert julia[w, h, c] == ours[c, h, w]
    memory = ours.reshape(-1)
    place = int(np.flatnonzero(memory == ours[c, h, w])[0])
    cells(axis, (2.5, 3), [[entry(m) for m in memory]])
    frame(axis, 2.5 + place, 2)
    for left, name in zip((1.5, 16.5), names, strict=True):
        start = left + 6.5 * c + w + 0.5
        arrow(axis, (start, 6.9), (3 + place, 3.1))
        note(axis, left, 4.6, f"{name} = {ours[c, h, w]}", weight="bold")
    note(axis, 2.5, 1.2, 'one memory, read by both: permute(x, "WHC", "CHW") copies nothing')
    save(figure, "layouts_memory.svg")


def entry(number: int) -> tuple[str, tuple[float, ...]]:
    """A square for an entry of `image`, in the colour of its channel."""
    return str(number), shade(COLOURS[number // 12], number % 12 / 11)


def frame(axis: Axes, x: float, y: float) -> None:
    axis.add_patch(plt.Rectangle((x, y), 1, 1, fill=False, edgecolor="black", linewidth=2))


def draw_conventions() -> None:
    """A letter F as a picture, held in the two ways, and what each convention makes of the array."""
    letter = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]])
    held = {"(W, H, C, N)": letter.T[:, :, None, None], "(H, W, C, N)": letter[:, :, None, None]}
    figure, axes = plt.subplots(2, 3, figsize=(8, 5.6), layout="constrained")
    for row, (name, array) in zip(axes, held.items(), strict=True):
        told = f"the picture F,\nheld in Julia as\n{name}\nof size {array.shape}"
        row[0].text(0.5, 0.5, told, ha="center", va="center")
        row[0].axis("off")
        for axis, convention in zip(row[1:], ("WHCN", "HWCN"), strict=True):
            here = fl.batch_first(array, convention)
            right = np.array_equal(here[0, 0], letter)
            axis.imshow(here[0, 0], cmap="Blues" if right else "Reds", vmin=-0.6, vmax=1.3)
            rows, columns = here.shape[2:]  # squares of one size, whichever way the letter lies
            axis.set_xlim(columns / 2 - 3.2, columns / 2 + 2.2)
            axis.set_ylim(rows / 2 + 2.2, rows / 2 - 3.2)
            axis.set_frame_on(False)
            axis.set_title(f'batch_first(x, "{convention}")\nshape {here.shape}', fontsize=9)
            axis.set_xlabel("as it is" if right else "transposed", fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
    save(figure, "layouts_conventions.svg")


def draw_kernels() -> None:
    """A kernel of Flux's Conv, and the tensor that is the same here."""
    kernel = np.arange(1, 7, dtype=np.float32).reshape(3, 2)  # (kw, kh)
    state = {"weight": kernel[:, :, None, None]}
    here = {
        name: fl.load_foreign_state(fl.Conv((2, 3), 1, 1, bias=False), state, "flux", crosscor=where).weight[
            0, 0
        ]
        for name, where in {"Conv": None, "CrossCor": ""}.items()
    }
    figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
    bare(figure, axis, 22, 10.5)
    colour = {v: shade(COLOURS[0], (v - 1) / 5) for v in kernel.flatten()}
    cells(axis, (1, 5.5), [[(f"{v:.0f}", colour[v]) for v in line] for line in kernel.T])
    note(axis, 1, 6.6, "Flux\nweight[w, h, 1, 1]", weight="bold")
    told = {"Conv": "turned around: Flux slides\nthe kernel from its far end", "CrossCor": "as it is"}
    for y, (name, w) in zip((8, 3), here.items(), strict=True):
        arrow(axis, (4.3, 4.5), (8.7, y - 1))
        cells(axis, (9, y), [[(f"{v:.0f}", colour[float(v)]) for v in line] for line in w])
        note(axis, 9, y + 1.1, f"here, from {name}\nweight[0, 0, h, w]", weight="bold")
        note(axis, 12.6, y - 1, told[name])
    save(figure, "layouts_kernels.svg")


def draw_flatten() -> None:
    """The order of the features after a flatten, in each framework."""
    ours = np.transpose(image(3, 2, 2), (2, 1, 0))  # (C, H, W), numbered in our order
    orders = {
        "here and Flux: (C, H, W)": ours.reshape(-1),
        "Keras and Flax: (H, W, C)": np.moveaxis(ours, 0, -1).reshape(-1),
    }
    figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
    bare(figure, axis, 21, 9)
    for c in range(2):
        grid = [[(str(v), shade(COLOURS[c], v % 6 / 5)) for v in line] for line in ours[c]]
        cells(axis, (1, 8 - 4 * c), grid)
        note(axis, 1, 8.4 - 4 * c, f"channel {c}")
    for y, (name, order) in zip((7.5, 4), orders.items(), strict=True):
        cells(axis, (7, y), [[(str(v), shade(COLOURS[v // 6], v % 6 / 5)) for v in order]])
        note(axis, 7, y + 0.5 if y > 5 else y - 1.6, name, weight="bold")
    for place, v in enumerate(orders["Keras and Flax: (H, W, C)"]):
        axis.plot([7.5 + v, 7.5 + place], [6.5, 4], color=COLOURS[v // 6], linewidth=0.8, alpha=0.7)
    note(axis, 7, 1, "the rows of the kernel of the Dense that follows\nare moved along these lines")
    save(figure, "layouts_flatten.svg")


def main() -> None:
    matplotlib.rcParams["svg.hashsalt"] = "fluxlike"  # the same files every time
    draw_memory()
    draw_conventions()
    draw_kernels()
    draw_flatten()


if __name__ == "__main__":
    main()
