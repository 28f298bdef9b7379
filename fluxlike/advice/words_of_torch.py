"""What to write for the names that users of torch type first and that fluxlike does not have."""

from __future__ import annotations

__all__ = ["OF_CHAINS", "OF_LAYERS", "OF_MODULES", "OF_RULES", "WORDS"]

_CONV = "fl.Conv((3, 3), in_channels, out_channels, pad=1), with a number an axis in the kernel"
_CONV_TRANSPOSE = "fl.ConvTranspose((3, 3), in_channels, out_channels), with a number an axis in the kernel"
_RECORDED = "nothing: outside fl.gradient no graph is recorded"

#: What to write for a name of torch.
WORDS = {
    # torch.nn
    "Module": "a class under @fl.functor, with __call__ for forward",
    "Parameter": "a floating tensor in an attribute of a class under @fl.functor",
    "Sequential": "fl.Chain(…)",
    "ModuleList": "a list of layers, in an attribute",
    "ModuleDict": "a dict of layers, in an attribute",
    "Linear": "fl.Dense(in_features, out_features)",
    "LazyLinear": "fl.Dense(fl.auto, out_features), then fl.autosize(model, x)",
    "Conv1d": _CONV,
    "Conv2d": _CONV,
    "Conv3d": _CONV,
    "ConvTranspose1d": _CONV_TRANSPOSE,
    "ConvTranspose2d": _CONV_TRANSPOSE,
    "ConvTranspose3d": _CONV_TRANSPOSE,
    "MaxPool1d": "fl.MaxPool((2,))",
    "MaxPool2d": "fl.MaxPool((2, 2))",
    "MaxPool3d": "fl.MaxPool((2, 2, 2))",
    "AvgPool1d": "fl.MeanPool((2,))",
    "AvgPool2d": "fl.MeanPool((2, 2))",
    "AvgPool3d": "fl.MeanPool((2, 2, 2))",
    "AdaptiveAvgPool1d": "fl.AdaptiveMeanPool((n,)), or fl.GlobalMeanPool()",
    "AdaptiveAvgPool2d": "fl.AdaptiveMeanPool((n, n)), or fl.GlobalMeanPool()",
    "AdaptiveMaxPool2d": "fl.AdaptiveMaxPool((n, n)), or fl.GlobalMaxPool()",
    "BatchNorm1d": "fl.BatchNorm(num_features)",
    "BatchNorm2d": "fl.BatchNorm(num_features)",
    "BatchNorm3d": "fl.BatchNorm(num_features)",
    "InstanceNorm1d": "fl.InstanceNorm(num_features)",
    "InstanceNorm2d": "fl.InstanceNorm(num_features)",
    "Dropout1d": "fl.Dropout(p, dims=(0, 1))",
    "Dropout2d": "fl.Dropout(p, dims=(0, 1))",
    "ZeroPad2d": "pad= of the next layer, or torch.nn.functional.pad",
    "MultiheadAttention": "fl.MultiHeadAttention(embed_dim, num_heads)",
    "TransformerEncoderLayer": "fl.TransformerBlock(dim, num_heads)",
    "TransformerDecoderLayer": "fl.TransformerDecoderBlock(dim, num_heads)",
    "Identity": "fl.identity",
    "Flatten": "fl.flatten",
    "ReLU": "fl.relu, without brackets",
    "ReLU6": "fl.relu6, without brackets",
    "LeakyReLU": "fl.leaky_relu, without brackets",
    "ELU": "fl.elu, without brackets",
    "SELU": "fl.selu, without brackets",
    "GELU": "fl.gelu, without brackets",
    "SiLU": "fl.silu, without brackets",
    "Mish": "fl.mish, without brackets",
    "Hardswish": "fl.hardswish, without brackets",
    "Sigmoid": "fl.sigmoid, without brackets",
    "Tanh": "fl.tanh, without brackets",
    "Softplus": "fl.softplus, without brackets",
    "Softmax": "fl.softmax, without brackets; none before fl.losses.logitcrossentropy",
    "LogSoftmax": "fl.log_softmax, without brackets; none before fl.losses.logitcrossentropy",
    # its losses, by class and by function
    "CrossEntropyLoss": "fl.losses.logitcrossentropy",
    "cross_entropy": "fl.losses.logitcrossentropy",
    "NLLLoss": "fl.losses.logitcrossentropy, which leaves log-probabilities as they are",
    "nll_loss": "fl.losses.logitcrossentropy, which leaves log-probabilities as they are",
    "BCELoss": "fl.losses.binarycrossentropy",
    "binary_cross_entropy": "fl.losses.binarycrossentropy",
    "BCEWithLogitsLoss": "fl.losses.logitbinarycrossentropy",
    "binary_cross_entropy_with_logits": "fl.losses.logitbinarycrossentropy",
    "MSELoss": "fl.losses.mse",
    "mse_loss": "fl.losses.mse",
    "L1Loss": "fl.losses.mae",
    "l1_loss": "fl.losses.mae",
    "HuberLoss": "fl.losses.huber",
    "huber_loss": "fl.losses.huber",
    "SmoothL1Loss": "fl.losses.huber",
    "smooth_l1_loss": "fl.losses.huber",
    "KLDivLoss": "fl.losses.kldivergence, of probabilities",
    "kl_div": "fl.losses.kldivergence, of probabilities",
    "CTCLoss": "fl.losses.ctc",
    "ctc_loss": "fl.losses.ctc",
    "PoissonNLLLoss": "fl.losses.poisson",
    # torch.optim
    "SGD": "fl.Descent(lr), fl.Momentum(lr, momentum) or fl.Nesterov(lr, momentum)",
    "Adagrad": "fl.AdaGrad(lr)",
    "Adadelta": "fl.AdaDelta()",
    "Adamax": "fl.AdaMax(lr)",
    "RMSprop": "fl.RMSProp(lr)",
    "clip_grad_norm_": "a rule: fl.OptimiserChain(fl.ClipGlobalNorm(1.0), fl.Adam())",
    "clip_grad_value_": "a rule: fl.OptimiserChain(fl.ClipGrad(1.0), fl.Adam())",
    "AveragedModel": "a rule: fl.EMA(fl.Adam()), then fl.averaged(state, model)",
    "zero_grad": "nothing: gradients are values, which fl.gradient returns",
    "backward": "grads = fl.gradient(loss, model, x, y)",
    # torch.optim.lr_scheduler: a schedule goes into a rule, fl.Scheduled(fl.Adam(), lr=…)
    "CosineAnnealingLR": "fl.Scheduled(fl.Adam(), lr=fl.schedules.Cosine(high, low, steps))",
    "CosineAnnealingWarmRestarts": "fl.schedules.Cosine(high, low, steps, restart=True)",
    "StepLR": "fl.Scheduled(fl.Adam(), lr=fl.schedules.Step(start, decay, sizes))",
    "MultiStepLR": "fl.Scheduled(fl.Adam(), lr=fl.schedules.Step(start, decay, sizes))",
    "ExponentialLR": "fl.Scheduled(fl.Adam(), lr=fl.schedules.Exp(start, decay))",
    "PolynomialLR": "fl.Scheduled(fl.Adam(), lr=fl.schedules.Poly(start, power, steps))",
    "OneCycleLR": "fl.Scheduled(fl.Adam(), lr=fl.schedules.OneCycle(steps, high)), or fl.fit_one_cycle",
    "CyclicLR": "fl.Scheduled(fl.Adam(), lr=fl.schedules.Triangle(low, high, period))",
    "LinearLR": "fl.schedules.Warmup(schedule, steps)",
    "SequentialLR": "fl.schedules.Sequence((first, steps), (second, steps))",
    "LambdaLR": "fl.Scheduled(fl.Adam(), lr=f), with a function f of the step",
    # torch itself
    "no_grad": _RECORDED,
    "inference_mode": f"{_RECORDED}, and layers are in test mode; fl.testmode(model) pins them",
    "enable_grad": _RECORDED,
    "grad": "fl.gradient(loss, model, x, y)",
    "value_and_grad": "fl.withgradient(loss, model, x, y)",
    "jacrev": "fl.jacobian",
    "jacfwd": "fl.jacobian",
    "vjp": "fl.pullback",
    "jvp": "fl.pushforward",
    "functional_call": "model(x): a model is a value already",
    "compile": "fl.jit(step), of the whole step",
    "manual_seed": "torch.manual_seed(0), or with fl.seeded(fl.Key(0)):",
    "cuda": "fl.gpu(model)",
    "device": "fl.get_device(model), or fl.to_device(model, device)",
    "autocast": "torch.autocast around the loss, or fl.Learner(…, precision='bf16')",
    "GradScaler": "fl.Learner(…, precision='fp16')",
    "DataParallel": "fl.to_device(model, mesh, fl.distributed.replicate())",
    "DistributedDataParallel": "fl.to_device(model, mesh, fl.distributed.replicate())",
    # torch.utils.data
    "Dataset": "a class with __len__ and __getitem__, or torch.utils.data.Dataset",
    "TensorDataset": "fl.DataLoader((x, y), batch_size)",
    "random_split": "fl.splitobs(data, at=0.8, shuffle=True)",
    "one_hot": "fl.onehotbatch(labels, range(classes))",
    # modules
    "nn": "the layers of fluxlike itself, such as fl.Dense, and fl.losses",
    "functional": "the functions of fluxlike itself, such as fl.relu, and fl.losses",
    "optim": "the rules of fluxlike itself, such as fl.Adam, and fl.schedules",
    # rooms of this package whose names are in fluxlike itself
    "layers": "the layers of fluxlike itself, such as fl.Dense",
    "optimisers": "the rules of fluxlike itself, such as fl.Adam, and fl.setup and fl.update",
    "optimizers": "the rules of fluxlike itself, such as fl.Adam, and fl.setup and fl.update",
    "learning": "the loop of fluxlike itself, fl.Learner and fl.fit, and fl.callbacks",
    "transforms": "the functions of fluxlike itself, such as fl.gradient and fl.vmap",
    "files": "the functions of fluxlike itself, such as fl.save and fl.load",
    # torch's and Keras's inits, draws and wrappers
    "xavier_uniform": "fl.init.glorot_uniform",
    "xavier_normal": "fl.init.glorot_normal",
    "he_normal": "fl.init.kaiming_normal",
    "he_uniform": "fl.init.kaiming_uniform",
    "randn": "fl.random.normal",
    "rand": "fl.random.uniform",
    "randint": "fl.random.integers",
    "randperm": "fl.random.permutation",
    "DDP": "fl.to_device(model, mesh, fl.distributed.replicate())",
    "FSDP": "fl.to_device(model, mesh, fl.distributed.shard())",
    "fully_shard": "fl.to_device(model, mesh, fl.distributed.shard())",
    "lr_scheduler": "fl.schedules",
}

