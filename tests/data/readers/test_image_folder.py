"""Folders of images: what Pillow and torchvision make of them, or an error that names the file."""

import importlib
import io
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision_here import torchvision

import fluxlike as fl

RNG = np.random.default_rng(0)
PHOTO = np.asarray(Image.fromarray(RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((45, 30)))


def save(path, array=PHOTO, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **settings)
    return path


def pixels(image):
    """An image of Pillow's as our tensor."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.fixture
def imagenette(tmp_path):
    """A small folder in Imagenette's layout."""
    for split, n in (("train", 3), ("val", 1)):
        for name in ("n03028079", "n01440764", "n02102040"):
            for i in range(n):
                save(
                    tmp_path / split / name / f"{name}_{i}.JPEG", RNG.integers(0, 256, (40, 60, 3), np.uint8)
                )
    (tmp_path / "noisy_imagenette.csv").write_text("path,noisy_labels_0\n")
    (tmp_path / "train" / "noisy_imagenette.csv").write_text("")
    (tmp_path / "train" / "n01440764" / ".DS_Store").write_text("")
    (tmp_path / "train" / "n01440764" / "Thumbs.db").write_text("")
    return tmp_path


def test_imagenettes_layout_is_read_as_torchvision_reads_it(imagenette):
    vision = torchvision()
    ours = fl.data.ImageFolder(imagenette / "train")
    theirs = vision.datasets.ImageFolder(str(imagenette / "train"), vision.transforms.PILToTensor())
    assert ours.classes == tuple(theirs.classes) == ("n01440764", "n02102040", "n03028079")
    assert ours.labels.tolist() == theirs.targets
    assert len(ours) == 9
    for i, (image, label) in enumerate(theirs):
        assert torch.equal(ours[i][0], image.float() / 255)
        assert ours[i][1] == label
    assert repr(ours) == "ImageFolder(9 images of 3 classes)"


def test_batches_and_workers_take_it(imagenette):
    folder = fl.data.ImageFolder(imagenette / "val", size=16)
    loader = torch.utils.data.DataLoader(folder, batch_size=3)
    images, labels = next(iter(loader))
    assert images.shape == (3, 3, 16, 16)
    assert torch.equal(labels, folder.labels)
    assert torch.equal(pickle.loads(pickle.dumps(folder))[2][0], folder[2][0])


@pytest.mark.parametrize("size", [24, (24, 24), (20, 33), (33, 20), (64, 80)], ids=str)
@pytest.mark.parametrize("shape", [(40, 61), (61, 40), (30, 30)], ids=str)
def test_a_size_is_resized_to_and_cut_out_as_torchvision_does(tmp_path, size, shape):
    vision = torchvision()
    save(
        tmp_path / "a" / "1.png",
        np.kron(RNG.integers(0, 256, (4, 4, 3)), np.ones((16, 16, 1)))[: shape[0], : shape[1]].astype(
            np.uint8
        ),
    )
    image, _ = fl.data.ImageFolder(tmp_path, size)[0]
    height, width = (size, size) if isinstance(size, int) else size
    h, w = shape
    covering = (height, int(height * w / h)) if height / h >= width / w else (int(width * h / w), width)
    with Image.open(tmp_path / "a" / "1.png") as opened:
        steps = [vision.transforms.Resize(covering), vision.transforms.CenterCrop((height, width))]
        theirs = pixels(vision.transforms.Compose(steps)(opened))
    assert image.shape == (3, height, width)
    assert (image * 255 - theirs).abs().max() <= 1.001  # torch's kernel and Pillow's round apart


def test_augmented_and_mixed_batches_do_not_depend_on_workers(imagenette):
    augment = fl.Chain(fl.data.RandomResizedCrop(16), fl.data.RandomHorizontalFlip())
    folder = fl.data.ImageFolder(imagenette / "train", transform=augment)

    def epoch(workers):
        mix = fl.data.CutMix(classes=3)
        return list(fl.DataLoader(folder, 4, shuffle=True, key=fl.Key(3), transform=mix, workers=workers))

    for alone, shared in zip(epoch(0), epoch(2), strict=True):
        assert torch.equal(alone[0], shared[0])
        assert torch.equal(alone[1], shared[1])


def test_an_image_is_float32_from_0_to_1(tmp_path):
    save(tmp_path / "a" / "1.png", np.array([[[0, 51, 255]]], np.uint8))
    image, label = fl.data.ImageFolder(tmp_path)[0]
    assert torch.equal(image[:, 0, 0], torch.tensor([0.0, 0.2, 1.0]))
    assert image.is_contiguous()
    assert label.shape == ()
    assert label.dtype == torch.int64


def test_a_transform_of_torchvision_or_of_ours_is_applied(tmp_path):
    torchvision()
    v2 = importlib.import_module("torchvision.transforms.v2")
    save(tmp_path / "a" / "1.png")
    theirs = v2.Compose(
        [v2.RandomHorizontalFlip(p=1.0), v2.Normalize(fl.data.IMAGENET_MEAN, fl.data.IMAGENET_STD)]
    )
    ours = fl.Chain(fl.data.RandomHorizontalFlip(p=1.0), fl.data.Normalise())
    found = [fl.data.ImageFolder(tmp_path, transform=f)[0][0] for f in (theirs, ours)]
    torch.testing.assert_close(*found)
    assert not torch.equal(found[0], fl.data.ImageFolder(tmp_path)[0][0])


def test_classes_of_another_folder_give_the_same_numbers(imagenette):
    train = fl.data.ImageFolder(imagenette / "train")
    (imagenette / "val" / "n01440764" / "n01440764_0.JPEG").unlink()
    (imagenette / "val" / "n01440764").rmdir()
    assert fl.data.ImageFolder(imagenette / "val").labels.tolist() == [0, 1]
    val = fl.data.ImageFolder(imagenette / "val", classes=train.classes)
    assert val.labels.tolist() == [1, 2]
    assert val.classes == train.classes
    with pytest.raises(ValueError, match="folder 'n03028079', which is none of the 2 classes given"):
        fl.data.ImageFolder(imagenette / "val", classes=train.classes[:2])
    with pytest.raises(ValueError, match="holds one twice"):
        fl.data.ImageFolder(imagenette / "val", classes=train.classes * 2)


def test_an_index_is_a_whole_number_in_range(imagenette):
    folder = fl.data.ImageFolder(imagenette / "val")
    assert torch.equal(folder[-1][0], folder[2][0])
    assert torch.equal(folder[torch.tensor(1)][0], folder[np.int64(1)][0])
    with pytest.raises(IndexError, match="no image 3; there are 3"):
        folder[3]
    with pytest.raises(TypeError):
        folder[:2]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_turns_an_image_upright(tmp_path, turn, suffix):
    exif = Image.Exif()
    exif[0x0112] = turn
    file = save(tmp_path / f"1.{suffix}", exif=exif)
    with Image.open(file) as opened:
        upright = pixels(ImageOps.exif_transpose(opened))
    assert torch.equal(fl.data.read_image(file), upright)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_other_modes_of_8_bits_become_rgb_as_pillow_converts_them(tmp_path, mode):
    image = Image.fromarray(PHOTO).convert(mode)
    image.save(tmp_path / "1.png")
    assert torch.equal(fl.data.read_image(tmp_path / "1.png"), pixels(image))


@pytest.mark.parametrize("mode", ["CMYK", "L", "YCbCr"])
def test_jpegs_of_other_colours_become_rgb(tmp_path, mode):
    Image.fromarray(PHOTO).convert(mode).save(tmp_path / "1.jpg", quality=95)
    with Image.open(tmp_path / "1.jpg") as opened:
        assert torch.equal(fl.data.read_image(tmp_path / "1.jpg"), pixels(opened))


def test_transparency_is_dropped_and_colours_stay(tmp_path):
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    image.save(tmp_path / "rgba.png")
    Image.fromarray(PHOTO).convert("P").save(tmp_path / "palette.png", transparency=bytes(range(256)))
    assert fl.data.read_image(tmp_path / "rgba.png")[:, 0, 0].tolist() == [10, 20, 30]
    colours = pixels(Image.fromarray(PHOTO).convert("P"))
    assert torch.equal(fl.data.read_image(tmp_path / "palette.png"), colours)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_greyscale_of_16_bits_is_scaled_to_8(tmp_path, suffix):
    Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save(tmp_path / f"1.{suffix}")
    assert fl.data.read_image(tmp_path / f"1.{suffix}")[:, 0].tolist() == [[0, 1, 128, 255]] * 3


@pytest.mark.parametrize("dtype", [np.float32, np.int32], ids=["float", "integer"])
def test_numbers_of_32_bits_without_a_range_are_refused(tmp_path, dtype):
    file = save(tmp_path / "1.tif", np.ones((2, 2), dtype))
    with pytest.raises(ValueError, match=r"1\.tif holds one number of 32 bits a pixel.* 8 or 16 bits"):
        fl.data.read_image(file)


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jfif", "jpg", "png", "ppm", "tiff", "webp"])
def test_each_format_is_read(tmp_path, suffix):
    save(tmp_path / "a" / f"1.{suffix}")
    image, _ = fl.data.ImageFolder(tmp_path)[0]
    with Image.open(tmp_path / "a" / f"1.{suffix}") as opened:
        assert torch.equal(image, pixels(opened) / 255)


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "1.gif", save_all=True, append_images=frames[1:])
    assert fl.data.read_image(tmp_path / "1.gif")[:, 0, 0].tolist() == [255, 0, 0]


