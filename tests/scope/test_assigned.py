"""Buffers that move without being written to."""

import threading

import pytest
import torch

import fluxlike as fl
from fluxlike.scope import assigned as scope


@fl.functor(buffers=("count",))
class Counting:
    """Adds one to its buffer at every call."""

    def __init__(self):
        self.w, self.count = torch.ones(1), torch.zeros(1)

    def __call__(self, x):
        fl.assign(self.count, fl.current(self.count) + 1)
        return self.w * x


def call(model, times=1):
    x = torch.ones(1)
    for _ in range(times):
        x = model(x)
    return x.sum()


class TestGradient:
    def test_the_new_value_stands_at_the_place_of_the_buffer(self):
        model = Counting()
        grads = fl.gradient(call, model)
        assert isinstance(grads.count, fl.Assigned)
        assert grads.count.value.tolist() == [1]
        assert model.count.tolist() == [0]

    def test_update_puts_it_into_the_new_model(self):
        model = Counting()
        new, _ = fl.update(fl.setup(fl.Descent(), model), model, fl.gradient(call, model))
        assert new.count.tolist() == [1]
        assert model.count.tolist() == [0]

    def test_a_layer_called_twice_moves_its_statistics_twice(self):
        assert fl.gradient(call, Counting(), 2).count.value.tolist() == [2]

    def test_batch_norm_called_twice_moves_its_statistics_twice(self):
        x = torch.tensor([[1.0], [3.0]])
        grads = fl.gradient(lambda m: (m(x) + m(x)).sum(), fl.BatchNorm(1))
        once = torch.lerp(torch.zeros(1), x.mean(0), 0.1)
        assert torch.allclose(grads.running_mean.value, torch.lerp(once, x.mean(0), 0.1))

    def test_a_buffer_that_nobody_assigned_is_none(self):
        assert fl.gradient(lambda m: m.w.sum(), Counting()).count is None

    def test_the_value_carries_no_gradient(self):
        @fl.functor(buffers=("mean",))
        class Mean:
            def __init__(self):
                self.w, self.mean = torch.ones(1), torch.zeros(1)

        def loss(m):
            fl.assign(m.mean, 3 * m.w)
            return (fl.current(m.mean) * m.w).sum()

        grads = fl.gradient(loss, Mean())
        assert not grads.mean.value.requires_grad
        assert grads.w.tolist() == [3]

    def test_the_value_takes_the_dtype_of_the_buffer(self):
        def loss(m):
            fl.assign(m.count, torch.tensor([5], dtype=torch.float64))
            return m.w.sum()

        assert fl.gradient(loss, Counting()).count.value.dtype == torch.float32

    def test_integer_buffers_move(self):
        def loss(t):
            fl.assign(t["n"], t["n"] + 1)
            return t["w"].sum()

        grads = fl.gradient(loss, {"w": torch.ones(1), "n": torch.tensor(3)})
        assert grads["n"].value.item() == 4
        assert grads["n"].value.dtype == torch.int64

    def test_sparse_buffers_move(self):
        def loss(t):
            fl.assign(t["a"], 2 * t["a"])
            return t["w"].sum()

        grads = fl.gradient(loss, {"w": torch.ones(1), "a": torch.eye(2).to_sparse()})
        assert isinstance(grads["a"], fl.Assigned)
        assert torch.equal(grads["a"].value.to_dense(), 2 * torch.eye(2))

    def test_a_tied_buffer_moves_at_all_its_places(self):
        model = {"a": Counting(), "b": Counting()}
        model["b"].count = model["a"].count
        grads = fl.gradient(lambda m: call(m["b"]) + call(m["a"]), model)
        new, _ = fl.update(fl.setup(fl.Descent(), model), model, grads)
        assert new["a"].count is new["b"].count
        assert new["a"].count.tolist() == [2]

    def test_wrt_does_not_stop_it(self):
        model = {"body": Counting(), "head": torch.ones(1)}
        grads = fl.gradient(lambda m: call(m["body"]) * m["head"].sum(), model, wrt="['head']")
        assert grads["body"].w is None
        assert grads["body"].count.value.tolist() == [1]

    def test_freeze_does_not_stop_it(self):
        model = Counting()
        state = fl.freeze(fl.setup(fl.Descent(), model), lambda s: s.w)
        new, _ = fl.update(state, model, fl.gradient(call, model))
        assert new.w is model.w
        assert new.count.tolist() == [1]