#: What to write for a method of nn.Module.
OF_MODULES = {
    "train": "gradient trains, everything else tests; fluxlike.mode and fluxlike.trainmode say otherwise",
    "eval": "everything but gradient tests; fluxlike.testmode pins a layer",
    "parameters": "write fluxlike.trainables(model)",
    "named_parameters": "write fluxlike.trainables(model, paths=True)",
    "buffers": "write fluxlike.fleaves(model), which gives parameters and buffers",
    "named_buffers": "write fluxlike.state_dict(model)",
    "to": "write fluxlike.to_device(model, device), or fluxlike.f16(model) for a dtype",
    "cuda": "write fluxlike.to_device(model, 'cuda')",
    "cpu": "write fluxlike.cpu(model)",
    "float": "write fluxlike.f32(model)",
    "double": "write fluxlike.f64(model)",
    "half": "write fluxlike.f16(model)",
    "bfloat16": "write fluxlike.bf16(model)",
    "apply": "write fluxlike.fmap(f, model), or fluxlike.reinit(model, {kind: init})",
    "compile": "write fluxlike.jit(step), of the whole step of training, or fluxlike.jit(model)",
    "modules": "write fluxlike.children(model)",
    "named_modules": "write fluxlike.children(model)",
    "children": "write fluxlike.children(model)",
    "named_children": "write fluxlike.children(model)",
    "add_module": "write a new one, such as fluxlike.Chain(*model, layer)",
    "register_module": "write a new one, such as fluxlike.Chain(*model, layer)",
    "register_buffer": "write a class with @fluxlike.functor(buffers=('name',)) above it",
    "register_parameter": "write a class under @fluxlike.functor with the tensor in an attribute",
    "register_forward_hook": "write fluxlike.activations(model, x)",
    "state_dict": "write fluxlike.state_dict(model), or fluxlike.to_torch(model).state_dict() for torch's",
    "load_state_dict": "write fluxlike.load_state_dict(model, d), or fluxlike.load_checkpoint(d, model) of "
    "torch's dict",
    "zero_grad": "gradients are values here, there is nothing to zero",
    "requires_grad_": "write fluxlike.freeze(state, where), or gradient(…, wrt=where)",
}

