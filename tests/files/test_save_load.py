"""`save` and `load`: exact, whole or not at all, and nothing but data."""

import enum
import json
import math
import os
import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from mutated_files import sealed

import fluxlike as fl
from fluxlike.trees import records


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tree.safetensors"


def round_trip(file, tree, like=None):
    fl.save(file, tree)
    return fl.load(file, like=fl.tree.zeros_like(tree) if like is None else like)


def same_bits(a, b):
    a, b = (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in (a, b))
    a, b = (x.reshape(-1).contiguous().view(torch.uint8) if x.numel() else x for x in (a, b))
    return torch.equal(a, b)


DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
]


class TestTensors:
    @pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (2, 0)], ids=str)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_dtype_and_shape_comes_back_exactly(self, file, dtype, shape):
        x = (torch.arange(math.prod(shape)).reshape(shape) + 1).to(dtype)
        if dtype.is_complex:
            x = x * (1 - 2j)
        (loaded,) = round_trip(file, [x])
        assert (loaded.dtype, loaded.shape) == (x.dtype, x.shape)
        assert same_bits(loaded, x)

    def test_nan_infinity_and_signed_zero_come_back_exactly(self, file):
        x = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-45])
        assert same_bits(round_trip(file, x), x)

    @pytest.mark.parametrize(
        "view",
        [
            lambda x: x.T,
            lambda x: x[:, 1:],
            lambda x: x[::2],
            lambda x: x[:1].expand(4, 3),
            lambda x: x.flip(0),
            lambda x: x[1],
            lambda x: x.reshape(1, 4, 3, 1).to(memory_format=torch.channels_last),
        ],
        ids=["transposed", "narrowed", "strided", "expanded", "flipped", "row", "channels_last"],
    )
    def test_views_come_back_with_their_values(self, file, view):
        x = view(torch.arange(12.0).reshape(4, 3))
        assert torch.equal(round_trip(file, [x], [torch.zeros(x.shape)])[0], x)

    @pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
    def test_conjugate_views_come_back_with_their_values(self, file, dtype):
        x = torch.tensor([1 + 2j, 3 - 4j], dtype=dtype).conj()
        assert torch.equal(round_trip(file, [x, x.imag])[0], x)

    def test_overlapping_views_come_back_apart(self, file):
        base = torch.arange(4.0)
        loaded = round_trip(file, [base, base[1:], base[:2], base.view(2, 2)])
        assert [x.tolist() for x in loaded] == [[0, 1, 2, 3], [1, 2, 3], [0, 1], [[0, 1], [2, 3]]]
        assert len({x.untyped_storage().data_ptr() for x in loaded}) == 4

    def test_a_small_view_of_a_large_storage_makes_a_small_file(self, file):
        fl.save(file, [torch.zeros(100_000)[:1]])
        assert file.stat().st_size < 2000

    def test_ties_come_back_as_ties_and_are_stored_once(self, file):
        w = torch.randn(1000)
        loaded = round_trip(file, {"a": w, "b": [w]})
        assert loaded["a"] is loaded["b"][0]
        assert file.stat().st_size < 6000

    def test_a_complex_tie_comes_back_as_a_tie(self, file):
        w = torch.ones(2, dtype=torch.complex128)
        loaded = round_trip(file, [w, w])
        assert loaded[0] is loaded[1]

    def test_a_torch_parameter_comes_back_as_a_plain_tensor(self, file):
        w = torch.nn.Parameter(torch.ones(2))
        (loaded,) = round_trip(file, [w], [torch.nn.Parameter(torch.zeros(2))])
        assert type(loaded) is torch.Tensor
        assert not loaded.requires_grad

    def test_a_tensor_with_a_graph_is_saved_without_it(self, file):
        x = torch.ones(2, requires_grad=True) * 2
        assert not round_trip(file, [x], [torch.zeros(2)])[0].requires_grad

    def test_a_loaded_tensor_may_be_written_to(self, file):
        loaded = round_trip(file, torch.zeros(2))
        loaded += 1
        assert fl.load(file, like=torch.zeros(2)).tolist() == [0, 0]

    def test_a_file_may_be_overwritten_while_its_tensors_live(self, file):
        loaded = round_trip(file, torch.full((1000,), 1.0))
        fl.save(file, torch.full((1000,), 2.0))
        assert loaded.unique().tolist() == [1]


