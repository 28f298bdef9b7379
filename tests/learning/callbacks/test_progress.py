"""What a fit shows: a bar on a terminal or in a notebook, plain lines elsewhere, a table of the epochs."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import threading
import types
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike.learning.callbacks import displays, progress
from fluxlike.learning.callbacks.displays import Frame, fitted
from fluxlike.learning.callbacks.progress import ProgressPrinter

X, Y = torch.ones(40, 2), torch.zeros(40, dtype=torch.long)
RUN = """
import sys, time, torch, fluxlike as fl
from fluxlike.learning.callbacks import displays
displays._FRAME, displays._SHARE, displays._Bar.interval = 0.0, 1e9, 0.0
x, y = torch.ones(40, 2), torch.zeros(40, dtype=torch.long)
class Say(fl.Callback):
    def step_end(self, run):
        if run.phase == "training" and run.step == 5:
            print("somebody says hello")
        if run.step == {stop}:
            raise ZeroDivisionError("nothing")
data = fl.DataLoader((x, y), batch_size=4)
learner = fl.Learner(
    fl.Dense(2, 3), (data, data), fl.Adam(), fl.losses.logitcrossentropy,
    metrics=fl.metrics.accuracy, callbacks=[Say()],
)
before = sys.stderr, sys.stdout
try:
    fl.fit(learner, 2)
finally:
    assert (sys.stderr, sys.stdout) == before
