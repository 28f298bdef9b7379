"""Real Keras and Flax compute what a model of ours does with their weights.

`recorded.npz` holds weights, inputs and outputs of Keras 3.15.1 (on JAX 0.10.2) and Flax 0.12.8, written by

    import os; os.environ["KERAS_BACKEND"] = "jax"
    import flax, flax.linen as nn, jax, keras, numpy as np
    from keras import layers as L

    rng, arrays = np.random.default_rng(0), {}
    draw = lambda shape: (rng.normal(size=shape) / 2).astype("float32")
    image, sequence = draw((2, 5, 4, 4)), draw((2, 3, 4))

    def record_keras(name, x, *layers):
        inputs = keras.Input(x.shape[1:])
        y = inputs
        for layer in layers:
            y = layer(y, y) if isinstance(layer, L.MultiHeadAttention) else layer(y)
        model = keras.Model(inputs, y)
        for w in model.weights:
            w.assign(draw(w.shape) ** 2 + 0.1 if "variance" in w.path else draw(w.shape))
            arrays[f"keras/{name}/{w.path}"] = np.asarray(w)
        arrays[f"keras/{name}"] = np.asarray(model(x))

    def record_flax(name, x, f):
        class Net(nn.Module):
            call = nn.compact(lambda self, x: f(x))
            __call__ = call
        variables = Net().init(jax.random.PRNGKey(0), x)
        variables = jax.tree_util.tree_map(lambda w: draw(w.shape) ** 2 + 0.1, variables)
        for path, w in flax.traverse_util.flatten_dict(variables, sep="/").items():
            arrays[f"flax/{name}/{path}"] = np.asarray(w)
        arrays[f"flax/{name}"] = np.asarray(Net().apply(variables, x))

    record_keras("flattened", image, L.Conv2D(3, (3, 2), activation="relu"), L.Flatten(), L.Dense(2))
    record_keras("grouped", image, L.Conv2D(4, (3, 2), groups=2))
    record_keras("depthwise", image, L.DepthwiseConv2D((3, 2), depth_multiplier=2))
    record_keras("transposed", image, L.Conv2DTranspose(3, (3, 2), strides=2))
    record_keras("normalised", image, L.BatchNormalization(), L.GroupNormalization(2))
    record_keras("layernorm", image, L.LayerNormalization(axis=(1, 2, 3)))
    record_keras("layernorm1d", sequence, L.LayerNormalization(axis=(1, 2)))
    record_keras("lstm", sequence, L.LSTM(3, return_sequences=True))
    record_keras("gru", sequence, L.Bidirectional(L.GRU(3, return_sequences=True)))
    record_keras("rnn", sequence, L.SimpleRNN(3, return_sequences=True))
    record_keras("attention", sequence, L.MultiHeadAttention(2, 2))
    record_flax("flattened", image, lambda x: nn.Dense(2)(
        nn.relu(nn.Conv(3, (3, 2), padding="VALID")(x)).reshape(2, -1)))
    record_flax("transposed", image, lambda x: nn.ConvTranspose(3, (3, 2), (2, 2), padding="VALID")(x))
    record_flax("normalised", image, lambda x: nn.GroupNorm(2)(nn.BatchNorm(use_running_average=True)(x)))
    record_flax("lstm", sequence, lambda x: nn.RNN(nn.LSTMCell(3))(x))
    record_flax("gru", sequence, lambda x: nn.RNN(nn.GRUCell(3))(x))
    record_flax("rnn", sequence, lambda x: nn.RNN(nn.SimpleCell(3))(x))
    record_flax("attention", sequence, lambda x: nn.MultiHeadDotProductAttention(2)(x, x))
    arrays |= {"image": image, "sequence": sequence}
    flat = np.concatenate([a.ravel() for a in arrays.values()])
    shapes = "\n".join(f"{name} {' '.join(map(str, a.shape))}" for name, a in arrays.items())
    np.savez_compressed("recorded.npz", flat=flat, shapes=shapes)
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import fluxlike as fl


def recorded():
    file = np.load(Path(__file__).parent / "recorded.npz")
    arrays, start = {}, 0
    for line in str(file["shapes"]).splitlines():
        name, *shape = line.split()
        shape = tuple(map(int, shape))
        arrays[name] = file["flat"][start : start + np.prod(shape)].reshape(shape)
        start += np.prod(shape)
    return arrays


ARRAYS = recorded()
IMAGE, SEQUENCE = (torch.from_numpy(ARRAYS[name].copy()) for name in ("image", "sequence"))
FLATTENED = (fl.Conv((3, 2), 4, 3, fl.relu), fl.flatten, fl.Dense(27, 2))

IMAGES = {
    "keras/flattened": FLATTENED,
    "keras/grouped": [fl.Conv((3, 2), 4, 4, groups=2)],
    "keras/depthwise": [fl.DepthwiseConv((3, 2), 4, 8)],
    "keras/transposed": [fl.ConvTranspose((3, 2), 4, 3, stride=2)],
    "keras/normalised": [fl.BatchNorm(4, eps=1e-3), fl.GroupNorm(4, 2, eps=1e-3)],
    "keras/layernorm": [fl.LayerNorm((4, 5, 4), eps=1e-3)],
    "flax/flattened": FLATTENED,
    "flax/transposed": [fl.ConvTranspose((3, 2), 4, 3, stride=2)],
    "flax/normalised": [fl.BatchNorm(4), fl.GroupNorm(4, 2, eps=1e-6)],
}
SEQUENCES = {
    "keras/lstm": [fl.LSTM(4, 3)],
    "keras/gru": [fl.GRU(4, 3, bidirectional=True)],
    "keras/rnn": [fl.RNN(4, 3)],
    "keras/attention": [fl.MultiHeadAttention(4, 2)],
    "flax/lstm": [fl.LSTM(4, 3)],
    "flax/gru": [fl.GRU(4, 3)],
    "flax/rnn": [fl.RNN(4, 3)],
    "flax/attention": [fl.MultiHeadAttention(4, 2)],
}


def named(case):
    """The weights of a case by their names, as Keras' ``w.path`` or flattened variables of Flax."""
    return {k.removeprefix(f"{case}/"): x for k, x in ARRAYS.items() if k.startswith(f"{case}/")}


