"""IDX files: what is in them, or an error that names the file."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.datasets import load_digits
from torchvision_here import torchvision

import fluxlike as fl

CODES = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}


def idx(array):
    """The bytes of an array in IDX."""
    array = np.asarray(array)
    header = bytes([0, 0, CODES[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_mnist(folder, prefix, images, labels, suffix=""):
    pack = gzip.compress if suffix else bytes
    (folder / f"{prefix}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images)))
    (folder / f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("idx") / "array"


@given(
    array=st.sampled_from(sorted(CODES)).flatmap(
        lambda dtype: arrays.arrays(
            dtype, arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)
        )
    ),
    zipped=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_an_array_of_any_dtype_and_shape_comes_back(file, array, zipped):
    file.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    found = fl.data.read_idx(file)
    assert found.numpy().dtype == array.dtype
    assert np.array_equal(found.numpy(), array, equal_nan=array.dtype.kind == "f")


@pytest.mark.parametrize("dtype", sorted(CODES))
def test_torchvision_reads_the_same(file, dtype):
    reader = torchvision().datasets.mnist.read_sn3_pascalvincent_tensor
    file.write_bytes(idx(np.arange(-12, 12).reshape(2, 3, 4).astype(dtype)))
    assert torch.equal(fl.data.read_idx(file), reader(str(file)))


def test_digits_written_as_idx_are_those_of_sklearn(file):
    digits = load_digits()
    file.write_bytes(gzip.compress(idx(digits.images.astype(np.uint8))))
    assert np.array_equal(fl.data.read_idx(file).numpy(), digits.images)


GOOD = idx(np.arange(24, dtype=np.int16).reshape(2, 3, 4))


@given(data=st.data(), zipped=st.booleans())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_are_an_error_or_the_data_they_say(file, data, zipped):
    start = gzip.compress(GOOD, mtime=0) if zipped else GOOD
    changed = bytearray(start)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    kept = bytes(changed[: data.draw(st.integers(0, len(changed)) | st.just(len(changed)))])
    file.write_bytes(kept)
    tracemalloc.start()
    try:
        found = fl.data.read_idx(file)
    except ValueError as raised:
        said = str(raised)
        assert str(file) in said
    else:
        content = gzip.decompress(kept) if kept[:2] == b"\x1f\x8b" else kept
        assert idx(found.numpy()) == content
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**27


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing"),
        (b"\x89PNG\r\n", "starts with 89 50 4e 47"),
        (b"\0\0\x0a\x01\0\0\0\0", "is no IDX file"),
        (b"\0\0\x08\0", "says it has 0 axes"),
        (b"\0\0\x08\x02\0\0\0\x01", "ends in its header: 2 axes take 8 bytes, found 4"),
        (GOOD[:-1], r"shape \(2, 3, 4\) and int16, which takes 48 bytes; after the header it has 47"),
        (GOOD + b"\0", "after the header it has 49"),
        (b"\0\0\x0e\x03" + b"\xff" * 12, "after the header it has 0"),
        (b"\0\0\x0e\x03" + b"\0" * 4 + b"\xff" * 8, "too long for any array"),
        (gzip.compress(GOOD[:-1]), "it ends after 47 of them"),
        (gzip.compress(GOOD + b"\0"), "there is more after them"),
        (gzip.compress(GOOD)[:-9], "damaged: it starts as a gzip file"),
        (gzip.compress(b"\0\0\x08\x02" + b"\x7f" * 8), "more than a compressed file of its size may"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)}_bytes",
)
def test_a_file_that_is_something_else_is_an_error_that_names_it(file, content, message):
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        fl.data.read_idx(file)
    assert str(file) in str(raised.value)


def test_a_bomb_of_zeros_is_refused_before_it_is_unpacked(file):
    zeros = b"\0\0\x08\x01" + struct.pack(">I", 2**28) + bytes(2**28)
    file.write_bytes(gzip.compress(zeros, compresslevel=1))
    del zeros
    tracemalloc.start()
    with pytest.raises(ValueError, match="if it is yours, unzip it"):
        fl.data.read_idx(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_a_file_that_is_not_there_or_a_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        fl.data.read_idx(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a folder"):
        fl.data.read_idx(tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_is_read_from_its_four_files_as_torchvision_reads_it(tmp_path, suffix):
    vision = torchvision()
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 7), ("t10k", 3)):
        images = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)
        labels = rng.integers(0, 10, n).astype(np.uint8)
        write_mnist(raw, prefix, images, labels, suffix)
        write_mnist(raw, prefix, images, labels)
    for split in ("train", "test"):
        images, labels = fl.data.MNIST(raw, split)
        theirs = vision.datasets.MNIST(str(tmp_path), train=split == "train")
        assert torch.equal(images[:, 0], theirs.data)
        assert torch.equal(labels, theirs.targets)
        assert images.shape[1:] == (1, 28, 28)


def test_mnist_refuses_what_is_not_mnist(tmp_path):
    images, labels = np.zeros((3, 28, 28), np.uint8), np.array([0, 9, 5], np.uint8)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        fl.data.MNIST(tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError, match=r"no train-images-idx3-ubyte, with \.gz or not; it has nothing"
    ):
        fl.data.MNIST(tmp_path)
    with pytest.raises(ValueError, match="no split 'val'; write 'train' or 'test'"):
        fl.data.MNIST(tmp_path, "val")
    write_mnist(tmp_path, "train", images[:, :8], labels)
    with pytest.raises(ValueError, match=r"uint8 of shape \(3, 8, 28\)"):
        fl.data.MNIST(tmp_path)
    write_mnist(tmp_path, "train", images, labels[:2])
    with pytest.raises(ValueError, match=r"the labels of 3 images are uint8 of shape \(3,\)"):
        fl.data.MNIST(tmp_path)
    write_mnist(tmp_path, "train", images, labels + np.uint8(1))
    with pytest.raises(ValueError, match="gives example 1 the label 10; there are 10 classes"):
        fl.data.MNIST(tmp_path)
    write_mnist(tmp_path, "train", labels, images)
    with pytest.raises(ValueError, match="train-images-idx3-ubyte holds"):
        fl.data.MNIST(tmp_path)
