"""Files that Keras and Flax wrote: the same predictions here, and an error for whatever does not fit."""

import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import h5py
import msgpack
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fluxlike as fl
from fluxlike.bridges.foreign_files import hdf5
from fluxlike.files.reader import TensorFile

ARCHIVE = Path(__file__).parent / "recorded" / "foreign_files.zip"  # by recorded/record_foreign_files.py
with zipfile.ZipFile(ARCHIVE) as archive:
    FILES = {name: archive.read(name) for name in archive.namelist() if name != "arrays.npz"}
    with np.load(io.BytesIO(archive.read("arrays.npz"))) as recorded:
        ARRAYS = dict(recorded)


@fl.functor
class Net:
    def __init__(self):
        self.first = fl.Dense(4, 3, fl.tanh)
        self.blocks = [fl.Dense(3, 3), fl.Dense(3, 3, fl.tanh)]
        self.head = fl.Chain(fl.Dense(3, 3, fl.relu), fl.Dense(3, 2))

    def __call__(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def cnn(eps):
    conv, norm = fl.Conv((3, 2), 3, 4, fl.relu), fl.BatchNorm(4, eps=eps)
    return fl.Chain(conv, norm, fl.Dropout(0.5), fl.flatten, fl.Dense(36, 2))


def mlp():
    return fl.Chain(fl.Dense(4, 3, fl.tanh), fl.Dense(3, 2))


def attention(eps):
    return fl.Chain(fl.Embedding(7, 4), fl.MultiHeadAttention(4, 2), fl.LayerNorm(4, eps=eps))


def nested():
    first, second = (fl.Chain(fl.Dense(4, 3, fl.tanh), fl.Dense(3, 4)) for _ in range(2))
    return fl.Chain(fl.Dense(4, 4), first, fl.Dense(4, 4, fl.relu), second)


def recurrent():
    return fl.Chain(fl.LSTM(4, 3, bidirectional=True), fl.LSTM(6, 3), fl.GRU(3, 3), fl.Dense(3, 2))


MODELS = {
    "keras/mlp.weights.h5": mlp,
    "keras/cnn.weights.h5": lambda: cnn(1e-3),
    "keras/trained.keras": lambda: cnn(1e-3),
    "keras/recurrent.weights.h5": recurrent,
    "keras/attention.weights.h5": lambda: attention(1e-3),
    "keras/nested.weights.h5": nested,
    "keras/own_class.weights.h5": Net,
    "keras/eleven.weights.h5": lambda: fl.Chain(fl.Dense(4, 3), *(fl.Dense(3, 3) for _ in range(10))),
    "flax/mlp.msgpack": mlp,
    "flax/cnn.msgpack": lambda: cnn(1e-5),
    "flax/dots.safetensors": lambda: cnn(1e-5),
    "flax/slashes.safetensors": lambda: cnn(1e-5),
    "flax/train_state.msgpack": mlp,
    "flax/chunked.msgpack": mlp,
    "flax/lstm.msgpack": lambda: fl.Chain(fl.LSTM(4, 3)),
    "flax/gru.msgpack": lambda: fl.Chain(fl.GRU(4, 3)),
    "flax/attention.msgpack": lambda: attention(1e-6),
    "flax/nnx.msgpack": lambda: fl.Chain(fl.Dense(4, 3), fl.tanh, fl.Dense(3, 2)),
}


def written(folder, name):
    path = folder / Path(name).name
    path.write_bytes(FILES[name])
    return path


def loaded(path, name, model):
    x = torch.from_numpy(ARRAYS[f"{name}/x"])
    x = x.movedim(-1, 1) if x.ndim == 4 else x
    load = fl.load_keras if name.startswith("keras") else fl.load_flax
    inputs = x if x.ndim == 4 or isinstance(model, Net) else None
    return load(path, like=model, inputs=inputs), x


class TestParity:
    @pytest.mark.parametrize("name", MODELS)
    def test_a_file_gives_the_predictions_of_the_model_that_wrote_it(self, name, tmp_path):
        model = fl.f64(MODELS[name]())
        ours, x = loaded(written(tmp_path, name), name, model)
        tolerance = 1e-6 if name.startswith("keras") else 1e-10  # Keras' activations give float32
        np.testing.assert_allclose(ours(x).numpy(), ARRAYS[f"{name}/y"], rtol=tolerance, atol=tolerance)

    def test_every_recorded_file_is_tested(self):
        assert {*MODELS, "keras/bfloat16.weights.h5", "flax/bfloat16.msgpack"} == set(FILES)

    @pytest.mark.parametrize("name", ["keras/bfloat16.weights.h5", "flax/bfloat16.msgpack"])
    def test_bfloat16_to_the_bit(self, name, tmp_path):
        ours, _ = loaded(written(tmp_path, name), name, fl.Chain(fl.bf16(fl.Dense(4, 2))))
        assert np.array_equal(ours[0].weight.float().numpy().T, ARRAYS[f"{name}/y"])

    def test_the_model_given_is_left_as_it_was(self, tmp_path):
        model = fl.f64(mlp())
        before = fl.tree.clone(model)
        loaded(written(tmp_path, "keras/mlp.weights.h5"), "keras/mlp.weights.h5", model)
        assert fl.tree.allclose(model, before)

    def test_a_model_on_the_meta_device_may_be_given(self, tmp_path):
        model = fl.to_device(fl.f64(mlp()), "meta")
        ours, x = loaded(written(tmp_path, "flax/mlp.msgpack"), "flax/mlp.msgpack", model)
        np.testing.assert_allclose(ours(x).numpy(), ARRAYS["flax/mlp.msgpack/y"], rtol=1e-10, atol=1e-10)


def refused(load, path, *texts, like=None):
    with pytest.raises(ValueError) as caught:
        load(path, like=mlp() if like is None else like)
    for text in texts:
        assert text in str(caught.value)


class TestErrors:
    @pytest.mark.parametrize("name", ["keras/mlp.weights.h5", "flax/mlp.msgpack"])
    def test_all_that_does_not_fit_is_named_and_the_model_is_left_as_it_was(self, name, tmp_path):
        load = fl.load_keras if name.startswith("keras") else fl.load_flax
        model = fl.f64(fl.Chain(fl.Dense(3, 3), fl.Dense(4, 2)))
        before = fl.tree.clone(model)
        paths = (".layers[0].weight has the shape", ".layers[1].weight has the shape")
        refused(load, written(tmp_path, name), *paths, like=model)
        assert fl.tree.allclose(model, before)

    @pytest.mark.parametrize("name", ["keras/mlp.weights.h5", "flax/mlp.msgpack"])
    def test_another_dtype_or_number_of_layers(self, name, tmp_path):
        load, path = fl.load_keras if name.startswith("keras") else fl.load_flax, written(tmp_path, name)
        refused(load, path, "is of torch.float64, the model of torch.float32", "give like=fl.f64(model)")
        refused(load, path, ".layers[2] (Dense)", like=fl.Chain(*(fl.Dense(2, 2) for _ in range(3))))

    @pytest.mark.parametrize("load", [fl.load_keras, fl.load_flax])
    def test_no_file_and_a_folder(self, load, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            load(tmp_path / "none", like=mlp())
        refused(load, tmp_path, "is a folder", "give the file in it")

    @pytest.mark.parametrize("load", [fl.load_keras, fl.load_flax])
    def test_a_pipe_is_not_waited_for(self, load, tmp_path):
        os.mkfifo(tmp_path / "model")
        refused(load, tmp_path / "model", "is a pipe or a device")

    @pytest.mark.parametrize("content", [b"", b"nothing", bytes(1000), b"PK\3\4" + bytes(50), b"\x93\1\2\3"])
    @pytest.mark.parametrize("load", [fl.load_keras, fl.load_flax])
    def test_a_file_of_another_kind(self, load, content, tmp_path):
        (tmp_path / "file").write_bytes(content)
        refused(load, tmp_path / "file", "file is ")

    @pytest.mark.parametrize("name", FILES)
    def test_truncated_anywhere(self, name, tmp_path):
        path, read = tmp_path / "file", fl.read_keras if name.startswith("keras") else fl.read_flax
        for n in range(0, len(FILES[name]) - 1, max(1, len(FILES[name]) // 40)):
            path.write_bytes(FILES[name][:n])
            with pytest.raises(ValueError, match="file"):
                read(path)

    @pytest.mark.parametrize(
        ("package", "name"), [("h5py", "keras/mlp.weights.h5"), ("msgpack", "flax/mlp.msgpack")]
    )
    def test_a_missing_package_names_its_extra(self, package, name, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=r"pip install 'fluxlike\[(hdf5|flax)\]'"):
            loaded(written(tmp_path, name), name, mlp())


class TestReading:
    def test_flax_without_flax(self, tmp_path):
        found = fl.read_flax(written(tmp_path, "flax/train_state.msgpack"))
        assert set(found) == {"step", "params", "opt_state"}
        assert found["params"]["Dense_0"]["kernel"].shape == (4, 3)

    def test_chunks_are_one_array(self, tmp_path):
        found = fl.read_flax(written(tmp_path, "flax/chunked.msgpack"))
        assert found["params"]["Dense_0"]["kernel"].shape == (4, 3)

    def test_keras_without_keras(self, tmp_path):
        found = fl.read_keras(written(tmp_path, "keras/trained.keras"))
        assert {name: len(x) for name, x in found["layers"].items()} == {
            "batch_normalization": 4,
            "conv2d": 2,
            "dense": 2,
        }

    def test_what_is_read_can_be_rearranged(self, tmp_path):
        found = fl.read_keras(written(tmp_path, "keras/mlp.weights.h5"))["layers"]
        model = fl.f64(fl.Chain(out=fl.Dense(3, 2), into=fl.Dense(4, 3)))
        model = fl.load_foreign_state(model, {"out": found["dense_1"], "into": found["dense"]}, "keras")
        assert model["into"].weight.shape == (3, 4)


class TestNestedModels:
    def test_another_number_of_chains(self, tmp_path):
        model = fl.f64(fl.Chain(fl.Dense(4, 4), fl.Chain(fl.Dense(4, 3)), fl.Dense(4, 4)))
        path = written(tmp_path, "keras/nested.weights.h5")
        refused(
            fl.load_keras,
            path,
            "has 2 models in it (sequential), and ours 1 Chains",
            "read_keras",
            like=model,
        )

    def test_a_layer_that_the_file_does_not_have(self, tmp_path):
        chains = nested().layers
        path = written(tmp_path, "keras/nested.weights.h5")
        missing = fl.f64(fl.Chain(*chains[:3], fl.LayerNorm(4), chains[3]))
        refused(fl.load_keras, path, ".layers[3] (LayerNorm) is a layer_normalization in Keras", like=missing)
        left = fl.f64(fl.Chain(*chains[:2], chains[3]))
        refused(fl.load_keras, path, "layers for which ours has none: dense (1)", like=left)

    def test_a_chain_that_stands_at_two_places_is_one(self, tmp_path):
        with h5py.File(tmp_path / "model.weights.h5", "w") as file:
            file["layers/sequential/layers/dense/vars/0"] = np.eye(2, dtype=np.float32)
            file["layers/sequential/layers/dense/vars/1"] = np.ones(2, np.float32)
        inner = fl.Chain(fl.Dense(2, 2))
        ours = fl.load_keras(tmp_path / "model.weights.h5", like=fl.Chain(inner, fl.relu, inner))
        assert ours[0][0].weight is ours[2][0].weight
        assert torch.equal(ours(torch.ones(1, 2)), torch.full((1, 2), 3.0))

    def test_models_are_in_the_order_of_their_numbers(self, tmp_path):
        names = ["sequential", *(f"sequential_{i}" for i in range(1, 12))]
        with h5py.File(tmp_path / "model.weights.h5", "w") as file:
            for i, name in enumerate(names):
                file[f"layers/{name}/layers/dense/vars/0"] = np.full((1, 1), i, np.float32)
        like = fl.Chain(*(fl.Chain(fl.Dense(1, 1, bias=False)) for _ in names))
        ours = fl.load_keras(tmp_path / "model.weights.h5", like=like)
        assert [chain[0].weight.item() for chain in ours] == list(range(12))


def h5(folder, **arrays):
    path = folder / "model.weights.h5"
    with h5py.File(path, "w") as file:
        for name, x in arrays.items():
            file[f"layers/dense/vars/{name[1:]}"] = x
    return path


class TestHostileKeras:
    @pytest.mark.parametrize("kind", ["link", "soft link", "virtual", "external"])
    def test_data_of_other_files(self, kind, tmp_path):
        path, other = h5(tmp_path, _1=np.zeros(2)), tmp_path / "other.h5"
        other.write_bytes(b"secret" * 100)
        with h5py.File(path, "a") as file:
            group = file["layers/dense/vars"]
            if kind == "link":
                group["0"] = h5py.ExternalLink(str(other), "/x")
            elif kind == "soft link":
                group["0"] = h5py.SoftLink("/x")
            elif kind == "virtual":
                layout = h5py.VirtualLayout((4,), "f8")
                layout[:] = h5py.VirtualSource(str(other), "x", (4,))
                group.create_virtual_dataset("0", layout)
            else:
                group.create_dataset("0", (4,), "f8", external=[(str(other), 0, 32)])
        refused(fl.load_keras, path, "/layers/dense/vars/0", "only the file itself is read")

    @pytest.mark.parametrize(
        "how", [{}, {"chunks": True}, {"chunks": (2**20,)}], ids=["whole", "small", "large"]
    )
    @pytest.mark.parametrize("n", [2**22, 2**30, 2**45])
    def test_data_that_is_not_there(self, n, how, tmp_path):
        path = h5(tmp_path)
        with h5py.File(path, "a") as file:
            file.create_dataset("layers/dense/vars/0", (n,), "f8", **how)
        refused(fl.load_keras, path, "/layers/dense/vars/0 has the shape", str(n))

    def test_a_chunk_that_unpacks_to_more_than_it_says(self, tmp_path):
        path = h5(tmp_path)
        with h5py.File(path, "a") as file:
            data = file.create_dataset("layers/dense/vars/0", (10,), "f8", chunks=(10,), compression=4)
            data.id.write_direct_chunk((0,), zlib.compress(bytes(10**8)))
        assert path.stat().st_size < 2 * 10**5
        refused(fl.load_keras, path, "/layers/dense/vars/0 has a chunk at (0,) that does not unpack to (10,)")

    @pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i8", "f2"])
    @pytest.mark.parametrize("options", [{"shuffle": True}, {"fletcher32": True}, {"compression": 4}, {}])
    def test_chunks_that_are_there(self, dtype, options, tmp_path):
        path, x = h5(tmp_path), np.random.default_rng(0).normal(size=(7, 9)).astype(dtype)
        with h5py.File(path, "a") as file:
            file.create_dataset("layers/dense/vars/0", data=x, chunks=(3, 4), **{"compression": 4, **options})
        (found,) = fl.read_keras(path)["layers"]["dense"]
        np.testing.assert_array_equal(found, x)
        assert found.dtype == x.dtype

    def test_another_compression_is_named(self, tmp_path):
        path = h5(tmp_path)
        with h5py.File(path, "a") as file:
            file.create_dataset("layers/dense/vars/0", data=np.zeros(10), chunks=(5,), compression="lzf")
        refused(fl.load_keras, path, "/layers/dense/vars/0 is compressed by lzf (32000)")

    def test_a_group_that_holds_itself(self, tmp_path):
        path = h5(tmp_path, _0=np.zeros(2))
        with h5py.File(path, "a") as file:
            file["layers/again"] = file["layers"]
        refused(fl.load_keras, path, "/layers/again stands at two places, or holds itself")

    def test_more_objects_than_a_model_has(self, tmp_path, monkeypatch):
        monkeypatch.setattr(hdf5, "_MOST_OBJECTS", 100)
        path = h5(tmp_path, _0=np.zeros(2))
        with h5py.File(path, "a") as file:
            for i in range(100):
                file.create_group(f"layers/{i}")
        refused(fl.load_keras, path, "is one of more than 100 objects")

    def test_a_damaged_attribute_does_no_harm_since_none_is_read(self, tmp_path):
        """HDF5 makes room for the length of a text before it looks for it, or hangs."""
        path = tmp_path / "model.weights.h5"
        content = bytearray(with_bfloat16(path))
        heap = content.index(b"GCOL")
        place = content.index(struct.pack("<IQ", 8, heap))
        content[place : place + 4] = struct.pack("<I", 0xF0000000)
        path.write_bytes(content)
        found = fl.read_keras(path)["layers"]["dense"][0]
        assert torch.equal(found, torch.tensor([[1.0, 2, 3, 4]], dtype=torch.bfloat16))

    def test_chunks_that_are_one_large_piece_of_the_file(self, tmp_path):
        path, n = h5(tmp_path), 20
        packed = zlib.compress(bytes(80))
        with h5py.File(path, "a") as file:
            data = file.create_dataset("layers/dense/vars/0", (10 * n,), "f8", chunks=(10,), compression=4)
            for i in range(n):
                data.id.write_direct_chunk((10 * i,), packed + bytes(2 * 10**5 if i == 0 else i))
            places = [data.id.get_chunk_info(i) for i in range(n)]
        content = bytearray(path.read_bytes())
        for chunk in places[1:]:
            # An entry of the index: the size, the filters that were skipped, two offsets, the place.
            entry = struct.pack("<IIQQQ", chunk.size, 0, chunk.chunk_offset[0], 0, chunk.byte_offset)
            at = content.index(entry)
            content[at : at + 4] = struct.pack("<I", places[0].size)
            content[at + 24 : at + 32] = struct.pack("<Q", places[0].byte_offset)
        path.write_bytes(content)
        refused(fl.load_keras, path, "/layers/dense/vars/0 has chunks that lie over one another")

    def test_a_chunk_that_is_larger_than_those_of_its_array(self, tmp_path):
        """HDF5 would write it behind the memory that it made for it."""
        path, x = h5(tmp_path), np.random.default_rng(0).normal(size=20)
        with h5py.File(path, "a") as file:
            file.create_dataset("layers/dense/vars/0", data=x, chunks=(10,))
        content = bytearray(path.read_bytes() + bytes(10**6))
        at = content.index(struct.pack("<IIQQ", 80, 0, 10, 0))
        content[at : at + 4] = struct.pack("<I", 10**6)
        path.write_bytes(content)
        refused(
            fl.load_keras, path, "/layers/dense/vars/0 has a chunk at (10,) that does not unpack to (10,)"
        )

    def test_a_shuffle_of_another_size_than_the_numbers(self, tmp_path):
        path = h5(tmp_path)
        with h5py.File(path, "a") as file:
            file.create_dataset("layers/dense/vars/0", data=np.ones(20), chunks=(10,), shuffle=True)
        shuffle, content = b"shuffle\0" + struct.pack("<I", 8), path.read_bytes()
        assert content.count(shuffle) == 1
        path.write_bytes(content.replace(shuffle, shuffle[:-4] + struct.pack("<I", 4)))
        refused(fl.load_keras, path, "/layers/dense/vars/0 is shuffled by (4,) bytes, and its numbers have 8")

    def test_a_flipped_bit_in_a_chunk_with_a_checksum(self, tmp_path):
        path, x = h5(tmp_path), np.random.default_rng(0).normal(size=(7, 9))
        with h5py.File(path, "a") as file:
            file.create_dataset("layers/dense/vars/0", data=x, chunks=x.shape, fletcher32=True)
        assert np.array_equal(fl.read_keras(path)["layers"]["dense"][0], x)
        content = bytearray(path.read_bytes())
        content[content.index(x.tobytes()) + 5] ^= 4
        path.write_bytes(content)
        refused(fl.load_keras, path, "/layers/dense/vars/0 has a chunk at (0, 0) that does not unpack")

    def test_names_do_not_steer_the_terminal(self, tmp_path):
        path = tmp_path / "model.weights.h5"
        with h5py.File(path, "w") as file:
            file["layers/\x1b[2J\n/vars/0"] = ["text"]
        with pytest.raises(ValueError, match=r"model\.weights\.h5: /layers/.*vars/0 is an array") as caught:
            fl.load_keras(path, like=mlp())
        assert str(caught.value).isprintable()
        with h5py.File(path, "w") as file:
            file["layers/\x1b[2J\n/vars/0"] = np.zeros((2, 2))
        with pytest.raises(ValueError, match=r"model\.weights\.h5") as caught:
            fl.load_keras(path, like=mlp())
        assert str(caught.value).isprintable()

    def test_variables_that_are_none(self, tmp_path):
        refused(fl.load_keras, h5(tmp_path, _0=np.zeros(2), _2=np.zeros(2)), "/layers/dense/vars holds 0, 2")
        refused(fl.load_keras, h5(tmp_path, _0=["a", "b"]), "/layers/dense/vars/0 is an array of object")
        refused(fl.load_keras, h5(tmp_path, _0=h5py.Empty("f")), "/layers/dense/vars/0 is no array")
        with h5py.File(tmp_path / "plain.h5", "w") as file:
            file["weight"] = np.zeros(2)
        refused(fl.load_keras, tmp_path / "plain.h5", "/weight is no group", "save_weights")

    def test_an_older_file(self, tmp_path):
        with h5py.File(tmp_path / "old.h5", "w") as file:
            file.attrs["layer_names"] = ["dense"]
        refused(fl.load_keras, tmp_path / "old.h5", "is a file of Keras 2", "save_weights")

    def test_an_archive_that_unpacks_to_gigabytes(self, tmp_path):
        path = tmp_path / "model.keras"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("model.weights.h5", bytes(2**27))
        refused(fl.load_keras, path, "unpacks to 134217728 bytes")
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("config.json", "{}")
        refused(fl.load_keras, path, "is an archive without model.weights.h5")

    def test_an_archive_that_says_it_is_smaller_than_it_is(self, tmp_path):
        path = tmp_path / "model.keras"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("model.weights.h5", bytes(2**27))
        size = struct.pack("<I", 2**27)
        path.write_bytes(path.read_bytes().replace(size, struct.pack("<I", 1000)))
        refused(fl.load_keras, path, "model.keras is damaged")

    @pytest.mark.parametrize("method", ["BZIP2", "LZMA"])
    def test_an_archive_that_python_unpacks_without_a_bound(self, method, tmp_path):
        path = tmp_path / "model.keras"
        with zipfile.ZipFile(path, "w", getattr(zipfile, f"ZIP_{method}")) as file:
            file.writestr("model.weights.h5", bytes(2**27))
        content = path.read_bytes().replace(struct.pack("<I", 2**27), struct.pack("<I", 1000))
        path.write_bytes(content)
        tracemalloc.start()
        refused(
            fl.load_keras, path, f"model.weights.h5 is packed by {method.lower()}".replace("lzma", "LZMA")
        )
        assert tracemalloc.get_traced_memory()[1] < 10**7
        tracemalloc.stop()

    def test_a_deflated_archive_with_a_flipped_byte_anywhere(self, tmp_path):
        path = tmp_path / "model.keras"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("model.weights.h5", FILES["keras/mlp.weights.h5"])
        content, whole = path.read_bytes(), fl.read_keras(path)
        for at in range(60, len(content) - 120, 97):
            path.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
            refused(fl.load_keras, path, "model.keras is damaged")
        assert len(whole["layers"]) == 2

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_an_archive_with_two_files_of_weights(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "model.keras", "w") as file:
            for _ in range(2):
                file.writestr("model.weights.h5", FILES["keras/mlp.weights.h5"])
        refused(fl.load_keras, tmp_path / "model.keras", "is an archive with 2 model.weights.h5")


def with_bfloat16(path, libver="earliest"):
    """A file with a variable of bfloat16, as Keras writes one, and one in compressed chunks."""
    with h5py.File(path, "w", libver=libver) as file:
        x = torch.tensor([[1.0, 2, 3, 4]], dtype=torch.bfloat16).view(torch.int16).numpy().view("V2")
        file.create_dataset("layers/dense/vars/0", data=x).attrs["dtype"] = "bfloat16"
        x = np.random.default_rng(0).normal(size=(20, 20)).astype(np.float32)
        how = {"compression": "gzip", "shuffle": True, "fletcher32": True}
        file.create_dataset("layers/dense_1/vars/0", data=x, chunks=(7, 9), **how)
        file["layers"].attrs["name"] = "x" * 50
    return path.read_bytes()


def array_of(shape, dtype="float32", content=b""):
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, content)))


class TestHostileFlax:
    @pytest.mark.parametrize(
        ("content", "told"),
        [
            ({"a": array_of((2**40,))}, "holds an array (1099511627776,) of float32, in 0 bytes"),
            ({"a": array_of((-1, -1), content=bytes(4))}, "of the shape [-1, -1]"),
            ({"a": array_of((1.5,), content=bytes(4))}, "of the shape [1.5]"),
            ({"a": array_of((1,), "object", bytes(8))}, "holds an array of 'object'"),
            ({"a": array_of((1,), "float32", "text")}, "holds an array of the shape [1]"),
            ({"a": array_of(3, "float32", b"")}, "is damaged, or not"),
            ({"a": msgpack.ExtType(9, b"x")}, "an extension of the type 9"),
            ({"a": msgpack.ExtType(1, b"\xc1")}, "is damaged, or not"),
            ([1, 2], "it holds a list"),
            ({"a": {"__msgpack_chunked_array__": True}}, "is damaged, or not"),
            (
                {
                    "a": {
                        "__msgpack_chunked_array__": True,
                        "shape": {"0": 9},
                        "chunks": {"0": array_of((0,))},
                    }
                },
                "['a'] has the shape [9], in chunks of 0 numbers",
            ),
        ],
    )
    def test_arrays_that_are_none(self, content, told, tmp_path):
        (tmp_path / "model.msgpack").write_bytes(msgpack.packb(content))
        refused(fl.load_flax, tmp_path / "model.msgpack", told)

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b"\x82\xa1a\1\xa1a\2", "has two entries of one name, among a"),
            (b"\xdf\xff\xff\xff\xff", "is damaged, or not"),
            (b"\x81\xa1a\xdd\xff\xff\xff\xff", "is damaged, or not"),
            (b"\x81\xa1a\xc6\xff\xff\xff\xff", "is damaged, or not"),
            (
                b"\x81\xa1a\xdc\xff\xff" + b"\x9a" + b"\x90" * 10 + (b"\x9a" + b"\x90" * 10) * 65534,
                "more than 100000",
            ),
            (b"\x81\xa1a" * 100 + b"\1", "lies in more than 64 containers"),
            (b"\x81\xa1a" * 10**6 + b"\1", "is damaged, or not"),
            (b"\x81\x91\1\2", "is damaged, or not"),
            (b"\x80\x80", "is damaged, or not"),
        ],
        ids=["twice", "map", "array", "bytes", "containers", "deep", "very deep", "key", "more"],
    )
    def test_containers_that_are_none(self, content, told, tmp_path):
        (tmp_path / "model.msgpack").write_bytes(content)
        refused(fl.load_flax, tmp_path / "model.msgpack", told)

    def test_names_that_say_two_things(self, tmp_path):
        path = tmp_path / "model.safetensors"
        save_file({"a.b": torch.zeros(1), "a": torch.zeros(1)}, path)
        refused(fl.load_flax, path, "is an array, and a part of another name")
        save_file({".".join("a" * 100): torch.zeros(1)}, path)
        refused(fl.load_flax, path, "more than 64 names in one")

    def test_a_file_that_shrinks_while_it_is_read(self, tmp_path, monkeypatch):
        path, read = tmp_path / "model.safetensors", TensorFile.read
        save_file({"params.Dense_0.kernel": torch.ones(1000, 1000)}, path)

        def after_the_cut(self, *arguments):
            os.truncate(path, 5000)
            return read(self, *arguments)

        monkeypatch.setattr(TensorFile, "read", after_the_cut)
        refused(fl.load_flax, path, "model.safetensors is damaged", "it ended while it was read")

    def test_bytes_that_are_no_bools(self, tmp_path):
        path = tmp_path / "model.safetensors"
        save_file({"params.x": torch.ones(8, dtype=torch.bool)}, path)
        path.write_bytes(path.read_bytes()[:-1] + b"\2")
        refused(fl.load_flax, path, "holds bytes that are no bools")

    def test_names_do_not_steer_the_terminal(self, tmp_path):
        for content in ({"\x1b[2J\n": array_of((9,))}, {"\x1b[2J\n": array_of((0,))}):
            (tmp_path / "model.msgpack").write_bytes(msgpack.packb(content))
            with pytest.raises(ValueError, match=r"model\.msgpack") as caught:
                fl.load_flax(tmp_path / "model.msgpack", like=mlp())
            assert str(caught.value).isprintable()

    def test_the_state_of_an_optimiser_alone_is_no_model(self, tmp_path):
        content = msgpack.packb({"opt_state": {"mu": array_of((1,), content=bytes(4))}})
        (tmp_path / "model.msgpack").write_bytes(content)
        refused(fl.load_flax, tmp_path / "model.msgpack", "the flax state has the names")


