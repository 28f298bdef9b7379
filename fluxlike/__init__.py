"""fluxlike: models as plain trees of parameters, for PyTorch.

grads = fl.gradient(loss, model, x, y)
model, state = fl.update(state, model, grads)
"""

from fluxlike import init, losses, random, schedules
from fluxlike.bridges.torch_optim import from_torch_optimiser, to_torch_optimiser
from fluxlike.data.loader import DataLoader
from fluxlike.data.observations import splitobs
from fluxlike.data.onehot import onecold, onehot, onehotbatch
from fluxlike.files.tensors import load, save
from fluxlike.layers.activations import (
    elu,
    flatten,
    gelu,
    identity,
    leaky_relu,
    log_softmax,
    relu,
    selu,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from fluxlike.layers.basic import Dense, Embedding
from fluxlike.layers.compose import Chain, SkipConnection
from fluxlike.layers.conv import Conv
from fluxlike.layers.errors import LayerError
from fluxlike.layers.normalise import BatchNorm, Dropout, LayerNorm
from fluxlike.layers.pool import (
    AdaptiveMaxPool,
    AdaptiveMeanPool,
    GlobalMaxPool,
    GlobalMeanPool,
    MaxPool,
    MeanPool,
)
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
from fluxlike.placement.device import cpu, get_device, gpu, to_device
from fluxlike.placement.dtype import bf16, f16, f32, f64, stays_float32
from fluxlike.scope.assigned import assign, current
from fluxlike.scope.key import Key, seeded
from fluxlike.scope.mode import automode, mode, testmode, training, trainmode
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
from fluxlike.trees.show import summary
from fluxlike.trees.stack import stack, unstack
from fluxlike.trees.state_dict import load_state_dict, state_dict
from fluxlike.trees.trainables import combine, partition, trainables

__version__ = "0.1.0"

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
    "ApplyIfFinite",
    "Assigned",
    "BatchNorm",
    "Chain",
    "ClipGlobalNorm",
    "ClipGrad",
    "ClipNorm",
    "Conv",
    "DataLoader",
    "Dense",
    "Descent",
    "Dropout",
    "EMA",
    "Embedding",
    "GlobalMaxPool",
    "GlobalMeanPool",
    "Key",
    "Lamb",
    "LayerError",
    "LayerNorm",
    "Lion",
    "Lookahead",
    "MaxPool",
    "MeanPool",
    "MixedPrecision",
    "Momentum",
    "Muon",
    "NAdam",
    "Nesterov",
    "OAdam",
    "OptimiserChain",
    "ParamState",
    "RAdam",
    "RMSProp",
    "Rprop",
    "Rule",
    "ScheduleFree",
    "Scheduled",
    "SignDecay",
    "SkipConnection",
    "WeightDecay",
    "activations",
    "adjust",
    "apply_updates",
    "assign",
    "at",
    "automode",
    "averaged",
    "bf16",
    "check_pure",
    "checkpoint",
    "children",
    "combine",
    "cond",
    "cpu",
    "current",
    "custom_gradient",
    "destructure",
    "diaghessian",
    "elu",
    "f16",
    "f32",
    "f64",
    "find_nonfinite",
    "flatten",
    "fleaves",
    "fmap",
    "fmap_with_path",
    "freeze",
    "from_torch_optimiser",
    "functor",
    "gelu",
    "get_device",
    "gpu",
    "gradient",
    "hessian",
    "hvp",
    "identity",
    "init",
    "jacobian",
    "jit",
    "leaf",
    "leaky_relu",
    "load",
    "load_state_dict",
    "log_softmax",
    "losses",
    "mode",
    "onecold",
    "onehot",
    "onehotbatch",
    "partition",
    "per_example_gradient",
    "pullback",
    "pushforward",
    "random",
    "relu",
    "save",
    "scan",
    "schedules",
    "seeded",
    "selu",
    "setup",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "splitobs",
    "stack",
    "state_dict",
    "stays_float32",
    "steps",
    "stop_gradient",
    "summary",
    "tanh",
    "testmode",
    "thaw",
    "to_device",
    "to_torch_optimiser",
    "trainables",
    "training",
    "trainmode",
    "tree",
    "unstack",
    "update",
    "vmap",
    "withgradient",
    "withupdates",
]
