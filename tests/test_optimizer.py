"""The update rule against the paper's two lines in NumPy, the learning rate's three rules and that of the biases."""

import jax
import numpy as np
import pytest

from alexnet_jax import UserError, optimizer
from alexnet_jax.config import check
from configs import caffe, imagenette, imagenette_small, one_column, paper, six_conv, six_conv_2012, source

LAYERS = ("conv1", "fc8")


@pytest.fixture
def config():
    return paper.get_config().optimizer


def tree(rng):
    return {n: {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)} for n in LAYERS}


def run(config, learning_rates, gradients, params):
    """Updates params once per learning rate; returns them after every step."""
    rule = optimizer.update_rule(config)
    params = jax.tree.map(np.float32, params)
    state, seen = rule.init(params), []
    for step, (rate, gradient) in enumerate(zip(learning_rates, gradients, strict=True)):
        rates = optimizer.rates(config, params, rate, epoch=step)
        updates, state = rule.update(jax.tree.map(np.float32, gradient), state, params, rates=rates)
        params = jax.tree.map(np.add, params, updates)
        seen.append(params)
    return seen


def by_hand(config, learning_rates, gradients, params, multiple=lambda step, layer: 1.0):
    """v <- 0.9 v - 0.0005 lr w - lr g; w <- w + v, in float64."""
    w = jax.tree.map(np.copy, params)
    v = jax.tree.map(np.zeros_like, params)
    seen = []
    for step, (rate, g) in enumerate(zip(learning_rates, gradients, strict=True)):
        for layer in LAYERS:
            for kind in ("kernel", "bias"):
                lr = rate * multiple(step, layer) * (config.bias_rate if kind == "bias" else 1)
                decay = config.weight_decay if kind == "kernel" or config.decay_biases else 0
                if lr == 0:
                    continue
                v[layer][kind] = 0.9 * v[layer][kind] - decay * lr * w[layer][kind] - lr * g[layer][kind]
                w[layer][kind] = w[layer][kind] + v[layer][kind]
        seen.append(jax.tree.map(np.copy, w))
    return seen


@pytest.mark.parametrize("changes", [{}, {"bias_rate": 2.0}, {"decay_biases": True}, {"weight_decay": 0.1}])
def test_every_step_equals_the_papers_rule_over_a_drop(config, changes):
    config.update(changes)
    rng = np.random.default_rng(0)
    params, gradients = tree(rng), [tree(rng) for _ in range(60)]
    rates = [0.01] * 30 + [0.001] * 30
    for found, wanted in zip(
        run(config, rates, gradients, params), by_hand(config, rates, gradients, params), strict=True
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), found, wanted)


def test_velocity_coasts_after_a_drop(config):
    """The velocity contains the learning rate: one step after a drop to a tenth it still moves at nine tenths."""
    rng = np.random.default_rng(0)
    params, gradient = tree(rng), tree(rng)
    seen = run(config, [0.01] * 100 + [0.001] * 30, [gradient] * 130, params)
    moved = [np.linalg.norm(b["fc8"]["kernel"] - a["fc8"]["kernel"]) for a, b in zip(seen, seen[1:], strict=False)]
    assert moved[99] / moved[98] == pytest.approx(0.91, abs=0.01)
    assert moved[-1] / moved[98] == pytest.approx(0.1, abs=0.05)


def test_a_frozen_layer_does_not_change_at_all(config):
    """No decay and no coasting while its rate is 0, and its velocity is kept for afterwards (weights.cu:148)."""
    config.layer_rates = ((5, "conv1", 0.1), (10, "conv1", 0.0), (15, "conv1", 1.0))
    rng = np.random.default_rng(0)
    params, gradients = tree(rng), [tree(rng) for _ in range(20)]

    def multiple(step, layer):
        return 1.0 if layer != "conv1" or step < 5 or step >= 15 else 0.1 if step < 10 else 0.0

    found = run(config, [0.01] * 20, gradients, params)
    wanted = by_hand(config, [0.01] * 20, gradients, params, multiple)
    for a, b in zip(found, wanted, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6), a, b)
    for step in range(10, 15):
        np.testing.assert_array_equal(found[step]["conv1"]["kernel"], found[9]["conv1"]["kernel"])
        assert np.any(found[step]["fc8"]["kernel"] != found[9]["fc8"]["kernel"])


