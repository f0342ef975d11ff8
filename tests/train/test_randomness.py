"""Draws are functions of the step; each sample comes exactly once an epoch.

Also tests `train/engine/randomness.py`.
"""

import torch

from opensana.train.engine.randomness import (
    numpy_generator,
    samples_of_step,
    seed_of,
    torch_generator,
)
from opensana.workers.threads import in_order


def test_each_sample_once_per_epoch_whatever_the_batch():
    for batch in (1, 3, 4, 16):
        visits = [
            visit
            for step in range(60 // batch + 1)
            for visit in samples_of_step(step, batch=batch, count=10, seed=1)
        ][:50]
        assert [epoch for epoch, _ in visits] == [i // 10 for i in range(50)]
        for epoch in range(5):
            assert sorted(s for e, s in visits if e == epoch) == list(range(10))


def test_the_order_does_not_depend_on_the_batch():
    def order(batch: int) -> list[tuple[int, int]]:
        steps = range(24 // batch)
        return [v for s in steps for v in samples_of_step(s, batch=batch, count=7, seed=3)]

    assert order(1) == order(4) == order(12)


def test_epochs_and_seeds_differ():
    first = samples_of_step(0, batch=20, count=20, seed=1)
    second = samples_of_step(1, batch=20, count=20, seed=1)
    other = samples_of_step(0, batch=20, count=20, seed=2)
    assert len({tuple(s for _, s in visit) for visit in (first, second, other)}) == 3


def test_seeds_are_the_same_everywhere():
    assert seed_of(1, 2, "noise") == 5128620279309610706


def test_purposes_are_independent():
    assert numpy_generator(1, 2, "a").random() != numpy_generator(1, 2, "b").random()
    assert numpy_generator(1, 2, "a").random() == numpy_generator(1, 2, "a").random()
    a, b = torch_generator(1, 2, "a"), torch_generator(1, 2, "a")
    assert torch.equal(torch.randn(3, generator=a), torch.randn(3, generator=b))


def test_the_loader_keeps_the_order():
    assert list(in_order(lambda step: step * step, range(3, 8), workers=1, ahead=1)) == [
        9,
        16,
        25,
        36,
        49,
    ]
    assert list(in_order(lambda step: step, range(5, 5), workers=1, ahead=1)) == []
