"""The weights of a Keras 3 model: ``.weights.h5``, or the one in a ``.keras`` archive."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from typing import Any, BinaryIO

import torch

from fluxlike.bridges.foreign_files.faults import DEEPEST, FileFault, allowance, open_file, told
from fluxlike.bridges.foreign_files.hdf5 import Hdf5, opened
from fluxlike.bridges.foreign_files.keras_models import placed
from fluxlike.bridges.foreign_files.loading import load_state

__all__ = ["load_keras", "read_keras"]

_KIND = "a file of Keras 3, model.weights.h5 or model.keras"
_WEIGHTS = "model.weights.h5"
_WRITE = 'in Keras, write model.save_weights("model.weights.h5")'
_PIECE = 1 << 20
_ALIAS = "_layer_checkpoint_dependencies"  # what the first versions called "layers"
#: Layers of layers, in the order in which get_weights() has them; HDF5 sorts by name.
_ORDERS = (
    ("forward_layer", "backward_layer"),
    ("query_dense", "key_dense", "value_dense", "output_dense"),
)


def load_keras(path: str | os.PathLike[str], /, like: Any, *, inputs: Any = None) -> Any:
    """A model with the weights of a Keras model, from a ``.weights.h5`` or a ``.keras``.

    Of a functional or sequential model, layers are matched by class and number, models in it with the
    Chains in ours, in order; of a class of one's own, by the names of its attributes. The optimiser's
    variables and the seeds of dropout are left out.

    Args:
        path: the file.
        like: a model of ours of the same layers. Settings, such as the ``eps`` of a BatchNorm, which is 1e-3
            in Keras, are its own.
        inputs: an example of the input, where a Dense follows a flatten of images, as in `convert_layout`.
            (default: there is no flatten)

    Returns:
        A model of the structure and ties of `like`, which is unchanged.

    Raises:
        ValueError: the file is damaged, or of another kind; it holds links to other files, or more than its
            size allows; or a weight is missing, left over, or of another shape or dtype, all of which are
            named at once. For a file of another precision, give ``like=fl.f64(model)`` or the like.
        FileNotFoundError: there is no such file.
        ImportError: h5py is not installed: ``pip install 'fluxlike[hdf5]'``.

    Example:
        >>> import fluxlike as fl
        >>> model = fl.Chain(fl.Dense(784, 128, fl.relu), fl.Dense(128, 10))
        >>> model = fl.load_keras("model.weights.h5", like=model)  # doctest: +SKIP
    """
    return load_state(path, like, placed(like, read_keras(path)), "keras", inputs=inputs)


def read_keras(path: str | os.PathLike[str], /) -> dict[str, Any]:
    """What a file of Keras holds, without Keras.

    For weights that have to be rearranged before `load_foreign_state` takes them, or only to look.

    Args:
        path: a ``.weights.h5`` or a ``.keras``.

    Returns:
        Nested dicts as the groups of the file are, with a list of numpy arrays for the variables of a
        layer, in the order of ``layer.get_weights()``; those of bfloat16 are tensors. The optimiser's
        variables and the seeds of dropout are left out.

    Raises:
        ValueError: as in `load_keras`.
        FileNotFoundError: there is no such file.
        ImportError: h5py is not installed: ``pip install 'fluxlike[hdf5]'``.

    Example:
        >>> import fluxlike as fl
        >>> kernel, bias = fl.read_keras("model.weights.h5")["layers"]["dense"]  # doctest: +SKIP
    """
    with open_file(path, _KIND) as file, told(os.fspath(path), _KIND):
        zipped = file.read(4) == b"PK\x03\x04"
    with opened(path, _KIND, _member(path) if zipped else None) as hdf5:
        if "layer_names" in hdf5.root.attrs or "model_weights" in hdf5.root:
            raise FileFault(f"{os.fspath(path)} is a file of Keras 2; load it in Keras 3, and {_WRITE}")
        found = _Weights(hdf5).group(hdf5.root, "", 0)
        if not isinstance(found, dict) or not found:
            raise FileFault(f"{os.fspath(path)} holds no layers; {_WRITE}")
        return found


def _member(path: str | os.PathLike[str]) -> BinaryIO:
    """The weights in an archive."""
    name, size = os.fspath(path), os.path.getsize(path)
    with told(name, _KIND):
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise FileFault(f"{name} is damaged, or not {_KIND}: {error}") from None
        with archive:
            members = [x for x in archive.infolist() if x.filename == _WEIGHTS]
            if len(members) != 1:
                found = f"with {len(members)}" if members else "without"
                raise FileFault(f"{name} is an archive {found} {_WEIGHTS}; {_WRITE}")
            return _content(archive, members[0], name, size)


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, size: int) -> BinaryIO:
    """A member of an archive of a size, never more of it than it says and may hold."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Python unpacks the others without a bound.
        method = {12: "bzip2", 14: "LZMA"}.get(member.compress_type, f"method {member.compress_type}")
        raise FileFault(f"{name}: {_WEIGHTS} is packed by {method}; Keras stores it, or deflates it")
    if member.file_size > allowance(size):
        raise FileFault(
            f"{name}: {_WEIGHTS} unpacks to {member.file_size} bytes, and an archive of {size} bytes is not "
            f"taken to hold more than {allowance(size)}; if it is yours, unpack it yourself"
        )
    content = io.BytesIO()
    try:
        with archive.open(member) as stream:
            while content.tell() < member.file_size and (part := stream.read(_PIECE)):
                content.write(part)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise FileFault(f"{name} is damaged: {error}") from None
    if content.tell() != member.file_size:
        raise FileFault(f"{name} is damaged: {_WEIGHTS} has {content.tell()} of {member.file_size} bytes")
    return content