print("the end")
"""


def learner(data=None, callbacks=(), **options):
    data = fl.DataLoader((X, Y), batch_size=16) if data is None else data
    return fl.Learner(
        fl.Dense(2, 3), data, fl.Adam(), fl.losses.logitcrossentropy, callbacks=callbacks, **options
    )


@pytest.fixture
def quick_steps(monkeypatch):
    """However slow this machine is, a step takes a hundredth of a second."""
    clock = itertools.count(0.0, 0.01)
    monkeypatch.setattr(progress, "perf_counter", lambda: next(clock))


def lines(printer, epochs=1, data=None, **options):
    return fl.fit(learner(data, [printer], defaults=False, **options), epochs)


class Screen:
    """A terminal of one size: what is seen in the end, and every line that was ever seen."""

    def __init__(self, columns):
        self.columns, self.rows, self.at, self.seen, self.hidden = columns, [""], 0, set(), False
        self.widest = 0

    def feed(self, text):
        for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", text):
            self.take(part)
        return self

    def take(self, part):
        if part in ("\r", "\n", "\x1b[2K"):
            self.seen.add(self.rows[self.at])
        if part == "\r":
            return
        if part == "\n":
            self.at += 1
            if self.at == len(self.rows):
                self.rows.append("")
        elif part == "\x1b[2K":
            self.rows[self.at] = ""
        elif re.fullmatch(r"\x1b\[\d*A", part):
            self.at -= int(part[2:-1] or 1)
        elif part in ("\x1b[?25l", "\x1b[?25h"):
            self.hidden = part.endswith("l")
        elif part.startswith("\x1b["):
            assert part.endswith("m"), part
        else:
            self.rows[self.at] += part
            self.widest = max(self.widest, len(self.rows[self.at]))

    @property
    def shown(self):
        return [row.rstrip() for row in self.rows if row.strip()]


def on_terminal(code, columns, stdout=True, **environment):
    pty = pytest.importorskip("pty")
    import fcntl
    import struct
    import termios

    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    variables |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=there,
        stdout=there if stdout else subprocess.PIPE,
        env=variables | environment,
    )
    os.close(there)
    found = b""
    while True:
        try:
            part = os.read(here, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        found += part
    os.close(here)
    out = process.stdout.read().decode() if process.stdout else ""
    if process.stdout:
        process.stdout.close()
    process.wait()
    return Screen(columns).feed(found.decode()), out


@pytest.mark.parametrize("columns", [80, 200])
def test_a_bar_is_one_line_of_a_terminal_below_what_is_printed_and_gone_at_the_end(columns):
    pytest.importorskip("rich")
    screen, _ = on_terminal(RUN.replace("{stop}", "-1"), columns)
    bars = [row for row in screen.seen if row.startswith("epoch") and re.search("[━─]{10}", row)]
    assert len(bars) > 20
    assert screen.widest < columns
    for row in bars:
        whole = r"epoch [12]/2 (training|validation)  [━─]{10,30}  \d+/10  \d+:\d\d left  loss [\d.e+-]+"
        assert re.match(whole, row.rstrip()), row
    if columns == 200:
        assert all(re.search(r"  [\d.e+]+ steps/s  [\d.e+]+ samples/s(  [\d.]+ GiB)?$", row) for row in bars)
    hello, above, names, first, second, end = screen.shown
    assert (hello, end) == ("somebody says hello", "the end")
    assert above.split() == ["training", "validation"]
    assert names.split() == ["epoch", "loss", "accuracy", "loss", "accuracy", "seconds"]
    assert (first.split()[0], second.split()[0]) == ("1/2", "2/2")
    assert not screen.hidden


def test_a_bar_of_a_narrow_terminal_shows_less():
    pytest.importorskip("rich")
    screen, _ = on_terminal(RUN.replace("{stop}", "-1"), 34)
    assert screen.widest <= 34
    assert any(re.fullmatch(r"epoch 1/2 training  \d+/10", row.rstrip()) for row in screen.seen)
    assert not any("━" in row for row in screen.shown)


def test_a_bar_is_gone_after_an_error_and_what_is_printed_to_a_file_goes_there():
    pytest.importorskip("rich")
    screen, out = on_terminal(RUN.replace("{stop}", "7"), 80, stdout=False)
    assert out == "somebody says hello\n"
    assert not screen.hidden
    assert any("━" in row for row in screen.seen)
    assert screen.shown[0].startswith("Traceback") or "ZeroDivisionError" in screen.shown[0]
    assert "CallbackError: Say.step_end raised ZeroDivisionError: nothing" in "\n".join(screen.shown)


NO_RICH = """
import importlib.util, sys
sys.modules["rich"] = None
true = importlib.util.find_spec
importlib.util.find_spec = lambda name, *package: None if name == "rich" else true(name, *package)
"""
EVERY_LINE = """
from dataclasses import replace
Printer = fl.callbacks.ProgressPrinter
every = [replace(c, every=0) if isinstance(c, Printer) else c for c in learner.callbacks]
learner = learner.replace(callbacks=every)
"""
THREAD = """
import threading
thread = threading.Thread(target=fl.fit, args=(learner, 2))
thread.start(), thread.join()
"""


@pytest.mark.parametrize("reason", ["dumb", "no rich", "thread"])
def test_a_terminal_that_takes_no_bar_gets_plain_lines(reason):
    code = RUN.replace("{stop}", "-1").replace("before =", f"{EVERY_LINE}\nbefore =")
    if reason == "no rich":
        code = NO_RICH + code
    if reason == "thread":
        code = code.replace("    fl.fit(learner, 2)", THREAD.replace("\n", "\n    "))
    screen, _ = on_terminal(code, 120, **({"TERM": "dumb"} if reason == "dumb" else {}))
    assert sum("training: batch" in row for row in screen.shown) == 20
    assert screen.shown[-1] == "the end"
    assert "━" not in "".join(screen.seen)


def test_without_a_terminal_progress_is_a_plain_line_now_and_then(capsys, quick_steps):
    lines(ProgressPrinter(every=0.0), 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 6
    number = r"[\d.e+-]+"
    pattern = (
        rf"epoch 1/2 training: batch 2 of 3, 0:01 left, loss {number}, {number} steps/s, {number} samples/s"
        r"(, [\d.]+ GiB)?"
    )
    assert re.fullmatch(pattern, err.splitlines()[1])
    lines(ProgressPrinter(every=1000.0), 2)
    assert capsys.readouterr() == ("", "")


def test_data_of_unknown_length_has_no_end_in_sight(capsys):
    class Stream:
        def __iter__(self):
            yield from [(X, Y)] * 2

    lines(ProgressPrinter(every=0.0), data=Stream())
    err = capsys.readouterr().err
    assert re.match(r"epoch 1/1 training: batch 1, loss \S+, \S+ steps/s, ", err)
    assert "left" not in err


def test_rates_and_the_time_left_are_those_of_the_last_frames(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress, "perf_counter", lambda: now[0])

    class Tick(fl.Callback):
        before = (ProgressPrinter,)

        def step_end(self, run):
            now[0] += 10.0 if run.batch_number <= 10 else 0.5

    data = fl.DataLoader((X, Y), batch_size=1)
    fl.fit(learner(data, [ProgressPrinter(every=0.0), Tick()], defaults=False))
    found = capsys.readouterr().err.splitlines()
    assert "batch 10 of 40, 5:00 left" in found[9]
    assert "0.1 steps/s, 0.1 samples/s" in found[9]
    assert "batch 38 of 40, 0:01 left" in found[37]
    assert "2 steps/s, 2 samples/s" in found[37]


def test_a_resumed_epoch_counts_its_rate_from_where_it_goes_on(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress, "perf_counter", lambda: now[0])

    class Tick(fl.Callback):
        before = (ProgressPrinter,)

        def step_end(self, run):
            now[0] += 1.0
            if run.step == 30 and now[0] == 30.0:
                raise fl.CancelFit("enough")

    begun = learner(fl.DataLoader((X, Y), batch_size=1), [ProgressPrinter(every=0.0), Tick()], defaults=False)
    left = fl.fit(begun)
    capsys.readouterr()
    now[0] = 100.0
    fl.fit(left)
    assert "batch 31 of 40, 0:09 left, loss" in capsys.readouterr().err.splitlines()[0]


def test_drawing_takes_a_hundredth_of_the_time(monkeypatch):
    now = [0.0]
    for module in (progress, displays):
        monkeypatch.setattr(module, "perf_counter", lambda: now[0])

    class Slow(displays._Bar):
        frames = 0

        def draw(self, frame):
            now[0] += 0.1
            self.frames += 1

        def stop(self):
            pass

    slow = Slow()
    monkeypatch.setattr(progress, "display", lambda every: slow)

    class Tick(fl.Callback):
        before = (ProgressPrinter,)

        def step_end(self, run):
            now[0] += 0.1

    fl.fit(learner([(X, Y)] * 1000, [ProgressPrinter(), Tick()], defaults=False))
    assert 8 <= slow.frames <= 12


def test_a_notebook_gets_a_bar_of_its_own(monkeypatch, quick_steps):
    told = []

    class Handle:
        def update(self, forms, raw):
            told.append(forms)

    def display(forms, raw, display_id):
        assert raw
        assert display_id
        told.append(forms)
        return Handle()

    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display = display
    for name, module in [("ipykernel", types.ModuleType("ipykernel")), ("IPython", ipython)]:
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    monkeypatch.setattr(displays._Bar, "interval", 0.0)
    monkeypatch.setattr(displays, "_FRAME", 0.0)
    monkeypatch.setattr(displays, "_SHARE", 1e9)
    lines(ProgressPrinter())
    assert len(told) == 4
    assert '<progress value="2" max="3"' in told[1]["text/html"]
    assert told[1]["text/plain"].startswith("epoch 1/1 training  2/3  0:01 left  loss ")
    assert told[-1] == {"text/plain": "", "text/html": ""}
    ipython.get_ipython = lambda: None  # a script that imports it
    assert isinstance(displays.display(1.0), displays.PlainLines)


@given(
    st.text("ab ", max_size=30),
    st.integers(0, 10**6),
    st.none() | st.integers(1, 10**6),
    st.lists(st.text("cd", min_size=1, max_size=12), max_size=6),
    st.integers(0, 120),
)
def test_a_line_is_no_longer_than_there_is_room_and_facts_are_whole(title, done, of, facts, width):
    frame = Frame(title, done, of, facts)
    title, thick, thin, rest = fitted(frame, width)
    assert len(title + thick + thin + rest) <= width
    if rest:
        shown = rest.split(frame.count, 1)[1].split()
        assert shown == facts[: len(shown)]
        assert len(thick + thin) in (0, *range(10, 31))
        assert of is None or done < of or not thin
        assert done or not thick


def test_a_setting_out_of_range_is_refused():
    with pytest.raises(ValueError, match="every=-1; write seconds between lines, from 0"):
        ProgressPrinter(every=-1)
    with pytest.raises(ValueError, match="every=nan"):
        replace(ProgressPrinter(), every=float("nan"))


def table(capsys):
    return [line.rstrip() for line in capsys.readouterr().err.splitlines()]


def shown_table(capsys, phases, metrics, epochs=2):
    class Third(fl.ValidationPhase):
        name = "another"

    kinds = {"training": fl.TrainingPhase(), "validation": fl.ValidationPhase(), "another": Third()}
    data = {name: fl.DataLoader((X, Y), batch_size=16) for name in phases}
    printers = [fl.callbacks.Metrics(metrics), fl.callbacks.Recorder(), fl.callbacks.MetricsPrinter()]
    begun = learner(data, printers, defaults=False, phases=[kinds[name] for name in phases])
    fl.fit(begun, epochs)
    return table(capsys)


def test_a_table_of_one_phase_has_a_line_an_epoch_below_its_names(capsys):
    found = shown_table(capsys, ["training"], {"accuracy": fl.metrics.accuracy})
    assert found[0] == "epoch       loss   accuracy    seconds"
    assert [len(line) for line in found] == [len(found[0])] * 3
    assert [line.split()[0] for line in found] == ["epoch", "1/2", "2/2"]


def test_a_table_of_several_phases_has_their_names_over_their_columns(capsys):
    found = shown_table(capsys, ["training", "validation"], {"a long name of a metric": fl.metrics.accuracy})
    assert (
        found[1]
        == "epoch       loss  a long name of a metric        loss  a long name of a metric    seconds"
    )
    assert found[0].index("training") + len("training") == found[1].index("loss") + len("loss")
    assert found[0].index("validation") + len("validation") == found[1].rindex("loss") + len("loss")
    assert len({len(line) for line in found[1:]}) == 1
    assert len(found) == 4


def test_a_name_of_a_phase_that_is_longer_than_its_columns_has_room(capsys):
    class Long(fl.ValidationPhase):
        name = "a phase with a long name"

    data = {"training": [(X, Y)], Long.name: [(X, Y)]}
    printers = [fl.callbacks.Metrics(), fl.callbacks.Recorder(), fl.callbacks.MetricsPrinter()]
    fl.fit(learner(data, printers, defaults=False, phases=[fl.TrainingPhase(), Long()]))
    above, names, numbers = table(capsys)
    assert above.split("  ")[-1] == Long.name
    assert len(names) == len(numbers)
    assert above.index(Long.name) + len(Long.name) == names.rindex("loss") + len("loss")


def test_a_table_that_would_be_wider_than_the_terminal_has_a_line_for_each_phase(capsys):
    metrics = {f"a metric with a long name {i}": fl.metrics.accuracy for i in range(2)}
    found = shown_table(capsys, ["training", "validation", "another"], metrics)
    names = ["epoch", "phase", "loss", *(f"a metric with a long name {i}" for i in range(2)), "seconds"]
    assert found[0].split("  ") != names
    assert [" ".join(part.split()) for part in re.split(r"\s{2,}", found[0])] == names
    firsts = ["1/2", "validation", "another", "2/2", "validation", "another"]
    assert [line.split()[0] for line in found[1:]] == firsts
    assert len({len(line) for line in found}) == 1


def test_the_names_come_again_when_the_columns_change(capsys):
    class More(fl.Step):
        def loss(self, model, batch):
            loss = fl.losses.logitcrossentropy(model(batch[0]), batch[1])
            more = {} if seen["epoch"] < 2 else {"more": 1.0}
            return {"loss": loss, **more}

    seen = {}

    class See(fl.Callback):
        def epoch_begin(self, run):
            seen["epoch"] = run.epoch

    printers = [See(), fl.callbacks.Metrics(), fl.callbacks.Recorder(), fl.callbacks.MetricsPrinter()]
    options = {"step": More(), "defaults": False, "callbacks": printers}
    fl.fit(fl.Learner(fl.Dense(2, 3), [(X, Y)], fl.Adam(), **options), 3)
    found = table(capsys)
    assert [line.split()[0] for line in found] == ["epoch", "1/3", "epoch", "2/3", "3/3"]
    assert found[2] == "epoch       loss       more    seconds"


def test_an_epoch_that_was_resumed_in_its_middle_has_its_whole_line(capsys):
    class Leave(fl.Callback):
        def step_end(self, run):
            if run.phase == "validation":
                raise fl.CancelFit("enough")

    data = (fl.DataLoader((X, Y), batch_size=16),) * 2
    left = fl.fit(learner(data, [Leave()]), 1)
    assert table(capsys) == []
    fl.fit(left.replace(callbacks=left.callbacks[:-1]), 1)
    above, names, line = table(capsys)
    assert above.split() == ["training", "validation"]
    assert len(line.split()) == len(names.split()) == 4


def test_threads_show_lines_of_their_own(capsys):
    threads = [threading.Thread(target=lines, args=(ProgressPrinter(every=0.0),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(capsys.readouterr().err.splitlines()) == 9
