"""Images as tensors: torchvision's boxes, draws from the key, and errors that say what to write."""

import importlib
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision_here import torchvision

import fluxlike as fl
from fluxlike.data import images

IMAGE = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))


def v2():
    """torchvision's transforms of tensors."""
    torchvision()
    return importlib.import_module("torchvision.transforms.v2")


def drawn(function, key=0, *args):
    with fl.seeded(fl.Key(key)):
        return function(*args)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(20, 20), (35, 80), (80, 35), (1, 7)], ids=str)
def test_resize_and_crop_is_torchvisions_resize_and_centre_crop(dtype, size):
    functional = v2().functional
    image = (IMAGE * 255).to(dtype)
    scale = max(size[0] / 40, size[1] / 60)
    covering = [max(size[0], int(40 * scale)), max(size[1], int(60 * scale))]
    theirs = functional.center_crop(functional.resize(image, covering, antialias=True), list(size))
    found = fl.data.resize_and_crop(image, size)
    assert found.dtype == dtype
    torch.testing.assert_close(found, theirs, atol=1e-4, rtol=0)


@given(h=st.integers(1, 50), w=st.integers(1, 50), height=st.integers(1, 50), width=st.integers(1, 50))
@settings(max_examples=100, deadline=None)
def test_any_size_is_reached_from_any_shape(h, w, height, width):
    assert fl.data.resize_and_crop(torch.full((1, h, w), 0.5), (height, width)).shape == (1, height, width)
    image = torch.full((2, 3, h, w), 7, dtype=torch.uint8)
    assert torch.equal(
        fl.data.resize_and_crop(image, (height, width)), image[:, :, :1, :1].expand(2, 3, height, width)
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (9, 1), (60, 1), (1, 9), (9, 9)], ids=str)
def test_each_dtype_is_resized_as_float32_is_to_its_rounding(dtype, size):
    scale = 255 if dtype == torch.uint8 else 1
    image = (IMAGE * scale).to(dtype)
    expected = fl.data.resize_and_crop(image.float(), size)
    found = fl.data.resize_and_crop(image, size)
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() <= (1.01 if scale > 1 else 0.004)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((6, 90), 4), ((6, 93), (4, 5)), ((90, 6), (5, 4)), ((3, 50), 9), ((50, 3), 9), ((1, 40), (8, 3))],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_the_middle_of_a_long_image_is_that_of_the_whole_resized(shape, size, dtype):
    generator = torch.Generator().manual_seed(0)
    image = (torch.rand(3, *shape, generator=generator) * 255).to(dtype)
    height, width = (size, size) if isinstance(size, int) else size
    scale = Fraction(max(Fraction(height, shape[0]), Fraction(width, shape[1])))
    covering = [int(side * scale) for side in shape]
    functional = v2().functional
    theirs = functional.center_crop(functional.resize(image, covering, antialias=True), [height, width])
    found = fl.data.resize_and_crop(image, size)
    assert found.shape == theirs.shape
    torch.testing.assert_close(found, theirs, atol=1e-3 if dtype.is_floating_point else 1, rtol=0)


@pytest.mark.parametrize("shape", [(1, 40_000), (40_000, 1), (2, 1_000_001)], ids=str)
def test_a_line_of_pixels_takes_little_memory(shape, monkeypatch):
    sizes = []
    interpolate = images.F.interpolate
    monkeypatch.setattr(
        images.F, "interpolate", lambda x, size, **rest: (sizes.append(size), interpolate(x, size, **rest))[1]
    )
    image = torch.full((3, *shape), 7, dtype=torch.uint8)
    assert torch.equal(fl.data.resize_and_crop(image, 64), torch.full((3, 64, 64), 7, dtype=torch.uint8))
    assert max(sizes[0]) <= 5 * 64 + 1


def test_an_image_of_the_size_is_not_changed():
    assert fl.data.resize_and_crop(IMAGE, (40, 60)).data_ptr() == IMAGE.data_ptr()


def box_of(crop, key, shape=(40, 60)):
    return drawn(crop._box, key, *shape)


@given(key=st.integers(0, 2**32), h=st.integers(1, 80), w=st.integers(1, 80))
@settings(max_examples=200, deadline=None)
def test_a_random_box_lies_in_the_image(key, h, w):
    top, left, height, width = box_of(fl.data.RandomResizedCrop(8), key, (h, w))
    assert 0 <= top <= top + height <= h
    assert 0 <= left <= left + width <= w
    assert min(height, width) >= 1


def test_random_boxes_have_the_share_the_ratio_and_the_place_asked_for():
    boxes = [box_of(fl.data.RandomResizedCrop(8), key, (400, 400)) for key in range(500)]
    reference = v2().RandomResizedCrop(8)
    torch.manual_seed(0)
    theirs = [reference.make_params([torch.zeros(3, 400, 400)]) for _ in range(500)]
    for ours, name in zip(zip(*boxes, strict=True), ("top", "left", "height", "width"), strict=True):
        assert stats.ks_2samp(ours, [box[name] for box in theirs]).pvalue > 0.01
    assert max(abs(math.log(w / h)) for _, _, h, w in boxes) <= math.log(4 / 3) + 0.02
    assert 0.075 < min(h * w for _, _, h, w in boxes) / 400**2 < 0.1


