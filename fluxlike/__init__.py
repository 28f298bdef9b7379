"""fluxlike: models as plain trees of parameters, for PyTorch.

grads = fl.gradient(loss, model, x, y)
model, state = fl.update(state, model, grads)
"""

from typing import TYPE_CHECKING

from fluxlike import bridges
from fluxlike.optimisers import rule
from fluxlike.rooms import room
from fluxlike.transforms.engine import motors
from fluxlike.trees import html, show

if TYPE_CHECKING:
    from fluxlike import data, distributed, init, losses, models, random, schedules
    from fluxlike.bridges.arrays.convert import from_array, to_array
    from fluxlike.bridges.foreign_files.flax import load_flax, read_flax
    from fluxlike.bridges.foreign_files.flux import load_flux, read_flux
    from fluxlike.bridges.foreign_files.keras import load_keras, read_keras
    from fluxlike.bridges.jax.from_jax import from_jax
    from fluxlike.bridges.jax.to_jax import to_jax
    from fluxlike.bridges.torch_modules.from_torch import from_torch
    from fluxlike.bridges.torch_modules.node import TorchModule
    from fluxlike.bridges.torch_modules.to_torch import to_torch
    from fluxlike.bridges.torch_optimisers.convert import from_torch_optimiser, to_torch_optimiser
    from fluxlike.data.folds import kfolds, shuffleobs
    from fluxlike.data.labels import onecold, onehot, onehotbatch
    from fluxlike.data.loader import DataLoader
    from fluxlike.data.observations import splitobs
    from fluxlike.deployment.compiled import Inference, inference
    from fluxlike.deployment.fold import fold_batchnorm
    from fluxlike.files.checkpoints import load_checkpoint, match_checkpoint, read_checkpoint
    from fluxlike.files.report import CheckpointMatch
    from fluxlike.files.tensors import load, save
    from fluxlike.init.by_type import reinit
    from fluxlike.inspect.autosize import autosize
    from fluxlike.inspect.outputsize import outputsize
    from fluxlike.inspect.summary import summary
    from fluxlike.layers.activations import (
        celu,
        elu,
        flatten,
        gelu,
        gelu_tanh,
        glu,
        hardshrink,
        hardsigmoid,
        hardswish,
        hardtanh,
        identity,
        leaky_relu,
        log_softmax,
        logsigmoid,
        mish,
        relu,
        relu6,
        selu,
        sigmoid,
        silu,
        softmax,
        softplus,
        softshrink,
        softsign,
        swish,
        tanh,
        tanhshrink,
    )
    from fluxlike.layers.adaptive_pool import AdaptiveMaxPool, AdaptiveMeanPool
    from fluxlike.layers.attention.cache import KVCache
    from fluxlike.layers.attention.multihead import MultiHeadAttention
    from fluxlike.layers.attention.positions import RotaryEmbedding, SinusoidalEmbedding
    from fluxlike.layers.attention.transformer import TransformerBlock, TransformerDecoderBlock
    from fluxlike.layers.auto import auto, autosized
    from fluxlike.layers.basic import Bilinear, Dense, Scale
    from fluxlike.layers.batchnorm import BatchNorm
    from fluxlike.layers.compose import Chain, SkipConnection
    from fluxlike.layers.conv import Conv, CrossCor, DepthwiseConv
    from fluxlike.layers.conv_transpose import ConvTranspose
    from fluxlike.layers.dropout import AlphaDropout, Dropout, DropPath
    from fluxlike.layers.embedding import Embedding, EmbeddingBag
    from fluxlike.layers.errors import LayerError
    from fluxlike.layers.global_pool import GlobalMaxPool, GlobalMeanPool
    from fluxlike.layers.groupnorm import GroupNorm, InstanceNorm
    from fluxlike.layers.layernorm import LayerNorm, RMSNorm
    from fluxlike.layers.layouts import convert_layout, foreign_state, load_foreign_state, parameter_rule
    from fluxlike.layers.padding import SamePad
    from fluxlike.layers.parallel import Maxout, PairwiseFusion, Parallel
    from fluxlike.layers.pool import LPPool, MaxPool, MeanPool
    from fluxlike.layers.prelu import PReLU
    from fluxlike.layers.recurrent.cells import GRUCell, LSTMCell, RNNCell
    from fluxlike.layers.recurrent.layers import GRU, LSTM, RNN
    from fluxlike.layers.recurrent.recurrence import Recurrence
    from fluxlike.layers.reparametrise import SpectralNorm, WeightNorm
    from fluxlike.layers.resize import PixelShuffle, PixelUnshuffle, Upsample
    from fluxlike.learning import callbacks, logs, metrics
    from fluxlike.learning.callback import Callback
    from fluxlike.learning.events import CallbackError, CancelEpoch, CancelFit, CancelStep
    from fluxlike.learning.find_lr import RateSearch, find_lr
    from fluxlike.learning.finetune import finetune
    from fluxlike.learning.fit import fit
    from fluxlike.learning.history.history import History
    from fluxlike.learning.interpretation.interpret import Interpretation, interpret
    from fluxlike.learning.interpretation.show import show_predictions
    from fluxlike.learning.learner import Learner
    from fluxlike.learning.one_cycle import fit_one_cycle
    from fluxlike.learning.phase import Phase, TrainingPhase, ValidationPhase
    from fluxlike.learning.resume import load_learner
    from fluxlike.learning.step import Step
    from fluxlike.learning.train import train
    from fluxlike.learning.validate import validate
    from fluxlike.optimisers.adjust import adjust, freeze, thaw
    from fluxlike.optimisers.averages import EMA, Lookahead, averaged
    from fluxlike.optimisers.links import (
        AccumGrad,
        ClipGlobalNorm,
        ClipGrad,
        ClipNorm,
        SignDecay,
        WeightDecay,
    )
    from fluxlike.optimisers.rule import Rule
    from fluxlike.optimisers.rules.adam import (
        AdaBelief,
        Adam,
        AdaMax,
        AdamW,
        AMSGrad,
        Lamb,
        NAdam,
        OAdam,
        RAdam,
    )
    from fluxlike.optimisers.rules.adaptive import AdaDelta, AdaGrad, RMSProp
    from fluxlike.optimisers.rules.descent import Descent, Momentum, Nesterov
    from fluxlike.optimisers.rules.matrix import Adafactor, Muon
    from fluxlike.optimisers.rules.schedule_free import ScheduleFree
    from fluxlike.optimisers.rules.sign import Lion, Rprop
    from fluxlike.optimisers.state import ParamState, setup
    from fluxlike.optimisers.update import steps, update
    from fluxlike.optimisers.wrappers import ApplyIfFinite, MixedPrecision, OptimiserChain, Scheduled
    from fluxlike.placement.batches import batch_first, batch_last
    from fluxlike.placement.device import cpu, get_device, gpu, to_device
    from fluxlike.placement.dtype import bf16, f16, f32, f64, stays_float32
    from fluxlike.placement.layout import Layout, permute
    from fluxlike.placement.layout_rules import layout_rule
    from fluxlike.placement.memory_format import channels_last, contiguous
    from fluxlike.scope.assigned import assign, current
    from fluxlike.scope.key import Key
    from fluxlike.scope.mode import automode, mode, testmode, training, trainmode
    from fluxlike.scope.seeded import seeded
    from fluxlike.transforms.activations import activations
    from fluxlike.transforms.checkpoint import checkpoint
    from fluxlike.transforms.control.cond import cond
    from fluxlike.transforms.control.scan import scan
    from fluxlike.transforms.custom import custom_gradient, stop_gradient
    from fluxlike.transforms.gradient import gradient, withgradient
    from fluxlike.transforms.jacobian import jacobian
    from fluxlike.transforms.jit.function import jit
    from fluxlike.transforms.per_example import per_example_gradient
    from fluxlike.transforms.pullback import pullback
    from fluxlike.transforms.purity.check import check_pure
    from fluxlike.transforms.pushforward import pushforward
    from fluxlike.transforms.second_order import diaghessian, hessian, hvp
    from fluxlike.transforms.updates import apply_updates, withupdates
    from fluxlike.transforms.vmap import vmap
    from fluxlike.trees import algebra as tree
    from fluxlike.trees.at import at
    from fluxlike.trees.destructure import destructure
    from fluxlike.trees.fmap import children, fleaves, fmap, fmap_with_path
    from fluxlike.trees.functor import functor, leaf
    from fluxlike.trees.leaves import Assigned
    from fluxlike.trees.nonfinite import find_nonfinite
    from fluxlike.trees.stack import stack, unstack
    from fluxlike.trees.state_dict import load_state_dict, state_dict
    from fluxlike.trees.trainables import combine, partition, trainables

