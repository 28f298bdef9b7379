"""The examples that draw digits, and those that read images: their mathematics, and that each learns."""

from __future__ import annotations

import importlib
import re

import pytest
import torch
from test_examples import ROOT, run

import fluxlike as fl

pytest.importorskip("sklearn", reason="the examples read scikit-learn's digits")

SHARE = r"([\d.]+)% of"
#: What each prints of what it found, where that has to lie, and the pictures that it draws.
SAID = {
    "vae": (r"for a held-out digit: ([\d.]+)", (100, 136), {"vae.png"}),
    "gan": (r"drawn digits: score +([\d.]+)", (5.5, 10), {"gan.png"}),
    "diffusion": (r"drawn digits: score +([\d.]+)", (4.5, 10), {"diffusion.png"}),
    "convmixer": (rf"{SHARE} 359 held-out digits", (90, 100), {"convmixer.png"}),
    "spatial_transformer": (rf"with one: {SHARE}", (75, 100), {"spatial_transformer.png"}),
    "lenet": (rf"lenet5: {SHARE}", (95, 100), {"lenet5.png", "mlp.png"}),
    "vgg": (rf"{SHARE} 200 test images", (65, 100), {"vgg.png", "vgg_confusion.png", "pictures"}),
    "segmentation": (r"mean IoU ([\d.]+) on 200 unseen images", (0.6, 1), {"segmentation.png"}),
    "detector": (r"mAP@0\.5 ([\d.]+) on 200 unseen images", (0.45, 1), {"detections.png"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAID)
def test_an_example_of_images_learns(name, tmp_path):
    form, (low, high), pictures = SAID[name]
    said = run(tmp_path, str(ROOT / "examples" / f"{name}.py"), "--quick", "--out", str(tmp_path))
    assert low <= float(re.search(form, said)[1]) <= high
    assert {path.name for path in tmp_path.iterdir()} == pictures


@pytest.fixture
def example(monkeypatch):
    """An example as a module, by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module


def test_the_frechet_distance_is_that_of_normal_distributions(example):
    frechet = example("digit_quality").frechet
    x = torch.randn(500, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shift = torch.arange(6.0, dtype=torch.float64)
    assert abs(frechet(x, x)) < 1e-9
    torch.testing.assert_close(frechet(x, x + shift), shift.square().sum())
    torch.testing.assert_close(frechet(x, -3 * x), 4 * x.T.cov().trace() + (4 * x.mean(0)).square().sum())


def test_the_judge_tells_digits_from_shuffled_pixels_and_from_one_digit_again_and_again(example):
    torch.manual_seed(0)
    data, held_out = example("digits").digits()
    judge = example("digit_quality").Judge(data, held_out, epochs=2)
    same = judge(held_out[0][:1].expand(300, -1, -1, -1))
    assert judge.real.score > 7 > 5 > judge.shuffled.score
    assert same.score == pytest.approx(1, abs=1e-3)
    assert 3 * judge.real.distance < min(judge.shuffled.distance, same.distance)


def test_the_likelihood_of_counts_adds_up_to_one(example):
    log_likelihood = example("vae").log_likelihood
    counts = torch.arange(17.0, dtype=torch.float64).unsqueeze(1)
    for a, b in ((0.3, 2.0), (1.0, 1.0), (7.0, 0.1)):
        log_p = log_likelihood(counts, torch.tensor(a).double(), torch.tensor(b).double())
        torch.testing.assert_close(log_p.logsumexp(0), torch.tensor(0.0).double(), atol=1e-12, rtol=0)
    even = log_likelihood(counts, *torch.ones(2, 1).double())
    torch.testing.assert_close(even.exp(), torch.full((17,), 1 / 17).double())


def test_the_bound_lies_below_the_likelihood(example):
    """Of counts, where p(x) can be computed from many draws of the prior."""
    vae = example("vae")
    torch.manual_seed(0)
    model, x = vae.VAE(hidden=16), torch.randint(17, (3, 64)).float()
    with torch.no_grad(), fl.seeded(fl.Key(0)):
        bound = torch.stack([vae.elbo(model, x) for _ in range(500)]).mean(0)
        z = fl.random.normal((20000, 1, vae.LATENT))
        a, b = model.decode(z.flatten(0, 1))
        log_p = (
            torch.stack([vae.log_likelihood(row, a, b).logsumexp(0) for row in x])
            - torch.tensor(20000.0).log()
        )
    assert (bound < log_p).all()


def test_noising_in_steps_is_noising_at_once(example):
    """q(x_t|x_{t-1}) taken t times has the moments of q(x_t|x_0), and the last is all noise."""
    diffusion = example("diffusion")
    mean, variance = torch.ones(()), torch.zeros(())
    for t, beta in enumerate(diffusion.BETA):
        mean, variance = (1 - beta).sqrt() * mean, (1 - beta) * variance + beta
        torch.testing.assert_close(mean, diffusion.ALPHA_BAR[t].sqrt())
        torch.testing.assert_close(variance, 1 - diffusion.ALPHA_BAR[t])
    assert diffusion.ALPHA_BAR[-1] < 1e-4


def test_a_model_that_knows_the_noise_draws_the_digit_that_it_was_added_to(example):
    diffusion = example("diffusion")
    x0 = 2 * torch.rand(1, 1, 8, 8) - 1

    def oracle(x, t):
        a = diffusion.ALPHA_BAR[t].view(-1, 1, 1, 1)
        return (x - a.sqrt() * x0) / (1 - a).sqrt()

    drawn = diffusion.sample(oracle, 4, fl.Key(0))
    torch.testing.assert_close(drawn, ((x0 + 1) / 2).expand(4, -1, -1, -1), atol=1e-4, rtol=0)


def test_drawing_depends_on_the_key_alone(example):
    gan, diffusion = example("gan"), example("diffusion")
    torch.manual_seed(0)
    g, unet = gan.generator(), diffusion.UNet(width=8)

    def drawn(key):
        with torch.no_grad(), fl.seeded(key):
            return gan.generate(g, 3), diffusion.sample(unet, 2, key)

    first, again, other = (drawn(fl.Key(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_step_of_the_gan_moves_both_and_the_buffers_of_each(example):
    gan = example("gan")
    torch.manual_seed(0)
    g, d = gan.generator(), gan.discriminator()
    rule = fl.Adam(1e-3)
    out = gan.train_step(g, fl.setup(rule, g), d, fl.setup(rule, d), torch.rand(8, 1, 8, 8), fl.Key(0))
    for before, after in ((g, out[0]), (d, out[2])):
        pairs = zip(fl.fleaves(before), fl.fleaves(after), strict=True)
        assert not [new for old, new in pairs if torch.equal(old, new)]


def test_a_spatial_transformer_looks_at_the_whole_image_at_first(example):
    module = example("spatial_transformer")
    torch.manual_seed(0)
    x = torch.rand(2, 1, module.LARGE, module.LARGE)
    torch.testing.assert_close(module.SpatialTransformer()(x), torch.nn.functional.avg_pool2d(x, 2))
    ident = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(2, 2, 3)
    torch.testing.assert_close(module.resample(x, ident, module.LARGE), x)


def test_distorted_digits_stay_whole(example):
    module = example("spatial_transformer")
    with fl.seeded(fl.Key(0)):
        ink = module.distorted(torch.ones(200, 1, 8, 8)).sum((1, 2, 3))
    scales = (ink / 64).sqrt()
    assert scales.min() > 0.65
    assert scales.max() < 1.25


def test_pictures_in_the_format_of_cifar_are_read_back(example, tmp_path):
    vgg = example("vgg")
    torch.manual_seed(0)
    vgg.write_cifar(tmp_path, 20)
    torch.manual_seed(0)
    images, labels = vgg.pictures(20)
    read_images, read_labels = fl.data.CIFAR10(tmp_path, "train")
    assert read_images.shape == (100, 3, 32, 32)
    assert torch.equal(read_images[:20], images)
    assert torch.equal(read_labels[:20], labels)
    assert len(fl.data.CIFAR10(tmp_path, "test")[1]) == 20
    assert fl.data.read_class_names(tmp_path / "batches.meta.txt") == tuple(vgg.KINDS)


def test_lenet_has_the_layers_of_the_paper(example):
    lenet = example("lenet")
    shapes = fl.activations(lenet.lenet5(), torch.zeros(1, 1, 8, 8))
    sizes = {tuple(y.shape[1:]) for y in shapes.values()}
    assert {(1, 32, 32), (6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120, 1, 1), (84,)} <= sizes
    torch.testing.assert_close(lenet.squash(torch.tensor(1.0)), torch.tensor(1.0), atol=1e-4, rtol=0)
