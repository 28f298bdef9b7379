"""`from_array` and `to_array`: shared memory, copies where they are needed, and errors by path."""

from __future__ import annotations

import sys
import types
from typing import Any

import hypothesis.extra.numpy as arrays_of
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl

jax.config.update("jax_platforms", "cpu")

SHARED = ["bool", "float16", "float32", "float64", "complex64", "complex128"] + [
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
]
OF_ML_DTYPES = ["bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"]
IN_JAX = [d for d in SHARED if d == "complex64" or ("64" not in d and d != "complex128")]
IN_JAX += ["bfloat16", "float8_e4m3fn"]


def same_memory(x: Any, t: torch.Tensor) -> bool:
    return int(x.ctypes.data) == t.data_ptr()


# from_array, numpy


@pytest.mark.parametrize("dtype", SHARED)
def test_an_array_of_numpy_shares_its_memory_both_ways(dtype):
    x = np.ones((2, 3), dtype)
    t = fl.from_array(x)
    assert same_memory(x, t)
    assert t.dtype == getattr(torch, dtype)
    x[0, 1] = 0
    assert not t[0, 1]
    t[1, 1] = 0
    assert not x[1, 1]
    assert fl.from_array(x, copy=False).data_ptr() == t.data_ptr()


@pytest.mark.parametrize("dtype", OF_ML_DTYPES)
def test_the_small_floats_of_ml_dtypes_share_their_memory(dtype):
    x = np.array([[1.5, -2.0, 0.25], [1, 2, 4]], getattr(ml_dtypes, dtype))
    for view in (x, x.T, x[:, ::2]):
        t = fl.from_array(view, copy=False)
        assert t.dtype == getattr(torch, dtype)
        assert t.data_ptr() == x.ctypes.data
        assert (t.float().numpy() == view.astype("float32")).all()


def test_copy_true_gives_memory_of_its_own_without_gaps():
    x = np.arange(6.0).reshape(2, 3)
    t = fl.from_array(x.T, copy=True)
    x[:] = -1
    assert t.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert t.is_contiguous()


READ_ONLY = np.arange(3.0)
READ_ONLY.flags.writeable = False
ODD = np.zeros(3, dtype=[("a", "u1"), ("b", "f4")])["b"]

COPIED = {
    "read-only": (READ_ONLY, "read-only"),
    "broadcast": (np.broadcast_to(np.ones(1), (3,)), "read-only"),
    "backwards": (np.arange(3.0)[::-1], "negative stride"),
    "big-endian": (np.arange(3, dtype=">i4"), "other order"),
    "unaligned": (ODD, "unaligned"),
    "scalar": (np.float32(3), "scalar"),
}


@pytest.mark.parametrize("kind", COPIED)
def test_what_can_not_be_shared_is_copied_or_an_error_that_says_why(kind):
    x, why = COPIED[kind]
    t = fl.from_array({"w": x})["w"]
    assert (t.numpy() == np.asarray(x)).all()
    assert t.shape == x.shape
    t.zero_()  # its own memory: no warning, and no write to the array
    assert kind == "unaligned" or np.asarray(x).any()
    with pytest.raises(ValueError, match=rf"^\['w'\].*{why}"):
        fl.from_array({"w": x}, copy=False)


def test_strides_and_no_axes_and_no_entries_are_shared():
    x = np.arange(24.0).reshape(2, 3, 4)
    for view in (x, x.T, x[:, ::2], x[1:, 1:, 1:], x[0, 0, 0:0], np.zeros(()), np.zeros((3, 0)), x[:, None]):
        t = fl.from_array(view, copy=False)
        assert tuple(t.shape) == view.shape
        assert (t.numpy() == view).all()
    assert fl.from_array(x[:, ::2]).stride() == (12, 8, 1)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_matrix_and_a_file_in_memory_are_plain_arrays(tmp_path):
    assert fl.from_array(np.matrix([[1.0, 2.0]]), copy=False).shape == (1, 2)
    np.arange(4.0).tofile(tmp_path / "numbers")
    written = np.memmap(tmp_path / "numbers", mode="r+")
    assert fl.from_array(written, copy=False).data_ptr() == written.ctypes.data
    closed = np.memmap(tmp_path / "numbers", dtype="float64", mode="r")
    assert fl.from_array(closed).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="mode='c'"):
        fl.from_array(closed, copy=False)
    private = np.memmap(tmp_path / "numbers", dtype="float64", mode="c")
    fl.from_array(private, copy=False)[0] = 7
    assert np.fromfile(tmp_path / "numbers")[0] == 0