__version__ = "0.1.0"

#: Where the public names are, below this package: each is imported when it is used first.
_HOMES = {
    "bridges.arrays.convert": "from_array to_array",
    "bridges.foreign_files.flax": "load_flax read_flax",
    "bridges.foreign_files.flux": "load_flux read_flux",
    "bridges.foreign_files.keras": "load_keras read_keras",
    "bridges.jax.from_jax": "from_jax",
    "bridges.jax.to_jax": "to_jax",
    "bridges.torch_modules.from_torch": "from_torch",
    "bridges.torch_modules.node": "TorchModule",
    "bridges.torch_modules.to_torch": "to_torch",
    "bridges.torch_optimisers.convert": "from_torch_optimiser to_torch_optimiser",
    "data": "data",
    "data.folds": "kfolds shuffleobs",
    "data.labels": "onecold onehot onehotbatch",
    "data.loader": "DataLoader",
    "data.observations": "splitobs",
    "deployment.compiled": "Inference inference",
    "deployment.fold": "fold_batchnorm",
    "distributed": "distributed",
    "files.checkpoints": "load_checkpoint match_checkpoint read_checkpoint",
    "files.report": "CheckpointMatch",
    "files.tensors": "load save",
    "init": "init",
    "init.by_type": "reinit",
    "inspect.autosize": "autosize",
    "inspect.outputsize": "outputsize",
    "inspect.summary": "summary",
    "layers.activations": (
        "celu elu flatten gelu gelu_tanh glu hardshrink hardsigmoid hardswish "
        "hardtanh identity leaky_relu log_softmax logsigmoid mish relu relu6 selu sigmoid "
        "silu softmax softplus softshrink softsign swish tanh tanhshrink"
    ),
    "layers.adaptive_pool": "AdaptiveMaxPool AdaptiveMeanPool",
    "layers.attention.cache": "KVCache",
    "layers.attention.multihead": "MultiHeadAttention",
    "layers.attention.positions": "RotaryEmbedding SinusoidalEmbedding",
    "layers.attention.transformer": "TransformerBlock TransformerDecoderBlock",
    "layers.auto": "auto autosized",
    "layers.basic": "Bilinear Dense Scale",
    "layers.batchnorm": "BatchNorm",
    "layers.compose": "Chain SkipConnection",
    "layers.conv": "Conv CrossCor DepthwiseConv",
    "layers.conv_transpose": "ConvTranspose",
    "layers.dropout": "AlphaDropout DropPath Dropout",
    "layers.embedding": "Embedding EmbeddingBag",
    "layers.errors": "LayerError",
    "layers.global_pool": "GlobalMaxPool GlobalMeanPool",
    "layers.groupnorm": "GroupNorm InstanceNorm",
    "layers.layernorm": "LayerNorm RMSNorm",
    "layers.layouts": "convert_layout foreign_state load_foreign_state parameter_rule",
    "layers.padding": "SamePad",
    "layers.parallel": "Maxout PairwiseFusion Parallel",
    "layers.pool": "LPPool MaxPool MeanPool",
    "layers.prelu": "PReLU",
    "layers.recurrent.cells": "GRUCell LSTMCell RNNCell",
    "layers.recurrent.layers": "GRU LSTM RNN",
    "layers.recurrent.recurrence": "Recurrence",
    "layers.reparametrise": "SpectralNorm WeightNorm",
    "layers.resize": "PixelShuffle PixelUnshuffle Upsample",
    "learning.callback": "Callback",
    "learning.callbacks": "callbacks",
    "learning.events": "CallbackError CancelEpoch CancelFit CancelStep",
    "learning.find_lr": "RateSearch find_lr",
    "learning.finetune": "finetune",
    "learning.fit": "fit",
    "learning.history.history": "History",
    "learning.interpretation.interpret": "Interpretation interpret",
    "learning.interpretation.show": "show_predictions",
    "learning.learner": "Learner",
    "learning.logs": "logs",
    "learning.metrics": "metrics",
    "learning.one_cycle": "fit_one_cycle",
    "learning.phase": "Phase TrainingPhase ValidationPhase",
    "learning.resume": "load_learner",
    "learning.step": "Step",
    "learning.train": "train",
    "learning.validate": "validate",
    "losses": "losses",
    "models": "models",
    "optimisers.adjust": "adjust freeze thaw",
    "optimisers.averages": "EMA Lookahead averaged",
    "optimisers.links": "AccumGrad ClipGlobalNorm ClipGrad ClipNorm SignDecay WeightDecay",
    "optimisers.rule": "Rule",
    "optimisers.rules.adam": "AMSGrad AdaBelief AdaMax Adam AdamW Lamb NAdam OAdam RAdam",
    "optimisers.rules.adaptive": "AdaDelta AdaGrad RMSProp",
    "optimisers.rules.descent": "Descent Momentum Nesterov",
    "optimisers.rules.matrix": "Adafactor Muon",
    "optimisers.rules.schedule_free": "ScheduleFree",
    "optimisers.rules.sign": "Lion Rprop",
    "optimisers.state": "ParamState setup",
    "optimisers.update": "steps update",
    "optimisers.wrappers": "ApplyIfFinite MixedPrecision OptimiserChain Scheduled",
    "placement.batches": "batch_first batch_last",
    "placement.device": "cpu get_device gpu to_device",
    "placement.dtype": "bf16 f16 f32 f64 stays_float32",
    "placement.layout": "Layout permute",
    "placement.layout_rules": "layout_rule",
    "placement.memory_format": "channels_last contiguous",
    "random": "random",
    "schedules": "schedules",
    "scope.assigned": "assign current",
    "scope.key": "Key",
    "scope.mode": "automode mode testmode training trainmode",
    "scope.seeded": "seeded",
    "transforms.activations": "activations",
    "transforms.checkpoint": "checkpoint",
    "transforms.control.cond": "cond",
    "transforms.control.scan": "scan",
    "transforms.custom": "custom_gradient stop_gradient",
    "transforms.gradient": "gradient withgradient",
    "transforms.jacobian": "jacobian",
    "transforms.jit.function": "jit",
    "transforms.per_example": "per_example_gradient",
    "transforms.pullback": "pullback",
    "transforms.purity.check": "check_pure",
    "transforms.pushforward": "pushforward",
    "transforms.second_order": "diaghessian hessian hvp",
    "transforms.updates": "apply_updates withupdates",
    "transforms.vmap": "vmap",
    "trees.algebra": "tree",
    "trees.at": "at",
    "trees.destructure": "destructure",
    "trees.fmap": "children fleaves fmap fmap_with_path",
    "trees.functor": "functor leaf",
    "trees.leaves": "Assigned",
    "trees.nonfinite": "find_nonfinite",
    "trees.stack": "stack unstack",
    "trees.state_dict": "load_state_dict state_dict",
    "trees.trainables": "combine partition trainables",
}
_MODULES = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names.split()}
_REGISTER = (bridges, html, motors, rule, show)  # what they tell lower floors must be known from the start