@pytest.mark.parametrize("name", ["conv9", "conv1/weights", "conv1/", "/bias", "conv9/bias"])
def test_layer_rates_of_unknown_layers_are_refused(config, name):
    config.layer_rates = ((0, name, 0.1),)
    with pytest.raises(UserError, match=f"'{name}'.*conv1, fc8.*/kernel or /bias"):
        optimizer.rates(config, tree(np.random.default_rng(0)), 0.01, 0)


def test_a_kernel_or_a_bias_has_its_own_multiple(config):
    """It holds until its own next entry or the layer's. Within an epoch it overrides the layer's."""
    config.layer_rates = (
        (0, "conv1/bias", 0.5), (0, "conv1", 3.0), (2, "conv1/kernel", 0.0), (4, "conv1", 0.1), (6, "fc8/kernel", 0.0),
    )  # fmt: skip
    params = tree(np.random.default_rng(0))

    def at(epoch):
        found = optimizer.rates(config, params, 1.0, epoch)
        return [float(found[layer][kind]) for layer in LAYERS for kind in ("kernel", "bias")]

    for epoch, wanted in {0: (3, 0.5, 1, 1), 2: (0, 0.5, 1, 1), 4: (0.1, 0.1, 1, 1), 6: (0.1, 0.1, 0, 1)}.items():
        np.testing.assert_allclose(at(epoch), wanted, rtol=1e-6, err_msg=str(epoch))


def test_freezing_a_kernel_does_not_freeze_its_bias(config):
    """Only a layer that is frozen as a whole needs no gradient. Of the other one, the bias moves."""
    config.layer_rates = ((0, "conv1/kernel", 0.0), (0, "fc8", 0.0))
    assert optimizer.frozen(config, LAYERS, 5) == {"fc8"}
    config.layer_rates = ((0, "conv1/kernel", 0.0), (0, "conv1/bias", 0.0))
    assert optimizer.frozen(config, LAYERS, 5) == {"conv1"}
    config.layer_rates = ((0, "conv1/kernel", 0.0),)
    rng = np.random.default_rng(0)
    params, gradients = tree(rng), [tree(rng) for _ in range(3)]
    last = run(config, [0.01] * 3, gradients, params)[-1]
    np.testing.assert_array_equal(last["conv1"]["kernel"], np.float32(params["conv1"]["kernel"]))
    assert np.all(last["conv1"]["bias"] != np.float32(params["conv1"]["bias"]))


def rates_over(config, errors, every=1):
    """The learning rate of each epoch, given each epoch's validation error, which is measured every `every` epochs."""
    plateau, seen = optimizer.new_plateau(), []
    for epoch, error in enumerate(errors):
        seen.append(optimizer.learning_rate(config, epoch, len(errors), plateau))
        if (epoch + 1) % every == 0:
            plateau = optimizer.watch(config, plateau, error, every)
    return seen


def test_plateau_drops_after_patience_and_three_times_at_most(config):
    config.patience = 2
    falling = [0.9 - 0.1 * i for i in range(4)]
    rates = rates_over(config, falling + [0.6] * 20)
    np.testing.assert_allclose(rates[:6], 0.01)  # the fall, then two epochs without one
    np.testing.assert_allclose(rates[6:8], 0.001)
    np.testing.assert_allclose(rates[8:10], 0.0001)
    np.testing.assert_allclose(rates[10:], 0.00001)


