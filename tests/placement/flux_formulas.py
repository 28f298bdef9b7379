"""What layers compute in Flux, Keras and Flax, by explicit sums over arrays in their own layouts."""

from itertools import product

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def flux_conv(x, w, b, stride=1, groups=1, flipped=True):
    """A true convolution of (W, H, C, N) with (kw, kh, C / groups, O); CrossCor does not flip."""
    kw, kh, each, out = w.shape
    sizes = [(n - k) // stride + 1 for n, k in zip(x.shape, (kw, kh), strict=False)]
    y = np.zeros((*sizes, out, x.shape[3]), x.dtype)
    for i, j, o in product(*map(range, y.shape[:3])):
        first = o // (out // groups) * each
        for p, q in product(range(kw), range(kh)):
            u, v = (kw - 1 - p, kh - 1 - q) if flipped else (p, q)
            y[i, j, o] += w[p, q, :, o] @ x[i * stride + u, j * stride + v, first : first + each]
    return y + b[None, None, :, None]


def flux_conv_transpose(x, w, b, stride=1):
    """The gradient of `flux_conv`: (W, H, I, N) with (kw, kh, O, I)."""
    kw, kh, out, _ = w.shape
    sizes = [(n - 1) * stride + k for n, k in zip(x.shape, (kw, kh), strict=False)]
    y = np.zeros((*sizes, out, x.shape[3]), x.dtype)
    for i, j, p, q in product(range(x.shape[0]), range(x.shape[1]), range(kw), range(kh)):
        y[i * stride + kw - 1 - p, j * stride + kh - 1 - q] += w[p, q] @ x[i, j]
    return y + b[None, None, :, None]


def flux_flatten(x):
    """(W, H, C, N) → (W·H·C, N), column by column as Julia's memory is."""
    return x.reshape(-1, x.shape[-1], order="F")


def flux_dense(x, w, b):
    return w @ x + b[:, None]


def flux_batchnorm(x, scale, shift, mean, var, eps=1e-5):
    shape = (*[1] * (x.ndim - 2), -1, 1)
    scale, shift, mean, var = (a.reshape(shape) for a in (scale, shift, mean, var))
    return (x - mean) / np.sqrt(var + eps) * scale + shift


def flux_lstm(xs, wi, wh, b):
    """(C, L, N) → (H, L, N): gates i, f, g, o under each other, one bias."""
    h = c = np.zeros((wh.shape[1], xs.shape[2]))
    hs = []
    for t in range(xs.shape[1]):
        i, f, g, o = np.split(wi @ xs[:, t] + wh @ h + b[:, None], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        hs.append(h)
    return np.stack(hs, 1)


def flux_gru(xs, wi, wh, b):
    """(C, L, N) → (H, L, N): gates r, z, n; the bias of n is outside of what r multiplies."""
    h = np.zeros((wh.shape[1], xs.shape[2]))
    hs = []
    for t in range(xs.shape[1]):
        xr, xz, xn = np.split(wi @ xs[:, t] + b[:, None], 3)
        hr, hz, hn = np.split(wh @ h, 3)
        z = sigmoid(xz + hz)
        h = (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * h
        hs.append(h)
    return np.stack(hs, 1)


def flux_rnn(xs, wi, wh, b):
    h = np.zeros((wh.shape[1], xs.shape[2]))
    hs = []
    for t in range(xs.shape[1]):
        h = np.tanh(wi @ xs[:, t] + wh @ h + b[:, None])
        hs.append(h)
    return np.stack(hs, 1)


def flux_attention(x, q, k, v, out, heads):
    """(D, L, N): projections are (D, D), features of a head lie next to each other."""
    size = x.shape[0] // heads
    y = np.zeros_like(x)
    for n, head in product(range(x.shape[2]), range(heads)):
        rows = slice(head * size, (head + 1) * size)
        scores = (k[rows] @ x[:, :, n]).T @ (q[rows] @ x[:, :, n]) / np.sqrt(size)
        weights = np.exp(scores) / np.exp(scores).sum(0)
        y[rows, :, n] = v[rows] @ x[:, :, n] @ weights
    return np.einsum("od,dln->oln", out, y)


def nhwc_conv(x, w, b, groups=1):
    """A correlation of (N, H, W, C) with (kh, kw, C / groups, O)."""
    kh, kw, each, out = w.shape
    y = np.zeros((x.shape[0], x.shape[1] - kh + 1, x.shape[2] - kw + 1, out), x.dtype)
    for i, j, o in product(*map(range, y.shape[1:])):
        first = o // (out // groups) * each
        y[:, i, j, o] = np.einsum(
            "npqc,pqc->n", x[:, i : i + kh, j : j + kw, first : first + each], w[..., o]
        )
    return y + b


def nhwc_depthwise(x, w, b):
    """Keras: (N, H, W, C) with (kh, kw, C, M) → channel c·M + m."""
    kh, kw, channels, m = w.shape
    y = np.zeros((x.shape[0], x.shape[1] - kh + 1, x.shape[2] - kw + 1, channels * m), x.dtype)
    for i, j, c, k in product(range(y.shape[1]), range(y.shape[2]), range(channels), range(m)):
        y[:, i, j, c * m + k] = np.einsum("npq,pq->n", x[:, i : i + kh, j : j + kw, c], w[:, :, c, k])
    return y + b


def flax_conv_transpose(x, w, b, stride):
    """Flax: (N, H, W, I) with (kh, kw, I, O): a correlation of the input spread out by zeros."""
    kh, kw, _, _ = w.shape
    n, height, width, channels = x.shape
    spread = np.zeros((n, (height - 1) * stride + 1, (width - 1) * stride + 1, channels))
    spread[:, ::stride, ::stride] = x
    padded = np.pad(spread, ((0, 0), (kh - 1, kh - 1), (kw - 1, kw - 1), (0, 0)))
    return nhwc_conv(padded, w, b)


def keras_conv_transpose(x, w, b, stride):
    """Keras: (N, H, W, I) with (kh, kw, O, I): each input lays the kernel down, as it is."""
    kh, kw, out, _ = w.shape
    n, height, width, _ = x.shape
    y = np.zeros((n, (height - 1) * stride + kh, (width - 1) * stride + kw, out))
    for i, j, p, q in product(range(height), range(width), range(kh), range(kw)):
        y[:, i * stride + p, j * stride + q] += x[:, i, j] @ w[p, q].T
    return y + b


def head_attention(x, q, k, v, out):
    """Keras and Flax: (N, L, D) with kernels (D, heads, size) and (heads, size, D), each with its bias."""
    qs, ks, vs = (np.einsum("nld,dhs->nlhs", x, w) + b for w, b in (q, k, v))
    scores = np.einsum("nlhs,nmhs->nhlm", qs, ks) / np.sqrt(q[0].shape[2])
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    return np.einsum("nhlm,nmhs,hsd->nld", weights, vs, out[0]) + out[1]


def keras_lstm(xs, kernel, recurrent, bias):
    """(N, L, C) → (N, L, H): gates i, f, c, o next to each other."""
    h = c = np.zeros((xs.shape[0], recurrent.shape[0]))
    hs = []
    for t in range(xs.shape[1]):
        i, f, g, o = np.split(xs[:, t] @ kernel + h @ recurrent + bias, 4, 1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        hs.append(h)
    return np.stack(hs, 1)


def keras_gru(xs, kernel, recurrent, bias):
    """(N, L, C) → (N, L, H) with reset_after: gates z, r, h, a bias for each of the two products."""
    h = np.zeros((xs.shape[0], recurrent.shape[0]))
    hs = []
    for t in range(xs.shape[1]):
        xz, xr, xh = np.split(xs[:, t] @ kernel + bias[0], 3, 1)
        hz, hr, hh = np.split(h @ recurrent + bias[1], 3, 1)
        z = sigmoid(xz + hz)
        h = z * h + (1 - z) * np.tanh(xh + sigmoid(xr + hr) * hh)
        hs.append(h)
    return np.stack(hs, 1)


def flax_lstm(xs, p):
    """(N, L, C) → (N, L, H): a Dense for each gate and input; those of h have the bias."""
    h = c = np.zeros((xs.shape[0], p["hi"]["bias"].shape[0]))
    hs = []
    for t in range(xs.shape[1]):
        i, f, g, o = (
            xs[:, t] @ p[f"i{gate}"]["kernel"] + h @ p[f"h{gate}"]["kernel"] + p[f"h{gate}"]["bias"]
            for gate in "ifgo"
        )
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        hs.append(h)
    return np.stack(hs, 1)


def flax_gru(xs, p):
    """(N, L, C) → (N, L, H): r and z have their bias at the input, n at both."""
    h = np.zeros((xs.shape[0], p["hn"]["bias"].shape[0]))
    hs = []
    for t in range(xs.shape[1]):
        xr, xz, xn = (xs[:, t] @ p[f"i{g}"]["kernel"] + p[f"i{g}"]["bias"] for g in "rzn")
        z = sigmoid(xz + h @ p["hz"]["kernel"])
        r = sigmoid(xr + h @ p["hr"]["kernel"])
        h = (1 - z) * np.tanh(xn + r * (h @ p["hn"]["kernel"] + p["hn"]["bias"])) + z * h
        hs.append(h)
    return np.stack(hs, 1)