CNN = "dict(like=fl.f64(fl.Chain(fl.Conv((3, 2), 3, 4), fl.BatchNorm(4), fl.flatten, fl.Dense(36, 2))), "
CNN += "inputs=torch.zeros({}))"
MLP = "dict(like=fl.f64(fl.Chain(fl.Dense(4, 3), fl.Dense(3, 2))))"
BFLOAT16 = "dict(like=fl.Chain(fl.bf16(fl.Dense(1, 4, bias=False)), fl.Dense(20, 20, bias=False)))"
FUZZED = {
    "keras/cnn.weights.h5": CNN,
    "keras/trained.keras": CNN,
    "keras/earliest.weights.h5": BFLOAT16,
    "keras/v110.weights.h5": BFLOAT16,
    "flax/train_state.msgpack": MLP,
    "flax/chunked.msgpack": MLP,
    "flax/dots.safetensors": CNN,
}


@pytest.mark.parametrize("name", FUZZED)
def test_mutants_are_refused_or_read_and_take_no_memory(name, tmp_path):
    arguments = FUZZED[name]
    if name in FILES:
        path, x = written(tmp_path, name), ARRAYS[f"{name}/x"]
        arguments = arguments.format(np.moveaxis(x, -1, 1).shape)
    else:
        path = tmp_path / Path(name).name
        with_bfloat16(path, libver=path.name.split(".")[0])
    script = [sys.executable, str(Path(__file__).parent / "fuzz_foreign_files.py"), str(path)]
    run = subprocess.run([*script, arguments, "150", "0"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    refused_ones, megabytes = map(int, run.stdout.split())
    assert 15 < refused_ones < 148
    assert megabytes < 128


@pytest.mark.parametrize("read", [fl.load_flux, fl.load_flax, fl.load_keras])
def test_a_model_in_the_place_of_the_path_is_told_as_by_load(read):
    model = fl.Chain(fl.Dense(2, 1))
    for load in (fl.load, read):
        with pytest.raises(TypeError, match="the path of a file is a str or a Path, found a Chain"):
            load(model, "model.h5")