class _Weights:
    """The groups of one file as nested dicts."""

    def __init__(self, file: Hdf5) -> None:
        self._file = file
        self._read: set[int] = set()

    def group(self, group: Any, place: str, depth: int) -> Any:
        """A dict of groups, or the list of a layer's own variables where it has no others."""
        at = self._file.address(group)
        if at in self._read:
            raise self._file.fault(place, "stands at two places, or holds itself; in Keras no group does")
        if depth > DEEPEST:
            raise self._file.fault(place, f"lies in more than {DEEPEST} groups; no model does")
        self._read.add(at)
        found: dict[str, Any] = {}
        for name, x in self._file.children(group, place):
            inner = f"{place}/{name}"
            if name == "seed_generator" or (name == "optimizer" and not place):
                continue
            if not isinstance(x, self._file.h5py.Group):
                raise self._file.fault(
                    inner, f"is no group, and {place or 'the root'} is no 'vars'; {_WRITE}"
                )
            held = self._variables(x, inner) if name == "vars" else self.group(x, inner, depth + 1)
            if held:
                found[name] = held
        if _ALIAS in found and "layers" not in found:
            found["layers"] = found.pop(_ALIAS)
        return _in_a_row(found)

    def _variables(self, group: Any, place: str) -> list[Any]:
        """The variables 0, 1, …, of a layer."""
        found = dict(self._file.children(group, place))
        names = [str(i) for i in range(len(found))]
        if set(names) != set(found):
            raise self._file.fault(place, f"holds {', '.join(found)}, and not variables 0, 1, …")
        return [self._variable(found[name], f"{place}/{name}") for name in names]

    def _variable(self, x: Any, place: str) -> Any:
        if not isinstance(x, self._file.h5py.Dataset) or x.shape is None:
            raise self._file.fault(place, "is no array")
        # Keras says so in an attribute, a text of variable length: HDF5 may hang in reading a damaged one.
        if self._file.is_opaque(x) and x.dtype.itemsize == 2:
            return torch.from_numpy(self._file.array(x, place).view("<u2").copy()).view(torch.bfloat16)
        if x.dtype.kind not in "fiub":
            raise self._file.fault(place, f"is an array of {x.dtype}, and not of numbers")
        return self._file.array(x, place)


def _in_a_row(found: dict[str, Any]) -> Any:
    """A layer's variables, and those of the layers in it in the order of get_weights()."""
    if found.keys() == {"vars"}:
        return found["vars"]
    for order in _ORDERS:
        if found and set(found) <= set(order):
            return [x for name in order for x in _flat(found.get(name))]
    return found


def _flat(found: Any) -> list[Any]:
    if isinstance(found, dict):
        return [x for inner in found.values() for x in _flat(inner)]
    return found or []
