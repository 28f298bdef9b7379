"""Flux's state from a JLD2 file: its own formulas give what our model predicts; the rest is refused."""

import importlib.util
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import h5py
import jld2_writer as jl
import numpy as np
import pytest
import torch

import fluxlike as fl

HERE = Path(__file__).parent
RNG = np.random.default_rng(0)


def module_of(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


flux = module_of(HERE.parent / "placement" / "flux_formulas.py")


def drawn(*shape):
    return RNG.normal(size=shape) / 2


def dense(n, m, bias=True):
    return {"weight": drawn(m, n), "bias": drawn(m) if bias else False, "σ": ()}


def conv(kw, kh, n, m):
    sizes = {"stride": (1, 1), "pad": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
    return {"σ": (), "weight": drawn(kw, kh, n, m), "bias": drawn(m), **sizes}


def batchnorm(n):
    arrays = {"β": drawn(n), "γ": drawn(n), "μ": drawn(n), "σ²": drawn(n) ** 2 + 0.1}
    settings = {"ϵ": np.float32(1e-5), "momentum": np.float32(0.1), "affine": True, "track_stats": True}
    return {"λ": (), **arrays, **settings, "active": None, "chs": n}


def layernorm(n):
    diag = {"scale": drawn(n), "bias": drawn(n), "σ": ()}
    return {"λ": (), "diag": diag, "ϵ": np.float32(1e-5), "size": (n,), "affine": True}


def recurrent(n, m, gates):
    return {"cell": {"Wi": drawn(gates * m, n), "Wh": drawn(gates * m, m), "bias": drawn(gates * m)}}


def saved(folder, state, name="model_state", **more):
    return jl.jldsave(folder / "model.jld2", writer=jl.Writer(**more), **{name: state})


def layers(*states):
    return {"layers": states}


def agrees(ours, x, expected):
    """The predictions of a model for arrays in Julia's axes."""
    y = ours(torch.from_numpy(fl.batch_first(x)))
    np.testing.assert_allclose(fl.batch_last(y.numpy()), expected, rtol=1e-10, atol=1e-10)


def f64_chain(*given, **named):
    return fl.f64(fl.Chain(*given, **named))


class TestParity:
    def test_dense(self, tmp_path):
        state = layers(dense(4, 3), (), dense(3, 2, bias=False))
        model = f64_chain(fl.Dense(4, 3, fl.tanh), fl.relu, fl.Dense(3, 2, bias=False))
        ours = fl.load_flux(saved(tmp_path, state), like=model)
        x, (first, _, last) = drawn(4, 5), state["layers"]
        y = np.tanh(flux.flux_dense(x, first["weight"], first["bias"]))
        agrees(ours, x, last["weight"] @ np.maximum(y, 0))

    @pytest.mark.parametrize("flipped", [True, False], ids=["Conv", "CrossCor"])
    def test_convolution_norm_and_flatten(self, flipped, tmp_path):
        state = layers(conv(3, 2, 3, 4), batchnorm(4), (), dense(6 * 4 * 4, 2))
        norm = fl.BatchNorm(4)
        model = f64_chain(fl.Conv((2, 3), 3, 4), norm, fl.flatten, fl.Dense(96, 2))
        crosscor = None if flipped else ".layers[0]"
        ours = fl.load_flux(saved(tmp_path, state), like=model, crosscor=crosscor)
        x, (c, b, _, d) = drawn(8, 5, 3, 2), state["layers"]
        y = flux.flux_conv(x, c["weight"], c["bias"], flipped=flipped)
        y = flux.flux_batchnorm(y, b["γ"], b["β"], b["μ"], b["σ²"])
        agrees(ours, x, flux.flux_dense(flux.flux_flatten(y), d["weight"], d["bias"]))

    def test_transposed_convolution(self, tmp_path):
        state = layers({"σ": (), "weight": drawn(3, 2, 4, 3), "bias": drawn(4), "stride": (2, 2)})
        ours = fl.load_flux(saved(tmp_path, state), like=f64_chain(fl.ConvTranspose((2, 3), 3, 4, stride=2)))
        x, (c,) = drawn(4, 5, 3, 2), state["layers"]
        agrees(ours, x, flux.flux_conv_transpose(x, c["weight"], c["bias"], stride=2))

    @pytest.mark.parametrize(("kind", "gates"), [("RNN", 1), ("LSTM", 4), ("GRU", 3)])
    def test_recurrent(self, kind, gates, tmp_path):
        state = layers(recurrent(4, 3, gates))
        ours = fl.load_flux(saved(tmp_path, state), like=f64_chain(getattr(fl, kind)(4, 3)))
        x, cell = drawn(4, 5, 2), state["layers"][0]["cell"]
        formula = getattr(flux, f"flux_{kind.lower()}")
        agrees(ours, x, formula(x, cell["Wi"], cell["Wh"], cell["bias"]))

    def test_embedding_and_layernorm(self, tmp_path):
        state = layers({"weight": drawn(4, 7)}, layernorm(4))
        ours = fl.load_flux(saved(tmp_path, state), like=f64_chain(fl.Embedding(7, 4), fl.LayerNorm(4)))
        tokens, (table, norm) = np.array([[1, 0, 6], [2, 2, 3]]), state["layers"]
        y = table["weight"].T[tokens]
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
        expected = y * norm["diag"]["scale"] + norm["diag"]["bias"]
        np.testing.assert_allclose(ours(torch.from_numpy(tokens)).numpy(), expected, rtol=1e-10, atol=1e-10)

    def test_attention(self, tmp_path):
        weights = [drawn(4, 4) for _ in range(4)]
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        projections = {n: {"weight": w, "bias": False, "σ": ()} for n, w in zip(names, weights, strict=True)}
        state = {"nheads": 2, **projections, "attn_drop": {"p": 0.0, "dims": (), "active": None, "rng": ()}}
        ours = fl.load_flux(saved(tmp_path, state), like=fl.f64(fl.MultiHeadAttention(4, 2, bias=False)))
        x = drawn(4, 3, 2)
        y = ours(torch.from_numpy(np.ascontiguousarray(x.T)))
        np.testing.assert_allclose(
            y.numpy(), flux.flux_attention(x, *weights, heads=2).T, rtol=1e-10, atol=1e-10
        )

    def test_a_layer_within_a_layer(self, tmp_path):
        inner = {"layers": layers(dense(3, 3), (), dense(3, 3)), "connection": ()}
        model = f64_chain(fl.SkipConnection(fl.Chain(fl.Dense(3, 3), fl.relu, fl.Dense(3, 3)), torch.add))
        ours = fl.load_flux(saved(tmp_path, layers(inner)), like=model)
        x, (a, _, b) = drawn(3, 5), inner["layers"]["layers"]
        y = np.maximum(flux.flux_dense(x, a["weight"], a["bias"]), 0)
        agrees(ours, x, flux.flux_dense(y, b["weight"], b["bias"]) + x)

    @pytest.mark.parametrize("kind", [dict, jl.Dict], ids=["NamedTuple", "Dict"])
    def test_layers_with_names(self, kind, tmp_path):
        state = {"layers": kind(head=dense(3, 2), encoder=dense(4, 3))}
        model = f64_chain(encoder=fl.Dense(4, 3), head=fl.Dense(3, 2))
        ours = fl.load_flux(saved(tmp_path, state), like=model)
        x, found = drawn(4, 5), state["layers"]
        y = flux.flux_dense(x, found["encoder"]["weight"], found["encoder"]["bias"])
        agrees(ours, x, flux.flux_dense(y, found["head"]["weight"], found["head"]["bias"]))

    @pytest.mark.parametrize("n", [10, 12, 60])
    def test_many_layers_which_julia_writes_inline_as_an_array_or_behind_references(self, n, tmp_path):
        state = layers(*(dense(2, 2) for _ in range(n)))
        ours = fl.load_flux(saved(tmp_path, state), like=f64_chain(*(fl.Dense(2, 2) for _ in range(n))))
        x = y = drawn(2, 5)
        for layer in state["layers"]:
            y = flux.flux_dense(y, layer["weight"], layer["bias"])
        agrees(ours, x, y)

    def test_tied_arrays_are_written_once_and_stay_tied(self, tmp_path):
        shared = dense(3, 3)
        layer = fl.f64(fl.Dense(3, 3))
        ours = fl.load_flux(saved(tmp_path, layers(shared, shared)), like=fl.Chain(layer, layer))
        assert ours[0].weight is ours[1].weight


class TestReadFlux:
    def test_every_kind_of_value(self, tmp_path):
        inner = {"x": 1, "y": 2.5, "z": np.float32(0.5), "no": False, "text": "ab", "name": jl.Symbol("é")}
        value = {
            "array": drawn(2, 3, 4),
            "empty": np.zeros((0, 2), np.float32),
            "none": None,
            "f": (),
            "flags": np.array([True, False]),
            "half": np.ones(2, np.float16),
            "ints": np.arange(3),
            "complex": drawn(2, 3) + 1j * drawn(2, 3),
            "scalar": np.array(3.0),
            "list": [1, "two", (3, ())],
            "tuple": ((), 1, None, inner),
            "dict": jl.Dict(a=1, b=drawn(2)),
            "bytes": np.arange(2, dtype="u1"),
        }
        found = fl.read_flux(saved(tmp_path, value))
        same(found, value)
        assert found["array"].flags.f_contiguous
        assert found["flags"].dtype == bool
        assert found["complex"].dtype == np.complex128

    def test_older_files_do_not_say_which_fields_have_no_data(self, tmp_path):
        value = {"σ": (), "layers": ((), {"weight": drawn(2, 3)}, None, {"bias": drawn(2)})}
        found = fl.read_flux(saved(tmp_path, value, ghosts_named=False, type_attribute="julia type"))
        same(found, {"layers": ((), value["layers"][1], (), value["layers"][3])})

    def test_a_text_that_fills_a_heap_of_its_own(self, tmp_path):
        value = {"text": "ab" * 5000, "name": jl.Symbol("c" * 4088), "more": "d"}
        same(fl.read_flux(saved(tmp_path, value)), value)

    def test_a_compressed_array(self, tmp_path):
        value = {"large": np.zeros((40, 100)), "more": drawn(50, 60)}
        same(fl.read_flux(saved(tmp_path, value, compress=True)), value)

    def test_the_only_entry_or_model_state_or_the_one_named(self, tmp_path):
        path = tmp_path / "model.jld2"
        assert fl.read_flux(jl.jldsave(path, other={"a": 1})) == {"a": 1}
        jl.jldsave(path, other={"a": 1}, model_state={"a": 2})
        assert fl.read_flux(path) == {"a": 2}
        assert fl.read_flux(path, part="other") == {"a": 1}
        jl.jldsave(path, one=1, two=2)
        with pytest.raises(ValueError, match="holds one, two, and no model_state; say which, part=…"):
            fl.read_flux(path)

    def test_a_value_of_its_own_at_the_top(self, tmp_path):
        for value in (3, 2.5, "text", jl.Symbol("s"), None, (), drawn(3)):
            same(fl.read_flux(saved(tmp_path, value)), value)


def same(found, value):
    if isinstance(value, np.ndarray):
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(found, value)
    elif isinstance(value, dict):
        assert list(found) == list(value)
        for key, x in value.items():
            same(found[key], x)
    elif isinstance(value, (tuple, list)):
        assert type(found) is type(value)
        assert len(found) == len(value)
        for a, b in zip(found, value, strict=True):
            same(a, b)
    else:
        assert type(found) is {jl.Symbol: str, float: np.float64}.get(type(value), type(value))
        assert found == value


def refused(path, *texts):
    with pytest.raises(ValueError) as caught:
        fl.read_flux(path)
    for text in texts:
        assert text in str(caught.value)


def with_a_header(path):
    content, header = path.read_bytes(), b"HDF5-based Julia Data Format, version 0.1.0\0"
    path.write_bytes(header + content[len(header) :])
    return path


class TestTheFormat:
    """The files of the tests are HDF5 for h5py, and what h5py writes is HDF5 for us."""

    def test_h5py_reads_what_the_tests_write(self, tmp_path):
        value = {"layers": ({"weight": drawn(2, 3), "σ": ()}, {"big": drawn(40, 50), "n": 3, "s": "text"})}
        with h5py.File(saved(tmp_path, value)) as file:
            assert file.userblock_size == 512
            first, second = (file["model_state"][()]["layers"][k] for k in "12")
            np.testing.assert_array_equal(file[first["weight"]][()].T, value["layers"][0]["weight"])
            np.testing.assert_array_equal(file[second["big"]][()].T, value["layers"][1]["big"])
            assert (second["n"], second["s"]) == (3, b"text")

    @pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u2", "i4", "u8", ">f4", ">i8"])
    @pytest.mark.parametrize(
        "how",
        [{}, {"compression": 4}, {"compression": 4, "shuffle": True}],
        ids=["whole", "deflate", "shuffle"],
    )
    def test_we_read_what_h5py_writes(self, dtype, how, tmp_path):
        path, x = tmp_path / "model.jld2", (9 * drawn(40, 30)).astype(dtype)
        with h5py.File(path, "w", userblock_size=512, libver="v110") as file:
            file.create_dataset("group/x", data=x, **how, **({"chunks": x.shape} if how else {}))
            file["group/text"] = "ab"
        found = fl.read_flux(with_a_header(path))
        np.testing.assert_array_equal(found["x"], x.T)
        assert found["x"].dtype == x.dtype

    def test_a_group_that_was_written_to_again(self, tmp_path):
        writer = jl.Writer()
        places = [writer.write(x) for x in (1, 2, 3)]
        links = dict(zip("abc", places, strict=True))
        path = tmp_path / "model.jld2"
        path.write_bytes(writer.finished({"model_state": writer.group(links, at_first=1)}))
        assert fl.read_flux(path) == {"a": 1, "b": 2, "c": 3}


class TestErrors:
    def test_all_that_does_not_fit_is_named_and_the_model_is_left_as_it_was(self, tmp_path):
        model = f64_chain(fl.Dense(4, 3), fl.Dense(3, 3))
        before = fl.tree.clone(model)
        with pytest.raises(ValueError) as caught:
            fl.load_flux(saved(tmp_path, layers(dense(4, 2), dense(3, 2))), like=model)
        for path in (".layers[0].weight", ".layers[0].bias", ".layers[1].weight", ".layers[1].bias"):
            assert path in str(caught.value)
        assert fl.tree.allclose(model, before)

    def test_another_dtype_is_named(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"\.layers\[0\]\.weight is of torch.float64, the model of torch.float32"
        ):
            fl.load_flux(saved(tmp_path, layers(dense(4, 2))), like=fl.Chain(fl.Dense(4, 2)))

    def test_another_dtype_says_what_to_write_and_that_works(self, tmp_path):
        path, model = saved(tmp_path, layers(dense(4, 2))), fl.Chain(fl.Dense(4, 2))
        with pytest.raises(
            ValueError, match=r"give like=fl\.f64\(model\), and convert what you get by fl\.f32"
        ):
            fl.load_flux(path, like=model)
        assert fl.f32(fl.load_flux(path, like=fl.f64(model)))[0].weight.dtype == torch.float32

    @pytest.mark.parametrize("value", [3, "text", None])
    def test_a_value_that_is_no_state(self, value, tmp_path):
        path = saved(tmp_path, value)
        with pytest.raises(ValueError, match=r"model\.jld2 holds a .*, and no state of a model"):
            fl.load_flux(path, like=fl.Dense(1, 1))

    @pytest.mark.parametrize(
        "name", ["\x1b[2J", "a\nb", "\u202e", "n" * 10**5], ids=["escape", "line", "direction", "long"]
    )
    def test_names_do_not_steer_the_terminal_or_fill_it(self, name, tmp_path):
        path = tmp_path / "model.jld2"
        bad = jl.Struct(f"My.{name}", {"n": 1})
        texts = []
        for value in ({"layers": {name[:50000]: bad}}, {"layers": ({name[:50000]: drawn(2, 2)},)}):
            with pytest.raises(ValueError) as caught:
                fl.load_flux(saved(tmp_path, value), like=fl.Chain(fl.Dense(2, 2)))
            texts.append(str(caught.value))
        jl.jldsave(path, **{name[:50000]: 1, "other": 2})
        with pytest.raises(ValueError) as caught:
            fl.read_flux(path)
        for text in (*texts, str(caught.value)):
            assert all(line.isprintable() for line in text.split("\n"))
            assert "a\nb" not in text
            assert len(text) < 10**4
            assert "model.jld2" in text

    def test_a_model_of_other_layers(self, tmp_path):
        with pytest.raises(ValueError, match="no weight"):
            fl.load_flux(saved(tmp_path, layers(batchnorm(4))), like=f64_chain(fl.Dense(4, 4)))

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            fl.load_flux(tmp_path / "none.jld2", like=fl.Dense(1, 1))

    def test_a_folder(self, tmp_path):
        refused(tmp_path, "is a folder")

    def test_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "model.jld2")
        refused(tmp_path / "model.jld2", "is a pipe or a device")

    def test_a_file_of_another_kind(self, tmp_path):
        path = tmp_path / "model.bson"
        path.write_bytes(b"\x10\0\0\0not bson")
        refused(path, "is not a JLD2 file", 'jldsave("model.jld2"; model_state = Flux.state(cpu(model)))')
        with h5py.File(path, "w") as file:
            file["weight"] = np.zeros(3)
        refused(path, "is not a JLD2 file")

    @pytest.mark.parametrize(
        ("name", "advice"),
        [
            ("CUDA.CuArray", "Flux.state(cpu(model))"),
            ("LinearAlgebra.Adjoint", "collect(x)"),
            ("Flux.Dense", "Flux.state(model)"),
        ],
    )
    def test_types_that_are_none_of_a_state(self, name, advice, tmp_path):
        held = jl.Struct(name, {"parent": drawn(2, 2), "n": 3})
        refused(saved(tmp_path, layers({"weight": held})), ".model_state.layers.1.weight is a", name, advice)
        refused(saved(tmp_path, [held]), ".model_state[1] is a", name)


class Hostile(jl.Writer):
    """Files that JLD2 would not write."""

    def file(self, folder, at):
        path = folder / "model.jld2"
        path.write_bytes(self.finished({"model_state": at}))
        return path

    def of_references(self, *offsets):
        return self.dataset((len(offsets),), jl.REFERENCE, struct.pack(f"<{len(offsets)}Q", *offsets))

    def next(self):
        return len(self.image) - 512

    def claiming(self, dims, layout, more=()):
        kind = jl.floating_point(8)
        messages = [(jl.FILL, b"\3\x09", 0), (jl.DATASPACE, jl.dataspace(dims), 0), (jl.DATATYPE, kind, 1)]
        return self.header([*messages, *more, (jl.LAYOUT, layout, 0)])


class TestHostileFiles:
    def test_truncated_anywhere(self, tmp_path):
        whole = saved(tmp_path, layers(dense(40, 40), {"a": jl.Symbol("b")}))
        content = whole.read_bytes()
        for n in range(0, len(content), 97):
            whole.write_bytes(content[:n])
            refused(whole, "model.jld2")

    def test_a_flipped_bit_in_a_header_with_what_it_holds(self, tmp_path):
        weight = drawn(2, 3)
        path = saved(tmp_path, layers({"weight": weight}))
        content = bytearray(path.read_bytes())
        content[content.index(weight.tobytes("F")) + 5] ^= 4
        path.write_bytes(content)
        refused(path, ".model_state.layers.1.weight is damaged", "is not what was written")

    def test_references_in_a_circle(self, tmp_path):
        writer = Hostile()
        refused(writer.file(tmp_path, writer.of_references(writer.next())), ".model_state[1] holds itself")
        writer = Hostile()
        first = writer.next()
        size = writer.of_references(0) and writer.next() - first
        writer.of_references(first)
        del writer.image[512 + first :]
        writer.of_references(first + size)
        refused(writer.file(tmp_path, writer.of_references(first)), "holds itself")

    @pytest.mark.parametrize("target", [0, 1, 48, 10**6, 2**63, 2**64 - 1])
    def test_references_to_nothing(self, target, tmp_path):
        writer = Hostile()
        refused(writer.file(tmp_path, writer.of_references(target)), "model.jld2")

    def test_containers_that_hold_one_another_a_billion_times(self, tmp_path):
        writer = Hostile()
        at = writer.of_references()
        for _ in range(12):
            at = writer.of_references(*[at] * 10)
        refused(writer.file(tmp_path, at), "one of more than 100000 objects")

    def test_a_very_deep_container(self, tmp_path):
        writer = Hostile()
        at = writer.of_references()
        for _ in range(3000):
            at = writer.of_references(at)
        refused(writer.file(tmp_path, at), "lies in more than 100 containers")

    def test_a_deep_container_of_which_each_part_was_read_before(self, tmp_path):
        writer = Hostile()
        at, parts = writer.of_references(), []
        for _ in range(20):
            for _ in range(30):
                at = writer.of_references(at)
            parts.append(at)
        refused(writer.file(tmp_path, writer.of_references(*parts)), "lies in more than 100 containers")

    @pytest.mark.parametrize("n", [2**20, 2**40, 2**58])
    def test_data_that_is_not_there(self, n, tmp_path):
        writer = Hostile()
        at = writer.claiming((n,), struct.pack("<BBQQ", 4, 1, 560, 8 * n))
        refused(writer.file(tmp_path, at), "model.jld2")
        writer = Hostile()
        at = writer.claiming((n,), struct.pack("<BBQQ", 4, 1, jl.UNDEFINED, 8 * n))
        refused(writer.file(tmp_path, at), "model.jld2")

    def test_a_chunk_that_unpacks_to_more_than_it_says(self, tmp_path):
        unpacked = {bytes(10**8): "unpacks to more", bytes(10): "and 10 are there", b"": "and 0 are there"}
        for content, told in unpacked.items():
            writer = Hostile()
            packed = zlib.compress(content)
            at = writer.append(packed)
            layout = struct.pack("<BBBBBQQBQIQ", 4, 2, 2, 2, 8, 2000, 8, 1, len(packed), 0, at)
            filters = [(jl.FILTERS, struct.pack("<BBHHHI", 2, 1, 1, 0, 1, 5), 0)]
            refused(writer.file(tmp_path, writer.claiming((2000,), layout, more=filters)), told)

    def test_another_compression_is_named(self, tmp_path):
        writer = Hostile()
        at = writer.append(bytes(100))
        layout = struct.pack("<BBBBBQQBQIQ", 4, 2, 2, 2, 8, 2000, 8, 1, 100, 0, at)
        filters = [(jl.FILTERS, struct.pack("<BBHHHH4s", 2, 1, 32015, 4, 0, 0, b"zst\0"), 0)]
        at = writer.claiming((2000,), layout, more=filters)
        refused(writer.file(tmp_path, at), "is compressed by zst (32015)", "without compression")

    @pytest.mark.parametrize("kind", ["link", "soft link", "virtual", "external"])
    def test_data_of_other_files(self, kind, tmp_path):
        path, other = tmp_path / "model.jld2", tmp_path / "other.h5"
        other.write_bytes(b"secret" * 100)
        with h5py.File(path, "w", userblock_size=512, libver="v110") as file:
            if kind == "link":
                file["model_state"] = h5py.ExternalLink(str(other), "/x")
            elif kind == "soft link":
                file["model_state"] = h5py.SoftLink("/x")
            elif kind == "virtual":
                layout = h5py.VirtualLayout((4,), "f8")
                layout[:] = h5py.VirtualSource(str(other), "x", (4,))
                file.create_virtual_dataset("model_state", layout)
            else:
                file.create_dataset("model_state", (4,), "f8", external=[(str(other), 0, 32)])
        refused(
            with_a_header(path), "model_state", "only the file itself is read" if kind != "virtual" else ""
        )

    def test_a_string_of_four_gigabytes_that_is_not_there(self, tmp_path):
        class Long(Hostile):
            def vlen(self, data, count):
                found = super().vlen(data, count)
                return struct.pack("<I", 0xFFFFFFF0) + found[4:] if data == b"bomb" else found

        writer = Long()
        path = writer.file(tmp_path, writer.write({"text": "bomb", "name": jl.Symbol("bomb")}))
        assert in_a_process_of_its_own(path) == "ValueError"

    def test_a_tuple_with_a_field_of_a_huge_number(self, tmp_path):
        value = {"layers": jl.Struct("Core.Tuple", {"1": 1, "900000000": 2})}
        refused(saved(tmp_path, value), ".model_state.layers is a tuple with the fields 1, 900000000")

    @pytest.mark.parametrize("kind", ["text", "fixed text"])
    def test_one_text_in_thousands_of_places(self, kind, tmp_path):
        writer = Hostile()
        if kind == "text":
            at = writer.dataset((1500,), jl.VLEN_UTF8, writer.vlen(b"a" * 2**20, 2**20) * 1500)
        else:
            message = struct.pack("<BBBBI", 0x33, 0x11, 0, 0, 4000)
            fields = jl.compound(4000, [f"{i:x}" for i in range(2000)], [0] * 2000, [message] * 2000)
            at = writer.dataset((100,), fields, bytes(400000))
        refused_cheaply(writer.file(tmp_path, at), "it takes more work")

    def test_many_texts_that_begin_as_one(self, tmp_path):
        writer = Hostile()
        place = writer.vlen(b"a" * 2**20, 2**20)
        at = writer.dataset(
            (1000,),
            jl.VLEN_UTF8,
            b"".join(struct.pack("<I", n) + place[4:] for n in range(2**20, 2**20 - 1000, -1)),
        )
        refused_cheaply(writer.file(tmp_path, at), "it takes more work")

    def test_many_fields_over_the_same_bytes(self, tmp_path):
        writer, names = Hostile(), [f"{i:x}" for i in range(3000)]
        kind = jl.compound(1, names, [0] * 3000, [jl.fixed_point(1, False)] * 3000)
        refused_cheaply(
            writer.file(tmp_path, writer.dataset((5000,), kind, bytes(5000))), "more than 100000 objects"
        )

    def test_a_tuple_of_one_field_with_a_large_number_again_and_again(self, tmp_path):
        writer = Hostile()
        tuples = [jl.Struct("Core.Tuple", {"9999": i}) for i in range(1000)]
        refused_cheaply(writer.file(tmp_path, writer.write(tuples)), "more than 100000 objects")

    def test_numbers_that_are_said_to_be_a_tuple(self, tmp_path):
        writer = Hostile()
        writer.write({"layers": tuple(range(12))})
        kind = writer.shared(writer.known["Tuple", *[int] * 12])
        place = struct.pack("<Q", writer.write(np.zeros(2**20, np.uint8)))
        at = writer.dataset((), kind, place, committed=True)
        refused_cheaply(writer.file(tmp_path, at), "more than 100000 objects")

    @pytest.mark.parametrize("size", [10**3, 60000])
    def test_a_header_that_goes_on_at_its_own_chunk(self, size, tmp_path):
        writer = Hostile()
        at = writer.next()
        chunk = b"OCHK" + jl.packed([(16, struct.pack("<QQ", at, size), 0), (0, bytes(size - 32), 0)])
        writer.append(chunk + struct.pack("<I", jl.lookup3(chunk)))
        head = writer.header([(16, struct.pack("<QQ", at, size), 0)])
        refused_cheaply(writer.file(tmp_path, head), f"the {size} bytes at {at} are two things at once")

    def test_a_chunk_of_two_headers(self, tmp_path):
        writer = Hostile()
        chunk = b"OCHK" + jl.packed([(0, bytes(100), 0)])
        at = writer.append(chunk + struct.pack("<I", jl.lookup3(chunk)))
        more = (16, struct.pack("<QQ", at, len(chunk) + 4), 0)
        heads = [
            writer.header([(jl.LINK_INFO, struct.pack("<BBQQ", 0, 0, jl.UNDEFINED, jl.UNDEFINED), 0), more])
            for _ in range(2)
        ]
        refused(writer.file(tmp_path, writer.of_references(*heads)), "are two things at once")

    def test_heaps_that_lie_over_one_another(self, tmp_path):
        writer = Hostile()
        inner = b"".join(b"GCOL" + struct.pack("<IQ", 1, 16 * (100 - i)) for i in range(100))
        at = writer.append(inner + struct.pack("<HHIQ", 1, 1, 0, 1) + b"a" + bytes(7))
        places = b"".join(
            struct.pack("<IQI", 1, at + 16 * i, int.from_bytes(b"GC", "little")) for i in range(100)
        )
        refused(writer.file(tmp_path, writer.dataset((100,), jl.VLEN_UTF8, places)), "two things at once")

    def test_arrays_that_lie_over_one_another(self, tmp_path):
        writer = Hostile()
        data = writer.append(bytes(80000))
        arrays = [writer.claiming((9000,), struct.pack("<BBQQ", 4, 1, data + 8 * i, 72000)) for i in range(9)]
        refused(writer.file(tmp_path, writer.of_references(*arrays)), "two things at once")

    def test_a_long_name_above_many_others(self, tmp_path):
        writer = Hostile()
        at = writer.of_references(
            *[writer.dataset((), jl.fixed_point(8, True), bytes(8)) for _ in range(2000)]
        )
        for _ in range(5):
            at = writer.group({"n" * 50000: at})
        refused_cheaply(writer.file(tmp_path, at), "it takes more work")

    def test_two_entries_of_one_name(self, tmp_path):
        writer = Hostile()
        kind = jl.compound(2, ["a", "a"], [0, 1], [jl.fixed_point(1, False)] * 2)
        refused(writer.file(tmp_path, writer.dataset((), kind, bytes(2))), "fields a, a are one")

        class Twice(jl.Dict):
            def items(self):
                return [("a", 1), ("a", 2)]

        refused(saved(tmp_path, Twice(a=1)), "is a dictionary with two entries of one name")


def refused_cheaply(path, *texts):
    """Refused in seconds of the processor, and with less than a hundred megabytes."""
    tracemalloc.start()
    start = time.process_time()
    try:
        refused(path, *texts)
        assert tracemalloc.get_traced_memory()[1] < 10**8
        assert time.process_time() - start < 20
    finally:
        tracemalloc.stop()


def in_a_process_of_its_own(path):
    code = (
        "import resource, sys, fluxlike as fl\n"
        "import numpy, h5py\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    fl.read_flux(sys.argv[1])\n    print('read')\n"
        "except ValueError: print('ValueError')\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18, 'more than 256 MB'\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_mutants_are_refused_or_read_and_take_no_memory(tmp_path):
    writer = jl.Writer()
    values = {
        "layers": ((), conv(3, 2, 3, 4), dense(40, 40)),
        "dict": jl.Dict(a="text", b=3),
        "list": [1, "two", (3, ()), jl.Symbol("x")],
        "n": 2.5,
    }
    links = {name: writer.write(x) for name, x in values.items()}
    path = tmp_path / "model.jld2"
    path.write_bytes(writer.finished({"model_state": writer.group(links, at_first=1)}))
    like = "dict(like=fl.f64(fl.Chain(fl.relu, fl.Conv((2, 3), 3, 4), fl.Dense(40, 40))))"
    script = [sys.executable, str(HERE / "fuzz_foreign_files.py"), str(path), like, "400", "0"]
    run = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    refused, megabytes = map(int, run.stdout.split())
    assert 100 < refused < 395
    assert megabytes < 128