class TestScopes:
    def test_outside_every_transform_nothing_happens(self):
        model = Counting()
        call(model)
        assert model.count.tolist() == [0]
        assert fl.current(model.count) is model.count

    def test_a_model_that_is_closed_over_is_unaffected(self):
        model = Counting()
        grads = fl.gradient(lambda x: model(x).sum(), torch.ones(1))
        assert isinstance(grads, torch.Tensor)
        assert model.count.tolist() == [0]

    def test_a_model_that_is_both_closed_over_and_an_argument_is_two(self):
        model = Counting()
        grads = fl.gradient(lambda m: call(model) + m.w.sum(), model)
        assert grads.count is None

    def test_an_argument_that_is_not_differentiated_reports_nothing(self):
        model, other = Counting(), Counting()
        grads = fl.gradient(lambda m, o: call(m) + call(o), model, other)
        assert grads.count.value.tolist() == [1]
        assert other.count.tolist() == [0]

    def test_a_target_that_shares_its_buffers_keeps_them(self):
        model = Counting()
        grads = fl.gradient(lambda m, target: m.w.sum() + call(target), model, model)
        assert grads.count is None

    def test_an_assignment_belongs_to_the_innermost_scope_that_holds_the_buffer(self):
        inner = []

        def outer(m):
            inner.append(fl.gradient(call, m))
            return m.w.sum() + 0 * fl.current(m.count).sum()

        grads = fl.gradient(outer, Counting())
        assert inner[0].count.value.tolist() == [1]
        assert grads.count is None

    def test_of_two_scopes_that_hold_one_buffer_the_inner_one_answers_for_it(self):
        buffer = torch.zeros(1)
        outer, inner = scope.Frame([buffer]), scope.Frame([buffer])
        tokens = [scope.enter(outer), scope.enter(inner)]
        fl.assign(buffer, torch.ones(1))
        seen = [fl.current(buffer).item()]
        scope.leave(tokens[1])
        seen.append(fl.current(buffer).item())
        scope.leave(tokens[0])
        assert seen == [1, 0]
        assert [len(frame.newest()) for frame in (outer, inner)] == [0, 1]

    def test_an_inner_scope_that_does_not_hold_the_buffer_lets_it_pass(self):
        def outer(m):
            slope = fl.gradient(lambda x: m(x).sum(), torch.ones(1))
            return slope.sum()

        assert fl.gradient(outer, Counting()).count.value.tolist() == [1]

    def test_current_in_an_inner_scope_starts_from_the_argument(self):
        seen = []

        def outer(m):
            m(torch.ones(1))
            fl.gradient(lambda inner: seen.append(fl.current(inner.count).item()) or inner.w.sum(), m)
            return m.w.sum()

        fl.gradient(outer, Counting())
        assert seen == [0]

    def test_another_thread_does_not_see_the_scope(self):
        def loss(m):
            thread = threading.Thread(target=lambda: m(torch.ones(1)))
            thread.start()
            thread.join()
            return m.w.sum()

        assert fl.gradient(loss, Counting()).count is None

    def test_an_exception_closes_the_scope(self):
        kept = []

        def fail(m):
            kept.append(m)
            m(torch.ones(1))
            raise KeyError("stop")

        with pytest.raises(KeyError, match="stop"):
            fl.gradient(fail, Counting())
        assert fl.current(kept[0].count).tolist() == [0]

    @pytest.mark.parametrize("cast", [fl.f64, fl.bf16, lambda m: fl.f32(fl.f64(m)), fl.cpu])
    def test_a_cast_of_the_model_inside_keeps_the_origin_of_its_buffers(self, cast):
        grads = fl.gradient(lambda m: call(cast(m), 2).float(), Counting())
        assert grads.count.value.tolist() == [2]
        assert grads.count.value.dtype == torch.float32

    def test_a_device_move_inside_keeps_the_origin_of_the_buffers(self):
        def loss(m):
            moved = fl.to_device(m, "meta")
            fl.assign(moved.count, torch.tensor([7.0]))
            return m.w.sum()

        assert fl.gradient(loss, Counting()).count.value.tolist() == [7]