class TestTrees:
    def test_a_model_and_its_state_come_back(self, file):
        def make():
            model = fl.Chain(fl.Dense(2, 3, fl.relu), fl.BatchNorm(3), fl.Dense(3, 1, bias=False))
            return {"model": model, "state": fl.setup(fl.Adam(), model)}

        run = make()
        grads = fl.gradient(lambda m, x: (m(x) ** 2).sum(), run["model"], torch.randn(4, 2))
        model, state = fl.update(run["state"], run["model"], grads)
        loaded = round_trip(file, {"model": model, "state": state}, make())
        assert type(loaded["model"]) is fl.Chain
        assert fl.tree.allclose(loaded, {"model": model, "state": state}, rtol=0, atol=0)

    def test_the_counters_of_a_state_stay_one_tensor(self, file):
        model = fl.Dense(2, 1)
        state = round_trip(file, fl.setup(fl.Adam(), model), fl.setup(fl.Adam(), model))
        before = len(fl.fleaves(fl.setup(fl.Adam(), model)))
        assert len(fl.fleaves(state)) == before

    def test_hyperparameters_come_from_the_file(self, file):
        model = {"w": torch.ones(1)}
        loaded = round_trip(file, fl.setup(fl.Descent(0.5), model), fl.setup(fl.Descent(0.1), model))
        assert loaded["w"].rule == fl.Descent(0.5)

    def test_gradients_with_assigned_values_come_back(self, file):
        grads = fl.gradient(lambda m: m(torch.randn(3, 2)).sum(), fl.BatchNorm(2))
        loaded = round_trip(file, grads, grads)
        assert loaded.running_mean is not grads.running_mean
        assert torch.equal(loaded.running_mean.value, grads.running_mean.value)

    def test_keys_of_every_kind_come_back(self, file):
        tree = {
            "": torch.ones(1),
            "a[0]": torch.ones(2),
            "__metadata__": torch.ones(3),
            "日本": torch.ones(4),
        }
        assert fl.tree.allclose(round_trip(file, tree), tree)

    def test_keys_that_are_no_strings_come_back(self, file):
        tree = {(1, "a"): torch.ones(1), (2, "b"): torch.ones(2)}
        assert fl.tree.allclose(round_trip(file, tree), tree)

    def test_a_pinned_mode_comes_back(self, file):
        loaded = round_trip(file, fl.testmode(fl.BatchNorm(2)), fl.testmode(fl.BatchNorm(2)))
        with fl.mode("train"):
            assert not fl.training(loaded)

    def test_a_pinned_mode_that_one_side_lacks_is_named(self, file):
        fl.save(file, [fl.testmode(fl.BatchNorm(2))])
        with pytest.raises(ValueError, match=r"the pinned mode of \[0\] is 'test' in the file"):
            fl.load(file, like=[fl.BatchNorm(2)])

    def test_an_empty_tree_comes_back(self, file):
        assert round_trip(file, {"a": (), "b": []}) == {"a": (), "b": []}

    def test_a_path_may_be_a_string(self, file):
        fl.save(str(file), [1])
        assert fl.load(str(file), like=[0]) == [1]

    def test_a_link_is_followed_and_kept(self, file, tmp_path):
        link = tmp_path / "link"
        file.touch()
        link.symlink_to(file)
        fl.save(link, [1])
        assert link.is_symlink()
        assert fl.load(file, like=[0]) == [1]


class TestPlainValues:
    @pytest.mark.parametrize(
        "value",
        [
            None,
            True,
            False,
            0,
            -7,
            10**40,
            2.5,
            -0.0,
            1e300,
            5e-324,
            0.1 + 0.2,
            math.inf,
            -math.inf,
            1 - 2j,
            complex(-0.0, math.inf),
            "",
            "text",
            "日本語 \n\0 😀",
            "\ud800",
            b"",
            b"\x00\xff",
        ],
        ids=repr,
    )
    def test_a_plain_value_comes_back_exactly(self, file, value):
        (loaded,) = round_trip(file, [value], [value])
        assert type(loaded) is type(value)
        assert loaded == value
        assert repr(loaded) == repr(value)

    def test_nan_comes_back(self, file):
        loaded = round_trip(file, [math.nan, complex(math.nan, 1.0)])
        assert math.isnan(loaded[0])
        assert math.isnan(loaded[1].real)
        assert loaded[1].imag == 1

    def test_values_come_from_the_file_and_functions_from_like(self, file):
        assert round_trip(file, [1, "saved", torch.tanh], [0, "like", torch.tanh]) == [1, "saved", torch.tanh]

    def test_an_enumeration_comes_back(self, file):
        class Padding(enum.StrEnum):
            SAME = "same"

        class Level(enum.IntEnum):
            LOW = 1

        assert round_trip(file, [Padding.SAME, Level.LOW]) == [Padding.SAME, Level.LOW]

    def test_an_object_is_taken_from_like(self, file):
        @fl.leaf
        class Vocabulary:
            pass

        here = Vocabulary()
        assert round_trip(file, [Vocabulary()], [here])[0] is here


