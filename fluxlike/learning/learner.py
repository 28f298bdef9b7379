"""`Learner`: a model, its data, its rule, and where the training of it stands, as one immutable tree."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Never, NoReturn

import torch

from fluxlike.advice import OF_LAYERS, call_hint, teaching
from fluxlike.data.loader import DataLoader
from fluxlike.learning.callback import Callback
from fluxlike.learning.callbacks.defaults import default_callbacks
from fluxlike.learning.events import Event
from fluxlike.learning.history.history import History
from fluxlike.learning.order import names, ordered
from fluxlike.learning.phase import Phase, TrainingPhase, ValidationPhase
from fluxlike.learning.precision import LossScale, first_loss_scale
from fluxlike.learning.step import FunctionStep, Step, SupervisedStep, with_settings
from fluxlike.optimisers.rule import hook, is_rule, rules_in
from fluxlike.optimisers.state import is_param_state, setup
from fluxlike.scope.key import Key
from fluxlike.trees.functor import functor
from fluxlike.trees.structure import flatten

__all__ = ["Learner"]

_MADE_OF = {"data", "steps", "callbacks", "phases", "keyed", "jit", "averaged"}
_TRAINED = ("model", "state", "loss_scale", "key", "step", "epoch", "phase", "batch", "memory")


@teaching
@functor(children=_TRAINED)
@dataclass(frozen=True, init=False, repr=False, eq=False)
class Learner:
    """A model, its data, its rule and its loss, and where the training stands. `fit` gives a new one.

    A learner does not change. It is a tree, whose children are all that a run needs to go on: model, state of
    the optimiser, key, counters, and what the callbacks remember.

    Args:
        model: the model; several, as a dict, for a `step` of your own.
        data: batches: a `DataLoader`, or anything that can be iterated again and again; a pair is data of
            training and of validation; a dict has data by the name of its phase.
        rule: the rule of the optimiser, or what else `setup` takes; a dict of rules for a dict of models.
        loss: a loss ``loss(outputs, targets)``, for batches ``(x, y)`` and ``outputs = model(x)``.
        step: instead of a loss, a `Step`, or a function ``step(model, state, batch) -> (model, state, out)``.
        metrics: metrics of torchmetrics, or functions of outputs and targets; or a dict of them by name.
        callbacks: callbacks, besides the default ones: metrics, history, progress, and the stop at a loss
            that is not finite.
        defaults: whether to have the default ones. (default: True)
        progress: whether the default ones show progress, on standard error. (default: True)
        phases: what an epoch consists of. (default: training, and validation where there is data for it)
        key: what draws are a function of, as in ``gradient(..., key=key)``. (default: torch's random
            operations, seeded at each step from a key that is drawn from torch's generator now; over a mesh,
            that key itself, of the first rank)
        jit: whether to compile the step. (default: False)
        state: a state of the optimiser to go on with. (default: a new one)
        precision: ``"bf16"`` or ``"fp16"`` to compute losses under torch's autocast, float16 with a scale of
            the loss as torch.amp.GradScaler's; parameters stay as they are. (default: None)
        averaged: whether to validate the model of the averages that the rule keeps, as `averaged` gives
            it. (default: False)

    Attributes:
        model: the model.
        state: the state of the optimiser.
        loss_scale: the `LossScale` of ``precision="fp16"``, or None.
        step: how many batches of training were taken.
        steps: the `Step` by which each of them was, for ``replace(steps=…)``.
        epoch: how many epochs are complete.
        history: a `History` of losses and metrics.
        stopped: why a callback ended the last fit, ``"interrupted"`` after Ctrl-C, or None. It is set at the
            end of the last epoch too, so that a loop of fits can end by it.
        memory: what the callbacks remember, by their names.

    Raises:
        TypeError: a callback, metric, phase or step that is none; a loss that does not take outputs and
            targets; a model that can't be called, with a loss.
        ValueError: callbacks that conflict; phases without data; neither a loss nor a step.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.linspace(-1, 1, 64).unsqueeze(1)
        >>> data = fl.DataLoader((x, 3 * x), batch_size=16, shuffle=True)
        >>> learner = fl.Learner(fl.Dense(1, 1), data, fl.Adam(0.1), fl.losses.mse)
        >>> learner = fl.fit(learner, 20)
        >>> learner.epoch, learner.step
        (20, 80)
        >>> abs(learner.model.weight.item() - 3) < 0.2
        True
    """

    model: Any
    state: Any
    loss_scale: LossScale | None
    key: Key
    step: int
    epoch: int
    phase: int
    batch: int
    memory: dict[str, Any]
    history: History
    stopped: str | None
    random: Any
    data: dict[str, Any]
    rule: Any
    steps: Step
    callbacks: tuple[Callback, ...]
    phases: tuple[Phase, ...]
    keyed: bool
    jit: bool
    precision: str | None
    averaged: bool
    _shared: dict[Any, Any] = field(default_factory=dict)

    def __init__(
        self,
        model: Any,
        data: Any,
        rule: Any,
        loss: Callable[[Any, Any], Any] | None = None,
        *,
        step: Step | Callable[..., Any] | None = None,
        metrics: Any = (),
        callbacks: Sequence[Callback] = (),
        defaults: bool = True,
        progress: bool = True,
        phases: Sequence[Phase] | None = None,
        key: Key | None = None,
        jit: bool = False,
        state: Any = None,
        precision: str | None = None,
        averaged: bool = False,
    ) -> None:
        if isinstance(model, (DataLoader, torch.utils.data.DataLoader)):
            raise TypeError(f"the model is a {type(model).__name__}; write Learner(model, data, rule, loss)")
        if is_rule(loss):
            raise TypeError("the loss is a rule; write Learner(model, data, rule, loss)")
        if isinstance(callbacks, Callback):
            callbacks = (callbacks,)
        by_phase = _by_phase(data)
        chosen = _phases(by_phase, phases)
        if not defaults and not (isinstance(metrics, tuple) and not metrics):
            raise ValueError("metrics are a default callback's; write callbacks=[fl.callbacks.Metrics(…)]")
        listed = (*(default_callbacks(metrics, progress) if defaults else ()), *callbacks)
        steps = _step(loss, step)
        self._set(
            model=model,
            state=_state(rule, model, None) if state is None else state,
            loss_scale=first_loss_scale(precision, steps, model),
            key=Key(int(torch.randint(2**62, ()))) if key is None else key,
            step=0, epoch=0, phase=0, batch=0, memory={}, history=History(), stopped=None, random=None,
            data=by_phase,
            rule=rule,
            steps=steps if precision is None else with_settings(steps, precision=precision),
            callbacks=listed,
            phases=chosen,
            keyed=key is not None,
            jit=jit,
            precision=precision,
            averaged=averaged,
            _shared={"functions": {}},
        )  # fmt: skip
        if step is None and not callable(model):
            hint = call_hint(model) or "; for a model of several parts write a step="
            raise TypeError(
                f"a learner with a loss calls the model, and a {type(model).__name__} can't be called{hint}"
            )
        self._check()

    def replace(self, **changes: Any) -> Learner:
        """This learner with other attributes. A new model or rule keeps the moments that still fit.

        Callbacks are all of them, the default ones too: ``callbacks=[*learner.callbacks, another]``.

        Raises:
            TypeError: an attribute that a learner does not have.
            ValueError: callbacks that conflict, phases without data.

        Example:
            >>> import torch, fluxlike as fl
            >>> learner = fl.Learner(fl.Dense(1, 1), [], fl.Adam(), fl.losses.mse)
            >>> learner.replace(rule=fl.Adam(0.1)).state.weight.rule.lr
            0.1
        """
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        unknown = set(changes) - set(known)
        if unknown:
            raise TypeError(
                f"a learner has no {sorted(unknown)[0]!r}; it has "
                f"{', '.join(k for k in known if k[0] != '_')}"
            )
        if isinstance(changes.get("step", 0), Step) or callable(changes.get("step")):
            raise TypeError("learner.step is a count; write learner.replace(steps=…) for another way to step")
        if "steps" in changes:
            changes["steps"] = _step(None, changes["steps"])
        if "data" in changes:
            changes["data"] = _by_phase(changes["data"])
        if "key" in changes:
            changes.setdefault("keyed", True)
        if {"rule", "model"} & set(changes) and "state" not in changes:
            model = changes.get("model", self.model)
            changes["state"] = _state(changes.get("rule", self.rule), model, self.state)
        if {"steps", "precision"} & set(changes):
            steps, precision = changes.get("steps", self.steps), changes.get("precision", self.precision)
            model = changes.get("model", self.model)
            changes["steps"] = with_settings(steps, precision=precision)
            if precision != self.precision:
                changes.setdefault("loss_scale", first_loss_scale(precision, steps, model))
        new = object.__new__(Learner)
        if not _MADE_OF & set(changes):
            new._set(**{**known, **changes})
            return new
        functions = {} if {"steps", "jit"} & set(changes) else self._shared["functions"]
        new._set(**{**known, **changes, "_shared": {"functions": functions}})
        new._check()
        return new

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check(self) -> None:
        self._shared["order"] = ordered(self.callbacks)
        if self.averaged:
            _require_average(self.state)
        missing = [p.name for p in self.phases if p.name not in self.data]
        if missing:
            raise ValueError(
                f"the phase {missing[0]!r} has no data; give data as a dict with {missing[0]!r} in it, "
                f"besides {', '.join(map(repr, self.data)) or 'nothing'}"
            )
        if not self.steps.validates and any(isinstance(phase, ValidationPhase) for phase in self.phases):
            raise ValueError(
                f"the step {type(self.steps).__name__} says how to train, and not how to validate: write a "
                "subclass of fl.Step with train and evaluate, or give no validation data"
            )
        for i, name in enumerate(names(self.callbacks)):
            inside = [e.value for e in Event if e.inside_step and hasattr(self.callbacks[i], e.value)]
            if inside and (self.jit or not self.steps.has_parts):
                why = "jit=True compiles whole" if self.jit else "is one function of your own"
                raise ValueError(
                    f"{name} listens to {inside[0]}, which lies inside the step, and the step {why}; put it "
                    "into a rule (clipping, accumulation) or into the step, or leave it out"
                )

    def __call__(self, *args: Never, **named: Never) -> NoReturn:
        raise TypeError("a learner is no function, its model is; write learner.model(x)")

    if not TYPE_CHECKING:  # to type checkers, a name that is not there is an error

        def __getattr__(self, name: str) -> Any:
            advice = ""
            if name in _ELSEWHERE:
                advice = f"; write {_ELSEWHERE[name]}"
            elif name in OF_LAYERS:
                advice = f"; its model is learner.model, of which: {OF_LAYERS[name]}"
            raise AttributeError(f"a learner has no attribute {name!r}{advice}")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_shared": {"functions": {}, "order": self._shared["order"]}}

    def __repr__(self) -> str:
        rule = self.rule if not isinstance(self.rule, Mapping) else dict(self.rule)
        stopped = f", stopped: {self.stopped}" if self.stopped else ""
        return (
            f"Learner({type(self.model).__name__}, {rule!r}, phases "
            f"{', '.join(p.name for p in self.phases)}: epoch {self.epoch}, step {self.step}{stopped})"
        )


#: What to write for methods of trainers elsewhere; those of torch's modules are in `OF_LAYERS`.
_ELSEWHERE = {
    "fit": "learner = fl.fit(learner, 10)",
    "train": "learner = fl.fit(learner, 10)",
    "forward": "learner.model(x)",
    "predict": "learner.model(x)",
    "validate": "fl.validate(learner)",
    "evaluate": "fl.validate(learner)",
    "test": "fl.validate(learner, data)",
    "save": "fl.save(path, learner.model)",
    "load": "fl.load_learner(folder, like=learner), of the folder of a Checkpointer",
    "optimizer": "learner.rule, and learner.state for its state",
    "parameters": "fl.trainables(learner.model)",
    "to": "fl.to_device(learner, device)",
    "cuda": "fl.to_device(learner, 'cuda')",
    "cpu": "fl.cpu(learner)",
}


def _by_phase(data: Any) -> dict[str, Any]:
    if isinstance(data, Mapping):
        named = dict(data)
    elif isinstance(data, tuple) and len(data) == 2 and not any(isinstance(x, torch.Tensor) for x in data):
        named = {"training": data[0]} | ({} if data[1] is None else {"validation": data[1]})
    else:
        named = {"training": data}
    for name, batches in named.items():
        if not any(hasattr(batches, name) for name in ("epoch", "__iter__", "__getitem__")):
            raise TypeError(
                f"data of {name} is of {type(batches).__name__}, and a learner goes over batches: give a "
                "DataLoader, or a list of batches"
            )
        if isinstance(batches, torch.utils.data.Dataset) and not isinstance(
            batches, torch.utils.data.IterableDataset
        ):
            raise TypeError(
                f"data of {name} is a {type(batches).__name__} of samples, and a learner wants batches: "
                "write fl.DataLoader(dataset, batch_size=64)"
            )
        if isinstance(batches, torch.Tensor) or (
            isinstance(batches, tuple) and any(isinstance(x, torch.Tensor) for x in batches)
        ):
            raise TypeError(
                f"data of {name} is made of tensors, and a learner wants batches: write "
                "fl.DataLoader((x, y), batch_size=64)"
            )
    return named


def _phases(data: Mapping[str, Any], phases: Sequence[Phase] | None) -> tuple[Phase, ...]:
    if phases is None:
        own = {phase.name: phase for phase in (TrainingPhase(), ValidationPhase())}
        unknown = [name for name in data if name not in own]
        if unknown:
            raise ValueError(
                f"data has {unknown[0]!r}, which no phase takes; give phases=[fl.TrainingPhase(), …] too"
            )
        return tuple(phase for name, phase in own.items() if name in data)
    for phase in phases:
        if not isinstance(phase, Phase):
            raise TypeError(f"phases holds {phase!r}, which is no phase; write fl.TrainingPhase()")
        if not phase.name:
            raise ValueError(
                f"the phase {type(phase).__name__} has no name; write name = 'mine' in the class"
            )
    return tuple(phases)


def _require_average(state: Any) -> None:
    entries = [x for x in flatten(state, is_param_state)[0] if is_param_state(x)]
    if not any(hook(rule, "average") for entry in entries for rule in rules_in(entry.rule)):
        found = ", ".join(sorted({type(entry.rule).__name__ for entry in entries}))
        raise ValueError(
            f"averaged=True validates the average that a rule keeps, and {found or 'the rule'} keeps none; "
            "write EMA(Adam()), or averaged=False"
        )


def _step(loss: Any, step: Any) -> Step:
    if (loss is None) == (step is None):
        raise ValueError(
            "a learner needs a loss of outputs and targets, such as fl.losses.mse, or a step=, and not both"
        )
    if step is None:
        if isinstance(loss, Step):
            raise TypeError("the loss is a Step; write Learner(model, data, rule, step=…)")
        return SupervisedStep(loss)
    if isinstance(step, Step):
        return step
    if isinstance(step, type) or not callable(step):
        raise TypeError(
            f"step is {step!r}; write a function of model, state and batch, or an object of a Step's class"
        )
    return FunctionStep(step)


def _state(rule: Any, model: Any, carry: Any) -> Any:
    """The state of a rule; of a dict of rules, for a dict of models."""
    if not isinstance(rule, Mapping):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "setup found no parameter whose state could be carried over")
            return setup(rule, model, carry=carry)
    if not isinstance(model, Mapping) or set(rule) != set(model):
        found = (
            f"a dict of {', '.join(map(repr, model))}" if isinstance(model, Mapping) else type(model).__name__
        )
        raise ValueError(
            f"rule is a dict of {', '.join(map(repr, rule))}, so the model is a dict of the same; found "
            f"{found}"
        )
    carried = carry if isinstance(carry, Mapping) else {}
    return {name: setup(rule[name], model[name], carry=carried.get(name)) for name in model}
