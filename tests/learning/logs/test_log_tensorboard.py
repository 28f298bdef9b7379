"""Logs for TensorBoard, read back by TensorBoard's own reader."""

import io
import sys
import warnings

import numpy as np
import pytest
import torch

from fluxlike.learning.logs.tensorboard import TensorBoardLog

pytest.importorskip("tensorboard")


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
    )
    return found.Reload()


def scalars(folder, name="loss"):
    return [(event.step, event.value) for event in read(folder).Scalars(name)]


def picture(event):
    from PIL import Image

    with Image.open(io.BytesIO(event.encoded_image_string)) as image:
        return np.asarray(image)


def test_scalars_histograms_images_and_text_are_read_back(tmp_path):
    log = TensorBoardLog(tmp_path)
    log.scalars({"loss": torch.tensor(0.5), "rate": 0.25}, 1)
    log.scalar("loss", 0.25, 2)
    log.histogram("weight", torch.tensor([0.0, 1.0, 1.0, 4.0]), 2)
    bytes_ = torch.arange(3 * 4 * 5, dtype=torch.uint8).reshape(3, 4, 5)
    log.image("picture", bytes_, 2)
    log.text("note", "hello", 2)
    log.close()
    found = read(tmp_path)
    assert scalars(tmp_path) == [(1, 0.5), (2, 0.25)]
    assert scalars(tmp_path, "rate") == [(1, 0.25)]
    (event,) = found.Histograms("weight")
    value = event.histogram_value
    assert (event.step, value.min, value.max, value.num, value.sum, value.sum_squares) == (2, 0, 4, 4, 6, 18)
    assert sum(value.bucket) == 4
    assert [limit for limit, n in zip(value.bucket_limit, value.bucket, strict=True) if n == 2] == [1.0625]
    (event,) = found.Images("picture")
    assert np.array_equal(picture(event), bytes_.movedim(0, -1).numpy())
    (event,) = found.Tensors("note/text_summary")
    assert event.tensor_proto.string_val == [b"hello"]


def test_a_run_that_goes_on_shows_every_step_once(tmp_path):
    first = TensorBoardLog(tmp_path)
    for step in range(1, 11):
        first.scalar("loss", step, step)
        first.histogram("weight", torch.ones(3), step)
        first.image("picture", torch.zeros(2, 2), step)
    first.flush()  # and killed
    second = TensorBoardLog(tmp_path)
    second.rewind(6)
    for step in range(7, 13):
        second.scalar("loss", -step, step)
        second.histogram("weight", torch.ones(3), step)
        second.image("picture", torch.zeros(2, 2), step)
    second.close()
    assert scalars(tmp_path) == [(s, s if s < 7 else -s) for s in range(1, 13)]
    found = read(tmp_path)
    for events in (found.Histograms("weight"), found.Images("picture")):
        assert [event.step for event in events] == list(range(1, 13))
    first.close()


def test_a_rewind_of_a_log_in_use_and_one_before_anything_was_written(tmp_path):
    log = TensorBoardLog(tmp_path / "run")
    log.rewind(0)
    for step in range(1, 5):
        log.scalar("loss", step, step)
    log.rewind(2)
    log.scalar("loss", 30, 3)
    log.close()
    assert scalars(tmp_path / "run") == [(1, 1), (2, 2), (3, 30)]


def test_what_is_flushed_can_be_read_while_the_log_is_open(tmp_path):
    log = TensorBoardLog(tmp_path)
    log.scalar("loss", 1.0, 1)
    log.flush()
    assert scalars(tmp_path) == [(1, 1.0)]
    log.close()


def test_entries_that_are_not_finite_are_counted(tmp_path):
    log = TensorBoardLog(tmp_path)
    log.histogram("some", torch.tensor([1.0, 2.0, torch.nan, torch.inf]), 1)
    log.histogram("none", torch.tensor([torch.nan]), 1)
    log.scalar("nan", torch.nan, 1)
    log.close()
    found = read(tmp_path)
    assert found.Histograms("some")[0].histogram_value.num == 2
    assert scalars(tmp_path, "some/nonfinite") == [(1, 2)]
    assert scalars(tmp_path, "none/nonfinite") == [(1, 1)]
    assert found.Tags()["histograms"] == ["some"]
    assert np.isnan(scalars(tmp_path, "nan")[0][1])


def test_hyperparameters_are_in_the_run_itself(tmp_path):
    from tensorboard.plugins.hparams import plugin_data_pb2

    log = TensorBoardLog(tmp_path)
    log.hyperparameters({"lr": 0.1, "rule": "Adam", "clip": None, "nesterov": True}, ["validation/loss"])
    log.scalar("validation/loss", 0.5, 1)
    log.close()
    content = read(tmp_path).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["lr"].number_value == 0.1
    assert start.hparams["rule"].string_value == "Adam"
    assert start.hparams["clip"].string_value == "None"
    assert start.hparams["nesterov"].number_value == 1
    assert [path.is_file() for path in tmp_path.iterdir()] == [True]
    with pytest.raises(TypeError, match="hyperparameter 'rule' is a tuple"):
        log.hyperparameters({"rule": (1, 2)})


def test_a_figure_is_drawn_without_pyplot_and_left_as_it_is(tmp_path):
    figures = pytest.importorskip("matplotlib.figure")
    figure = figures.Figure(figsize=(2, 1), dpi=50)
    figure.subplots().plot([1, 2])
    canvas = figure.canvas
    log = TensorBoardLog(tmp_path)
    log.figure("plot", figure, 1)
    log.close()
    assert figure.canvas is canvas
    pixels = picture(read(tmp_path).Images("plot")[0])
    assert pixels.shape[:2] == (50, 100)
    assert len(np.unique(pixels)) > 5
    with pytest.raises(TypeError, match="a figure is one of matplotlib, found a list"):
        log.figure("plot", [1], 2)


def test_files_of_a_later_second_are_named_in_the_future_with_a_warning(tmp_path):
    (tmp_path / "events.out.tfevents.9999999999.host.1.0").write_bytes(b"")
    log = TensorBoardLog(tmp_path)
    log.rewind(1)
    with pytest.warns(UserWarning, match="seconds in the future"):
        log.scalar("loss", 1.0, 2)
    log.close()


def test_without_tensorboard_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"TensorBoardLog needs tensorboard .*fluxlike\[training\]"):
        TensorBoardLog(tmp_path)


def test_nothing_warns(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log = TensorBoardLog(tmp_path)
        log.scalar("loss", 1.0, 1)
        log.image("picture", torch.rand(3, 8, 8), 1)
        log.histogram("weight", torch.randn(100), 1)
        log.text("note", "a", 1)
        log.close()


def test_what_is_written_again_at_the_step_of_a_rewind_is_shown_once(tmp_path):
    def write(log, step):
        log.later({"loss": torch.tensor(0.5)}, step)
        log.histogram("weight", torch.ones(3), step)
        log.image("picture", torch.zeros(2, 2), step)
        log.text("note", "hello", step)

    first = TensorBoardLog(tmp_path)
    write(first, 1)
    write(first, 2)
    first.close()
    for at in (2, 1):
        again = TensorBoardLog(tmp_path)
        again.rewind(at)
        write(again, at)
        write(again, 3)
        again.close()
    found = read(tmp_path)
    shown = (found.Scalars("loss"), found.Histograms("weight"), found.Images("picture"))
    assert [[event.step for event in events] for events in shown] == [[1, 3]] * 3
    from tensorboard.backend.event_processing import plugin_event_accumulator  # which the server uses

    found = plugin_event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in found.Tensors("note/text_summary")] == [1, 3]
