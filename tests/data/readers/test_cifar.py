"""CIFAR's binary files: the data of the version for Python, or an error that names the file."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision_here import torchvision

import fluxlike as fl

PIXELS = 3072


def records(n, seed, *limits):
    """Random records: a byte for each label below its limit, then the pixels."""
    rng = np.random.default_rng(seed)
    labels = [rng.integers(0, limit, (n, 1)) for limit in limits]
    return np.concatenate([*labels, rng.integers(0, 256, (n, PIXELS))], 1).astype(np.uint8)


def write_cifar10(folder, n=3):
    """The six files, and their records by name."""
    written = {}
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        written[name] = records(n, i, 10)
        (folder / f"{name}.bin").write_bytes(written[name].tobytes())
    return written


def test_cifar10_is_what_torchvision_reads_from_the_version_for_python(tmp_path, monkeypatch):
    vision = torchvision()
    written = write_cifar10(tmp_path)
    pickles = tmp_path / "cifar-10-batches-py"
    pickles.mkdir()
    for name, rows in written.items():
        content = {"data": rows[:, 1:], "labels": rows[:, 0].tolist()}
        (pickles / name).write_bytes(pickle.dumps(content))
    (pickles / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(vision.datasets.cifar, "check_integrity", lambda *args: True)
    for split in ("train", "test"):
        theirs = vision.datasets.CIFAR10(str(tmp_path), train=split == "train")
        images, labels = fl.data.CIFAR10(tmp_path, split)
        assert torch.equal(images, torch.from_numpy(theirs.data).permute(0, 3, 1, 2))
        assert labels.tolist() == theirs.targets
        assert labels.dtype == torch.int64


def test_the_archive_may_be_unpacked_in_the_folder(tmp_path):
    inner = tmp_path / "cifar-10-batches-bin"
    inner.mkdir()
    write_cifar10(inner)
    assert len(fl.data.CIFAR10(tmp_path)[0]) == 15
    assert len(fl.data.CIFAR10(inner, "test")[0]) == 3


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar100_has_coarse_and_fine_labels(tmp_path, split):
    rows = records(5, 0, 20, 100)
    (tmp_path / f"{split}.bin").write_bytes(rows.tobytes())
    images, labels = fl.data.CIFAR100(tmp_path, split)
    assert labels["coarse"].tolist() == rows[:, 0].tolist()
    assert labels["fine"].tolist() == rows[:, 1].tolist()
    assert np.array_equal(images.numpy().reshape(5, -1), rows[:, 2:])


def test_cut_off_and_mislabelled_files_are_named(tmp_path):
    written = write_cifar10(tmp_path)
    file = tmp_path / "data_batch_3.bin"
    rows = written["data_batch_3"]
    file.write_bytes(rows.tobytes()[:-1])
    with pytest.raises(ValueError, match=r"data_batch_3\.bin has 9218 bytes, and is made of records of 3073"):
        fl.data.CIFAR10(tmp_path)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"data_batch_3\.bin has 0 bytes"):
        fl.data.CIFAR10(tmp_path)
    file.write_bytes(rows[:2].tobytes())
    with pytest.raises(
        ValueError, match=r"as many images each, found .*data_batch_3\.bin 2.* one is cut off"
    ):
        fl.data.CIFAR10(tmp_path)
    rows[1, 0] = 10
    file.write_bytes(rows.tobytes())
    with pytest.raises(ValueError, match=r"data_batch_3\.bin gives example 1 the label 10; there are 10"):
        fl.data.CIFAR10(tmp_path)
    (tmp_path / "train.bin").write_bytes(records(3, 0, 20, 101)[:, ::-1].tobytes())
    with pytest.raises(ValueError, match=r"train\.bin gives example \d the label"):
        fl.data.CIFAR100(tmp_path)


def test_the_version_for_python_is_not_unpickled(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(
        FileNotFoundError, match=r"of pickles.* Take the binary version, cifar-10-binary\.tar\.gz"
    ):
        fl.data.CIFAR10(tmp_path)
    (tmp_path / "data_batch_1").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no data_batch_1\.bin.* it has nothing"):
        fl.data.CIFAR10(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        fl.data.CIFAR100(tmp_path / "nowhere")
    (tmp_path / "train").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"cifar-100-binary\.tar\.gz"):
        fl.data.CIFAR100(tmp_path)


@given(at=st.integers(0, 2 * (PIXELS + 2) - 1), value=st.integers(0, 255), cut=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_a_changed_byte_is_an_error_or_the_data_it_says(tmp_path_factory, at, value, cut):
    folder = tmp_path_factory.getbasetemp() / "cifar_changed"
    folder.mkdir(exist_ok=True)
    rows = records(2, 0, 20, 100).reshape(-1)
    rows[at] = value
    kept = rows[: len(rows) - cut]
    (folder / "test.bin").write_bytes(kept.tobytes())
    try:
        images, labels = fl.data.CIFAR100(folder, "test")
    except ValueError as raised:
        said = str(raised)
        assert "test.bin" in said
        assert cut or (at % (PIXELS + 2) == 0 and value >= 20) or (at % (PIXELS + 2) == 1 and value >= 100)
    else:
        joined = np.stack([labels["coarse"].numpy(), labels["fine"].numpy()], 1)
        assert np.array_equal(np.concatenate([joined, images.reshape(2, -1).numpy()], 1).reshape(-1), kept)


def test_class_names_are_one_a_line(tmp_path):
    file = tmp_path / "batches.meta.txt"
    file.write_bytes(b"airplane\r\nautomobile\r\n\r\n")
    assert fl.data.read_class_names(file) == ("airplane", "automobile")
    for content, message in (
        (b"", "holds no names"),
        (b"a\n\nb\n", "line 2, is blank"),
        (b"a\nb\na\n", "line 3, has the name 'a' for the second time"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b"a" * (2**20 + 1), "is over 1048576 bytes long"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            fl.data.read_class_names(file)
