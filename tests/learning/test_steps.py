"""Rules and steps in a learner: averages in validation, accumulation, clipping, and a GAN."""

import pytest
import torch

import fluxlike as fl

torch.manual_seed(0)
X = torch.randn(48, 4)
Y = torch.sin(X.sum(1, keepdim=True))
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 48, 8)]


def model():
    return fl.Chain(fl.Dense(4, 8, torch.tanh), fl.Dense(8, 1))


def learner(model, data, rule, **settings):
    settings = {"defaults": False, "key": fl.Key(0), **settings}
    return fl.Learner(model, data, rule, fl.losses.mse, **settings)


def twin_of(model):
    """A torch module of the same parameters."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    with torch.no_grad():
        for theirs, ours in zip(net.parameters(), fl.trainables(model), strict=True):
            theirs.copy_(ours)
    return net


def same_as(model, net, **tolerance):
    for ours, theirs in zip(fl.trainables(model), net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


class Validated(fl.Callback):
    """Remembers the model's loss and outputs in validation, and where the averages came from."""

    reads = ("out", "model", "state")

    def init(self):
        return {"outputs": [], "averages": []}

    def step_end(self, run):
        if run.phase == "validation":
            run.memory["outputs"].append(run.out["outputs"].clone())
            run.memory["averages"].append(fl.averaged(run.state, run.model))


AVERAGING = [
    fl.EMA(fl.Descent(0.1), 0.9),
    fl.Lookahead(fl.Descent(0.1), k=4),
    fl.ScheduleFree(lr=0.1),
    fl.OptimiserChain(fl.ClipGlobalNorm(1.0), fl.EMA(fl.Adam(0.1))),
]


@pytest.mark.parametrize("rule", AVERAGING, ids=["ema", "lookahead", "schedule free", "chain"])
def test_averaged_validates_the_model_of_the_averages(rule):
    start = model()
    data = (BATCHES[:5], BATCHES[5:])
    fitted = fl.fit(learner(start, data, rule, averaged=True, callbacks=[Validated()]), 3)
    memory = fitted.memory["Validated"]
    for outputs, average in zip(memory["outputs"], memory["averages"], strict=True):
        torch.testing.assert_close(outputs, average(BATCHES[5][0]))
    plain = fl.fit(learner(start, data, rule, callbacks=[Validated()]), 3)
    assert fl.tree.allclose(plain.model, fitted.model, rtol=0, atol=0)  # training is the same
    outputs = plain.memory["Validated"]["outputs"][-1]
    torch.testing.assert_close(outputs, plain.model(BATCHES[5][0]))
    assert not torch.allclose(outputs, memory["outputs"][-1])


def test_averaged_validates_under_jit_with_one_trace_and_in_half_precision():
    start, rule = model(), fl.EMA(fl.Descent(0.1), 0.9)
    data = (BATCHES[:5], BATCHES[5:])
    compiled = fl.fit(learner(start, data, rule, averaged=True, jit=True, callbacks=[Validated()]), 3)
    eager = fl.fit(learner(start, data, rule, averaged=True, callbacks=[Validated()]), 3)
    for ours, theirs in zip(
        compiled.memory["Validated"]["outputs"], eager.memory["Validated"]["outputs"], strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert compiled._shared["functions"]["evaluate"].cache_info().traces == 1
    half = fl.fit(learner(start, data, rule, averaged=True, precision="fp16", callbacks=[Validated()]), 1)
    assert half.memory["Validated"]["outputs"][0].dtype == torch.float16


def test_averaged_without_an_average_is_an_error_at_construction():
    with pytest.raises(ValueError, match=r"and Adam keeps none; write EMA\(Adam\(\)\)"):
        learner(model(), BATCHES, fl.Adam(), averaged=True)
    plain = learner(model(), BATCHES, fl.Adam())
    with pytest.raises(ValueError, match="keeps none"):
        plain.replace(averaged=True)
    assert plain.replace(rule=fl.EMA(fl.Adam())).replace(averaged=True).averaged


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_accumulation_over_n_batches_is_a_torch_loop_over_one_big_batch(jit):
    start = model()
    net = twin_of(start)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(2):
        for i in range(0, 48, 24):
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(net(X[i : i + 24]), Y[i : i + 24]).backward()
            optimiser.step()
    rule = fl.OptimiserChain(fl.AccumGrad(3), fl.Adam(0.01))
    fitted = fl.fit(learner(start, BATCHES, rule, jit=jit), 2)
    same_as(fitted.model, net, rtol=1e-4, atol=1e-6)
    assert fitted.step == 12


@pytest.mark.parametrize("precision", [None, "fp16"])
def test_clipping_by_the_rule_is_a_torch_loop_with_clip_grad_norm(precision):
    start = model()
    net = twin_of(start)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=precision is not None)
    for _ in range(3):
        for x, y in BATCHES:
            optimiser.zero_grad()
            with torch.autocast("cpu", torch.float16, enabled=precision is not None):
                loss = torch.nn.functional.mse_loss(net(x), y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimiser)
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            scaler.step(optimiser)
            scaler.update()
    rule = fl.OptimiserChain(fl.ClipGlobalNorm(0.1), fl.Momentum(0.5))
    fitted = fl.fit(learner(start, BATCHES, rule, precision=precision), 3)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if precision is None else {"rtol": 1e-2, "atol": 1e-3}
    same_as(fitted.model, net, **tolerance)
    unclipped = fl.fit(learner(start, BATCHES, fl.Momentum(0.5), precision=precision), 3)
    assert not fl.tree.allclose(unclipped.model, fitted.model, rtol=0.1)