@pytest.mark.parametrize("shape", [(10, 400), (400, 10)], ids=str)
def test_where_no_box_fits_it_is_the_one_in_the_middle_as_in_torchvision(shape):
    crop = fl.data.RandomResizedCrop(8, scale=(1.0, 1.0))
    theirs = v2().RandomResizedCrop(8, scale=(1.0, 1.0)).make_params([torch.zeros(3, *shape)])
    assert box_of(crop, 0, shape) == tuple(theirs[name] for name in ("top", "left", "height", "width"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_a_random_box_is_resized_as_torchvision_resizes_it(dtype):
    image, crop = (IMAGE * 255).to(dtype), fl.data.RandomResizedCrop((16, 24))
    resized_crop = v2().functional.resized_crop
    theirs = resized_crop(image, *box_of(crop, 3), size=[16, 24], antialias=True)
    torch.testing.assert_close(drawn(crop, 3, image), theirs, atol=1e-4, rtol=0)


def test_a_batch_is_cropped_and_flipped_as_one():
    batch = IMAGE.expand(4, 3, 40, 60)
    for augment in (fl.data.RandomResizedCrop(8), fl.data.RandomHorizontalFlip()):
        found = drawn(augment, 1, batch)
        assert torch.equal(found, drawn(augment, 1, IMAGE).expand_as(found))


def test_augmentations_draw_from_the_key_or_torchs_generator():
    def both(image):
        return fl.data.RandomHorizontalFlip()(fl.data.RandomResizedCrop(8)(image))

    assert torch.equal(drawn(both, 5, IMAGE), drawn(both, 5, IMAGE))
    assert not torch.equal(drawn(both, 5, IMAGE), drawn(both, 6, IMAGE))
    torch.manual_seed(0)
    first = both(IMAGE)
    assert not torch.equal(both(IMAGE), first)
    torch.manual_seed(0)
    assert torch.equal(both(IMAGE), first)


def test_flips_happen_with_their_probability():
    flip = fl.data.RandomHorizontalFlip(0.25)
    image = torch.tensor([[[1, 2]]])
    flipped = sum(not torch.equal(drawn(flip, key, image), image) for key in range(400))
    assert 70 <= flipped <= 130
    assert torch.equal(fl.data.RandomHorizontalFlip(0.0)(image), image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_normalise_is_torchvisions(dtype):
    batch = IMAGE.to(dtype).expand(2, 3, 40, 60)
    theirs = v2().Normalize(fl.data.IMAGENET_MEAN, fl.data.IMAGENET_STD)(batch)
    found = fl.data.Normalise()(batch)
    assert found.dtype == dtype
    torch.testing.assert_close(found, theirs)


def test_the_constants_are_those_of_torchvisions_models():
    preset = torchvision().models.ResNet18_Weights.DEFAULT.transforms()
    assert (tuple(preset.mean), tuple(preset.std)) == (fl.data.IMAGENET_MEAN, fl.data.IMAGENET_STD)


def test_augmentations_do_not_change():
    for augment in (fl.data.RandomResizedCrop(8), fl.data.RandomHorizontalFlip(), fl.data.Normalise()):
        with pytest.raises(AttributeError):
            augment.size = 3


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (
            ValueError,
            lambda: fl.data.RandomResizedCrop(0),
            r"RandomResizedCrop\(size=0\): write height and width",
        ),
        (ValueError, lambda: fl.data.RandomResizedCrop(8, scale=(1, 0.5)), "write two shares"),
        (ValueError, lambda: fl.data.RandomResizedCrop(8, ratio=(0, 1)), "write two ratios"),
        (ValueError, lambda: fl.data.RandomHorizontalFlip(2), "write a probability"),
        (ValueError, lambda: fl.data.Normalise([0.5], [0.0]), "every std above 0"),
        (ValueError, lambda: fl.data.Normalise([0.5]), "write as many of both"),
        (
            TypeError,
            lambda: fl.data.Normalise()(torch.zeros(3, 2, 2, dtype=torch.uint8)),
            r"images\.float\(\) / 255",
        ),
        (ValueError, lambda: fl.data.Normalise()(torch.zeros(1, 2, 2)), r"3 channels, and .* \(1, 2, 2\)"),
        (TypeError, lambda: fl.data.resize_and_crop([1], 8), "takes an image as a tensor, found a list"),
        (
            TypeError,
            lambda: fl.data.resize_and_crop(torch.zeros(3, 2, 2, dtype=torch.int64), 8),
            "of torch.int64",
        ),
        (
            ValueError,
            lambda: fl.data.resize_and_crop(torch.zeros(2, 2), 8),
            r"shape \(2, 2\); write \(C, H, W\)",
        ),
        (ValueError, lambda: fl.data.resize_and_crop(torch.zeros(3, 0, 2), 8), r"shape \(3, 0, 2\)"),
        (ValueError, lambda: fl.data.resize_and_crop(IMAGE, (8, 8, 8)), "such as 224 or"),
    ],
    ids=range(13),
)
def test_an_error_says_what_to_write(error, call, message):
    with pytest.raises(error, match=message):
        call()