class TestNumpy:
    @pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i4", "i8", "u1", "?", "c8", "c16"])
    def test_arrays_of_every_dtype_come_back(self, file, dtype):
        array = np.array([[1, 0, 3]], dtype=dtype)
        (loaded,) = round_trip(file, [array], [np.zeros_like(array)])
        assert type(loaded) is np.ndarray
        assert loaded.dtype == array.dtype
        assert np.array_equal(loaded, array)

    def test_several_arrays_do_not_get_mixed_up(self, file):
        arrays = [np.full(3, float(i)) for i in range(20)]
        loaded = round_trip(file, arrays, [np.zeros(3) for _ in arrays])
        assert [a[0] for a in loaded] == list(range(20))

    def test_scalars_come_back_as_scalars(self, file):
        loaded = round_trip(file, [np.float64(1.5), np.int32(3)], [np.float64(0), np.int32(0)])
        assert [type(x) for x in loaded] == [np.float64, np.int32]
        assert loaded == [1.5, 3]

    def test_arrays_of_any_strides_come_back(self, file):
        array = np.arange(6.0).reshape(2, 3).T[::-1]
        assert np.array_equal(round_trip(file, [array], [np.zeros((3, 2))])[0], array)

    def test_arrays_of_objects_are_refused(self, file):
        with pytest.raises(ValueError, match=r"\[0\] is a numpy array of object, which can't be saved"):
            fl.save(file, [np.array([{}], dtype=object)])


class TestRefusedAtSave:
    def test_a_tensor_on_the_meta_device(self, file):
        with pytest.raises(ValueError, match=r"\['w'\] is on the meta device, which holds no data to save"):
            fl.save(file, {"w": torch.ones(1, device="meta")})
        assert not file.exists()

    def test_a_stand_in_of_a_trace(self, file):
        fl.save(file, {"w": torch.ones(1)})

        def f(x):
            fl.save(file, {"w": x})
            return x

        with pytest.raises(ValueError, match=r"\['w'\] is a FakeTensor.*holds no data to save"):
            fl.jit(f)(torch.zeros(1))
        assert fl.load(file, like={"w": torch.zeros(1)})["w"].item() == 1

    def test_a_sparse_tensor(self, file):
        with pytest.raises(
            ValueError, match=r"\[0\] is torch\.sparse_coo, which safetensors can't hold.*to_dense"
        ):
            fl.save(file, [torch.eye(2).to_sparse()])

    @pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions:UserWarning")
    def test_a_quantised_tensor(self, file):
        with pytest.raises(ValueError, match=r"\[0\] is torch\.qint8, which safetensors can't hold"):
            fl.save(file, [torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)])

    @pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
    def test_a_nested_tensor(self, file, layout):
        nested = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=layout)
        with pytest.raises(
            ValueError, match=r"\['w'\] is nested, which safetensors can't hold; save its parts"
        ):
            fl.save(file, {"w": nested})

    def test_an_array_of_the_other_byte_order(self, file):
        with pytest.raises(
            ValueError, match=r"\['w'\] is a numpy array of >f4.*write x\.astype\('float32'\)"
        ):
            fl.save(file, {"w": np.ones(2, ">f4")})

    @pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
    def test_a_dtype_that_the_format_lacks(self, file):
        with pytest.raises(ValueError, match="complex32"):
            fl.save(file, [torch.zeros(2, dtype=torch.complex32)])

    def test_an_unregistered_object(self, file):
        class Unknown:
            def __init__(self):
                self.w = torch.ones(1)

        with pytest.raises(TypeError, match="which is not registered and holds a tensor"):
            fl.save(file, [Unknown()])

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(OSError, match="nowhere"):
            fl.save(tmp_path / "nowhere" / "file", [torch.ones(1)])


