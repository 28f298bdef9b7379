"""Tables: they never change, keep every cell to the bit, and read from a device only when asked."""

import math
import os
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fluxlike.learning.history.table import Table

words = st.text(max_size=6)
cells = st.one_of(st.floats(), st.integers(), st.booleans(), words)
rows = st.lists(st.dictionaries(st.sampled_from(["step", "loss", "a,b", 'q"', "", "\n"]), cells), max_size=8)
FORMS = ("state", "csv", "jsonl", "torch")


def same(a, b):
    return type(a) is type(b) and (a == b or (a != a and b != b))


def there_and_back(table, form, folder):
    if form == "state":
        return Table.restore(table.state())
    path = folder / f"table.{form}"
    if form == "torch":
        torch.save(table.state(), path)
        return Table.restore(torch.load(path, weights_only=True))
    getattr(table, f"to_{form}")(path)
    return getattr(Table, f"from_{form}")(path)


@pytest.mark.parametrize("form", FORMS)
@given(given_=rows)
def test_a_table_comes_back_to_the_bit(given_, form, tmp_path_factory):
    found = there_and_back(Table(given_), form, tmp_path_factory.mktemp("table"))
    assert [list(row) for row in found] == [[n for n in Table(given_).columns if n in row] for row in given_]
    for row, wanted in zip(found, given_, strict=True):
        assert all(same(row[name], cell) for name, cell in wanted.items())
    assert found == Table(given_)


@given(st.lists(st.floats(), min_size=1))
def test_floats_keep_their_bits_in_files(values):
    table = Table({"x": x} for x in values)
    with tempfile.TemporaryDirectory() as folder:
        for form in ("csv", "jsonl"):
            found = there_and_back(table, form, Path(folder))["x"]
            wanted = [math.nan if math.isnan(x) else x for x in values]
            found = [math.nan if math.isnan(x) else x for x in found]
            assert np.array(found).tobytes() == np.array(wanted).tobytes()


@given(st.integers(0, 600), st.integers(0, 600), st.integers(1, 5))
def test_branches_of_a_table_do_not_see_each_other(length, cut, more):
    cut = min(cut, length)
    table, tables = Table(), []
    for i in range(length):
        table = table.append({"i": i, "t": torch.tensor(i)})
        tables.append(table)
    early = tables[cut - 1] if cut else Table()
    branch = early
    for i in range(more):
        branch = branch.append({"j": -i})
    assert len(early) == cut
    assert "j" not in early.columns
    assert "j" not in table.columns
    assert len(table) == length
    assert len(branch) == cut + more
    if cut:
        assert branch["i"] == [*range(cut), *[None] * more]
        assert early["t"] == list(range(cut))
    if length:
        assert table["t"] == table["i"] == list(range(length))


def test_nothing_is_read_from_the_device_until_asked():
    table = Table()
    for i in range(1000):
        table = table.append({"step": i, "loss": torch.tensor(0.5, device="meta")})
    assert table["step"] == list(range(1000))
    with pytest.raises(NotImplementedError, match="meta tensor"):
        table["loss"]


def test_cells_on_a_device_are_read_as_they_are():
    table = Table()
    for i in range(600):
        table = table.append({"a": torch.tensor(i / 3), "b": torch.tensor(i) if i % 2 else 1.5, "c": i})
    assert table["a"] == [float(np.float32(i / 3)) for i in range(600)]
    assert table["b"] == [i if i % 2 else 1.5 for i in range(600)]
    assert table[3] == {"a": 1.0, "b": 3, "c": 3}
    assert table[-1]["c"] == table[599]["c"] == 599
    assert list(table)[300] == table[300]


def test_a_row_is_copied_and_holds_no_graph():
    row = {"loss": torch.tensor(1.0, requires_grad=True) * 2}
    table = Table([row])
    row["loss"] = 5.0
    assert table["loss"] == [2.0]
    table[0]["loss"] = 7.0
    assert table["loss"] == [2.0]


def test_rows_are_found_by_their_cells():
    table = Table({"phase": phase, "i": i} for i in range(3) for phase in ("training", "validation"))
    assert table.where(phase="validation")["i"] == [0, 1, 2]
    assert table.where(phase="validation", i=1)[0] == {"phase": "validation", "i": 1}
    assert len(table.where(other=1)) == 0


