"""Where progress is shown: in a bar on a terminal, in a bar of a notebook, or in plain lines."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from time import perf_counter
from typing import Any, Protocol

__all__ = ["Display", "Frame", "PlainLines", "display", "fitted"]

_FRAME = 0.4  # seconds between two, at least
_SHARE = 0.01  # of the time, at most, that drawing takes
_BAR = (10, 30)  # the least and the greatest length
_GAP = "  "


@dataclass(frozen=True)
class Frame:
    """What there is to be shown.

    Attributes:
        title: of the bar.
        done: how many batches were taken.
        of: of how many, or None where that is not known.
        facts: the most important ones first.
    """

    title: str
    done: int
    of: int | None
    facts: Sequence[str]

    @property
    def count(self) -> str:
        return f"{self.done} batches" if self.of is None else f"{self.done}/{self.of}"


class Display(Protocol):
    """Something that shows frames.

    Attributes:
        interval: seconds from one frame to the next.
    """

    interval: float

    def show(self, frame: Frame, /) -> None:
        """Show a frame in the place of the last one."""

    def stop(self) -> None:
        """Take the last frame away."""


def display(every: float, /) -> Display:
    """The best that can be shown here: plain lines at least."""
    if threading.current_thread() is not threading.main_thread():
        return PlainLines(every)  # two bars would draw over each other
    shell = _notebook()
    if shell is not None:
        return _NotebookBar()
    stream = sys.stderr
    another = hasattr(stream, "rich_proxied_file")  # a bar of somebody else
    if stream is None or another or not stream.isatty() or importlib.util.find_spec("rich") is None:
        return PlainLines(every)
    from rich.console import Console

    console = Console(stderr=True)
    return _TerminalBar(console) if console.is_interactive else PlainLines(every)


class PlainLines:
    """A line a frame, on standard error."""

    def __init__(self, interval: float) -> None:
        self.interval = interval

    def show(self, frame: Frame, /) -> None:
        of = "" if frame.of is None else f" of {frame.of}"
        print(f"{frame.title}: batch {frame.done}{of}, {', '.join(frame.facts)}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Lines stay."""


class _Bar:
    """A bar that is drawn anew, as often as it takes next to no time."""

    interval = _FRAME

    def show(self, frame: Frame, /) -> None:
        begun = perf_counter()
        self.draw(frame)
        self.interval = max(_FRAME, (perf_counter() - begun) / _SHARE)

    def draw(self, frame: Frame, /) -> None:
        """Draw it in the place of the last one."""


class _TerminalBar(_Bar):
    """A bar of rich in one line. What is printed meanwhile is above it."""

    def __init__(self, console: Any) -> None:
        self._console = console
        self._live: Any = None

    def draw(self, frame: Frame, /) -> None:
        from rich.text import Text

        plain = not self._console.encoding.startswith("utf")
        title, thick, thin, rest = fitted(frame, self._console.width - 1, "#-" if plain else "━─")
        line = Text.assemble(title, (thick, "cyan"), (thin, "bright_black"), rest)
        line.no_wrap, line.overflow = True, "crop"
        if self._live is None:
            from rich.live import Live

            # Standard output may be a file, where what is printed belongs.
            to_terminal = sys.stdout is not None and sys.stdout.isatty()
            self._live = Live(
                line, console=self._console, auto_refresh=False, transient=True, redirect_stdout=to_terminal
            )
            self._live.start()
        self._live.update(line, refresh=True)

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()


class _NotebookBar(_Bar):
    """A bar of HTML in the output of a cell."""

    def __init__(self) -> None:
        self._handle: Any = None

    def draw(self, frame: Frame, /) -> None:
        full = "" if frame.of is None else f' value="{frame.done}" max="{frame.of}"'
        words = _GAP.join([frame.count, *frame.facts])
        bar = f'<progress{full} style="vertical-align:middle"></progress>'
        html = f"<div>{escape(frame.title)} {bar} {escape(words)}</div>"
        self._put({"text/plain": f"{frame.title}{_GAP}{words}", "text/html": html})

    def stop(self) -> None:
        if self._handle is not None:
            self._put({"text/plain": "", "text/html": ""})

    def _put(self, forms: dict[str, str]) -> None:
        if self._handle is None:
            notebook = importlib.import_module("IPython.display")
            self._handle = notebook.display(forms, raw=True, display_id=True)
        else:
            self._handle.update(forms, raw=True)


def _notebook() -> Any:
    """The kernel of the notebook that this runs in, if it does."""
    if "ipykernel" not in sys.modules or "IPython" not in sys.modules:
        return None
    return getattr(sys.modules["IPython"].get_ipython(), "kernel", None)


def fitted(frame: Frame, width: int, marks: str = "━─", /) -> tuple[str, str, str, str]:
    """A line of at most a width: the title, the two parts of a bar, and as many facts as there is room for.

    Example:
        >>> frame = Frame("epoch 1/2 training", 50, 100, ["0:07 left", "loss 0.25"])
        >>> "".join(fitted(frame, 50))
        'epoch 1/2 training  ━━━━━━─────  50/100  0:07 left'
    """
    least, most = (0, 0) if not frame.of else _BAR
    room = width - len(frame.title) - len(_GAP + frame.count)
    if room < 0:
        return f"{frame.title}{_GAP}{frame.count}"[: max(width, 0)], "", "", ""
    if least and room >= least + len(_GAP):
        room -= least + len(_GAP)
    else:
        least = most = 0
    facts = []
    for fact in frame.facts:
        if room < len(_GAP + fact):
            break
        room -= len(_GAP + fact)
        facts.append(fact)
    long = min(most, least + room)
    done = min(long, round(long * frame.done / frame.of)) if frame.of else 0
    bar = marks[0] * done, marks[1] * (long - done)
    return frame.title + (_GAP if long else ""), *bar, _GAP + _GAP.join([frame.count, *facts])
