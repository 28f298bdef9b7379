"""CSV files: numbers and classes by column, or an error that names the cell."""

import csv

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl

IRIS = 'length,width,"kind, by Fisher"\n5.1,3.5,setosa\n6.3,2.8,"virginica"\n4.9,3,setosa\n'


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("csv") / "table.csv"


def read(file, text, *args, encoding="utf-8", **settings):
    file.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return fl.data.read_csv(file, *args, **settings)


def test_text_targets_are_numbered_by_their_sorted_names(file):
    table = read(file, IRIS, "kind, by Fisher")
    assert table.columns == ("length", "width")
    assert table.classes == ("setosa", "virginica")
    assert torch.equal(table.features, torch.tensor([[5.1, 3.5], [6.3, 2.8], [4.9, 3.0]]))
    assert torch.equal(table.targets, torch.tensor([0, 1, 0]))
    assert table.data == (table.features, table.targets)
    assert repr(table) == "CSVTable(3 rows, 2 features, target='kind, by Fisher' of 2 classes)"


def test_numeric_targets_stay_numbers(file):
    table = read(file, "a,price,b\n1,2.5,3\n4,-1e3,6\n", target="price")
    assert table.classes is None
    assert torch.equal(table.targets, torch.tensor([[2.5], [-1000.0]]))
    assert torch.equal(table.features, torch.tensor([[1.0, 3.0], [4.0, 6.0]]))


def test_given_classes_number_a_second_file_as_the_first(file):
    table = read(file, "a,y\n1,dog\n", "y", classes=("ant", "cat", "dog"))
    assert table.targets.tolist() == [2]
    assert read(file, "a,y\n1,2\n1,0\n", "y", classes=range(3)).targets.tolist() == [2, 0]
    with pytest.raises(ValueError, match="line 2, column 'y': 'emu' is none of the classes 'ant', 'dog'"):
        read(file, "a,y\n1,emu\n", "y", classes=["ant", "dog"])


def test_without_a_target_the_data_are_the_features(file):
    table = read(file, "a,b\n1,2\n")
    assert table.targets is None
    assert table.data is table.features