#: What to write for a method or an attribute of nn.Module, or of a tensor that is a loss.
OF_LAYERS = {
    **OF_MODULES,
    "training": "write fluxlike.training(layer) inside a layer; fluxlike.testmode(model) and "
    "fluxlike.trainmode(model) pin the mode",
    "requires_grad": "write fluxlike.freeze(state, where), or gradient(…, wrt=where)",
    "device": "write fluxlike.get_device(model)",
    "dtype": "each tensor has its own: write fluxlike.trainables(model)[0].dtype",
    "forward": "write model(x)",
    "backward": "write grads = fluxlike.gradient(loss, model, x, y)",
    "grad": "a gradient is a value: write grads = fluxlike.gradient(loss, model, x, y)",
}

_RATES = (
    "write state = fluxlike.adjust(state, 1e-4) for another rate, and "
    "fluxlike.setup(lambda path: rule, model) for a rule by place"
)

#: What to write for a name of nn.Sequential, or of an optimiser: the state of a model has its classes.
OF_CHAINS = {
    **OF_LAYERS,
    "step": "write model, state = fluxlike.update(state, model, grads)",
    "param_groups": _RATES,
    "lr": _RATES,
    "append": "write a new one, such as fluxlike.Chain(*model, layer)",
    "extend": "write a new one, such as fluxlike.Chain(*model, *layers)",
    "insert": "write a new one, such as fluxlike.Chain(*model[:i], layer, *model[i:])",
    "pop": "write a new one, such as model[:-1]",
}

#: What to write for a name of torch.optim.Optimizer.
OF_RULES = {
    "step": "write model, state = fluxlike.update(state, model, grads)",
    "zero_grad": "gradients are values, which fluxlike.gradient returns; there is nothing to zero",
    "param_groups": _RATES,
    "add_param_group": "write fluxlike.setup(lambda path: rule, model), with a rule by place",
    "state": "a rule holds none: write state = fluxlike.setup(rule, model)",
    "state_dict": "a rule has no state: write fluxlike.save(path, state), of state = "
    "fluxlike.setup(rule, model)",
    "load_state_dict": "a rule has no state: write state = fluxlike.load(path, like=state), of state = "
    "fluxlike.setup(rule, model)",
    "defaults": "a rule is a dataclass: write rule.lr, or dataclasses.asdict(rule)",
}
