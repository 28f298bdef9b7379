"""Pictures: figures without a window, each class named, colours as they were."""

import io
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

import fluxlike as fl
from fluxlike.learning.interpretation.interpret import interpret
from fluxlike.learning.interpretation.show import show_predictions

LOSS = fl.losses.logitcrossentropy


def flat(features, count):
    return fl.Chain(fl.flatten, fl.Dense(features, count))


def drawn(figure):
    """The figure as PNG, to see that it can be drawn."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")
    return figure


def images_of(figure):
    return [ax.images[0].get_array() for ax in figure.axes if ax.images]


@pytest.mark.parametrize("count", [2, 10, 100])
def test_a_confusion_matrix_names_all_classes_and_no_names_overlap(count):
    y = torch.arange(count).repeat(2)
    names = [f"species {i}" for i in range(count)]
    figure = drawn(interpret(fl.identity, [(torch.eye(count)[y], y)], classes=names).plot_confusion_matrix())
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == names
    assert [t.get_text() for t in ax.get_yticklabels()] == names
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "true")
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        boxes = [label.get_window_extent() for label in labels]
        assert not any(a.overlaps(b) for a, b in pairwise(boxes))
    texts = [t.get_text() for t in ax.texts]
    assert texts == (["2"] * count if count <= 30 else [])


def test_predictions_are_right_in_one_colour_and_wrong_in_another():
    x = torch.zeros(2, 1, 1, 2)
    x[0, 0, 0, 0] = x[1, 0, 0, 0] = 1  # both are predicted as the first class
    figure = drawn(show_predictions(fl.flatten, (x, torch.tensor([0, 1])), ["cat", "dog"]))
    heads = [ax.title for ax in figure.axes if ax.images]
    assert [head.get_text() for head in heads] == ["cat 73%", "cat 73%"]
    assert heads[0].get_color() != heads[1].get_color()
    assert [ax.texts[0].get_text() for ax in figure.axes if ax.images] == ["true: cat", "true: dog"]


@pytest.mark.parametrize("channels", [1, 3])
def test_denormalise_undoes_the_normalisation(channels):
    x = torch.rand(4, channels, 5, 6)
    mean, std = torch.rand(channels), torch.rand(channels) + 0.5
    normalised = (x - mean.reshape(-1, 1, 1)) / std.reshape(-1, 1, 1)
    model = flat(channels * 30, 3)
    figure = drawn(
        show_predictions(model, (normalised, torch.zeros(4).long()), denormalise=(mean.tolist(), std))
    )
    for picture, wanted in zip(images_of(figure), x, strict=True):
        wanted = wanted[0] if channels == 1 else wanted.permute(1, 2, 0)
        assert torch.allclose(torch.tensor(picture), wanted, atol=1e-5)


def test_bytes_are_pictures_too():
    x = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    figure = drawn(show_predictions(lambda x: x.flatten(1).float(), (x, torch.tensor([1]))))
    assert images_of(figure)[0].tolist() == [[0.0, 1.0]]


def test_only_so_many_are_shown_and_the_title_says_of_how_many():
    figure = drawn(show_predictions(flat(4, 2), (torch.rand(40, 1, 2, 2), torch.zeros(40).long()), k=5))
    assert len(images_of(figure)) == 5
    assert figure.get_suptitle() == "5 of 40 predictions"


def test_top_losses_show_the_inputs_in_order():
    x, y = torch.rand(20, 3, 4, 4), torch.randint(0, 2, (20,))
    found = interpret(flat(48, 2), fl.DataLoader((x, y), batch_size=6), LOSS, classes=["$a", "b$"], inputs=4)
    figure = drawn(found.show_top_losses(4))
    for picture, row in zip(images_of(figure), found.top_losses(4), strict=True):
        assert torch.equal(torch.tensor(picture), x[row.index].permute(1, 2, 0))
    with pytest.raises(ValueError, match=r"4 inputs were kept; write interpret\(..., inputs=5\)"):
        found.show_top_losses(5)


REFUSED = {
    "a table": (torch.rand(2, 4), {}, r"float32 of the shape \(2, 4\); pictures are drawn of images"),
    "channels": (torch.rand(2, 2, 3, 3), {}, "1 or 3 channels"),
    "normalised": (torch.randn(2, 1, 9, 9) * 3, {}, r"write denormalise=\(mean, std\)"),
    "wrong numbers": (torch.rand(2, 1, 3, 3), {"denormalise": (5, 1)}, "denormalise= has other numbers"),
    "too many": (torch.rand(2, 1, 3, 3), {"denormalise": ([0, 0], 1)}, "2 numbers for images of 1 channels"),
    "NaN": (torch.full((2, 1, 3, 3), torch.nan), {}, "the images reach from nan"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_an_error(name):
    x, named, match = REFUSED[name]
    with pytest.raises(ValueError, match=match):
        show_predictions(lambda x: torch.zeros(2, 3), (x, torch.tensor([0, 1])), **named)


def test_top_losses_of_tables_point_to_their_numbers():
    found = interpret(fl.Dense(4, 2), [(torch.rand(3, 4), torch.tensor([0, 1, 1]))], LOSS)
    with pytest.raises(ValueError, match=r"print top_losses\(\)"):
        found.show_top_losses(2)


def test_no_window_and_no_state_of_pyplot_comes_with_a_figure():
    code = (
        "import sys, torch, fluxlike as fl\n"
        "from fluxlike.learning.interpretation.interpret import interpret\n"
        "assert 'matplotlib' not in sys.modules\n"
        "interpret(fl.identity, [(torch.eye(2), torch.tensor([0, 1]))]).plot_confusion_matrix()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'fluxlike\[training\]'"):
        interpret(fl.identity, [(torch.eye(2), torch.tensor([0, 1]))]).plot_confusion_matrix()