class TestAtomic:
    """A save that dies half-way leaves the old file whole and nothing beside it."""

    @pytest.mark.parametrize("step", ["replace", "fsync"])
    @pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["full", "interrupt"])
    def test_the_old_file_stays(self, file, monkeypatch, step, error):
        fl.save(file, [torch.ones(2)])

        def die(*args, **options):
            raise error

        monkeypatch.setattr(os, step, die)
        with pytest.raises(type(error)):
            fl.save(file, [torch.zeros(2)])
        monkeypatch.undo()
        assert fl.load(file, like=[torch.empty(2)])[0].tolist() == [1, 1]
        assert os.listdir(file.parent) == [file.name]

    def test_a_refused_tree_leaves_the_old_file(self, file):
        fl.save(file, [torch.ones(2)])
        with pytest.raises(ValueError, match="meta device"):
            fl.save(file, [torch.zeros(2), torch.ones(1, device="meta")])
        assert fl.load(file, like=[torch.empty(2)])[0].tolist() == [1, 1]
        assert os.listdir(file.parent) == [file.name]

    def test_a_first_save_that_dies_leaves_nothing(self, file, monkeypatch):
        def die(*args, **options):
            raise OSError("disk full")

        monkeypatch.setattr(os, "replace", die)
        with pytest.raises(OSError, match="disk full"):
            fl.save(file, [torch.ones(1)])
        assert os.listdir(file.parent) == []

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
    def test_a_file_that_is_replaced_keeps_its_permissions(self, file, mode):
        fl.save(file, [torch.ones(1)])
        file.chmod(mode)
        fl.save(file, [torch.zeros(1)])
        assert file.stat().st_mode & 0o777 == mode

    def test_a_file_has_the_permissions_that_new_files_get(self, file, tmp_path):
        fl.save(file, [torch.ones(1)])
        (tmp_path / "other").touch()
        assert file.stat().st_mode == (tmp_path / "other").stat().st_mode

    def test_a_save_leaves_one_file(self, file):
        fl.save(file, [torch.ones(1)])
        fl.save(file, [torch.ones(1)])
        assert os.listdir(file.parent) == [file.name]


def read_header(file):
    raw = Path(file).read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def write_header(file, header, body):
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    Path(file).write_bytes(struct.pack("<Q", len(raw)) + raw + body)


def tamper(file, change):
    header, body = read_header(file)
    about = json.loads(header["__metadata__"]["fluxlike"])
    about = change(about) or about
    header["__metadata__"]["fluxlike"] = about if isinstance(about, str) else sealed(about)
    write_header(file, header, body)


def put(path, entry):
    def change(about):
        about["leaves"][path] = entry

    return change


