from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fluxlike as fl

WORDS = ["cat", "dog", "eel"]


@st.composite
def classes_and_labels(draw):
    kind = draw(st.sampled_from([st.integers(-(2**40), 2**40), st.text(max_size=3), st.booleans()]))
    classes = draw(st.lists(kind, unique=True, min_size=1, max_size=6))
    return classes, draw(st.lists(st.sampled_from(classes), min_size=1, max_size=12))


@given(classes_and_labels())
def test_onecold_undoes_onehotbatch(given):
    classes, labels = given
    back = fl.onecold(fl.onehotbatch(labels, classes), classes)
    assert list(back.tolist() if isinstance(back, torch.Tensor) else back) == labels


@given(classes_and_labels())
def test_every_row_holds_a_single_one_at_the_class(given):
    classes, labels = given
    hot = fl.onehotbatch(labels, classes)
    assert hot.shape == (len(labels), len(classes))
    assert set(hot.unique().tolist()) <= {0.0, 1.0}
    assert (hot.sum(1) == 1).all()
    assert hot.argmax(1).tolist() == [classes.index(x) for x in labels]


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    n=st.integers(1, 5),
    data=st.data(),
)
def test_round_trip_of_labels_of_any_shape(shape, n, data):
    count = int(np.prod(shape))
    flat = data.draw(st.lists(st.integers(0, n - 1), min_size=count, max_size=count))
    labels = torch.tensor(flat).reshape(shape)
    hot = fl.onehotbatch(labels, range(n))
    assert hot.shape == (shape[0], n, *shape[1:])
    assert torch.equal(fl.onecold(hot), labels)


@pytest.mark.parametrize(
    ("labels", "classes", "rows"),
    [
        (torch.tensor([2, 0]), range(3), [2, 0]),
        (torch.tensor([2, 0], dtype=torch.uint8), range(3), [2, 0]),
        (np.array([2, 0]), range(3), [2, 0]),
        (np.array([2, 0], dtype=np.uint8), range(3), [2, 0]),
        ([2, 0], [0, 1, 2], [2, 0]),
        ((2, 0), (0, 1, 2), [2, 0]),
        (torch.tensor([7, -3]), [-3, 7], [1, 0]),
        ([0.1, 0.2], [0.1, 0.2], [0, 1]),
        (np.array([0.1, 0.2]), [0.1, 0.2], [0, 1]),
        (torch.tensor([0.1, 0.2]), [0.1, 0.2], [0, 1]),
        (torch.tensor([0.1, 0.2], dtype=torch.float64), [0.1, 0.2], [0, 1]),
        ([True, False], [False, True], [1, 0]),
        (torch.tensor([True, False]), [False, True], [1, 0]),
        (["eel", "cat"], WORDS, [2, 0]),
        (np.array(["eel", "cat"]), WORDS, [2, 0]),
        (np.array(["eel", "cat"], dtype=object), WORDS, [2, 0]),
        (["eel", "cat"], np.array(WORDS), [2, 0]),
        ([2, 0], np.arange(3), [2, 0]),
        ([2, 0], torch.arange(3), [2, 0]),
        ("ba", "ab", [1, 0]),
        ([2, "x"], ["x", 2], [1, 0]),
        ([None, "x"], ["x", None], [1, 0]),
        ([2**24 + 1], [2**24, 2**24 + 1, 0.5], [1]),
        ([2**53 + 1], [2**53, 2**53 + 1], [1]),
    ],
    ids=repr,
)
def test_each_kind_of_label_finds_its_class(labels, classes, rows):
    assert torch.equal(fl.onehotbatch(labels, classes), torch.eye(len(list(classes)))[rows])


@pytest.mark.parametrize(
    ("label", "classes", "row"),
    [
        ("b", "abc", 1),
        (7, [5, 7], 1),
        (torch.tensor(7), [5, 7], 1),
        (np.int64(7), [5, 7], 1),
        (True, [True, False], 0),
    ],
)
def test_one_label_is_one_vector(label, classes, row):
    assert torch.equal(fl.onehot(label, classes), torch.eye(len(classes))[row])


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([[0, 1, 2], [2, 2, 0]]),
        np.array([[0, 1, 2], [2, 2, 0]]),
        [[0, 1, 2], [2, 2, 0]],
    ],
    ids=["tensor", "array", "lists"],
)
def test_classes_of_sequences_are_on_axis_one(labels):
    hot = fl.onehotbatch(labels, range(3))
    assert hot.shape == (2, 3, 3)
    assert hot[0, :, 1].tolist() == [0.0, 1.0, 0.0]
    assert hot[1, :, 0].tolist() == [0.0, 0.0, 1.0]
    assert torch.equal(hot, torch.nn.functional.one_hot(torch.as_tensor(labels)).movedim(-1, 1).float())


def test_an_array_of_words_of_two_axes_has_its_classes_on_axis_one():
    words = np.array([["cat", "dog"], ["eel", "eel"]])
    hot = fl.onehotbatch(words, WORDS)
    assert hot.shape == (2, 3, 2)
    assert fl.onecold(hot, WORDS) == words.tolist()