__all__ = [
    "AMSGrad",
    "AccumGrad",
    "AdaBelief",
    "AdaDelta",
    "AdaGrad",
    "AdaMax",
    "Adafactor",
    "Adam",
    "AdamW",
    "AdaptiveMaxPool",
    "AdaptiveMeanPool",
    "AlphaDropout",
    "ApplyIfFinite",
    "Assigned",
    "BatchNorm",
    "Bilinear",
    "Callback",
    "CallbackError",
    "CancelEpoch",
    "CancelFit",
    "CancelStep",
    "Chain",
    "CheckpointMatch",
    "ClipGlobalNorm",
    "ClipGrad",
    "ClipNorm",
    "Conv",
    "ConvTranspose",
    "CrossCor",
    "DataLoader",
    "Dense",
    "DepthwiseConv",
    "Descent",
    "DropPath",
    "Dropout",
    "EMA",
    "Embedding",
    "EmbeddingBag",
    "GRU",
    "GRUCell",
    "GlobalMaxPool",
    "GlobalMeanPool",
    "GroupNorm",
    "History",
    "Inference",
    "InstanceNorm",
    "Interpretation",
    "KVCache",
    "Key",
    "LPPool",
    "LSTM",
    "LSTMCell",
    "Lamb",
    "LayerError",
    "LayerNorm",
    "Layout",
    "Learner",
    "Lion",
    "Lookahead",
    "MaxPool",
    "Maxout",
    "MeanPool",
    "MixedPrecision",
    "Momentum",
    "MultiHeadAttention",
    "Muon",
    "NAdam",
    "Nesterov",
    "OAdam",
    "OptimiserChain",
    "PReLU",
    "PairwiseFusion",
    "Parallel",
    "ParamState",
    "Phase",
    "PixelShuffle",
    "PixelUnshuffle",
    "RAdam",
    "RMSNorm",
    "RMSProp",
    "RNN",
    "RNNCell",
    "RateSearch",
    "Recurrence",
    "RotaryEmbedding",
    "Rprop",
    "Rule",
    "SamePad",
    "Scale",
    "ScheduleFree",
    "Scheduled",
    "SignDecay",
    "SinusoidalEmbedding",
    "SkipConnection",
    "SpectralNorm",
    "Step",
    "TorchModule",
    "TrainingPhase",
    "TransformerBlock",
    "TransformerDecoderBlock",
    "Upsample",
    "ValidationPhase",
    "WeightDecay",
    "WeightNorm",
    "activations",
    "adjust",
    "apply_updates",
    "assign",
    "at",
    "auto",
    "automode",
    "autosize",
    "autosized",
    "averaged",
    "batch_first",
    "batch_last",
    "bf16",
    "callbacks",
    "celu",
    "channels_last",
    "check_pure",
    "checkpoint",
    "children",
    "combine",
    "cond",
    "contiguous",
    "convert_layout",
    "cpu",
    "current",
    "custom_gradient",
    "data",
    "destructure",
    "diaghessian",
    "distributed",
    "elu",
    "f16",
    "f32",
    "f64",
    "find_lr",
    "find_nonfinite",
    "finetune",
    "fit",
    "fit_one_cycle",
    "flatten",
    "fleaves",
    "fmap",
    "fmap_with_path",
    "fold_batchnorm",
    "foreign_state",
    "freeze",
    "from_array",
    "from_jax",
    "from_torch",
    "from_torch_optimiser",
    "functor",
    "gelu",
    "gelu_tanh",
    "get_device",
    "glu",
    "gpu",
    "gradient",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "hessian",
    "hvp",
    "identity",
    "inference",
    "init",
    "interpret",
    "jacobian",
    "jit",
    "kfolds",
    "layout_rule",
    "leaf",
    "leaky_relu",
    "load",
    "load_checkpoint",
    "load_flax",
    "load_flux",
    "load_foreign_state",
    "load_keras",
    "load_learner",
    "load_state_dict",
    "log_softmax",
    "logs",
    "logsigmoid",
    "losses",
    "match_checkpoint",
    "metrics",
    "mish",
    "mode",
    "models",
    "onecold",
    "onehot",
    "onehotbatch",
    "outputsize",
    "parameter_rule",
    "partition",
    "per_example_gradient",
    "permute",
    "pullback",
    "pushforward",
    "random",
    "read_checkpoint",
    "read_flax",
    "read_flux",
    "read_keras",
    "reinit",
    "relu",
    "relu6",
    "save",
    "scan",
    "schedules",
    "seeded",
    "selu",
    "setup",
    "show_predictions",
    "shuffleobs",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "softshrink",
    "softsign",
    "splitobs",
    "stack",
    "state_dict",
    "stays_float32",
    "steps",
    "stop_gradient",
    "summary",
    "swish",
    "tanh",
    "tanhshrink",
    "testmode",
    "thaw",
    "to_array",
    "to_device",
    "to_jax",
    "to_torch",
    "to_torch_optimiser",
    "train",
    "trainables",
    "training",
    "trainmode",
    "tree",
    "unstack",
    "update",
    "validate",
    "vmap",
    "withgradient",
    "withupdates",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = room(__name__, __all__, _MODULES)
