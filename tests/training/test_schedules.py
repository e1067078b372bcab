"""The schedule against the reference's formula, step by step."""

import math

import numpy as np

from keras_mae.training.schedules import WarmupCosine


def reference_rate(step, peak, total, warmup, floor):
    if step < warmup:
        return peak * step / warmup
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def test_every_step_equals_the_formula():
    schedule = WarmupCosine(0.4, total_steps=50, warmup_steps=7.5, min_learning_rate=0.01)
    expected = [reference_rate(t, 0.4, 50, 7.5, 0.01) for t in range(51)]
    np.testing.assert_allclose([float(schedule(t)) for t in range(51)], expected, rtol=1e-5, atol=1e-7)


def test_without_warmup_it_starts_at_the_peak():
    assert float(WarmupCosine(0.4, total_steps=10)(0)) == np.float32(0.4)


def test_config_round_trip():
    schedule = WarmupCosine(0.4, 10, 2, 0.1)
    assert WarmupCosine.from_config(schedule.get_config()).get_config() == schedule.get_config()
