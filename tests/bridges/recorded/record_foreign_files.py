"""Writes foreign_files.zip: files that Keras and Flax wrote, with an input and the output of each model.

    python -m venv record && . record/bin/activate
    pip install keras==3.15.1 flax==0.12.8 jax==0.10.2 h5py==3.16.0 msgpack==1.2.4 safetensors==0.8.0
    python tests/bridges/recorded/record_foreign_files.py

Everything is float64, so that a parity of 1e-10 can be asked for; of Keras 1e-6, since its activations on
JAX give float32. The tests need neither Keras nor Flax.
"""

import io
import os
import tempfile
import zipfile
from pathlib import Path

os.environ |= {"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}

import flax.linen as nn
import jax
import keras
import numpy as np
from flax import nnx, serialization, traverse_util
from flax.training.train_state import TrainState
from keras import layers as L
from safetensors.flax import save_file

keras.config.set_floatx("float64")
HERE = Path(__file__).parent
rng, arrays, files = np.random.default_rng(0), {}, {}
image, sequence, tokens = (
    rng.normal(size=(2, 5, 4, 3)),
    rng.normal(size=(2, 3, 4)),
    rng.integers(7, size=(2, 3)),
)
rows = rng.normal(size=(2, 4))


def draw(shape):
    return rng.normal(size=shape) / 2


def keep(name, x, y):
    arrays[f"{name}/x"], arrays[f"{name}/y"] = np.asarray(x), np.asarray(y)


def record_keras(name, x, model, suffix=".weights.h5"):
    model(x)
    for w in model.weights:
        w.assign(draw(w.shape) ** 2 + 0.1 if "variance" in w.path else draw(w.shape))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{suffix}"
        model.save(path) if suffix == ".keras" else model.save_weights(path)
        files[f"keras/{name}{suffix}"] = path.read_bytes()
    keep(f"keras/{name}{suffix}", x, model(x))


def functional(x, *layers):
    inputs = keras.Input(x.shape[1:], dtype=x.dtype)
    y = inputs
    for layer in layers:
        y = layer(y, y) if isinstance(layer, L.MultiHeadAttention) else layer(y)
    return keras.Model(inputs, y)


class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = L.Dense(3, activation="tanh")
        self.blocks = [L.Dense(3), L.Dense(3, activation="tanh")]
        self.head = keras.Sequential([L.Dense(3, activation="relu"), L.Dense(2)])

    def call(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def small_cnn():
    return (
        L.Conv2D(4, (3, 2), activation="relu"),
        L.BatchNormalization(),
        L.Dropout(0.5),
        L.Flatten(),
        L.Dense(2),
    )


record_keras("mlp", rows, keras.Sequential([L.Dense(3, activation="tanh"), L.Dense(2)]))
record_keras("cnn", image, keras.Sequential(small_cnn()))
trained = keras.Sequential([L.Input(image.shape[1:]), *small_cnn()])
trained.compile("adam", "mse")
trained.fit(image, np.zeros((2, 2)), verbose=0)  # so that there is a state of the optimiser
record_keras("trained", image, trained, ".keras")
recurrent = [L.Bidirectional(L.LSTM(3, return_sequences=True, dropout=0.1)), L.LSTM(3, return_sequences=True)]
record_keras(
    "recurrent", sequence, functional(sequence, *recurrent, L.GRU(3, return_sequences=True), L.Dense(2))
)
attention = L.MultiHeadAttention(2, 2)
record_keras("attention", tokens, functional(tokens, L.Embedding(7, 4), attention, L.LayerNormalization()))
inner = [keras.Sequential([L.Dense(3, activation="tanh"), L.Dense(4)]) for _ in range(2)]
record_keras(
    "nested", rows, keras.Sequential([L.Dense(4), inner[0], L.Dense(4, activation="relu"), inner[1]])
)
record_keras("own_class", rows, Net())

# Enough of one class for the order of names to differ from that of numbers.
many = [L.Dense(3) for _ in range(11)]
record_keras("eleven", rows, keras.Sequential(many))


def compact(f):
    class Compact(nn.Module):
        call = nn.compact(lambda self, x: f(x))
        __call__ = call

    return Compact()


def variables_of(module, x):
    variables = module.init(jax.random.PRNGKey(0), x)
    return jax.tree_util.tree_map(lambda w: jax.numpy.asarray(draw(w.shape) ** 2 + 0.1), variables)


def record_flax(name, x, f):
    module = compact(f)
    variables = variables_of(module, x)
    files[f"flax/{name}.msgpack"] = serialization.to_bytes(variables)
    keep(f"flax/{name}.msgpack", x, module.apply(variables, x))
    return module, variables


wide = {"param_dtype": jax.numpy.float64}


def flax_cnn(x):
    x = nn.BatchNorm(use_running_average=True, **wide)(
        nn.relu(nn.Conv(4, (3, 2), padding="VALID", **wide)(x))
    )
    return nn.Dense(2, **wide)(x.reshape(len(x), -1))


def flax_mlp(x):
    x = nn.tanh(nn.Dense(3, **wide)(x))  # a line each, since Flax numbers layers as they are made
    return nn.Dense(2, **wide)(x)


record_flax("mlp", rows, flax_mlp)
module, variables = record_flax("cnn", image, flax_cnn)
flat = traverse_util.flatten_dict(variables, sep=".")
for separator, name in ((".", "dots"), ("/", "slashes")):
    with tempfile.TemporaryDirectory() as folder:
        save_file({k.replace(".", separator): w for k, w in flat.items()}, Path(folder) / "model")
        files[f"flax/{name}.safetensors"] = (Path(folder) / "model").read_bytes()
    keep(f"flax/{name}.safetensors", image, module.apply(variables, image))

import optax  # noqa: E402

mlp = compact(flax_mlp)
variables = variables_of(mlp, rows)
state = TrainState.create(apply_fn=mlp.apply, params=variables["params"], tx=optax.adam(1e-3))
files["flax/train_state.msgpack"] = serialization.to_bytes(state)
keep("flax/train_state.msgpack", rows, mlp.apply(variables, rows))

whole, serialization.MAX_CHUNK_SIZE = serialization.MAX_CHUNK_SIZE, 64
files["flax/chunked.msgpack"] = serialization.to_bytes(variables)
serialization.MAX_CHUNK_SIZE = whole
keep("flax/chunked.msgpack", rows, mlp.apply(variables, rows))

record_flax("lstm", sequence, lambda x: nn.RNN(nn.LSTMCell(3, **wide))(x))
record_flax("gru", sequence, lambda x: nn.RNN(nn.GRUCell(3, **wide))(x))


def flax_attention(x):
    x = nn.Embed(7, 4, **wide)(x)
    return nn.LayerNorm(**wide)(nn.MultiHeadDotProductAttention(2, **wide)(x, x))


record_flax("attention", tokens, flax_attention)

rngs = nnx.Rngs(0)
new = nnx.Sequential(nnx.Linear(4, 3, rngs=rngs, **wide), nnx.tanh, nnx.Linear(3, 2, rngs=rngs, **wide))
files["flax/nnx.msgpack"] = serialization.to_bytes(nnx.to_pure_dict(nnx.state(new)))
keep("flax/nnx.msgpack", rows, new(rows))

half = {
    "Dense_0": {"kernel": jax.numpy.asarray(draw((4, 2)), "bfloat16"), "bias": jax.numpy.ones(2, "bfloat16")}
}
files["flax/bfloat16.msgpack"] = serialization.to_bytes({"params": half})
keep("flax/bfloat16.msgpack", rows, np.asarray(half["Dense_0"]["kernel"].astype("float32")))
keras.config.set_dtype_policy("bfloat16")
dense = keras.Sequential([keras.Input((4,)), L.Dense(2)])
record_keras("bfloat16", rows, dense)
keep("keras/bfloat16.weights.h5", rows, np.asarray(dense.weights[0]).astype("float32"))

buffer = io.BytesIO()
np.savez(buffer, **arrays)
with zipfile.ZipFile(HERE / "foreign_files.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in {**files, "arrays.npz": buffer.getvalue()}.items():
        archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
