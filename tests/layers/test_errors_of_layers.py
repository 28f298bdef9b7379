"""What errors inside a Chain say, and what they keep."""

from __future__ import annotations

import copy
import pickle
import traceback

import pytest
import torch

import fluxlike as fl


class Mine(ValueError):
    """A user's own kind."""


def raising(error):
    def fails(x):
        raise error

    return fails


def caught(model, x=None):
    with pytest.raises(Exception) as info:
        model(torch.ones(2, 3) if x is None else x)
    return info.value


def nested(layer, depth):
    return layer if depth == 0 else fl.Chain(nested(layer, depth - 1))


def chained(error):
    """The error and its causes, as a traceback shows them."""
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


@pytest.mark.parametrize("again", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_an_error_survives_pickle_and_copy_with_its_path_and_notes(again):
    error = caught(nested(fl.Dense(2, 1), 2))
    error.add_note("on rank 3")
    other = again(error)
    assert type(other) is fl.LayerError
    assert (other.path, other.message, str(other)) == (error.path, error.message, str(error))
    assert other.__notes__ == ["on rank 3"]


@pytest.mark.parametrize(
    "error",
    [RuntimeError("no"), ValueError("no"), TypeError("no"), IndexError("no"), NotImplementedError("no")],
    ids=lambda e: type(e).__name__,
)
def test_the_kinds_that_layers_raise_become_a_layer_error(error):
    found = caught(fl.Chain(fl.identity, fl.Chain(raising(error))))
    assert type(found) is fl.LayerError
    assert found.path == ".layers[1].layers[0]"
    assert str(found).endswith(f"failed: {type(error).__name__}: no")


@pytest.mark.parametrize(
    "error",
    [AttributeError("no"), KeyError("no"), AssertionError("no"), ZeroDivisionError("no"), Mine("no"),
     torch.OutOfMemoryError("no"), torch.linalg.LinAlgError("no"), UnicodeDecodeError("a", b"", 0, 1, "no"),
     MemoryError("no"), OSError("no"), ConnectionResetError("no"), torch.distributed.DistNetworkError("no"),
     RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"),
     RuntimeError("NCCL communicator was aborted on rank 0")],
    ids=lambda e: f"{type(e).__name__} {str(e)[:9]}",
)  # fmt: skip
def test_every_other_kind_and_what_the_network_raises_is_kept_and_notes_the_path(error):
    found = caught(fl.Chain(fl.identity, fl.Chain(fl.identity, fl.Chain(raising(error)))))
    assert found is error
    (note,) = found.__notes__
    assert note == ".layers[1].layers[1].layers[0]: fails got a tensor of shape (2, 3) and torch.float32"
    assert note in "".join(traceback.format_exception(found))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=lambda e: type(e).__name__)
def test_what_ends_the_program_passes_without_a_note(error):
    with pytest.raises(type(error)) as caught:
        nested(raising(error), 2)(torch.ones(2, 3))
    assert caught.value is error
    assert not hasattr(error, "__notes__")


def test_a_note_of_the_users_own_stays_beside_the_path():
    error = Mine("no")
    error.add_note("see the manual")
    found = caught(nested(raising(error), 2))
    assert [note.split(":")[0] for note in found.__notes__] == ["see the manual", ".layers[0].layers[0]"]


def test_an_error_of_a_kind_of_its_own_survives_pickle_with_its_note():
    found = pickle.loads(pickle.dumps(caught(nested(raising(Mine("no")), 2))))
    assert type(found) is Mine
    assert found.__notes__[0].startswith(".layers[0].layers[0]: fails got")


@pytest.mark.parametrize("depth", [1, 4, 20])
def test_an_error_has_one_cause_however_deep_it_arose(depth):
    error = caught(nested(fl.Dense(2, 1), depth))
    assert error.path == ".layers[0]" * depth
    assert [type(e) for e in chained(error)] == [fl.LayerError, ValueError]


def test_a_traceback_shows_each_function_of_the_user_on_the_way():
    @fl.functor
    class Block:
        def __init__(self):
            self.inner = nested(fl.Dense(2, 1), 2)

        def __call__(self, x):
            return self.inner(x) + 1

    error = caught(nested(Block(), 2))
    assert [type(e) for e in chained(error)] == [fl.LayerError, ValueError]
    text = "".join(traceback.format_exception(error))
    assert text.count("return self.inner(x) + 1") == 1
    assert len(text.splitlines()) < 57
