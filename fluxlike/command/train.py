"""``python -m fluxlike train CONFIG.toml``: a run from a configuration to a saved model."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterable, Iterator
from typing import Any

from fluxlike.command.arguments import Subparsers
from fluxlike.command.config import Configuration, read_configuration
from fluxlike.command.learners import learner_of, loader_of
from fluxlike.command.model_file import About, read_about, save_model
from fluxlike.command.printing import Line, escaped, show
from fluxlike.command.ranks import in_words, is_first, place_of
from fluxlike.command.run_folder import RunFolder
from fluxlike.command.tasks import Task, task_of
from fluxlike.learning.checkpoints.store import Store
from fluxlike.learning.fit import fitted
from fluxlike.learning.history.history import History
from fluxlike.learning.interpretation.interpret import interpret
from fluxlike.learning.learner import Learner
from fluxlike.learning.resume import INTERRUPTED, load_learner
from fluxlike.placement.device import cpu
from fluxlike.scope.key import Key
from fluxlike.trees.show import number, plural
from fluxlike.trees.trainables import trainables

__all__ = ["add", "run"]

_FILES = """\
in the output folder:
  model.safetensors  the trained model, which `predict` takes
  history.csv        loss and metrics of every epoch
  steps.csv          loss and learning rate of every step
  confusion.png      which classes are taken for which
  checkpoints        where a run goes on that was ended early
  run.json           of which configuration and data the run is

The same command goes on where a run was ended, to the same bits. Started by torchrun, all ranks train
one model, each on its part of every batch.
"""


def add(commands: Subparsers[Any], common: argparse.ArgumentParser, /) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "train",
        parents=[common],
        help="train a model on a folder of images or a table",
        description="Train a model as a configuration says, and save it.",
        epilog=_FILES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "config", metavar="CONFIG.toml", help="the configuration: see docs/training/command_line.md"
    )
    parser.set_defaults(run=run)


def run(given: argparse.Namespace, /) -> None:
    """Train, or go on with it.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; it says how to go on.
    """
    configuration = read_configuration(given.config)
    folder = RunFolder(configuration.output.folder)
    folder.require(configuration)
    if folder.finished:
        _show(_finished(folder))
        return
    try:
        _trained(configuration, folder)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(
            f"interrupted{f' after {stop}' if str(stop) else ''}; the same command goes on from "
            f"{'there' if str(stop) else 'the last checkpoint'}: python -m fluxlike train {given.config}"
        ) from None


def _trained(run: Configuration, folder: RunFolder) -> None:
    device = place_of(run.training.device, "[training] device")
    split, drawn = Key(run.training.seed).split(2)
    task = task_of(run, split)
    learner = learner_of(run, task, drawn, device, folder.checkpoints)
    folder.begin(run, _known(task))
    _show(_begun(run, task, learner, device))
    learner = _fitted(learner, run.training.epochs, folder)
    if is_first():
        learner.history.epochs.to_csv(folder.history)
        learner.history.steps.to_csv(folder.steps)
    if learner.stopped == INTERRUPTED:
        epochs = run.training.epochs
        where = f"in epoch {learner.epoch + 1} of" if learner.epoch < epochs else "the end of"
        raise KeyboardInterrupt(f"step {learner.step}, {where} {plural(epochs, 'epoch')}")
    lines = list(_confusion(run, task, learner, device, folder))
    scores = _scores(learner.history)
    about = About(run, task.classes, task.columns, {"epochs": learner.epoch, **scores})
    model = cpu(learner.model)
    if is_first():
        save_model(folder.model, model, about)
        show([*lines, _summary(folder, about)])


def _fitted(learner: Learner, epochs: int, folder: RunFolder) -> Learner:
    """The learner after the last epoch, from the newest checkpoint on if there is one."""
    newest = Store(folder.checkpoints).newest()
    if newest is not None:
        learner = load_learner(folder.checkpoints, like=learner)
        _show([Line(f"going on from step {learner.step}, after {plural(learner.epoch, 'epoch')}")])
    left = epochs - learner.epoch
    if not left:
        return learner.replace(stopped=None)
    try:
        return fitted(learner, left, donate=True, advice=None)
    except RuntimeError as error:
        # A damaged file or a full disk says itself what to do.
        if isinstance(error.__cause__, (ValueError, OSError)):
            raise error.__cause__ from None
        raise


def _show(lines: Iterable[Line]) -> None:
    if is_first():
        show(lines)


def _known(task: Task) -> dict[str, Any]:
    training, validation = task.sizes
    return {
        "classes": None if task.classes is None else list(task.classes),
        "columns": list(task.columns),
        "training": training,
        "validation": validation,
        "checksum": task.checksum,
    }


def _begun(run: Configuration, task: Task, learner: Learner, device: Any) -> Iterator[Line]:
    training, validation = task.sizes
    what = "values" if task.classes is None else f"{number(len(task.classes))} classes"
    told = f"{run.data.path}: {what}, {number(training)} to train on, {number(validation)} to validate on"
    yield Line(escaped(told))
    count = sum(x.numel() for x in trainables(learner.model))
    yield Line(
        f"{run.model.kind}: {plural(count, 'parameter')}, in {run.training.precision} on {in_words(device)}"
    )


def _confusion(
    run: Configuration, task: Task, learner: Learner, device: Any, folder: RunFolder
) -> Iterator[Line]:
    """Draw the confusion matrix, where there are classes."""
    if task.classes is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        yield Line(f"no {folder.confusion.name}: it needs matplotlib, pip install 'fluxlike[training]'")
        return
    batches = loader_of(run, task.validation, device)
    found = interpret(learner.model, batches, classes=[*map(escaped, task.classes)], inputs=0)
    if is_first():
        found.plot_confusion_matrix().savefig(folder.confusion)
    for pair in found.most_confused(3):
        yield Line(f"{pair.true} taken for {pair.predicted}: {pair.count} ({pair.share:.1%})")


def _scores(history: History) -> dict[str, float]:
    """The numbers of the last epoch, by phase and name, and the seconds of all."""
    last = {row["phase"]: row for row in history.epochs}
    scores = {
        f"{phase} {name}": value
        for phase, row in last.items()
        for name, value in row.items()
        if name not in ("epoch", "phase", "seconds", "learning_rate") and isinstance(value, (int, float))
    }
    return {**scores, "seconds": sum(row.get("seconds", 0.0) for row in history.epochs)}


def _summary(folder: RunFolder, about: About) -> Line:
    scores = dict(about.scores)
    epochs, seconds = int(scores.pop("epochs")), scores.pop("seconds")
    told = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in scores.items())
    return Line(escaped(f"{folder.model}: {plural(epochs, 'epoch')}, {told}, {seconds:.1f} s"), "bold")


def _finished(folder: RunFolder) -> Iterator[Line]:
    yield Line(
        f"{folder.path} has this run, and it is finished; remove the folder to begin anew, or write another "
        "[output] folder"
    )
    yield _summary(folder, read_about(folder.model))
