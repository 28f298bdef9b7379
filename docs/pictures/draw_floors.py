"""Draws the picture of docs/maintainers/architecture.md: the floors, and the registries that each keeps."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
GREY, BLUE = "#808080", "#5b7be0"  # each reads on white and on black

#: From the top: the name of a floor, its rooms, and what the floors above it register there.
FLOORS = (
    ("7 whole", "models  deployment  inspect  learning  distributed  command", ""),
    ("6 bridges", "bridges", ""),
    ("5 parts", "layers  losses  init  optimisers  schedules  data  files", ""),
    ("4 transforms", "transforms", ""),
    ("3 placement", "placement", "stays_float32  parameter_rule  belongs_to_parameter"),
    ("2 scope", "scope  random", "parts of draws"),
    ("1 trees", "trees", "adopt  default_scalars  inside_transform  lent  may_lack  says_settings"),
    ("0 ground", "_private  rooms  optional  aligned  advice", ""),
)


def main() -> None:
    # Text stays text, so that the picture is small and can be searched.
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "floors", "font.family": "sans-serif"})
    figure, axis = plt.subplots(figsize=(9.2, 4.6))
    figure.subplots_adjust(0, 0, 1, 1)
    axis.set(xlim=(0, 100), ylim=(-0.1, len(FLOORS) + 0.1))
    axis.axis("off")
    for i, (name, rooms, registries) in enumerate(FLOORS):
        y = len(FLOORS) - i - 0.5
        box = plt.Rectangle((6, y - 0.4), 92, 0.8, facecolor="none", edgecolor=GREY, linewidth=1.2)
        axis.add_patch(box)
        axis.text(7.5, y, name, color=GREY, va="center", fontsize=12, fontweight="bold")
        axis.text(22, y + (0.17 if registries else 0), rooms, color=GREY, va="center", fontsize=12)
        if registries:
            axis.text(22, y - 0.19, f"told from above: {registries}", color=BLUE, va="center", fontsize=9.5)
    top, bottom = (2.5, len(FLOORS) - 0.2), (2.5, 0.2)
    axis.annotate("", bottom, top, arrowprops={"arrowstyle": "-|>", "color": GREY, "linewidth": 1.4})
    axis.text(1.2, len(FLOORS) / 2, "imports", color=GREY, rotation=90, va="center", ha="center", fontsize=11)
    figure.savefig(HERE / "floors.svg", transparent=True, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
