"""Callbacks: their order, conflicts and circles, and what they may touch."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike.learning.callback import DECLARED
from fluxlike.learning.events import Event
from fluxlike.learning.order import names, ordered


def made(name, reads=(), writes=(), events=("step_end",), **attributes):
    handlers = {event: lambda self, run: None for event in events}
    return type(name, (fl.Callback,), {"reads": reads, "writes": writes, **handlers, **attributes})()


def order(*callbacks, event=Event.STEP_END):
    known = names(callbacks)
    return [known[i] for i in ordered(callbacks)[event]]


def learner(*callbacks, **options):
    data = [(torch.ones(4, 2), torch.zeros(4, 1))]
    return fl.Learner(
        fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, callbacks=callbacks, defaults=False, **options
    )


def test_who_writes_a_part_comes_before_who_reads_it_however_they_are_given():
    reader, writer = made("Reader", ("metrics",)), made("Writer", (), ("metrics",))
    last = made("Last", ("everything",))
    for given_order in permutations([reader, writer, last]):
        found = order(*given_order)
        assert found.index("Writer") < found.index("Reader")
        assert found[-1] == "Last"


def test_who_has_nothing_to_do_with_each_other_comes_as_given():
    a, b, c = (made(name, ("model",)) for name in "ABC")
    assert order(c, a, b) == ["C", "A", "B"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_order_is_one_of_all_callbacks_and_keeps_every_dependence(data):
    parts = st.lists(st.sampled_from(DECLARED), max_size=2, unique=True).map(tuple)
    n = data.draw(st.integers(1, 5))
    written = data.draw(st.permutations(DECLARED))[:n]
    callbacks = [made(f"C{i}", data.draw(parts), (written[i],)) for i in range(n)]
    try:
        found = order(*callbacks)
    except ValueError:
        with pytest.raises(ValueError, match="in a circle"):
            order(*callbacks)
        return
    assert sorted(found) == sorted(names(callbacks))
    for i, writer in enumerate(callbacks):
        for j, reader in enumerate(callbacks):
            if i != j and set(writer.writes) & set(reader.reads):
                assert found.index(f"C{i}") < found.index(f"C{j}")


def test_two_who_write_the_same_part_are_an_error_at_construction():
    with pytest.raises(ValueError, match=r"One and Two both write 'batch' at step_end; say who comes first"):
        learner(made("One", (), ("batch",)), made("Two", (), ("batch",)))


def test_a_conflict_is_resolved_by_after_or_before():
    one = made("One", ("batch",), ("batch",))
    two = made("Two", ("batch",), ("batch",), after=(type(one),))
    assert order(two, one) == ["One", "Two"]
    three = made("Three", ("batch",), ("batch",), before=(type(one), type(two)))
    assert order(two, one, three) == ["Three", "One", "Two"]


def test_two_who_each_say_that_they_come_first_are_an_error():
    one, two = made("One"), made("Two")
    type(one).before, type(two).before = (type(two),), (type(one),)
    with pytest.raises(ValueError, match="in a circle"):
        order(one, two)


def test_who_names_a_class_comes_before_who_names_all_callbacks():
    first = made("First", before=(fl.Callback,))
    special = made("Special", before=(type(first),))
    other = made("Other", before=(fl.Callback,))
    assert order(first, special) == ["Special", "First"]
    assert order(first, other) == ["First", "Other"]


def test_two_of_one_class_that_write_the_same_are_told_to_be_one():
    with pytest.raises(
        ValueError, match="both write 'batch' at step_end; make one of them, or leave one out"
    ):
        order(made("Same", (), ("batch",)), made("Same", (), ("batch",)))


def test_writers_at_different_events_do_not_conflict():
    learner(made("One", (), ("batch",)), made("Two", (), ("batch",), events=("step_begin",)))


@pytest.mark.parametrize(
    ("first", "second", "conflict"),
    [
        ("state.lr", "state.momentum", None),
        ("state.lr", "state", "state.lr"),
        ("state.lr", "state.lr", "state.lr"),
        ("state.lr", "state.lr_decay", None),
    ],
)
def test_hyperparameters_are_parts_of_the_state(first, second, conflict):
    pair = made("One", (), (first,)), made("Two", (), (second,))
    if conflict is None:
        assert order(*pair) == ["One", "Two"]
    else:
        with pytest.raises(ValueError, match=f"both write '{conflict}'"):
            order(*pair)


def test_a_circle_is_an_error_at_construction_that_shows_it():
    with pytest.raises(ValueError, match=r"in a circle: (A before B before A|B before A before B)"):
        learner(made("A", ("model",), ("batch",)), made("B", ("batch",), ("model",)))


def test_the_order_is_computed_once_a_learner_and_not_in_a_fit(monkeypatch):
    begun = learner(made("A", ("model",)))
    monkeypatch.setattr("fluxlike.learning.learner.ordered", lambda callbacks: pytest.fail("computed again"))
    fl.fit(begun, 1)


def test_callbacks_of_one_name_are_told_apart():
    a, b, c = made("Same"), made("Same"), made("Same")
    assert names([a, b, c]) == ["Same", "Same 2", "Same 3"]
    fitted = fl.fit(learner(a, b), 1)
    assert list(fitted.memory) == ["Same", "Same 2"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (made("Bad", ("modle",)), "Bad.reads names 'modle'; the parts of a run are model, state"),
        (made("Bad", "model"), r"Bad.reads is the string 'model'; write a tuple, \('model',\)"),
        (made("Bad", (), ("everything",)), "Bad.writes names 'everything'"),
        (fl.Callback, r"is no callback; write Callback\(\)"),
        (print, "is no callback; write a subclass of fl.Callback"),
        (
            made("Bad", events=("on_step_end",)),
            "Bad has a method on_step_end, which nothing calls; name it step_end",
        ),
    ],
    ids=[
        "unknown part",
        "a string",
        "writes everything",
        "a class",
        "a function",
        "a method of another name",
    ],
)
def test_what_is_no_callback_is_an_error_at_construction(wrong, message):
    with pytest.raises((TypeError, ValueError), match=message):
        learner(wrong)


@pytest.mark.parametrize("part", DECLARED)
def test_what_is_not_declared_is_neither_read_nor_written(part):
    def read(self, run):
        getattr(run, part)

    def write(self, run):
        setattr(run, part, None)

    for handler, kind in ((read, "reads"), (write, "writes")):
        callback = type("Sly", (fl.Callback,), {"step_end": handler})()
        with pytest.raises(
            fl.CallbackError, match=rf"Sly {kind} run\.{part} but does not say so; declare {kind}"
        ):
            fl.fit(learner(callback), 1)


def test_what_a_callback_remembers_goes_to_its_memory_and_nowhere_else():
    class Sets(fl.Callback):
        def step_end(self, run):
            run.count = 1

    with pytest.raises(
        fl.CallbackError, match=r"run\.count can't be set; keep what Sets remembers in run.memory"
    ):
        fl.fit(learner(Sets()), 1)


def test_memory_goes_on_from_fit_to_fit_and_leaves_the_learner_before_alone():
    class Count(fl.Callback):
        def init(self):
            return {"steps": [0]}

        def step_end(self, run):
            run.memory["steps"][0] += 1

    once = fl.fit(learner(Count()), 2)
    twice = fl.fit(once, 3)
    assert (once.memory["Count"], twice.memory["Count"]) == ({"steps": [2]}, {"steps": [5]})


@pytest.mark.parametrize("event", ["backward_begin", "backward_end"])
def test_who_listens_inside_a_compiled_step_is_refused(event):
    with pytest.raises(
        ValueError, match=f"Inside listens to {event}, which lies inside the step, and the step jit=True"
    ):
        learner(made("Inside", events=(event,)), jit=True)


def test_who_listens_inside_a_step_of_one_function_is_refused():
    with pytest.raises(ValueError, match="and the step is one function of your own"):
        fl.Learner(
            fl.Dense(2, 1),
            [],
            fl.Adam(),
            step=lambda m, s, b: (m, s, 0.0),
            callbacks=[made("A", events=("backward_end",))],
        )


@pytest.mark.parametrize(
    ("wrong", "right"), [("stepend", "step_end"), ("on_epoch_end", "epoch_end"), ("fit_beginn", "fit_begin")]
)
def test_a_method_that_nothing_calls_says_what_is_meant(wrong, right):
    with pytest.raises(TypeError, match=f"has a method {wrong}, which nothing calls; name it {right}"):
        learner(made("Bad", events=(wrong, "step_begin")))


def test_a_callback_that_listens_to_nothing_is_an_error():
    with pytest.raises(
        TypeError, match="Deaf listens to no event; write a method of the name of one: fit_begin"
    ):
        learner(made("Deaf", events=("collect",)))