def agrees(case, layers, state, x, back=lambda y: y):
    framework = case.split("/")[0]
    inputs = x if case.endswith("flattened") else None
    model = fl.load_foreign_state(fl.Chain(*layers), state, framework, inputs=inputs)
    np.testing.assert_allclose(back(model(x)).numpy(), ARRAYS[case], rtol=1e-4, atol=1e-5)


def channels_last(y):
    return y.movedim(1, -1) if y.ndim > 2 else y


@pytest.mark.parametrize("case", IMAGES)
def test_images_by_name(case):
    agrees(case, IMAGES[case], named(case), IMAGE.movedim(-1, 1), channels_last)


@pytest.mark.parametrize("case", [case for case in IMAGES if case.startswith("keras")])
def test_images_by_the_order_of_get_weights(case):
    agrees(case, IMAGES[case], list(named(case).values()), IMAGE.movedim(-1, 1), channels_last)


@pytest.mark.parametrize("case", SEQUENCES)
def test_sequences_by_name(case):
    agrees(case, SEQUENCES[case], named(case), SEQUENCE)


@pytest.mark.parametrize("case", [case for case in SEQUENCES if case.startswith("keras")])
def test_sequences_by_the_order_of_get_weights(case):
    agrees(case, SEQUENCES[case], list(named(case).values()), SEQUENCE)


def test_a_scale_of_channels_and_length():
    layers, case = [fl.LayerNorm((4, 3), eps=1e-3)], "keras/layernorm1d"
    agrees(case, layers, named(case), SEQUENCE.movedim(-1, 1), lambda y: y.movedim(1, -1))


@pytest.mark.parametrize("case", [*IMAGES, *SEQUENCES])
def test_what_is_written_has_their_shapes_and_numbers(case):
    framework = case.split("/")[0]
    x = IMAGE.movedim(-1, 1) if case.endswith("flattened") else None
    model = fl.load_foreign_state(fl.Chain(*{**IMAGES, **SEQUENCES}[case]), named(case), framework, inputs=x)
    again = fl.fleaves(fl.foreign_state(model, framework, inputs=x))
    assert sorted(map(entries, again)) == sorted(entries(torch.from_numpy(a)) for a in named(case).values())


def entries(a):
    return tuple(a.shape), a.flatten().tolist()