class TestDamage:
    @pytest.fixture
    def tree(self, file):
        tree = {"w": torch.arange(4.0), "b": torch.ones(2), "n": 3}
        fl.save(file, tree)
        return tree

    def test_a_file_that_is_not_there(self, file):
        with pytest.raises(FileNotFoundError, match=r"there is no file .*tree\.safetensors"):
            fl.load(file, like=[])

    def test_a_folder(self, tmp_path):
        with pytest.raises((ValueError, OSError), match=tmp_path.name):
            fl.load(tmp_path, like=[])

    def test_a_file_truncated_anywhere_is_an_error(self, file, tree):
        whole = file.read_bytes()
        for cut in range(len(whole)):
            file.write_bytes(whole[:cut])
            with pytest.raises(ValueError, match="damaged, or no safetensors file"):
                fl.load(file, like=tree)

    def test_a_file_with_bytes_behind_its_end_is_an_error(self, file, tree):
        file.write_bytes(file.read_bytes() + b"more")
        with pytest.raises(ValueError, match="damaged"):
            fl.load(file, like=tree)

    def test_a_flipped_byte_in_the_header_is_an_error_or_does_no_harm(self, file, tree):
        whole = file.read_bytes()
        (size,) = struct.unpack("<Q", whole[:8])
        for place in range(8 + size):
            changed = bytearray(whole)
            changed[place] ^= 0x04
            file.write_bytes(changed)
            try:
                loaded = fl.load(file, like=tree)
            except ValueError:
                continue
            assert type(loaded["n"]) is int
            assert (loaded["w"].shape, loaded["b"].shape) == ((4,), (2,))

    @pytest.mark.parametrize("content", [b"", b"text", b"\x80\x04K\x01.", b"\xff" * 100, bytes(1000)])
    def test_a_file_of_another_kind_is_an_error(self, file, content):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="damaged, or no safetensors file"):
            fl.load(file, like=[])

    def test_a_safetensors_file_from_elsewhere_is_an_error(self, file):
        safetensors.torch.save_file({"w": torch.ones(1)}, file)
        with pytest.raises(ValueError, match=r"not one that fluxlike\.save wrote.*fluxlike\.load_checkpoint"):
            fl.load(file, like={"w": torch.ones(1)})

    @pytest.mark.parametrize(
        "change",
        [
            lambda about: "not json",
            lambda about: "[]",
            lambda about: "null",
            lambda about: "[" * 100_000,
            lambda about: about.pop("version") and None,
            lambda about: about.update(version=99),
            lambda about: about.pop("leaves") and None,
            lambda about: about.update(leaves=[]),
            lambda about: about.update(leaves={"['w']": None}),
            lambda about: about.update(nodes=5),
            lambda about: about.update(nodes={"": 5}),
            put("['w']", {}),
            put("['w']", {"tensor": "elsewhere"}),
            put("['w']", {"tensor": ["['w']"]}),
            put("['w']", {"tensor": "['b']", "as": "complex128"}),
            put("['n']", {"value": [1, 2]}),
            put("['n']", {"value": {"a": 1}}),
            put("['n']", {"float": "text"}),
            put("['n']", {"complex": ["1"]}),
            put("['n']", {"complex": 5}),
            put("['n']", {"bytes": "not base64!"}),
            put("['n']", {"bytes": 5}),
        ],
    )
    def test_a_tampered_header_is_an_error(self, file, tree, change):
        tamper(file, change)
        with pytest.raises(ValueError, match=r"header that can't be read|does not fit"):
            fl.load(file, like=tree)

    def test_a_stored_tensor_of_another_shape_is_an_error(self, file, tree):
        tamper(file, put("['w']", {"tensor": "['b']"}))
        tamper(file, put("['b']", {"tensor": "['w']"}))
        with pytest.raises(ValueError, match=r"\['w'\] has the shape \(2,\), the model has \(4,\)"):
            fl.load(file, like=tree)

    def test_a_file_holds_no_pickle(self, file):
        fl.save(file, {"model": fl.Dense(2, 1, fl.relu), "f": torch.tanh, "o": object()})
        header, body = read_header(file)
        names = set(header) - {"__metadata__"}
        assert len(body) == sum(header[n]["data_offsets"][1] - header[n]["data_offsets"][0] for n in names)
        assert header["__metadata__"].keys() == {"fluxlike"}
        assert b"__reduce__" not in file.read_bytes()

    def test_other_tools_can_read_the_tensors(self, file, tree):
        assert torch.equal(safetensors.torch.load_file(file)["['w']"], tree["w"])


