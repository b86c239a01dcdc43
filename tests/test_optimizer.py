"""The update rule against the paper's two lines in NumPy, and the learning rate's three rules."""

import jax
import numpy as np
import pytest

from alexnet_jax import UserError, optimizer
from configs import paper, source

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
    """The velocity carries the learning rate: one step after a drop to a tenth it still moves at nine tenths."""
    rng = np.random.default_rng(0)
    params, gradient = tree(rng), tree(rng)
    seen = run(config, [0.01] * 100 + [0.001] * 30, [gradient] * 130, params)
    moved = [np.linalg.norm(b["fc8"]["kernel"] - a["fc8"]["kernel"]) for a, b in zip(seen, seen[1:], strict=False)]
    assert moved[99] / moved[98] == pytest.approx(0.91, abs=0.01)
    assert moved[-1] / moved[98] == pytest.approx(0.1, abs=0.05)


def test_a_frozen_layer_is_left_alone_wholly(config):
    """No decay and no coasting while its rate is 0, and its velocity is there again afterwards (weights.cu:148)."""
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


def test_layer_rates_of_no_layer_are_refused(config):
    config.layer_rates = ((0, "conv9", 0.1),)
    with pytest.raises(UserError, match="conv9.*fc8"):
        optimizer.rates(config, tree(np.random.default_rng(0)), 0.01, 0)


def rates_over(config, errors, every=1):
    """The learning rate of each epoch, given each epoch's validation error, of which every so manieth is measured."""
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


def test_plateau_counts_only_a_fall_of_the_least_improvement(config):
    config.patience, config.min_improvement = 3, 0.01
    assert rates_over(config, [0.5, 0.499, 0.498, 0.497, 0.4])[4] == pytest.approx(0.001)
    assert rates_over(config, [0.5, 0.48, 0.46, 0.44, 0.42])[4] == pytest.approx(0.01)


def test_plateau_waits_for_epochs_not_for_evaluations(config):
    """Of a patience of four epochs, two evaluations two epochs apart, or the first one that comes after five."""
    config.patience = 4
    assert rates_over(config, [0.5] * 12, every=1)[4:6] == pytest.approx([0.01, 0.001])
    assert rates_over(config, [0.5] * 12, every=2)[5:7] == pytest.approx([0.01, 0.001])
    assert rates_over(config, [0.5] * 12, every=5)[9:11] == pytest.approx([0.01, 0.001])


def test_plateau_of_an_older_checkpoint_goes_on(config):
    old = {"best": 0.5, "waited": 4, "drops": 1}
    config.patience = 6
    assert optimizer.watch(config, old, 0.6, 1) == {"best": 0.5, "waited": 5, "drops": 1}
    assert optimizer.watch(config, old, 0.6, 2) == {"best": 0.5, "waited": 0, "drops": 2}


def test_epochs_of_the_2012_run():
    """Divided by ten at 25, 51 and 79; conv1 at 67 too, and frozen at 72 (layer-params-145.cfg:165-182)."""
    o = source.get_config().optimizer
    params = tree(np.random.default_rng(0))

    def at(epoch):
        rate = optimizer.learning_rate(o, epoch, 91, optimizer.new_plateau())
        found = optimizer.rates(o, params, rate, epoch)
        return [float(x) for x in (found["fc8"]["kernel"], found["fc8"]["bias"], found["conv1"]["kernel"])]

    weights_biases_conv1 = {
        0: (1e-2, 2e-2, 1e-2), 24: (1e-2, 2e-2, 1e-2), 25: (1e-3, 2e-3, 1e-3), 51: (1e-4, 2e-4, 1e-4),
        67: (1e-4, 2e-4, 1e-5), 72: (1e-4, 2e-4, 0), 79: (1e-5, 2e-5, 0), 90: (1e-5, 2e-5, 0),
    }  # fmt: skip
    for epoch, wanted in weights_biases_conv1.items():
        np.testing.assert_allclose(at(epoch), wanted, rtol=1e-5, err_msg=str(epoch))


def test_stages_divide_by_250_in_four_equal_steps(config):
    config.rule = "stages"
    rates = rates_over(config, [0.5] * 90)
    assert [rates.count(r) for r in sorted(set(rates), reverse=True)] == [23, 22, 23, 22]
    assert rates[0] == 0.01
    assert rates[-1] == pytest.approx(0.01 / 250)
    np.testing.assert_allclose(rates[30] / rates[0], 250 ** (-1 / 3))


def test_unknown_rule_is_refused(config):
    config.rule = "cosine"
    with pytest.raises(UserError, match="plateau, epochs, stages"):
        optimizer.learning_rate(config, 0, 90, optimizer.new_plateau())