REFUSED = {
    "object": (np.array([None, 1.0]), "object.*np.stack"),
    "text": (np.array(["a", "b"]), "np.unique"),
    "bytes": (np.array([b"a"]), "np.unique"),
    "structured": (np.zeros(2, [("a", "f4"), ("b", "i4")]), "fields a, b.*{name: x"),
    "masked": (np.ma.array([1.0, 2.0], mask=[0, 1]), "masked.*filled"),
    "long double": (np.ones(2, np.longdouble), "x.astype.'float64'"),
    "long complex": (np.ones(2, np.clongdouble), "x.astype.'complex128'"),
    "date": (np.array(["2020-01-01"], "M8[D]"), "counts: x.astype.'int64'"),
    "span": (np.array([3], "m8[s]"), "counts: x.astype.'int64'"),
    "int4": (np.ones(2, ml_dtypes.int4), "int4.*x.astype"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("copy", [None, True, False])
def test_what_torch_has_not_is_an_error_with_the_path_and_the_way(kind, copy):
    x, said = REFUSED[kind]
    with pytest.raises(TypeError, match=rf"(?s)^\['layers'\]\[1\] is .*{said}"):
        fl.from_array({"layers": [np.ones(1), x]}, copy=copy)


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    dtype=st.sampled_from([*SHARED, ">f4", ">i8"]),
    shape=arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)
def test_any_view_of_an_array_has_its_values_and_comes_back(data, dtype, shape):
    count = int(np.prod(shape))
    whole = (np.arange(count).reshape(shape) % 100).astype(dtype)
    step = st.sampled_from([1, 2, -1, -2])
    view = whole[tuple(slice(None, None, data.draw(step)) for _ in shape)]
    view = view.transpose(data.draw(st.permutations(range(len(shape)))))
    t = fl.from_array(view)
    back = fl.to_array(t)
    assert (back == view).all()
    assert back.shape == view.shape
    assert back.dtype == view.dtype.newbyteorder("=")
    assert (fl.from_array(view, copy=True) == t).all()


# Trees


@fl.functor
class Layer:
    def __init__(self, weight: Any, bias: Any, activation: Any) -> None:
        self.weight, self.bias, self.activation = weight, bias, activation


def test_a_tree_keeps_its_structure_ties_tensors_and_constants():
    w, t = np.ones((2, 2)), torch.ones(1)
    tree = {"a": Layer(w, jnp.ones(2), fl.relu), "b": [w, None, "text", 1.5, t], "view": w[:]}
    found = fl.from_array(tree)
    assert isinstance(found["a"], Layer)
    assert found["a"].weight is found["b"][0]
    assert found["view"] is not found["b"][0]
    assert found["a"].activation is fl.relu
    assert found["b"][1:] == [None, "text", 1.5, t]
    assert found["b"][4] is t
    assert tree["a"].weight is w
    back = fl.to_array(found)
    assert back["a"].weight is back["b"][0]
    assert isinstance(back["a"].bias, np.ndarray)
    assert back["b"][1:4] == [None, "text", 1.5]


def test_assigned_buffers_are_taken_along():
    tree = {"mean": fl.Assigned(torch.ones(2))}
    found = fl.to_array(tree)["mean"]
    assert isinstance(found, fl.Assigned)
    assert isinstance(found.value, np.ndarray)
    assert torch.equal(fl.from_array({"mean": found})["mean"].value, torch.ones(2))


def test_the_parameters_of_jax_train_as_a_tree_of_tensors():
    params = [{"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}]
    model = fl.from_array(params)
    grads = fl.gradient(lambda m: (m[0]["w"].sum() * m[0]["b"]).sum(), model)
    new, _ = fl.update(fl.setup(fl.Descent(0.5), model), model, grads)
    assert new[0]["b"].tolist() == [-3.0, -3.0]
    assert float(params[0]["b"].sum()) == 0  # of JAX, never written to


class OfJax:
    """A node of JAX' trees alone."""

    def __init__(self, w: Any) -> None:
        self.w = w


jax.tree_util.register_pytree_node(OfJax, lambda n: ((n.w,), None), lambda _, c: OfJax(*c))


def test_a_node_that_jax_alone_knows_is_an_error_not_a_constant():
    with pytest.raises(
        TypeError, match=r"\['x'\] is a OfJax, which is a node for JAX alone.*functor\(OfJax\)"
    ):
        fl.from_array({"x": OfJax(jnp.ones(2))})


@pytest.mark.parametrize("x", [3, "text", None, 2.5, len], ids=repr)
def test_what_is_no_array_and_no_tree_is_an_error(x):
    with pytest.raises(TypeError, match=r"from_array takes .*torch\.tensor"):
        fl.from_array(x)
    with pytest.raises(TypeError, match="to_array takes a tensor"):
        fl.to_array(x)


@pytest.mark.parametrize("copy", [0, 1, "never"])
def test_another_word_for_copy_is_an_error(copy):
    with pytest.raises(ValueError, match="write None, True or False"):
        fl.from_array(np.ones(1), copy=copy)
    with pytest.raises(ValueError, match="write None, True or False"):
        fl.to_array(torch.ones(1), copy=copy)


# Other producers


class Producer:
    """What CuPy and others offer: DLPack and nothing else."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.x.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self.x.__dlpack_device__()


def test_any_producer_of_dlpack_shares_its_memory():
    x = np.ones((2, 2))
    for copy in (None, False):
        t = fl.from_array(Producer(x), copy=copy)
        assert t.data_ptr() == x.ctypes.data
    assert fl.from_array(Producer(x), copy=True).data_ptr() != x.ctypes.data


def test_a_producer_that_refuses_is_an_error_with_the_path():
    class Refuses(Producer):
        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("not today")

    with pytest.raises(TypeError, match=r"^\[0\], a Refuses, can't be shared by DLPack: not today"):
        fl.from_array([Refuses(np.ones(1))])


def test_the_interfaces_of_numpy_are_read():
    x = np.arange(3.0)
    shares = types.SimpleNamespace(__array_interface__=x.__array_interface__, keep=x)
    assert fl.from_array(shares, copy=False).data_ptr() == x.ctypes.data

    class Series:  # as of pandas
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return x

    class Computes:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return np.arange(3.0)

    assert fl.from_array(Series(), copy=False).data_ptr() == x.ctypes.data
    assert fl.from_array(Computes()).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="Computes, makes an array"):
        fl.from_array(Computes(), copy=False)


# JAX


@pytest.mark.parametrize("dtype", IN_JAX)
def test_an_array_of_jax_shares_its_memory_and_back(dtype):
    x = jnp.ones((4, 3), dtype)
    t = fl.from_array(x, copy=False)
    assert t.dtype == getattr(torch, dtype)
    assert t.data_ptr() == x.unsafe_buffer_pointer()
    assert fl.from_array(x, copy=True).data_ptr() != x.unsafe_buffer_pointer()
    t = torch.ones(4, 3).to(t.dtype)
    for copy in (None, False):
        back = fl.to_array(t, "jax", copy=copy)
        assert back.dtype == x.dtype
        assert back.unsafe_buffer_pointer() == t.data_ptr()
    assert fl.to_array(t, "jax", copy=True).unsafe_buffer_pointer() != t.data_ptr()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1, 2, 1)], ids=str)
def test_small_shapes_go_to_jax_and_back(shape):
    t = torch.full(shape, 2.0)
    assert torch.equal(fl.from_array(fl.to_array(t, "jax")), t)


def test_layouts_that_jax_has_not_are_copied():
    whole = torch.arange(24.0).reshape(4, 6)
    for t in (whole, whole.T, whole[:, ::2], whole[1:], whole[:1].expand(4, 6), whole.flip(0)):
        assert (np.asarray(fl.to_array(t, "jax")) == t.numpy()).all()
    assert (jax.jit(lambda x: x * 2)(fl.to_array(whole.T, "jax")) == 2 * whole.T.numpy()).all()
    refused = (whole[:, ::2], "contiguous"), (whole.T, "contiguous"), (whole.reshape(-1)[1:], "64 does not")
    for t, why in refused:
        with pytest.raises(ValueError, match=why):
            fl.to_array(t, "jax", copy=False)


def test_64_bits_are_not_cut_in_silence():
    for t in (torch.ones(2).double(), torch.ones(1).cdouble()):
        with jax.enable_x64(False), pytest.raises(TypeError, match=r"\['w'\].*jax_enable_x64.*f32"):
            fl.to_array({"w": t}, "jax")
        with jax.enable_x64(True):
            x = fl.to_array({"w": t}, "jax")["w"]
            assert x.dtype.itemsize == t.element_size()
            assert torch.equal(fl.from_array(x), t)


@pytest.mark.parametrize("kind", ["int", "uint"])
def test_whole_numbers_that_fit_become_32_bits_for_jax_and_others_are_an_error(kind):
    wide = getattr(torch, f"{kind}64")
    limits = torch.iinfo(getattr(torch, f"{kind}32"))
    t = torch.tensor([limits.min, 3, limits.max], dtype=wide)
    for copy in (None, True):
        x = fl.to_array({"n": t}, "jax", copy=copy)["n"]
        assert x.dtype == f"{kind}32"
        assert x.tolist() == t.tolist()
    with pytest.raises(ValueError, match=r"\['n'\] is of torch.*32 bits.*leave copy=False out"):
        fl.to_array({"n": t}, "jax", copy=False)
    with pytest.raises(OverflowError, match=r"\['n'\].*32 bits.*jax_enable_x64"):
        fl.to_array({"n": torch.tensor([0, limits.max + 1], dtype=wide)}, "jax")
    with jax.enable_x64(True):
        assert fl.to_array({"n": t}, "jax", copy=False)["n"].dtype == f"{kind}64"


def test_a_batchnorm_of_torch_goes_to_jax_with_its_counter():
    model = fl.from_torch(torch.nn.BatchNorm1d(2))
    found = [x for x in fl.fleaves(fl.to_array(model, "jax"), leaves="all") if isinstance(x, jax.Array)]
    assert sorted(str(x.dtype) for x in found) == ["float32"] * 4 + ["int32"]


def test_what_is_no_plain_array_of_jax_is_an_error():
    with pytest.raises(TypeError, match="key_data"):
        fl.from_array({"key": jax.random.key(0)})
    with pytest.raises(TypeError, match="int4"):
        fl.from_array(jnp.ones(2, jnp.int4))
    with pytest.raises(TypeError, match=r"traced by JAX.*to_jax"):
        jax.jit(lambda x: fl.from_array(x))(jnp.ones(2))
    gone = jnp.ones(2)
    gone.delete()
    with pytest.raises(ValueError, match="deleted"):
        fl.from_array(gone)


# Donation


def test_memory_of_numpy_is_never_donated():
    array = np.ones(3, np.float32)
    model = fl.from_array({"w": array})
    state, grads = fl.setup(fl.Descent(1.0), model), {"w": torch.ones(3)}
    with pytest.raises(ValueError, match=r"\['w'\] .*does not own alone.*fluxlike\.tree\.clone"):
        fl.update(state, model, grads, donate=True)
    with pytest.raises(ValueError, match="does not own alone"):
        fl.jit(lambda m: fl.tree.scale(m, 2.0), donate=(0,))(model)
    new, state = fl.update(state, model, grads)
    new, _ = fl.update(state, new, grads, donate=True)
    assert new["w"].tolist() == [-1, -1, -1]
    assert array.tolist() == [1, 1, 1]


def of_jax() -> tuple[Any, Any]:
    x = jnp.ones(64)
    return x, fl.from_array({"w": x})


def for_jax() -> tuple[Any, Any]:
    model = {"w": torch.ones(64)}
    return fl.to_array(model, "jax")["w"], model


@pytest.mark.parametrize("make", [of_jax, for_jax])
def test_a_donation_copies_what_jax_looks_at(make):
    array, model = make()
    state, grads = fl.setup(fl.Descent(1.0), model), {"w": torch.full((64,), 3.0)}
    doubled = fl.jit(lambda m: fl.tree.scale(m, 2.0), donate=(0,))(model)
    assert doubled["w"].sum() == 128
    new, state = fl.update(state, model, grads, donate=True)
    assert new["w"].sum() == -128
    new, _ = fl.update(state, new, grads, donate=True)  # now it is the model's own
    assert model["w"].sum() == 64
    assert array.sum() == 64
    with pytest.raises(ValueError, match="does not own alone"):  # other tensors in that memory say nothing
        fl.update(state, {"w": model["w"].view(64)}, grads, donate=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_that_numpy_looks_at_is_not_donated_any_more(dtype):
    model = {"w": torch.ones(64, dtype=dtype)}
    state, grads = fl.setup(fl.Descent(1.0), model), {"w": torch.ones(64, dtype=dtype)}
    shared = fl.to_array(model)["w"]
    with pytest.raises(ValueError, match="does not own alone"):
        fl.update(state, model, grads, donate=True)
    assert float(shared.sum()) == 64


@pytest.mark.parametrize("to", ["numpy", "jax"])
def test_what_was_copied_for_others_is_donated_as_ever(to):
    w = torch.ones(8, 8)
    arrays = [fl.to_array(w, to, copy=True)]
    if to == "jax":
        arrays += [fl.to_array(w.t(), to), fl.to_array(w[:, 1:], to), fl.to_array(w.flatten()[1:], to)]
    address = w.data_ptr()
    new, _ = fl.update(fl.setup(fl.Descent(1.0), {"w": w}), {"w": w}, {"w": torch.ones(8, 8)}, donate=True)
    assert new["w"].data_ptr() == address
    assert all((np.asarray(x) == 1).all() for x in arrays)


# to_array


@pytest.mark.parametrize("dtype", [*SHARED, *OF_ML_DTYPES])
def test_a_tensor_shares_its_memory_with_numpy(dtype):
    t = torch.ones(2, 3).to(getattr(torch, dtype))
    for view in (t, t.T, t[:, ::2]):
        x = fl.to_array(view, copy=False)
        assert x.ctypes.data == view.data_ptr()
        assert x.dtype.name == dtype
        assert x.shape == tuple(view.shape)
        assert fl.to_array(view, copy=True).ctypes.data != view.data_ptr()
        assert (fl.from_array(x) == view).all()


def test_a_parameter_is_read_as_its_value_and_a_graph_is_an_error():
    w = torch.nn.Parameter(torch.ones(2))
    x = fl.to_array([w])[0]
    x[0] = 3
    assert w.tolist() == [3, 1]
    for to in ("numpy", "jax"):
        with pytest.raises(ValueError, match=r"\[1\] is differentiated.*stop_gradient.*from_jax"):
            fl.to_array([w, w * 2], to)
    assert fl.to_array(fl.stop_gradient([w * 2])).pop().tolist() == [6, 2]


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's own, at its first dual number
def test_inside_transforms_a_tensor_has_no_numbers_to_give():
    x = torch.ones(2)
    with pytest.raises(ValueError, match="is differentiated"):
        fl.gradient(lambda x: torch.as_tensor(fl.to_array(x)).sum(), x)
    with pytest.raises(ValueError, match="tensor of vmap"):
        fl.vmap(lambda x: torch.as_tensor(fl.to_array(x)))(x)
    with pytest.raises(ValueError, match="tensor of vmap or of a derivative"):
        torch.func.grad(lambda x: torch.as_tensor(fl.to_array(x)).sum())(x)
    with pytest.raises(TypeError, match="stand-in while a function is traced"):
        fl.jit(lambda x: torch.as_tensor(fl.to_array(x)).sum())(x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(ValueError, match="is differentiated"):
            fl.to_array(dual)


def test_lazy_conjugates_and_negatives_are_computed():
    z = torch.tensor([1 + 2j, 3 - 1j])
    for t in (z.conj(), z.conj().imag):
        for to in ("numpy", "jax"):
            assert np.asarray(fl.to_array(t, to)).tolist() == t.tolist()
            with pytest.raises(ValueError, match="conjugated or negated"):
                fl.to_array(t, to, copy=False)


REFUSED_TENSORS = {
    "sparse": (lambda: torch.eye(2).to_sparse(), TypeError, "sparse.*to_dense"),
    "meta": (lambda: torch.ones(2, device="meta"), ValueError, "meta device"),
    "subclass": (lambda: torch.ones(2).as_subclass(Subclass), TypeError, "as_subclass"),
    "complex32": (lambda: torch.ones(2, dtype=torch.complex32), TypeError, "complex32"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged), TypeError, "nested"),
}


class Subclass(torch.Tensor):
    pass


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("kind", REFUSED_TENSORS)
@pytest.mark.parametrize("to", ["numpy", "jax"])
def test_tensors_without_plain_memory_are_errors_by_path(kind, to):
    make, error, said = REFUSED_TENSORS[kind]
    with pytest.raises(error, match=rf"\['a'\]\[0\].*{said}"):
        fl.to_array({"a": [make()]}, to)


def test_an_unknown_library_is_an_error():
    with pytest.raises(ValueError, match="to='tensorflow': write 'numpy', 'jax' or 'cupy'"):
        fl.to_array(torch.ones(1), "tensorflow")


@pytest.mark.parametrize("to", ["jax", "cupy", "ml_dtypes"])
def test_a_missing_package_says_how_to_get_it(to, monkeypatch):
    monkeypatch.setitem(sys.modules, to, None)
    if to == "ml_dtypes":
        with pytest.raises(TypeError, match=r"pip install ml_dtypes, or .*f32"):
            fl.to_array(torch.ones(1).bfloat16())
    else:
        said = {"jax": r"pip install 'fluxlike\[jax\]'", "cupy": "pip install cupy"}[to]
        with pytest.raises(ImportError, match=said):
            fl.to_array(torch.ones(1), to)


def test_cupy_is_asked_by_dlpack(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(from_dlpack=np.from_dlpack))
    t = torch.ones(3)
    assert fl.to_array([t], "cupy")[0].ctypes.data == t.data_ptr()
    assert fl.to_array([t], "cupy", copy=True)[0].ctypes.data != t.data_ptr()

    def refuses(x: Any) -> Any:
        raise BufferError("CPU")

    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(from_dlpack=refuses))
    with pytest.raises(TypeError, match=r"CuPy can't take \[0\].*CPU.*fluxlike\.gpu"):
        fl.to_array([t], "cupy")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_tensor_on_a_gpu_is_copied_to_numpy_or_an_error():
    t = torch.arange(3.0, device="cuda")
    assert fl.to_array(t).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="main memory"):
        fl.to_array(t, copy=False)
    shared = torch.from_dlpack(t)
    with pytest.raises(ValueError, match="does not own alone"):
        fl.update(fl.setup(fl.Descent(), {"w": shared}), {"w": shared}, {"w": t}, donate=True)