class TestMismatches:
    @pytest.mark.parametrize(
        ("saved", "like", "message"),
        [
            (torch.ones(2), torch.ones(3), r"\['x'\] has the shape \(2,\), the model has \(3,\)"),
            (
                torch.ones(2),
                torch.ones(2).double(),
                r"\['x'\] is of torch\.float32, the model of torch\.float64",
            ),
            (torch.ones(2), 3, r"\['x'\] is a Tensor, the model has a int"),
            (3, torch.ones(2), r"\['x'\] is a int, the model has a Tensor"),
            (None, torch.ones(2), r"\['x'\] is a NoneType, the model has a Tensor"),
            (torch.ones(2), None, r"\['x'\] is a Tensor, the model has a NoneType"),
            ("a", 1, r"\['x'\] is a str, the model has a int"),
            (True, 1, r"\['x'\] is a bool, the model has a int"),
            (torch.tanh, torch.relu, r"\['x'\] is tanh in the file, the model has relu"),
            (torch.tanh, 5, r"\['x'\] is tanh in the file, the model has 5"),
            (torch.tanh, torch.ones(2), r"\['x'\] is tanh in the file, the model has float32\[2\]"),
            (5, torch.tanh, r"\['x'\] is a int in the file, the model has tanh"),
            (np.ones(2), np.ones(3), r"\['x'\] has the shape \(2,\), the model has \(3,\)"),
            (np.ones(2), torch.ones(2), r"\['x'\] is a ndarray, the model has a Tensor"),
            ([1], [1, 2], r"\['x'\]\[1\] is missing"),
            ([1, 2], [1], r"\['x'\]\[1\] is not in the model"),
        ],
    )
    def test_the_place_is_named(self, file, saved, like, message):
        fl.save(file, {"x": saved})
        with pytest.raises(ValueError, match=rf"the file .* does not fit the model:\n(.*\n)*  {message}"):
            fl.load(file, like={"x": like})

    def test_all_are_named_at_once(self, file):
        fl.save(file, {"a": torch.ones(2), "b": torch.ones(1), "c": 1})
        with pytest.raises(ValueError, match="does not fit") as error:
            fl.load(file, like={"a": torch.ones(3), "b": torch.ones(1).double(), "c": 1})
        assert len(str(error.value).splitlines()) == 3

    def test_mismatches_of_different_kinds_are_named_at_once(self, file):
        fl.save(file, {"f": torch.tanh, "w": torch.ones(2), "gone": 1})
        with pytest.raises(ValueError, match="does not fit") as error:
            fl.load(file, like={"f": torch.relu, "w": torch.ones(3), "new": 1})
        assert {line.split()[0] for line in str(error.value).splitlines()[1:]} == {
            "['f']",
            "['w']",
            "['gone']",
            "['new']",
        }

    def test_another_setting_is_named(self, file):
        fl.save(file, fl.Chain(fl.Conv((3, 3), 1, 1, stride=1)))
        with pytest.raises(
            ValueError, match=r"\.layers\[0\]\.stride is \(1, 1\) in the file, the model has \(2, 2\)"
        ):
            fl.load(file, like=fl.Chain(fl.Conv((3, 3), 1, 1, stride=2)))

    def test_another_setting_in_slots_is_named(self, file):
        @fl.functor(children=("w",))
        @dataclass(slots=True)
        class Layer:
            w: Any
            stride: int

        fl.save(file, Layer(torch.ones(1), 1))
        with pytest.raises(ValueError, match=r"\.stride is 1 in the file, the model has 2"):
            fl.load(file, like=Layer(torch.ones(1), 2))

    @pytest.mark.parametrize(
        ("saved", "like", "text"),
        [
            (
                fl.MaxPool((2, 2)),
                fl.MeanPool((2, 2)),
                r"\[0\] is a MaxPool in the file",
            ),
            ([torch.ones(1)], (torch.ones(1),), r"\[0\] is a list in the file, the model has a tuple"),
            ((), [], r"\[0\] is a tuple in the file, the model has a list"),
        ],
    )
    def test_a_node_of_another_class_is_named_once(self, file, saved, like, text):
        fl.save(file, [saved])
        with pytest.raises(ValueError, match=text) as raised:
            fl.load(file, like=[like])
        assert len(str(raised.value).splitlines()) == 2

    def test_a_layer_without_tensors_that_only_the_file_has_is_named(self, file):
        fl.save(file, fl.Chain(fl.Dense(1, 1), fl.GlobalMaxPool()))
        with pytest.raises(ValueError, match=r"\.layers\[1\] is a GlobalMaxPool in the file"):
            fl.load(file, like=fl.Chain(fl.Dense(1, 1)))

    def test_another_argument_of_a_partial_is_named(self, file):
        fl.save(file, fl.Dense(1, 1, partial(fl.leaky_relu, negative_slope=0.3)))
        with pytest.raises(ValueError, match=r"is partial\(leaky_relu, negative_slope=0.3\) in the file"):
            fl.load(file, like=fl.Dense(1, 1, partial(fl.leaky_relu, negative_slope=0.1)))

    def test_a_state_whose_leaves_moved_apart_fits_a_new_one(self, file):
        model = {"a": torch.ones(1), "b": torch.ones(1)}
        state = fl.setup(fl.Adam(), model)
        _, state = fl.update(state, model, {"a": torch.ones(1), "b": None})
        loaded = round_trip(file, state, fl.setup(fl.Adam(), model))
        assert [int(loaded[k].state.step) for k in "ab"] == [1, 0]

    def test_another_activation_is_named(self, file):
        fl.save(file, fl.Dense(1, 1, fl.relu))
        with pytest.raises(ValueError, match=r"\.activation is relu in the file, the model has tanh"):
            fl.load(file, like=fl.Dense(1, 1, fl.tanh))

    def test_like_is_unchanged_by_a_failure(self, file):
        like = {"w": torch.zeros(2), "b": torch.zeros(1)}
        fl.save(file, {"w": torch.ones(2), "b": torch.ones(5)})
        with pytest.raises(ValueError, match=r"\['b'\]"):
            fl.load(file, like=like)
        assert like["w"].tolist() == [0, 0]

    def test_the_first_ten_are_named_and_the_others_counted(self, file):
        fl.save(file, [torch.ones(1)] * 50_000)
        with pytest.raises(ValueError, match="does not fit") as error:
            fl.load(file, like=[torch.ones(2)] * 50_000)
        lines = str(error.value).splitlines()
        assert lines[1] == "  [0] has the shape (1,), the model has (2,)"
        assert lines[11:] == ["  … and 49990 more"]

    def test_a_key_with_brackets_hides_no_other(self, file):
        keys = ["a]b", "a]c", "a['b", '["]', "a].b", "\\]"]
        fl.save(file, {key: (torch.ones(1),) for key in keys})
        with pytest.raises(ValueError, match="does not fit") as error:
            fl.load(file, like={key: [torch.ones(1)] for key in keys})
        assert len(str(error.value).splitlines()) == 1 + len(keys)

    def test_what_lies_below_a_key_with_brackets_is_not_named_again(self, file):
        fl.save(file, {"a]['b": [torch.ones(1)]})
        with pytest.raises(ValueError, match="is a list in the file, the model has a tuple") as error:
            fl.load(file, like={"a]['b": (torch.ones(1), torch.ones(1))})
        assert len(str(error.value).splitlines()) == 2

    def test_a_path_in_the_file_is_printed_short_and_escaped(self, file):
        fl.save(file, {"\x1b[31m" * 100_000: torch.ones(1), "\n": 1})
        with pytest.raises(ValueError, match="is not in the model") as error:
            fl.load(file, like={})
        assert "\x1b" not in str(error.value)
        assert len(str(error.value)) < 2000