def test_numbers_of_numpy_become_those_of_python():
    table = Table([{"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True), "d": np.str_("x")}])
    assert [type(cell) for cell in table[0].values()] == [float, int, bool, str]


@pytest.mark.parametrize(
    ("row", "error", "says"),
    [
        ({"loss": torch.ones(2)}, ValueError, r"'loss' has a tensor of shape \(2,\).* one real number"),
        ({"loss": torch.tensor(1j)}, ValueError, "complex64"),
        ({"loss": None}, TypeError, "'loss' has a NoneType; .* leave out what is not known"),
        ({"loss": [1.0]}, TypeError, "'loss' has a list"),
        ({3: 1.0}, TypeError, "a column has a name, found 3"),
    ],
    ids=["vector", "complex", "none", "list", "name"],
)
def test_what_is_no_cell_is_refused(row, error, says):
    with pytest.raises(error, match=says):
        Table().append(row)


def test_what_is_not_there_is_named():
    table = Table([{"a": 1}])
    with pytest.raises(KeyError, match=r"no column 'b' among \['a'\]"):
        table["b"]
    with pytest.raises(IndexError, match="row 1 of a table of 1"):
        table[1]
    assert Table() != 3


def test_threads_that_go_on_from_one_table_get_a_table_each():
    starts, found = [Table([{"i": -1}]) for _ in range(2000)], [[], []]

    meet = threading.Barrier(2)

    def grow(number):
        for start in starts:
            meet.wait()
            found[number].append(start.append({"i": number}))

    threads = [threading.Thread(target=grow, args=(n,)) for n in range(2)]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(usual)
    assert all(table["i"] == [-1, number] for number in (0, 1) for table in found[number])
    assert len(found[0]) == len(found[1]) == len(starts)


def test_a_table_of_pandas_has_the_same_columns_and_rows(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = Table([{"step": 1, "loss": torch.tensor(0.5)}, {"step": 2, "phase": "training"}])
    frame = table.to_pandas()
    assert list(frame.columns) == ["step", "loss", "phase"]
    assert frame["step"].tolist() == [1, 2]
    assert frame["loss"].isna().tolist() == [False, True]
    table.to_csv(tmp_path / "t.csv")
    assert pandas.read_csv(tmp_path / "t.csv")["loss"].tolist()[0] == 0.5
    table.to_jsonl(tmp_path / "t.jsonl")
    assert pandas.read_json(tmp_path / "t.jsonl", lines=True)["step"].tolist() == [1, 2]


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"to_pandas needs pandas .*: pip install pandas"):
        Table([{"a": 1}]).to_pandas()


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "t.csv"
    Table([{"a": 1}]).to_csv(path)
    with pytest.raises(ValueError, match=r"can't hold '\\ud800', of the column 'a'.*write another string"):
        Table([{"a": 2}, {"a": "\ud800"}]).to_csv(path)
    assert Table.from_csv(path)["a"] == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        Table().to_jsonl(tmp_path / "none" / "t.jsonl")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_number_of_thousands_of_digits_is_refused_by_its_column(form, tmp_path):
    with pytest.raises(ValueError, match=r"'wide'.*4300 digits.*write it as a float or a string"):
        getattr(Table([{"wide": 10**4301}]), f"to_{form}")(tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


def test_half_a_character_comes_back_from_json_lines(tmp_path):
    table = Table([{"a": "\ud800é"}, {"\udfff": "ä"}])
    table.to_jsonl(tmp_path / "t")
    assert Table.from_jsonl(tmp_path / "t") == table
    with pytest.raises(ValueError, match=r"the column '\\udfff'"):
        table.to_csv(tmp_path / "t.csv")


def test_rows_are_asked_for_one_by_one():
    with pytest.raises(TypeError, match=r"found slice\(1, 2, None\).*Table\(list\(table\)\[1:3\]\)"):
        Table([{"a": 1}])[1:2]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_pipe_is_neither_replaced_nor_waited_for(form, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for method in (getattr(Table([{"a": 1}]), f"to_{form}"), getattr(Table, f"from_{form}")):
        with pytest.raises(ValueError, match="pipe is a pipe or a device"):
            method(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("form", "text", "says"),
    [
        ("csv", "a,b\n1", "the last line was cut off"),
        ("csv", "a,b\n1\n", "record 2: 1 fields for 2 columns"),
        ("csv", "a\nx\n", "record 2: 'x' is no number, and strings stand in quotes"),
        ("csv", "a\n1_0\n", "'1_0' is no number"),
        ("csv", "a,a\n1,2\n", "a column stands there twice"),
        ("csv", 'a\n"x\n', "no CSV at"),
        ("csv", b"a\n\xff\n", "no text in UTF-8"),
        ("jsonl", '{"a": 1}\n{"a"', "the last line was cut off"),
        ("csv", "a\n" + "1" * 4301 + "\n", r"t\.csv, record 2: Exceeds the limit"),
        (
            "jsonl",
            '{"a": 1}\n{"a": null}\n',
            r"t\.jsonl, line 2: the column 'a' has None; a cell is a number",
        ),
        ("jsonl", '{"a": [1]}\n', r"line 1: the column 'a' has \[1\]"),
        ("jsonl", '{"a": 1, "a": 2}\n', r"line 1 is no JSON: the key 'a' stands there twice"),
        ("jsonl", "[1]\n", "line 1: its JSON is a list"),
        ("jsonl", "{\n", "line 1 is no JSON"),
        ("jsonl", "[" * 100_000 + "\n", "line 1 is no JSON"),
    ],
    ids=lambda x: str(x)[:12] if isinstance(x, str) else "bytes",
)
def test_a_damaged_file_is_refused(form, text, says, tmp_path):
    path = tmp_path / f"t.{form}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=says):
        getattr(Table, f"from_{form}")(path)


def test_a_long_table_shows_its_ends():
    table = Table({"step": i, "loss": 1 / (i + 1)} for i in range(100))
    text = repr(table)
    assert text.startswith("Table(100 rows)\n  step     loss\n     0        1\n")
    assert text.endswith("    99     0.01")
    assert text.count("\n") == 18
    assert "  …\n" in text
    assert repr(Table()) == "Table(0 rows)"


def test_its_html_is_escaped_and_has_no_colour_of_its_own():
    html = Table([{"<b>": "<i>"}])._repr_html_()
    assert "<b>" not in html
    assert "&lt;i&gt;" in html
    assert "background" not in html
    assert ";color:" not in html
    assert "#" not in html
