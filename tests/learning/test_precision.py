"""Mixed precision: the numbers of torch's autocast and GradScaler, and steps that are left out."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike.learning.callbacks.nonfinite import NonFiniteLoss
from fluxlike.learning.precision import LossScale
from tests.learning.kill import Kill

torch.manual_seed(0)
X, Y = torch.randn(32, 4), torch.randint(0, 3, (32,))
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 32, 8)]


@pytest.fixture(autouse=True)
def same_weights():
    """Whether a gradient overflows in float16 at first depends on the weights."""
    torch.manual_seed(0)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = torch.nn.Linear(4, 16), torch.nn.BatchNorm1d(16)
        self.second = torch.nn.Linear(16, 3)

    def forward(self, x):
        return self.second(torch.relu(self.norm(self.first(x))))


def model():
    return fl.Chain(fl.Dense(4, 16), fl.BatchNorm(16), fl.relu, fl.Dense(16, 3))


def twin_of(model):
    """A torch module of the same parameters."""
    net = Net()
    layers = model.layers
    with torch.no_grad():
        for theirs, ours in ((net.first, layers[0]), (net.norm, layers[1]), (net.second, layers[3])):
            theirs.weight.copy_(ours.weight)
            theirs.bias.copy_(ours.bias)
    return net


def same_as(model, net, **tolerance):
    ours = [t for t in fl.fleaves(model) if t.is_floating_point()]
    theirs = [t for t in net.state_dict().values() if t.is_floating_point()]
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def learner(model, precision, rule=None, batches=BATCHES, loss=fl.losses.logitcrossentropy, **settings):
    settings = {"defaults": False, "key": fl.Key(0), **settings}
    return fl.Learner(model, batches, rule or fl.Momentum(0.1), loss, precision=precision, **settings)


def loud(outputs, targets):
    """A loss whose gradient overflows in float16 under the first scales."""
    return 64 * torch.nn.functional.cross_entropy(outputs, targets)


class Scales(fl.Callback):
    """Remembers the scale of the loss and the model after each step."""

    reads = ("model",)

    def init(self):
        return {"scales": [], "models": []}

    def step_end(self, run):
        run.memory["scales"].append(run.loss_scale.scale.item())
        run.memory["models"].append(fl.tree.clone(run.model))


def test_bf16_has_the_numbers_of_a_loop_under_torchs_autocast():
    start = model()
    net = twin_of(start)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        for x, y in BATCHES:
            optimiser.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimiser.step()
    fitted = fl.fit(learner(start, "bf16"), 3)
    same_as(fitted.model, net, rtol=1e-4, atol=1e-5)
    plain = fl.fit(learner(start, None), 3)
    assert not fl.tree.allclose(fitted.model, plain.model, rtol=1e-4, atol=1e-5)
    assert {t.dtype for t in fl.fleaves(fitted.model)} == {torch.float32}


@pytest.mark.parametrize("loss", [torch.nn.functional.cross_entropy, loud], ids=["quiet", "loud"])
def test_fp16_follows_torchs_grad_scaler_step_by_step(loss):
    start = fl.Chain(fl.Dense(4, 16, torch.tanh), fl.Dense(16, 3))
    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    with torch.no_grad():
        for theirs, ours in zip(net.parameters(), fl.trainables(start), strict=True):
            theirs.copy_(ours)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu")
    scales, weights = [], []
    for _ in range(3):
        for x, y in BATCHES:
            optimiser.zero_grad()
            with torch.autocast("cpu", torch.float16):
                value = loss(net(x), y)
            scaler.scale(value).backward()
            scaler.step(optimiser)
            scaler.update()
            scales.append(scaler.get_scale())
            weights.append([p.detach().clone() for p in net.parameters()])
    watched = learner(start, "fp16", fl.Momentum(0.01), loss=loss, callbacks=[Scales()])
    memory = fl.fit(watched, 3).memory["Scales"]
    assert memory["scales"] == scales
    assert (scales[-1] < 65536) is (loss is loud)  # steps were left out
    for ours, theirs in zip(memory["models"], weights, strict=True):
        for a, b in zip(fl.trainables(ours), theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@given(
    st.lists(st.booleans(), max_size=40), st.integers(1980, 1999), st.sampled_from([1.0, 65536.0, 2.0**127])
)
@example([True, True], 1999, 2.0**127)  # it does not grow to infinity
def test_the_scale_moves_as_torchs(finite, before, start):
    theirs, tracker = torch.tensor(start), torch.tensor(before, dtype=torch.int32)
    ours = LossScale(torch.tensor(start), torch.tensor(before, dtype=torch.int32))
    for good in finite:
        torch._amp_update_scale_(theirs, tracker, torch.tensor(float(not good)), 2.0, 0.5, 2000)
        ours = ours.after(torch.tensor(good))
        assert (ours.scale, ours.steps) == (theirs, tracker)


def test_a_step_whose_gradients_overflow_leaves_no_trace_but_a_lower_scale():
    start = learner(model(), "fp16", fl.Adam(), BATCHES[:1], loss=loud)
    after = fl.fit(start, 1)
    assert after.loss_scale.scale == 32768
    assert fl.tree.allclose(after.model, start.model, rtol=0, atol=0)  # and the statistics of BatchNorm
    assert fl.tree.allclose(after.state, start.state, rtol=0, atol=0)
    assert after.step == 1
    later = fl.fit(after, 10)
    assert later.loss_scale.scale < 32768
    assert not fl.tree.allclose(later.model, start.model)
    assert start.loss_scale.scale == 65536


@pytest.mark.parametrize(
    "precision", ["bf16", "fp16", pytest.param("fp16", id="fp16, kernels", marks=pytest.mark.slow)]
)
def test_a_compiled_learner_has_the_numbers_and_the_scales_of_an_eager_one_from_one_trace(precision):
    start = fl.Chain(fl.Dense(4, 16), fl.BatchNorm(16), fl.relu, fl.Dense(16, 3))
    eager, compiled = (
        fl.fit(learner(start, precision, fl.Adam(1e-3), loss=loud, jit=jit), 4) for jit in (False, True)
    )
    assert fl.tree.allclose(eager.model, compiled.model, rtol=1e-2, atol=2e-3)
    (trained,) = (f for name, f in compiled._shared["functions"].items() if name != "evaluate")
    assert trained.cache_info().traces == 1
    if precision == "fp16":
        assert compiled.loss_scale.scale < 65536  # it has changed, without a trace
        assert compiled.loss_scale.scale == eager.loss_scale.scale
        assert compiled.loss_scale.steps == eager.loss_scale.steps


def test_a_callback_inside_the_step_sees_gradients_without_the_scale_and_changes_nothing():
    class Norm(fl.Callback):
        reads = ("grads",)

        def backward_end(self, run):
            run.memory["norm"] = float(fl.tree.norm(run.grads))

    start = model()
    whole = fl.fit(learner(start, "fp16"), 2)
    heard = fl.fit(learner(start, "fp16", callbacks=[Norm()]), 2)
    assert fl.tree.allclose(whole.model, heard.model, rtol=0, atol=0)
    assert heard.memory["Norm"]["norm"] < 10
    loud_ones = fl.fit(learner(start, "fp16", loss=loud, callbacks=[Norm()]), 2)
    assert loud_ones.loss_scale.scale == fl.fit(learner(start, "fp16", loss=loud), 2).loss_scale.scale < 65536


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_loss_that_is_not_finite_is_an_error_though_a_gradient_is_not(jit):
    broken = [*BATCHES[:2], (BATCHES[0][0] * float("inf"), BATCHES[0][1])]
    start = learner(model(), "fp16", batches=broken, defaults=True, progress=False, jit=jit)
    with pytest.raises(NonFiniteLoss, match="batch holds NaN or Inf") as caught:
        fl.fit(start, 1)
    stands = caught.value.learner
    good = fl.fit(start.replace(data={"training": broken[:2]}), 1)
    assert fl.tree.allclose(stands.model, good.model, rtol=0, atol=0)
    assert stands.loss_scale.scale == 65536
    unguarded = fl.fit(learner(model(), "fp16", batches=broken), 1)  # as with GradScaler
    assert unguarded.loss_scale.scale == 32768
    assert not fl.find_nonfinite(unguarded.model)


def test_gradients_that_are_finite_at_no_scale_end_the_fit():
    class Root(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.abs().sqrt()

        @staticmethod
        def backward(context, grad):
            return grad * float("inf")

    start = learner(
        fl.Dense(4, 3), "fp16", loss=lambda y, t: Root.apply(y).float().mean(), defaults=True, progress=False
    )
    with pytest.raises(NonFiniteLoss, match=r"at any scale of the loss, now 6\.1e-05") as caught:
        fl.fit(start, 100)
    assert fl.tree.allclose(caught.value.learner.model, start.model, rtol=0, atol=0)
    assert caught.value.learner.step == 30


def test_a_killed_fp16_run_goes_on_to_the_same_bits(tmp_path):
    def fresh(folder):
        torch.manual_seed(0)
        saving = fl.callbacks.Checkpointer(folder, every=1, background=False)
        return learner(model(), "fp16", fl.Adam(), loss=loud, callbacks=[saving])

    whole = fl.fit(fresh(tmp_path / "whole"), 4)
    first = fresh(tmp_path / "killed")
    with pytest.raises(fl.CallbackError):
        fl.fit(first.replace(callbacks=(*first.callbacks, Kill(6))), 4)
    resumed = fl.fit(fresh(tmp_path / "killed"), 4, resume=True)
    assert resumed.step == whole.step == 16
    assert resumed.loss_scale.scale == whole.loss_scale.scale < 65536
    assert resumed.loss_scale.steps == whole.loss_scale.steps
    assert fl.tree.allclose(resumed.model, whole.model, rtol=0, atol=0)


def test_validation_and_steps_of_ones_own_run_in_the_precision_too():
    seen = []

    class Own(fl.Step):
        def train(self, model, state, batch):
            seen.append(("train", model(batch[0]).dtype))
            loss, grads = fl.withgradient(lambda m: m(batch[0]).float().mean(), model)
            return *fl.update(state, model, grads), {"loss": loss}

        def evaluate(self, model, state, batch):
            seen.append(("evaluate", model(batch[0]).dtype))
            return {"loss": model(batch[0]).float().mean()}

    data = (BATCHES[:1], BATCHES[:1])
    fl.fit(fl.Learner(model(), data, fl.Adam(), step=Own(), defaults=False, precision="bf16"), 1)
    assert seen == [("train", torch.bfloat16), ("evaluate", torch.bfloat16)]
    step = Own()
    fl.Learner(model(), data, fl.Adam(), step=step, defaults=False, precision="bf16")
    assert step.precision is None  # the step handed in stays as it is


def test_gradients_of_ones_own_get_the_scale():
    class Noisy(fl.Step):
        def loss(self, model, batch):
            return {"loss": loud(model(batch[0]), batch[1])}

        def gradients(self, model, state, batch, **settings):
            out, grads = super().gradients(model, state, batch, **settings)
            return out, fl.fmap(lambda g: 2 * g, grads)

    fitted = fl.fit(
        fl.Learner(model(), BATCHES, fl.Adam(), step=Noisy(), defaults=False, precision="fp16"), 1
    )
    assert fitted.loss_scale.scale < 65536


def test_precision_can_be_changed_on_a_learner():
    plain = learner(model(), None)
    halves = plain.replace(precision="fp16")
    assert halves.loss_scale.scale == 65536
    assert halves.replace(precision=None).loss_scale is None
    fitted = fl.fit(halves, 1)
    assert fitted.replace(rule=fl.Adam()).loss_scale is fitted.loss_scale
    assert plain.loss_scale is None


def test_the_scale_keeps_its_dtype_where_a_learner_is_cast():
    assert fl.f16(learner(model(), "fp16")).loss_scale.scale == 65536


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: learner(model(), "half"), "precision='half': write 'bf16', 'fp16' or None"),
        (
            lambda: learner(fl.f16(model()), "fp16"),
            r"\.layers\[0\]\.weight is float16; write Learner\(fl.f32",
        ),
        (
            lambda: fl.Learner(
                model(), BATCHES, fl.Adam(), step=lambda m, s, b: (m, s, 0.0), precision="fp16"
            ),
            "inside the train of this step",
        ),
    ],
    ids=["unknown", "16-bit parameters", "one function"],
)
def test_a_precision_that_makes_no_sense_is_an_error(make, text):
    with pytest.raises(ValueError, match=text):
        make()