# A GAN: two models, two rules, and a step of its own.


def judged(logits, real):
    """How far logits are from saying real, or false."""
    return fl.losses.logitbinarycrossentropy(logits, torch.full_like(logits, float(real)))


def critic_loss(critic, made, real):
    return judged(critic(real), True) + judged(critic(made), False)


def gan_step(model, state, batch):
    generator, critic = model["generator"], model["discriminator"]
    noise, real = batch
    made = generator(noise)
    first, grads = fl.withgradient(critic_loss, critic, made, real)
    critic, critic_state = fl.update(state["discriminator"], critic, grads)
    second, grads = fl.withgradient(lambda g: judged(critic(g(noise)), True), generator)
    generator, generator_state = fl.update(state["generator"], generator, grads)
    model = {"generator": generator, "discriminator": critic}
    state = {"generator": generator_state, "discriminator": critic_state}
    return model, state, {"loss": first + second, "critic": first, "generator": second}


class Gan(fl.Step):
    def train(self, model, state, batch):
        return gan_step(model, state, batch)

    def evaluate(self, model, state, batch):
        noise, real = batch
        made = model["generator"](noise)
        distance = (made.mean(0) - real.mean(0)).norm()
        return {
            "loss": critic_loss(model["discriminator"], made, real),
            "outputs": made,
            "distance": distance,
        }


def gan(step, data, **settings):
    model = {
        "generator": fl.Chain(fl.Dense(2, 16, fl.relu), fl.Dense(16, 2)),
        "discriminator": fl.Chain(fl.Dense(2, 16, fl.relu), fl.Dense(16, 1)),
    }
    rule = {"generator": fl.Adam(2e-2, betas=(0.5, 0.999)), "discriminator": fl.Descent(0.1)}
    settings = {"progress": False, "key": fl.Key(0), **settings}
    return fl.Learner(model, data, rule, step=step, **settings)


torch.manual_seed(1)
PAIRS = [(torch.randn(64, 2), 0.3 * torch.randn(64, 2) + torch.tensor([1.0, -1.0])) for _ in range(20)]


def test_a_gan_trains_two_models_by_two_rules():
    torch.manual_seed(0)
    start = gan(gan_step, PAIRS)
    assert start.state["generator"].layers[0].weight.rule == fl.Adam(2e-2, betas=(0.5, 0.999))
    assert start.state["discriminator"].layers[0].weight.rule == fl.Descent(0.1)

    def distance(learner):
        noise, real = PAIRS[0]
        return (learner.model["generator"](noise).mean(0) - real.mean(0)).norm()

    fitted = fl.fit(start, 10)
    assert distance(fitted) < 0.5 * distance(start)
    assert fitted.step == 200


def test_a_gan_is_the_same_by_a_function_by_a_subclass_by_a_loop_and_compiled():
    torch.manual_seed(0)
    start = gan(gan_step, PAIRS[:5])
    model, state = start.model, start.state
    for _ in range(2):
        for batch in PAIRS[:5]:
            model, state, _ = gan_step(model, state, batch)
    for step in (gan_step, Gan()):
        by_learner = fl.fit(start.replace(steps=gan(step, PAIRS).steps), 2)
        assert fl.tree.allclose(by_learner.model, model, rtol=0, atol=0)
        assert fl.tree.allclose(by_learner.state, state, rtol=0, atol=0)
    compiled = fl.fit(start.replace(jit=True), 2)
    assert fl.tree.allclose(compiled.model, model, rtol=1e-4, atol=1e-5)


def test_a_gan_is_validated_by_the_evaluate_of_its_step():
    seen = []

    class Watch(fl.Callback):
        reads = ("out",)

        def step_end(self, run):
            if run.phase == "validation":
                seen.append((run.out["distance"].item(), run.out["outputs"].requires_grad))

    torch.manual_seed(0)
    fitted = fl.fit(gan(Gan(), (PAIRS[:15], PAIRS[15:]), callbacks=[Watch()]), 10)
    assert len(seen) == 10 * 5
    assert seen[-1][0] < 0.5 * seen[0][0]
    assert not seen[-1][1]
    assert len(fitted.history["validation", "loss"]) == 10
    with pytest.raises(ValueError, match=r"write a subclass of fl\.Step with train and evaluate"):
        gan(gan_step, (PAIRS[:1], PAIRS[:1]))


def test_a_gan_in_bfloat16_computes_in_it():
    seen = []

    def step(model, state, batch):
        seen.append(model["generator"](batch[0]).dtype)
        return gan_step(model, state, batch)

    fl.fit(gan(step, PAIRS[:2], precision="bf16"), 1)
    assert seen == [torch.bfloat16] * 2