@pytest.mark.parametrize(
    ("labels", "classes"),
    [([], WORDS), ([], range(3)), (torch.zeros(0, dtype=torch.long), range(3))],
    ids=str,
)
def test_no_labels_give_an_empty_batch(labels, classes):
    assert fl.onehotbatch(labels, classes).shape == (0, 3)


@pytest.mark.parametrize(
    ("labels", "classes", "missing"),
    [
        (["cat", "fox"], WORDS, "'fox'"),
        (np.array(["fox"]), WORDS, "'fox'"),
        ([1, 5], range(3), "5"),
        (torch.tensor([[0, -1]]), range(3), "-1"),
        (np.array([3]), range(3), "3"),
        ([0.5], range(3), "0.5"),
        ([1, "fox"], range(3), "'fox'"),
        (["1"], range(3), "'1'"),
        ([None], range(3), "None"),
        (torch.tensor([1]), WORDS, "1"),
        ([1], [], "1"),
    ],
    ids=repr,
)
def test_a_missing_label_is_an_error_that_names_it_and_the_classes(labels, classes, missing):
    with pytest.raises(ValueError, match=rf"the label {missing} is not among the classes \["):
        fl.onehotbatch(labels, classes)


def test_one_missing_label_is_an_error():
    with pytest.raises(ValueError, match=r"the label 'fox' is not among the classes \['cat', 'dog', 'eel'\]"):
        fl.onehot("fox", WORDS)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: fl.onehot(3, 4), r"onehot takes all classes in order, found 4; write range\(4\)"),
        (lambda: fl.onehotbatch([1, 2], 4), r"onehotbatch takes all classes in order, found 4; write range"),
        (
            lambda: fl.onecold(torch.eye(3), 3),
            r"onecold takes all classes in order, found 3; write range\(3\)",
        ),
        (lambda: fl.onecold(torch.eye(3), 2.5), r"all classes in order, found 2.5$"),
        (
            lambda: fl.onehot(WORDS, "cat"),
            r"onehot takes one label, then all classes, found a list and a str;",
        ),
        (
            lambda: fl.onehot(torch.tensor([0, 1]), range(3)),
            r"found a Tensor and a range; .* onehotbatch\(labels",
        ),
        (
            lambda: fl.onehotbatch(3, range(4)),
            r"onehotbatch takes several labels, found an int; write onehot\(",
        ),
        (lambda: fl.onecold(range(3), torch.eye(3)), r"onecold takes the scores first, found a range; write"),
        (lambda: fl.onecold([0.1, 0.9]), r"onecold takes the scores first, found a list; write torch.tensor"),
    ],
)
def test_arguments_of_another_kind_or_order_are_told(call, text):
    with pytest.raises(TypeError, match=text):
        call()


def test_classes_may_be_anything_that_is_run_through_once():
    assert fl.onehot("dog", iter(WORDS)).tolist() == [0, 1, 0]
    assert fl.onehotbatch(iter(["eel"]), iter(WORDS)).tolist() == [[0, 0, 1]]
    assert fl.onecold(torch.eye(3), iter(WORDS)) == WORDS


def test_a_class_that_is_there_twice_is_an_error():
    with pytest.raises(ValueError, match=r"the classes \[.*\] hold one twice"):
        fl.onehotbatch(["a"], ["a", "b", "a"])


def test_vectors_are_in_the_default_dtype_and_on_the_device_of_the_labels():
    torch.set_default_dtype(torch.float64)
    try:
        assert fl.onehotbatch([0], range(2)).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert fl.onehotbatch(torch.tensor([0]), range(2)).device.type == "cpu"


def test_one_hot_labels_are_targets_of_the_losses():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3, 5), torch.randint(3, (4, 5))
    torch.testing.assert_close(
        fl.losses.logitcrossentropy(logits, fl.onehotbatch(labels, range(3))),
        fl.losses.logitcrossentropy(logits, labels),
    )


def test_onecold_takes_the_highest_score():
    scores = torch.tensor([[0.1, 0.9, 0.3], [0.8, 0.2, 0.1]])
    assert fl.onecold(scores).tolist() == [1, 0]
    assert fl.onecold(scores).dtype == torch.int64
    assert fl.onecold(scores, WORDS) == ["dog", "cat"]
    assert fl.onecold(scores, [10, 20, 30]).tolist() == [20, 10]


def test_onecold_of_one_vector_is_one_label():
    assert fl.onecold(torch.tensor([0.1, 0.9, 0.3]), WORDS) == "dog"
    assert fl.onecold(torch.tensor([0.1, 0.9, 0.3])).item() == 1


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2])
def test_dim_names_the_axis_of_the_scores(dim):
    scores = torch.rand(2, 3, 4)
    assert torch.equal(fl.onecold(scores, dim=dim), scores.argmax(dim))


def test_onecold_with_another_number_of_classes_is_an_error():
    with pytest.raises(ValueError, match="2 classes were given for 3 scores"):
        fl.onecold(torch.eye(3), ["a", "b"])