class TestErrors:
    def test_another_shape(self):
        with pytest.raises(
            ValueError, match=r"the buffer has the shape \(1,\), the value \(2,\); a buffer keeps"
        ):
            fl.assign(torch.ones(1), torch.ones(2))

    @pytest.mark.parametrize(("buffer", "value"), [(1.0, torch.ones(1)), (torch.ones(1), 1.0), (None, None)])
    def test_no_tensors(self, buffer, value):
        with pytest.raises(TypeError, match="assign takes the buffer and its new value, two tensors; found"):
            fl.assign(buffer, value)

    @pytest.mark.parametrize("run", [fl.gradient, fl.withgradient, fl.withupdates])
    def test_a_parameter_can_not_be_assigned(self, run):
        def loss(m):
            fl.assign(m.w, m.w + 1)
            return m.w.sum()

        with pytest.raises(ValueError, match=r"shape \(1,\) is a parameter, which update moves.*buffers="):
            run(loss, Counting())


class TestUpdates:
    def test_updates_are_collected_without_gradients(self):
        model = Counting()
        out, updates = fl.withupdates(call, model, 3)
        assert out.item() == 1
        assert type(updates) is Counting
        assert updates.w is None
        assert updates.count.value.tolist() == [3]
        assert model.count.tolist() == [0]

    def test_apply_updates_puts_them_in(self):
        model = Counting()
        new = fl.apply_updates(model, fl.withupdates(call, model)[1])
        assert new.count.tolist() == [1]
        assert new.w is model.w
        assert model.count.tolist() == [0]

    def test_several_arguments_give_several_trees(self):
        a, b = Counting(), Counting()
        _, (first, second) = fl.withupdates(lambda a, b: call(a) + call(b, 2), a, b, argnums=(0, 1))
        assert first.count.value.tolist() == [1]
        assert second.count.value.tolist() == [2]

    def test_inside_a_gradient_they_do_not_reach_it(self):
        def loss(m):
            out, updates = fl.withupdates(call, m)
            assert updates.count.value.tolist() == [1]
            return out

        grads = fl.gradient(loss, Counting())
        assert grads.count is None
        assert grads.w.tolist() == [1]

    def test_outside_arguments_stay_differentiable(self):
        x = torch.ones(1, requires_grad=True)
        out, _ = fl.withupdates(lambda m: m(x), Counting())
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert grad.tolist() == [1]

    def test_a_number_that_names_no_argument(self):
        with pytest.raises(ValueError, match="argnums=1: 1 arguments were given"):
            fl.withupdates(call, Counting(), argnums=1)

    def test_updates_of_another_structure(self):
        with pytest.raises(ValueError, match="updates and the model differ in structure"):
            fl.apply_updates(Counting(), {"count": None})

    def test_updates_that_are_gradients(self):
        model = Counting()
        with pytest.raises(ValueError, match=r"updates hold a Tensor at \.w; they hold Assigned or None"):
            fl.apply_updates(model, fl.gradient(call, model))

    def test_a_batched_assignment_is_refused(self):
        model = Counting()
        updates = fl.at(fl.withupdates(call, model)[1], lambda u: u.count).set(fl.Assigned(torch.ones(5, 1)))
        with pytest.raises(
            ValueError, match=r"\.count is assigned a tensor of shape \(5, 1\).*vmap over examples"
        ):
            fl.apply_updates(model, updates)