def test_folders_without_classes_say_what_they_hold(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        fl.data.ImageFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no folder of images, one a class; it has nothing"):
        fl.data.ImageFolder(tmp_path)
    (tmp_path / "labels.csv").write_text("")
    with pytest.raises(ValueError, match=r"it has 'labels\.csv'"):
        fl.data.ImageFolder(tmp_path)
    with pytest.raises(ValueError, match="is a file; give the folder"):
        fl.data.ImageFolder(tmp_path / "labels.csv")
    save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"holds images without class, such as '1\.png'; move each"):
        fl.data.ImageFolder(tmp_path)


def test_nothing_in_the_folder_of_a_class_is_passed_over(imagenette):
    with pytest.raises(ValueError, match="train is read as a class, and holds the folder 'n0"):
        fl.data.ImageFolder(imagenette)
    (imagenette / "val" / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is read as a class, and holds no image"):
        fl.data.ImageFolder(imagenette / "val")
    (imagenette / "val" / "empty" / "1.heic").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds '1\.heic', whose name is that of no image"):
        fl.data.ImageFolder(imagenette / "val")


def test_settings_are_checked_at_construction(imagenette):
    with pytest.raises(ValueError, match=r"ImageFolder\(size=0\): write height and width"):
        fl.data.ImageFolder(imagenette / "val", size=0)
    with pytest.raises(TypeError, match="transform is a str; write a function"):
        fl.data.ImageFolder(imagenette / "val", transform="flip")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height):
    """A PNG that says it is that large, and is nearly empty."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [10_000, 14_000, 2**31 - 1], ids=str)
def test_a_decompression_bomb_is_an_error_that_names_the_file(tmp_path, side):
    file = tmp_path / "a" / "bomb.png"
    save(file)
    file.write_bytes(png(side, side))
    with pytest.raises(ValueError, match=r"bomb\.png.*decompression bomb.*PIL\.Image\.MAX_IMAGE_PIXELS"):
        fl.data.ImageFolder(tmp_path)[0]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_where_pillow_only_warns(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png(10_000, 10_000))
    with pytest.raises(ValueError, match="it says it is 10000 × 10000 pixels"):
        fl.data.read_image(tmp_path / "bomb.png")


def test_a_format_that_runs_a_program_is_no_image(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(ValueError, match=r"1\.jpg is no BMP, GIF, JPEG"):
        fl.data.read_image(tmp_path / "1.jpg")


@pytest.mark.parametrize("suffix", ["gif", "jpg", "png", "tiff", "webp"])
def test_a_file_that_is_cut_off_is_named(tmp_path, suffix):
    file = save(tmp_path / "a" / f"1.{suffix}")
    file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2])
    with pytest.raises(ValueError, match=rf"1\.{suffix} is (damaged or cut off|no BMP)"):
        fl.data.ImageFolder(tmp_path)[0]
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"1\.{suffix} is no BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP image"):
        fl.data.ImageFolder(tmp_path)[0]


def test_a_file_that_is_gone_is_named(tmp_path):
    file = save(tmp_path / "a" / "1.png")
    folder = fl.data.ImageFolder(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*1\.png"):
        folder[0]


def encoded(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(PHOTO[:8, :8]).save(stream, kind, **({} if kind == "GIF" else {"exif": exif}))
    return stream.getvalue()


FILES = {kind: encoded(kind) for kind in ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")}


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of odd tags and pixels
@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_changed_bytes_are_an_error_that_names_the_file_or_an_image(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "changed_image"
    changed = bytearray(FILES[data.draw(st.sampled_from(sorted(FILES)))])
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(changed[: data.draw(st.integers(0, len(changed)) | st.just(len(changed)))])
    try:
        image = fl.data.read_image(file)
    except ValueError as raised:
        said = str(raised)
        assert str(file) in said
    else:
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3


def test_a_missing_pillow_says_what_installs_it(tmp_path):
    code = (
        "import sys; sys.modules['PIL'] = None; sys.modules['PIL.Image'] = None\n"
        f"import fluxlike as fl; fl.data.ImageFolder({str(tmp_path)!r})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: ImageFolder needs PIL (" in run.stderr
    assert "pip install 'fluxlike[training]'" in run.stderr


def test_importing_fluxlike_loads_neither_pillow_nor_a_reader():
    code = "import torch, sys; before = set(sys.modules); import fluxlike; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = run.stdout.split()
    assert not [m for m in loaded if m.startswith(("PIL", "fluxlike.data.readers", "fluxlike.data.mixing"))]
    assert set(fl.data.__all__) <= set(dir(fl.data))
    assert all(getattr(fl.data, name) is not None for name in fl.data.__all__)
    with pytest.raises(AttributeError, match=r"module 'fluxlike\.data' has no attribute 'nothing'"):
        _ = fl.data.nothing