@fl.leaf
class Motor:
    """Rides along in a node, and runs its calls."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings


@fl.functor(children=("w",))
class Driven:
    def __init__(self, **settings: Any) -> None:
        self.w, self.motor = torch.ones(1), Motor(**settings)


class TestSettingsOfWhatRidesAlong:
    @pytest.fixture(autouse=True)
    def told(self, monkeypatch):
        monkeypatch.setattr(records, "_settings", {})
        records.says_settings(Motor, lambda motor: records.plain_settings(motor.settings))

    def test_another_one_is_named(self, file):
        fl.save(file, [Driven(stride=(1, 1), slope=0.1, f=torch.tanh)])
        with pytest.raises(ValueError, match="does not fit") as error:
            fl.load(file, like=[Driven(stride=(2, 2), slope=0.1, f=torch.relu)])
        assert str(error.value).splitlines()[1:] == [
            "  [0].stride is (1, 1) in the file, the model has (2, 2)"
        ]

    def test_equal_ones_fit(self, file):
        loaded = round_trip(file, Driven(stride=1), Driven(stride=1))
        assert loaded.w.item() == 1

    def test_one_that_only_one_of_them_has_is_passed_by(self, file):
        round_trip(file, Driven(stride=1), Driven(stride=1, eps=0.1))

    def test_who_says_nothing_is_not_compared(self, file, monkeypatch):
        monkeypatch.setattr(records, "_settings", {})
        round_trip(file, Driven(stride=1), Driven(stride=2))


class TestLayout:
    def test_channels_last_stays(self, file):
        model = fl.channels_last(fl.Conv((3, 3), 4, 8))
        loaded = round_trip(file, model, model)
        assert loaded.weight.stride() == model.weight.stride() != model.weight.contiguous().stride()
        assert torch.equal(loaded.weight, model.weight)

    def test_what_overlaps_or_has_holes_is_not_imitated(self, file):
        w = torch.arange(6.0).view(2, 3)
        for like in (torch.zeros(1, 1).expand(2, 3), torch.zeros(2, 6)[:, ::2]):
            assert torch.equal(round_trip(file, [w], [like])[0], w)


class TestTies:
    def test_load_never_ties_what_like_does_not_tie(self, file):
        w = torch.ones(2)
        fl.save(file, [w, w])
        loaded = fl.load(file, like=[torch.zeros(2), torch.zeros(2)])
        assert loaded[0] is not loaded[1]
        assert loaded[0].data_ptr() != loaded[1].data_ptr()
        assert loaded[1].tolist() == [1, 1]

    def test_load_ties_what_like_ties_where_the_values_are_equal(self, file):
        fl.save(file, [torch.ones(2), torch.ones(2)])
        w = torch.zeros(2)
        loaded = fl.load(file, like=[w, w])
        assert loaded[0] is loaded[1]

    def test_different_values_at_a_tie_are_an_error(self, file):
        fl.save(file, [torch.ones(2), torch.zeros(2)])
        w = torch.zeros(2)
        with pytest.raises(ValueError, match=r"\[1\] is tied to \[0\] in the model, but their values differ"):
            fl.load(file, like=[w, w])


class TestMeta:
    def test_like_may_be_on_the_meta_device(self, file):
        model = fl.Chain(fl.Dense(2, 3), fl.BatchNorm(3))
        with torch.device("meta"):
            like = fl.Chain(fl.Dense(2, 3), fl.BatchNorm(3))
        loaded = round_trip(file, model, like)
        assert fl.get_device(loaded) == torch.device("cpu")
        assert fl.tree.allclose(loaded, model)

    def test_ties_on_the_meta_device_are_kept(self, file):
        w, like = torch.ones(2), torch.ones(2, device="meta")
        loaded = round_trip(file, [w, w], [like, like])
        assert loaded[0] is loaded[1]

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_tensors_go_to_the_device_of_like(self, file):
        model = fl.gpu(fl.Dense(2, 1))
        loaded = round_trip(file, model, fl.gpu(fl.Dense(2, 1)))
        assert fl.get_device(loaded).type == "cuda"
        assert fl.tree.allclose(loaded, model)


@fl.functor
class Named:
    def __init__(self, net, network):
        self.net, self.network = net, network


class TestParts:
    """One part of a file of several."""

    def net(self):
        return fl.Chain(fl.Dense(3, 4, fl.relu), fl.Dense(4, 1))

    @pytest.fixture
    def run(self, file):
        model = self.net()
        run = {
            "model": model,
            "state": fl.setup(fl.Adam(), model),
            "runs": [{"best": self.net()}],
            "epoch": 3,
        }
        fl.save(file, run)
        return run

    @pytest.mark.parametrize("part", ["model", "['model']", '["model"]', ".model"])
    def test_the_model_is_loaded_alone(self, file, run, part):
        assert fl.tree.allclose(fl.load(file, like=self.net(), part=part), run["model"])
        assert fl.tree.allclose(fl.load_checkpoint(file, self.net(), part=part), run["model"])

    @pytest.mark.parametrize("part", ["runs[0].best", "['runs'][0]['best']"])
    def test_a_part_further_down_is_loaded(self, file, run, part):
        assert fl.tree.allclose(fl.load(file, like=self.net(), part=part), run["runs"][0]["best"])

    def test_a_leaf_is_a_part(self, file, run):
        assert fl.load(file, like=0, part="epoch") == 3

    def test_a_key_with_dots_is_a_part(self, file):
        fl.save(file, {"a.b": [torch.ones(1)], "a": {"b": [torch.zeros(1)]}})
        assert fl.load(file, like=[torch.zeros(1)], part="a.b")[0].item() == 1

    def test_a_part_whose_name_begins_anothers_is_that_alone(self, file):
        fl.save(file, Named([torch.ones(1)], [torch.zeros(1)]))
        assert fl.load(file, like=[torch.zeros(1)], part="net")[0].item() == 1

    def test_a_part_that_is_tied_to_another_is_whole(self, file):
        model = self.net()
        fl.save(file, {"best": model, "model": model, "tied": (model[0].bias, model[0].bias)})
        assert fl.tree.allclose(fl.load(file, like=self.net(), part="model"), model)
        assert fl.tree.allclose(fl.load_checkpoint(file, self.net(), part="model"), model)
        x = torch.zeros(4)
        a, b = fl.load(file, like=(x, x), part="tied")
        assert a is b

    def test_a_part_of_another_dtype_is_an_error_that_names_part_and_place(self, file, run):
        with pytest.raises(
            ValueError, match=r"(?s)\['model'\].* of the file .*\.layers\[0\]\.weight is .*float64"
        ):
            fl.load(file, like=fl.f64(self.net()), part="model")

    def test_a_part_that_is_not_there_is_an_error_that_names_the_parts(self, file, run):
        for read in (fl.load, fl.load_checkpoint):
            with pytest.raises(
                ValueError, match="no part 'net'; its parts are: 'epoch', 'model', 'runs', 'state'"
            ):
                read(file, self.net(), part="net")

    def test_a_part_that_is_no_text_is_an_error(self, file, run):
        with pytest.raises(TypeError, match=r"part is a int, not a key or a path such as"):
            fl.load(file, like=self.net(), part=0)

    def test_without_part_the_error_says_how_to_read_one(self, file, run):
        for like in (self.net(), {"model": self.net()}):
            with pytest.raises(
                ValueError, match=r"the parts of the file are .*load\(path, like=…, part='model'\)"
            ):
                fl.load(file, like=like)