def test_plateau_ignores_falls_below_the_least_improvement(config):
    config.patience, config.min_improvement = 3, 0.01
    assert rates_over(config, [0.5, 0.499, 0.498, 0.497, 0.4])[4] == pytest.approx(0.001)
    assert rates_over(config, [0.5, 0.48, 0.46, 0.44, 0.42])[4] == pytest.approx(0.01)


def test_plateau_waits_for_epochs_not_for_evaluations(config):
    """A patience of four epochs is two evaluations two epochs apart, or one evaluation after five epochs."""
    config.patience = 4
    assert rates_over(config, [0.5] * 12, every=1)[4:6] == pytest.approx([0.01, 0.001])
    assert rates_over(config, [0.5] * 12, every=2)[5:7] == pytest.approx([0.01, 0.001])
    assert rates_over(config, [0.5] * 12, every=5)[9:11] == pytest.approx([0.01, 0.001])


def test_plateau_of_an_older_checkpoint_continues(config):
    old = {"best": 0.5, "waited": 4, "drops": 1}
    config.patience = 6
    assert optimizer.watch(config, old, 0.6, 1) == {"best": 0.5, "waited": 5, "drops": 1}
    assert optimizer.watch(config, old, 0.6, 2) == {"best": 0.5, "waited": 0, "drops": 2}


# Schedules of the code, as its notes and param files have them: epsW, epsB.

NAMES = ("conv1", "conv2", "conv6", "fc8")


def schedule(config):
    """at(epoch) -> a config's rates, {"layer/kind": rate}."""
    o, params = config.optimizer, {n: {"kernel": 0, "bias": 0} for n in NAMES}

    def at(epoch):
        rate = optimizer.learning_rate(o, epoch, config.epochs, optimizer.new_plateau())
        found = optimizer.rates(o, params, rate, epoch)
        return {f"{layer}/{kind}": float(found[layer][kind]) for layer in NAMES for kind in ("kernel", "bias")}

    return at


def check_schedule(config, wanted):
    """wanted: {epoch: (conv1's weights, conv1's biases, other weights, other biases)}."""
    at = schedule(config)
    for epoch, rates in wanted.items():
        found = at(epoch)
        for layer, expected in (("conv1", rates[:2]), ("fc8", rates[2:])):
            actual = [found[f"{layer}/kernel"], found[f"{layer}/bias"]]
            np.testing.assert_allclose(actual, expected, rtol=1e-5, err_msg=f"{layer}, epoch {epoch}")


RUN_OF_2012 = {
    0: (1e-2, 2e-2, 1e-2, 2e-2), 24: (1e-2, 2e-2, 1e-2, 2e-2), 25: (1e-3, 2e-2, 1e-3, 2e-2),
    51: (1e-4, 2e-2, 1e-4, 2e-2), 67: (1e-5, 2e-2, 1e-4, 2e-2), 71: (1e-5, 2e-2, 1e-4, 2e-2),
    72: (0, 0, 1e-4, 2e-2), 79: (0, 0, 1e-5, 2e-2), 90: (0, 0, 1e-5, 2e-2),
}  # fmt: skip


@pytest.mark.parametrize("make", [source, imagenette, six_conv])
def test_the_2012_run_never_cut_the_biases_rate(make):
    """Weights fall at 25, 51 and 79, conv1's at 67; it is frozen at 72. layer-params-145.cfg has the last values."""
    c = make.get_config()
    assert c.epochs == 91 and c.data.color_noise_epochs == 67
    check_schedule(c, RUN_OF_2012)


def test_the_2010_run_is_a_few_fields_away():
    """layer-params-145-2010.cfg: epsB ends at 0.002."""
    c = source.get_config()
    c.epochs, c.optimizer.drop_epochs, c.optimizer.bias_drop_epochs = 93, (23, 51, 78), (51,)
    c.optimizer.layer_rates = ((68, "conv1/kernel", 0.1), (72, "conv1", 0.0))
    check_schedule(c, {23: (1e-3, 2e-2, 1e-3, 2e-2), 68: (1e-5, 2e-3, 1e-4, 2e-3), 92: (0, 0, 1e-5, 2e-3)})


