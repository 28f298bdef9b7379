"""Plain values come back exactly, quickly and compactly, from bytes that nobody vouches for."""

import contextlib
import json
import math
import random
import struct
import time
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fluxlike as fl
from fluxlike.files import strict_json
from fluxlike.learning.checkpoints.packing import pack
from fluxlike.learning.checkpoints.unpacking import unpack


def same(a, b):
    """Whether two values are equal to the bit and to the type."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return same([*a.items()], [*b.items()])
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, complex):
        return same([a.real, a.imag], [b.real, b.imag])
    if isinstance(a, torch.Tensor):
        alike = (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        return alike and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, np.ndarray | np.generic):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()
    return a == b


FLOATS = st.floats(allow_nan=True, allow_infinity=True) | st.integers(0, 2**64 - 1).map(
    lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0]
)
TEXTS = st.text() | st.text(st.characters(codec=None, categories=["Cs", "L"]))
KEYS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS | st.binary()
SIMPLE = st.none() | st.booleans() | st.integers() | FLOATS | TEXTS
NUMPY = st.one_of(
    hnp.boolean_dtypes(), hnp.integer_dtypes(), hnp.floating_dtypes(), hnp.complex_number_dtypes(),
    hnp.datetime64_dtypes(), hnp.timedelta64_dtypes(), hnp.unicode_string_dtypes(min_len=1),
)  # fmt: skip
ARRAYS = hnp.arrays(NUMPY, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
TENSORS = hnp.arrays(
    st.sampled_from(["?", "i1", "u1", "i2", "i4", "i8", "f2", "f4", "f8", "c8", "c16"]),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=4),
).flatmap(lambda x: st.permutations(range(x.ndim)).map(torch.from_numpy(x.copy()).permute))
TABLES = st.integers(16, 40).flatmap(
    lambda n: st.dictionaries(
        TEXTS, st.lists(FLOATS, min_size=n, max_size=n) | st.lists(SIMPLE, min_size=n, max_size=n)
    ).map(
        lambda columns: [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    )
)
LEAVES = st.one_of(
    SIMPLE,
    st.complex_numbers(),
    st.binary(),
    ARRAYS,
    TENSORS,
    TABLES,
    *(st.lists(kind, min_size=14, max_size=20) for kind in (FLOATS, st.integers(), st.booleans(), SIMPLE)),
    st.lists(st.tuples(st.integers(), FLOATS), min_size=14, max_size=20),
)
PLAIN = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS | st.tuples(KEYS, KEYS), inner, max_size=4)
        | st.dictionaries(TEXTS, inner, max_size=4)
    ),
    max_leaves=12,
)


class TestRoundTrip:
    @given(PLAIN)
    @settings(deadline=None)
    def test_any_plain_value_comes_back_to_the_bit_and_to_the_type(self, plain):
        assert same(unpack(pack(plain)), plain)

    @pytest.mark.parametrize(
        "plain",
        [None, {}, [], (), [()], {"dict": {"tuple": [1]}}, {"floats": 3}, -0.0, [10**5000], {True: 1, 2: "x"},
         {math.nan: 1}, [1.0] * 16 + [1], [2**63] * 20, [{}] * 20, [()] * 20, [{"a": [1]}] * 20,
         "\ud83d\ude00", bytearray(b"ab")],
    )  # fmt: skip
    def test_the_edges(self, plain):
        assert same(unpack(pack(plain)), plain)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.uint64], ids=str)
    def test_dtypes_that_numpy_lacks(self, dtype):
        x = torch.arange(6).to(dtype).reshape(2, 3)
        back = unpack(pack(x))
        assert back.dtype == dtype
        assert torch.equal(back.view(torch.uint8), x.view(torch.uint8))

    def test_channels_last_stays(self):
        x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
        assert same(unpack(pack([x])), [x])
        y = torch.randn(8, 1, 3, 3).to(memory_format=torch.channels_last)
        assert unpack(pack(y)).stride() == y.stride()

    def test_a_view_comes_back_dense(self):
        x = torch.randn(6, 6)[1:4, ::2].t()
        back = unpack(pack(x))
        assert torch.equal(back, x)
        assert back.untyped_storage().nbytes() == x.numel() * 4

    def test_what_stands_at_two_places_stays_one(self):
        x, a = torch.ones(2), np.ones(2)
        back = unpack(pack({"x": [x, x], "a": [a, (a, x)]}))
        assert back["x"][0] is back["x"][1] is back["a"][1][1]
        assert back["a"][0] is back["a"][1][0]

    def test_memory_is_fresh_and_can_be_written_to(self):
        data = pack({"x": torch.ones(3), "a": np.ones(3), "p": torch.nn.Parameter(torch.ones(1))})
        first, second = unpack(data), unpack(data)
        first["x"].add_(1)
        first["a"] += 1
        assert second["x"].tolist() == second["a"].tolist() == [1, 1, 1]
        assert type(first["p"]) is torch.Tensor
        assert not first["p"].requires_grad

    def test_later_changes_do_not_reach_the_bytes(self):
        x, a, rows = torch.ones(3), np.ones(3), [1.0] * 20
        data = pack([x, a, rows])
        x.zero_(), a.fill(0), rows.clear()
        assert same(unpack(data), [torch.ones(3), np.ones(3), [1.0] * 20])


LOSSES = [random.Random(0).random() for _ in range(100_000)]


class TestLongHistories:
    @pytest.mark.parametrize(
        ("history", "size"),
        [
            (LOSSES, 8),
            ({"step": [*range(100_000)], "loss": LOSSES}, 16),
            ([(step, loss) for step, loss in enumerate(LOSSES)], 16),
            ([{"step": step, "loss": loss, "why": None} for step, loss in enumerate(LOSSES)], 24),
        ],
        ids=["floats", "columns", "pairs", "rows"],
    )
    def test_100_000_entries_are_compact_and_quick(self, history, size):
        start = time.process_time()
        data = pack(history)
        back = unpack(data)
        assert time.process_time() - start < 2  # 0.01 to 0.3 seconds
        assert len(data) < 100_000 * size + 1000
        assert back == history


class TestErrors:
    Point = namedtuple("Point", "x y")

    @pytest.mark.parametrize(
        ("plain", "message"),
        [
            (
                {"callbacks": [{"model": fl.Dense(2, 1)}]},
                r"\['callbacks'\]\[0\]\['model'\] is a Dense: callbacks",
            ),
            (OrderedDict(a=1), "is a OrderedDict: .* write its parts so, as dict"),
            ([Point(1, 2)], r"^\[0\] is a Point"),
            ({"f": len}, r"\['f'\] is a builtin_function"),
            ({"s": {1}}, r"\['s'\] is a set"),
            ([{"x": torch.ones(1, device="meta")}], r"\[0\]\['x'\] is on the meta device"),
            ([torch.eye(2).to_sparse()], r"\[0\] is a Tensor .*sparse"),
            ([np.array([object()])], r"\[0\] is a ndarray of object"),
            ([np.zeros(2, "f4,i4")], r"\[0\] is a ndarray"),
            ({frozenset(): 1}, "has a frozenset as a key"),
            ([{(1, len): 1}], r"\[0\] has a builtin_function_or_method as a key"),
            ([1.0] * 20 + [{1}], r"\[20\] is a set"),
        ],
    )
    def test_what_is_not_plain_is_named(self, plain, message):
        with pytest.raises(TypeError, match=message):
            pack(plain)

    def test_what_holds_itself_is_an_error(self):
        plain = []
        plain.append(plain)
        with pytest.raises(ValueError, match="more than 100 levels deep, or holds itself"):
            pack(plain)

    def test_what_is_too_much_to_be_read_is_not_written(self, monkeypatch):
        monkeypatch.setattr(strict_json, "_MOST_VALUES", 1000)
        pack([[]] * 400)
        with pytest.raises(ValueError, match="can't be stored: it describes more than 1000 values"):
            pack([[]] * 1000)


def forged(about, data=b""):
    text = json.dumps({"plain": about}).encode()
    return len(text).to_bytes(8, "little") + text + data


class TestHostile:
    @pytest.mark.parametrize(
        ("about", "data"),
        [
            ({"floats": 2}, b"\0" * 15),
            ({"floats": 1}, b"\0" * 9),
            ({"floats": -1}, b""),
            ({"floats": 2**62}, b""),
            ({"floats": True}, b"\0" * 8),
            ({"bools": 1}, b"\2"),
            ({"tensor": "F32", "shape": [2**40, 2**40]}, b""),
            ({"tensor": "F32", "shape": [2**62, 2**62, 0]}, b""),
            ({"tensor": "F32", "shape": [-1]}, b""),
            ({"tensor": "F32", "shape": "2"}, b"\0" * 8),
            ({"tensor": "BOOL", "shape": [1]}, b"\7"),
            ({"tensor": "F32", "shape": [2], "strides": [2]}, b"\0" * 8),
            ({"tensor": "F32", "shape": [2, 2], "strides": [0, 1]}, b"\0" * 16),
            ({"tensor": "F32", "shape": [2, 2], "strides": [1, -2]}, b"\0" * 16),
            ({"tensor": "F32", "shape": [2], "strides": [2**62]}, b"\0" * 8),
            ({"tensor": "pickle", "shape": []}, b""),
            ({"array": "|O8", "shape": [1]}, b"\0" * 8),
            ({"array": "<f4,<f4", "shape": [1]}, b"\0" * 8),
            ({"array": "<U0", "shape": [10**18]}, b""),
            ({"array": "<M8[x]", "shape": [1]}, b"\0" * 8),
            ({"again": 0}, b""),
            ([{"tensor": "F32", "shape": []}, {"again": -1}], b"\0" * 4),
            ({"rows": [], "columns": []}, b""),
            ({"rows": ["a"], "columns": []}, b""),
            ({"rows": ["a", "b"], "columns": [{"floats": 1}, {"floats": 2}]}, b"\0" * 24),
            ({"rows": [[]], "columns": [[1]]}, b""),
            ({"records": 0, "columns": []}, b""),
            ({"records": 1, "columns": [3]}, b""),
            ({"keys": [[]], "items": [1]}, b""),
            ({"keys": [1], "items": []}, b""),
            ({"float": "zz"}, b""),
            ({"float": "00"}, b""),
            ({"complex": 3}, b""),
            ({"call": "os.system"}, b""),
            ({}, b""),
            (3, b"more"),
        ],
    )
    def test_a_forged_description_is_an_error(self, about, data):
        with pytest.raises(ValueError, match="the plain part of the checkpoint can't be read"):
            unpack(forged(about, data))

    @given(st.binary(max_size=40))
    def test_bytes_that_are_none_of_ours(self, data):
        with pytest.raises(ValueError, match="can't be read"):
            unpack(data)

    @given(PLAIN, st.randoms(use_true_random=False))
    @settings(deadline=None)
    def test_a_changed_byte_is_an_error_or_another_value_but_nothing_else(self, plain, rng):
        data = pack(plain)
        data[rng.randrange(len(data))] = rng.randrange(256)
        with contextlib.suppress(ValueError):
            unpack(data)

    @given(PLAIN)
    @settings(deadline=None)
    def test_a_truncated_one_is_an_error(self, plain):
        with pytest.raises(ValueError, match="can't be read"):
            unpack(pack(plain)[:-1])