def test_features_are_taken_in_the_order_asked_for(file):
    table = read(file, "name,a,b,y\nAnn,1,2,3\nBo,4,5,6\n", "y", features=["b", "a"])
    assert table.features.tolist() == [[2, 1], [5, 4]]
    assert table.columns == ("b", "a")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("separator", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
def test_separators_line_ends_and_byte_order_marks(file, encoding, end, separator):
    text = end.join(separator.join(row) for row in (["größe", "y"], ["1.5", "ja"], ["2", "nein"])) + end + end
    table = read(file, text, "y", encoding=encoding, separator=separator)
    assert table.columns == ("größe",)
    assert table.features.tolist() == [[1.5], [2.0]]


@given(
    values=st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2),
        min_size=1,
        max_size=6,
    ),
    names=st.lists(
        st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1).filter(
            lambda s: s.strip() == s and not s[0].isdigit() and s.lower() not in ("nan", "inf", "infinity")
        ),
        min_size=3,
        max_size=3,
        unique=True,
    ),
    labels=st.lists(st.sampled_from(["a", 'say "b"', "c,\nd"]), min_size=6, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_what_pythons_writer_wrote_comes_back_and_pandas_agrees(file, values, names, labels):
    names = [f"x{name}" for name in names]
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        writer.writerows([*row, label] for row, label in zip(values, labels, strict=False))
    table = fl.data.read_csv(file, names[2])
    assert table.columns == tuple(names[:2])
    assert torch.equal(table.features, torch.tensor(values))
    assert [table.classes[i] for i in table.targets] == labels[: len(values)]
    frame = pd.read_csv(file)
    assert np.allclose(frame.iloc[:, :2].to_numpy(np.float32), table.features.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("", None, "is empty"),
        ("a,b\n", None, "has the names of columns, and no rows"),
        ("1,2\n3,4\n", None, "starts with the numbers '1', …; write a first row"),
        (",a\n0,1\n", None, r"column 1 of 2 has no name.*to_csv\(…, index=False\)"),
        ("a,b,a\n1,2,3\n", None, "columns 1 and 3 are both called 'a'"),
        ("a;b\n1;2\n", None, "write separator=';'"),
        ("a,b\n1,2\n", "c", "has no column 'c'; it has 'a', 'b'"),
        ("y\n2\n", "y", "no columns for features beside the target 'y'"),
        ("a,b\n1,2\n3,\n", None, "line 3, column 'b': the cell is missing, found ''"),
        ("a,b\n1,2\nNaN,4\n", None, "line 3, column 'a': the cell is missing, found 'NaN'"),
        ("a,b\n1,1_000\n", None, "line 2, column 'b': '1_000' is no number"),
        ("a,b\n1,Paris\n", None, "line 2, column 'b': 'Paris' is no number"),
        ("a,b\n1,1e39\n", None, "'1e39' is beyond float32"),
        ("a,b\n1,inf\n", None, "'inf' is beyond float32"),
        ("a,b\n1,2\n3\n", None, "line 3, has 1 cells for 2 columns"),
        ("a,b\n1,2,3\n", None, "line 2, has 3 cells for 2 columns"),
        ("a,b\n1,2\n\n3,4\n", None, "line 3, is blank, and rows follow"),
        ('a,b\n1,"2\n', None, "is no CSV: unexpected end of data"),
        ('a,b\n1,"2"3\n', None, "line 2, is no CSV"),
        ("a,y\n1,x\n2,\n", "y", "line 3, column 'y': the target is missing"),
        ("a,y\n1,2\n2,\n", "y", "line 3, column 'y': the target is missing"),
        (
            "a,y\n1,2\n2,x\n",
            "y",
            "line 3, column 'y': the target 'x' is text, and on line 2 it is the number '2'",
        ),
        ("a,y\n1,2\n2,inf\n", "y", "line 3, column 'y': 'inf' is beyond float32"),
        (b"a,b\n1,\xff\n", None, "line 2, is no text in UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), None, "is no text in UTF-8"),
        (b"a,b\n1,\0\n", None, "line 2, column 'b'"),
        ("a,b\n1," + "9" * 200_000 + "\n", None, "line 2, is no CSV: field larger than field limit"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else type(value).__name__,
)
def test_an_error_names_the_file_the_line_and_the_column(file, text, target, message):
    with pytest.raises(ValueError, match=message) as raised:
        read(file, text, target)
    assert str(file) in str(raised.value)
    assert len(str(raised.value)) < 600


def test_settings_that_cannot_be_meant_are_refused(file):
    with pytest.raises(ValueError, match="write one character"):
        read(file, IRIS, separator=", ")
    with pytest.raises(ValueError, match="the target and one of the features"):
        read(file, "a,b\n1,2\n", "b", features=["a", "b"])
    with pytest.raises(ValueError, match="a column is there twice"):
        read(file, "a,b\n1,2\n", "b", features=["a", "a"])
    with pytest.raises(TypeError, match=r"write a list of names, such as \['a'\]"):
        read(file, "a,b\n1,2\n", "b", features="a")
    with pytest.raises(ValueError, match="no target; write target=…"):
        read(file, "a,b\n1,2\n", classes=["x"])
    with pytest.raises(ValueError, match="write each class once"):
        read(file, "a,b\n1,2\n", "b", classes=["x", "x"])
    with pytest.raises(TypeError, match=r"such as range\(3\)"):
        read(file, "a,b\n1,2\n", "b", classes=3)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_are_an_error_or_a_table_of_numbers(file, data):
    changed = bytearray(IRIS.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        table = read(file, bytes(changed), "kind, by Fisher")
    except ValueError as raised:
        said = str(raised)
        assert str(file) in said
        assert said.isprintable()
    else:
        assert torch.isfinite(table.features).all()
        assert len(table.features) == len(table.targets)