def test_cuda_convnet2_is_a_few_fields_away():
    """The rates of its biases fall to a tenth half way, independently of the weights' four stages."""
    c = source.get_config()
    c.epochs, c.optimizer.rule, c.optimizer.bias_drop_epochs, c.optimizer.layer_rates = 90, "stages", (45,), ()
    last = 1e-2 / 250
    check_schedule(c, {0: (1e-2, 2e-2) * 2, 44: (1e-2 * 250 ** (-1 / 3), 2e-2) * 2, 89: (last, 2e-3) * 2})


def test_the_one_columns_own_schedule():
    """layer-params-145-half.cfg: conv1's and conv2's epsB end at 0.002, the others' at 0.02."""
    c = one_column.get_config()
    assert c.epochs == 96 and c.data.color_noise_epochs == 66
    check_schedule(
        c,
        {
            19: (1e-2, 2e-2, 1e-2, 2e-2), 20: (1e-3, 2e-2, 1e-3, 2e-2), 48: (1e-4, 2e-2, 1e-4, 2e-2),
            66: (1e-5, 2e-3, 1e-4, 2e-2), 72: (0, 2e-3, 1e-4, 2e-2), 95: (0, 2e-3, 1e-5, 2e-2),
        },
    )  # fmt: skip
    last = schedule(c)(95)
    np.testing.assert_allclose([last["conv2/kernel"], last["conv2/bias"]], (1e-5, 2e-3), rtol=1e-5)


def test_the_last_training_of_the_six_convolutions():
    """layer-params-146-2012-2011.cfg."""
    c = six_conv_2012.get_config("imagenette")
    assert (c.epochs, c.data.color_noise_epochs, c.start.fresh, c.model.num_classes) == (54, 38, ("fc8",), 10)
    check_schedule(
        c,
        {
            0: (1e-4, 2e-2, 1e-2, 2e-2), 5: (1e-5, 2e-2, 1e-2, 2e-2), 7: (0, 0, 1e-2, 2e-2), 9: (0, 0, 1e-3, 2e-2),
            22: (0, 0, 1e-4, 2e-2), 42: (0, 0, 1e-5, 2e-2), 53: (0, 0, 1e-5, 2e-2),
        },
    )  # fmt: skip
    first, last = schedule(c)(0), schedule(c)(53)
    np.testing.assert_allclose([first["conv2/kernel"], first["conv6/kernel"]], 1e-3, rtol=1e-5)
    np.testing.assert_allclose([last["conv6/kernel"], last["conv6/bias"]], (1e-5, 0.022), rtol=1e-5)
    with pytest.raises(UserError, match=r"start\.workdir"):
        check(c)


@pytest.mark.parametrize("make", [paper, caffe, imagenette_small])
def test_biases_fall_with_the_weights_unless_a_rule_says_otherwise(make):
    c = make.get_config()
    o, params = c.optimizer, {"fc8": {"kernel": 0, "bias": 0}}
    for rate in (o.learning_rate, o.learning_rate / 1000):
        found = optimizer.rates(o, params, rate, c.epochs - 1)["fc8"]
        assert found["bias"] == pytest.approx(o.bias_rate * rate) and found["kernel"] == pytest.approx(rate)


def test_stages_divide_by_250_in_four_equal_steps(config):
    config.rule = "stages"
    rates = rates_over(config, [0.5] * 90)
    assert [rates.count(r) for r in sorted(set(rates), reverse=True)] == [23, 22, 23, 22]
    assert rates[0] == 0.01
    assert rates[-1] == pytest.approx(0.01 / 250)
    np.testing.assert_allclose(rates[30] / rates[0], 250 ** (-1 / 3))
