import numpy as np
import pytest

from opensana.datasets.emoji.compose import COLOURS, SIZE, Scene, compose, compose_batch, describe
from opensana.errors import DataError


@pytest.fixture
def pictures() -> np.ndarray:
    """A full red square, and a green one whose left half is hidden magenta."""
    pictures = np.zeros((2, SIZE, SIZE, 4), dtype=np.uint8)
    pictures[0] = (255, 0, 0, 255)
    pictures[1, :, : SIZE // 2] = (255, 0, 255, 0)
    pictures[1, :, SIZE // 2 :] = (0, 255, 0, 255)
    return pictures


def test_transparent_parts_show_the_ground(pictures: np.ndarray) -> None:
    picture = compose(Scene((1,), "blue"), pictures)
    assert picture.shape == (SIZE, SIZE, 3)
    assert picture.dtype == np.uint8
    assert tuple(picture[10, 10]) == COLOURS["blue"]
    assert tuple(picture[10, 200]) == (0, 255, 0)


def test_half_alpha_is_the_mean(pictures: np.ndarray) -> None:
    pictures[0, ..., 3] = 128
    picture = compose(Scene((0,), "white"), pictures)
    assert np.abs(picture[0, 0].astype(int) - (255, 127, 127)).max() <= 1


def test_hidden_colours_do_not_bleed_when_resized(pictures: np.ndarray) -> None:
    picture = compose(Scene((1,), "white", size="small"), pictures).astype(int)
    # Between white and green, red and blue always are equal; magenta would break this.
    assert np.abs(picture[..., 0] - picture[..., 2]).max() <= 1
    assert picture[..., 1].min() >= 250


def test_size_and_position(pictures: np.ndarray) -> None:
    picture = compose(Scene((0,), "white", "small", "bottom right corner"), pictures)
    red = (picture == (255, 0, 0)).all(-1)
    assert red[-1, -1]
    assert not red[0, 0]
    assert red.any(1).sum() == red.any(0).sum() == round(0.4 * SIZE)


def test_pairs_stand_side_by_side(pictures: np.ndarray) -> None:
    picture = compose(Scene((0, 1), "white", position="left of"), pictures)
    assert tuple(picture[SIZE // 2, 20]) == (255, 0, 0)
    assert tuple(picture[SIZE // 2, -20]) == (0, 255, 0)


def test_batches_stack(pictures: np.ndarray) -> None:
    assert compose_batch([Scene((0,)), Scene((1,))], pictures).shape == (2, SIZE, SIZE, 3)


def test_larger_scenes_have_the_same_parts_at_their_own_size(pictures: np.ndarray) -> None:
    pair = Scene((0, 1), "white", position="left of")
    large, small = (compose(pair, pictures, size=size) for size in (2 * SIZE, SIZE))
    assert large.shape == (2 * SIZE, 2 * SIZE, 3)
    assert np.abs(large[::2, ::2].astype(int) - small).mean() < 1
    # Half of 512 pixels is the size that the pictures have: nothing is resampled.
    square = large[SIZE // 2 : -SIZE // 2, SIZE:]
    assert (square == compose(Scene((1,), "white"), pictures)).all()
    assert compose(Scene((0,), "white"), pictures, size=384).shape == (384, 384, 3)


def test_descriptions() -> None:
    assert describe(Scene((0,)), "red apple") == "a red apple"
    assert describe(Scene((0,)), "ox", mention_white=True) == "an ox on a white background"
    blue = Scene((0,), "blue", "small", "top left corner")
    assert describe(blue, "apple") == "a small apple in the top left corner on a blue background"
    pair = Scene((0, 1), "orange", position="left of")
    assert describe(pair, "cat", "dog") == "a cat left of a dog on an orange background"
    assert describe(Scene((0,), "red"), "apple, fruit") == "apple, fruit, red background"


def test_an_unknown_colour_is_an_error_with_a_near_name() -> None:
    with pytest.raises(DataError, match="did you mean 'purple'"):
        Scene((0,), "purpel")
    with pytest.raises(DataError, match="one or two emoji"):
        Scene((0, 1, 2))
