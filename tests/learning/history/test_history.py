"""Histories: what is kept of a run, and its pictures."""

import pickle
import subprocess
import sys

import pytest
import torch

from fluxlike.learning.history.history import History
from fluxlike.learning.history.table import Table


def run(epochs=3, steps=40, phases=("training", "validation"), **more):
    history = History()
    for epoch in range(1, epochs + 1):
        for step in range((epoch - 1) * steps + 1, epoch * steps + 1):
            row = {"step": step, "epoch": epoch, "phase": "training", "loss": torch.tensor(1 / step)}
            history = history.add_step({**row, "learning_rate": 0.01 / step})
        for phase in phases:
            row = {"epoch": epoch, "phase": phase, "loss": 1 / epoch, "accuracy": 1 - 1 / epoch}
            history = history.add_epoch({**row, "learning_rate": 0.01, "seconds": 1.0, **more})
    return history


def test_columns_are_read_by_phase_and_name():
    history = run()
    assert history["validation", "loss"] == [1, 1 / 2, 1 / 3]
    assert history.last("training", "accuracy") == 1 - 1 / 3
    assert len(history.steps) == 120
    assert history.steps["learning_rate"][:2] == [0.01, 0.005]


def test_an_added_row_leaves_the_old_history_as_it_was():
    history = run(1)
    longer = history.add_epoch({"epoch": 2, "phase": "training", "loss": 0.0})
    assert len(history.epochs) == 2
    assert len(longer.epochs) == 3
    assert longer != history
    assert longer.last("training", "accuracy") == 0


def test_a_history_comes_back_from_its_state(tmp_path):
    history = run()
    torch.save(history.state(), tmp_path / "state")
    found = History.restore(torch.load(tmp_path / "state", weights_only=True))
    assert found == history
    assert found.add_step({"step": 121, "epoch": 4, "phase": "training"}).steps[-1]["step"] == 121
    assert isinstance(found.epochs, Table)


def test_what_is_not_there_is_named():
    history = run(1)
    with pytest.raises(KeyError, match=r"no epoch of the phase 'test'; there are the phases \['training', "):
        history["test", "loss"]
    with pytest.raises(KeyError, match="'validation' has the column 'f1'; there are"):
        history["validation", "f1"]
    with pytest.raises(KeyError, match=r"there are the phases \[\]"):
        History().last("training", "loss")
    with pytest.raises(TypeError, match='write history\\["validation", "loss"\\]'):
        history["loss"]
    with pytest.raises(ValueError, match=r"needs phase; found \['epoch', 'loss'\]"):
        history.add_epoch({"epoch": 1, "loss": 1.0})
    with pytest.raises(ValueError, match="needs step, phase"):
        history.add_step({"epoch": 1})


def test_it_prints_as_a_small_table():
    text = repr(run(2, 10))
    assert text.splitlines()[0] == "History(2 epochs, 20 steps)"
    assert text.splitlines()[1].split() == ["epoch", "phase", "loss", "accuracy", "learning_rate", "seconds"]
    assert text.count("\n") == 5
    assert repr(History()) == "History(0 epochs, 0 steps)"
    assert "History: 2 epochs, 20 steps" in run(2, 10)._repr_html_()
    assert "History: 0 epochs" in History()._repr_html_()


def titles(figure):
    return [axis.get_title(loc="left") for axis in figure.axes]


def test_a_plot_has_a_panel_a_metric_with_a_line_a_phase():
    pytest.importorskip("matplotlib")
    figure = run().plot()
    assert titles(figure) == ["loss", "accuracy", "training loss by step", "learning rate by step"]
    loss = figure.axes[0]
    assert {line.get_label(): list(line.get_ydata()) for line in loss.lines} == {
        "training": [1, 1 / 2, 1 / 3],
        "validation": [1, 1 / 2, 1 / 3],
    }
    assert [axis.get_xlabel() for axis in figure.axes] == ["epoch", "epoch", "step", "step"]
    assert list(figure.axes[3].lines[0].get_ydata())[:2] == [0.01, 0.005]


def overlaps(figure):
    """Pairs of panels whose texts lie over each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes = [axis.get_tightbbox(renderer) for axis in figure.axes]
    return [(i, j) for j in range(len(boxes)) for i in range(j) if boxes[i].overlaps(boxes[j])]


@pytest.mark.parametrize("number", [1, 2, 3, 5, 10])
def test_panels_do_not_overlap(number):
    pytest.importorskip("matplotlib")
    figure = run(number * 7, 5, **{f"metric_{i}": 1000.0 * i for i in range(number)}).plot()
    assert len(figure.axes) == number + 4
    assert overlaps(figure) == []


def test_of_many_columns_the_first_twelve_are_drawn_and_the_figure_says_so():
    pytest.importorskip("matplotlib")
    history = run(2, 0, **{f"f1_{i}": 0.5 for i in range(20)})
    figure = history.plot()
    assert len(figure.axes) == 12
    assert figure.get_suptitle() == "12 of 22 columns; plot(['f1_10']) draws others"
    assert titles(history.plot(["f1_19"])) == ["f1 19"]


def test_gaps_phases_of_ones_own_and_one_epoch_are_drawn():
    pytest.importorskip("matplotlib")
    history = run(1, 0, phases=("training", "validation", "test", "later"))
    history = history.add_epoch({"epoch": 1, "phase": "training", "loss": float("nan"), "note": "text"})
    figure = history.plot()
    assert titles(figure) == ["loss", "accuracy"]
    assert len({line.get_color() for line in figure.axes[1].lines}) == 4
    assert overlaps(figure) == []


def test_there_is_an_error_where_nothing_can_be_drawn():
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="nothing to draw"):
        History().plot()
    with pytest.raises(KeyError, match="no column 'f1' among"):
        run(1).plot(["f1"])


def test_drawing_changes_nothing_of_matplotlib(tmp_path):
    pytest.importorskip("matplotlib")
    code = """
import matplotlib, sys
before = matplotlib.rcParams.copy()
from fluxlike.learning.history.history import History
history = History().add_epoch({"epoch": 1, "phase": "training", "loss": 1.0})
history.plot().savefig(sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams.copy() == before
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path / "run.png")], check=True)


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"plot needs matplotlib .* pip install 'fluxlike\[training\]'"):
        run(1).plot()


def test_a_history_can_be_sent_to_another_process():
    history = run(1)
    assert pickle.loads(pickle.dumps(history)) == history
