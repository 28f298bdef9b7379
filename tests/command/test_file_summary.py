"""``python -m fluxlike summary``: any file of tensors, none believed, nothing run."""

import json
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike.command.contents import contents_of
from fluxlike.command.main import main


def shown(capsys, *arguments):
    assert main(["summary", *map(str, arguments)]) == 0
    return capsys.readouterr().out.splitlines()


def as_json(capsys, file):
    return json.loads("\n".join(shown(capsys, file, "--json")))


def refused(capsys, file):
    assert main(["summary", str(file)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.isascii() or "…" in captured.err
    return captured.err


def test_a_file_of_ours_is_a_tree_with_classes_values_and_ties(tmp_path, capsys):
    w = torch.ones(3, 2)
    tree = {"net": fl.Dense(3, 2, fl.relu), "again": [w, w], "epoch": 3, "z": {"a.b": float("nan"), "c": 1j}}
    fl.save(tmp_path / "x.safetensors", tree)
    lines = shown(capsys, tmp_path / "x.safetensors")
    assert lines[0] == f"{tmp_path / 'x.safetensors'}: written by fluxlike.save, a dict"
    rows = [" ".join(line.split()) for line in lines[2:]]
    assert rows[:-1] == [
        "['again'] 6 24 bytes list",
        "[0] 6 24 bytes float32 (3, 2)",
        "[1] - - float32 (3, 2) tied to ['again'][0]",
        "['epoch'] 3",
        "['net'] 8 32 bytes Dense",
        ".weight 6 24 bytes float32 (2, 3)",
        ".bias 2 8 bytes float32 (2,)",
        ".activation relu",
        "['z'] {'a.b': nan, 'c': 1j}",
    ]
    assert rows[-1].startswith("Total: 3 tensors and 1 tied name, 14 numbers, 56 bytes, 4 plain values,")


def test_depth_folds_what_is_further_down_and_counts_it(tmp_path, capsys):
    fl.save(tmp_path / "x.safetensors", fl.Chain(fl.Dense(3, 2), fl.Dense(2, 1)))
    lines = shown(capsys, tmp_path / "x.safetensors", "--depth", "1")
    assert [" ".join(line.split()) for line in lines[2:-1]] == [
        ".layers 11 44 bytes tuple, 4 tensors, 2 plain values"
    ]
    deeper = shown(capsys, tmp_path / "x.safetensors", "--depth", "2")
    assert len(deeper) == len(lines) + 2


def test_a_tensor_alone_has_no_name(tmp_path, capsys):
    fl.save(tmp_path / "x.safetensors", torch.ones(2, 2, dtype=torch.complex128))
    assert "(root)        4  64 bytes  complex128  (2, 2)" in shown(capsys, tmp_path / "x.safetensors")


def test_json_says_all_of_it(tmp_path, capsys):
    w = torch.ones(2)
    fl.save(tmp_path / "x.safetensors", {"a": w, "b": w, "lr": 0.1, "inf": float("inf"), "f": fl.relu})
    found = as_json(capsys, tmp_path / "x.safetensors")
    assert found["totals"]["numbers"] == 2
    assert found["totals"]["tied"] == 1
    assert [(x["path"], x["tied_to"]) for x in found["tensors"]] == [("['a']", None), ("['b']", "['a']")]
    assert {x.pop("path"): x for x in found["values"]} == {
        "['lr']": {"value": 0.1},
        "['inf']": {"float": "inf"},
        "['f']": {"name": "relu"},
    }
    assert found["nodes"] == [{"path": "", "class": "dict"}]


def test_a_file_of_others_is_a_tree_of_its_names(tmp_path, capsys):
    tensors = {"a.b.weight": torch.ones(3), "a.c": torch.ones(2, 2).half(), "": torch.ones(1)}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    lines = [" ".join(line.split()) for line in shown(capsys, tmp_path / "x.safetensors")]
    assert "format: 'pt'" in lines
    assert "a 7 20 bytes" in lines
    assert "'' 1 4 bytes float32 (1,)" in lines
    assert "4 numbers of float32, 4 numbers of float16" in lines


def test_a_file_of_torch_is_read_as_data_with_its_ties(tmp_path, capsys):
    w = torch.ones(4, 2)
    state = {"emb.weight": w, "out.weight": w, "view": w[1:]}
    torch.save({"epoch": 3, "model": state, "s": torch.eye(3).to_sparse()}, tmp_path / "last.ckpt")
    found = as_json(capsys, tmp_path / "last.ckpt")
    rows = {x["path"]: x for x in found["tensors"]}
    assert rows["model.out.weight"]["tied_to"] == "model.emb.weight"
    assert rows["model.view"]["tied_to"] is None
    assert rows["s"]["kind"] == "sparse_coo tensor"
    assert rows["s"]["bytes"] == 2 * 3 * 8 + 3 * 4
    assert found["values"] == [{"path": "epoch", "kind": "int"}]


def test_shards_are_one_checkpoint(tmp_path, capsys):
    safetensors.torch.save_file({"a.w": torch.ones(2)}, tmp_path / "1.safetensors")
    safetensors.torch.save_file({"b.w": torch.ones(3)}, tmp_path / "2.safetensors")
    index = {"weight_map": {"a.w": "1.safetensors", "b.w": "2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for place in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert shown(capsys, place)[-1] == "Total: 2 tensors, 5 numbers, 20 bytes"


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=12), st.lists(st.integers(0, 3), max_size=3), max_size=6))
def test_the_totals_are_those_of_the_tree_whatever_the_names(tmp_path_factory, shapes):
    tree = {name: torch.ones(shape) for name, shape in shapes.items()}
    file = tmp_path_factory.mktemp("names") / "x.safetensors"
    fl.save(file, tree)
    contents = contents_of(file)
    assert sum(x.numbers for x in contents.tensors) == sum(x.numel() for x in tree.values())
    assert ["".join(x.steps) for x in contents.tensors] == [x.path for x in contents.tensors]
    assert all(len(x.steps) == 1 for x in contents.tensors)
    assert main(["summary", str(file)]) == 0


def header(text):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(n=0):
    return {"dtype": "U8", "shape": [n], "data_offsets": [0, n]}


HOSTILE = {
    "empty.safetensors": b"",
    "noise.safetensors": bytes(range(256)),
    "noise": b"hello",
    "cut.safetensors": header(json.dumps({"a": entry(9)})),
    "huge.safetensors": struct.pack("<Q", 2**60) + b"{}",
    "deep.safetensors": header('{"a":' * 3000),
    "name.safetensors": header(json.dumps({"a." * 5000: entry()})),
    "ours.safetensors": header(json.dumps({"__metadata__": {"fluxlike": "{}"}})),
    "zip.pt": b"PK\x03\x04" + bytes(40),
    "pickle.pt": b"\x80\x02cos\nsystem\nU\x02ls\x85R.",
    "hdf5.h5": b"\x89HDF\r\n\x1a\n" + bytes(40),
    "index.json": b'{"weight_map": {"a": "../../etc/passwd"}}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_an_error_of_one_line(tmp_path, capsys, name):
    (tmp_path / name).write_bytes(HOSTILE[name])
    assert str(tmp_path / name) in refused(capsys, tmp_path / name)


def test_a_pickle_that_runs_code_does_not_run(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"a": Evil()}, tmp_path / "x.pt")
    refused(capsys, tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


def test_names_that_colour_a_terminal_are_escaped(tmp_path, capsys):
    name = "a\x1b[31m\n\u202eb"
    safetensors.torch.save_file({name: torch.ones(1)}, tmp_path / "x.safetensors", metadata={name: name})
    text = "\n".join(shown(capsys, tmp_path / "x.safetensors"))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "a\\x1b[31m\\n\\u202eb" in text
    fl.save(tmp_path / "y.safetensors", {name: torch.ones(1), "s": name})
    assert "\x1b" not in "\n".join(shown(capsys, tmp_path / "y.safetensors"))
