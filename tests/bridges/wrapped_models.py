"""The models of the parity table: what they are made of, what they get, and their loss.

All are small, of float64 and randomly initialised, so that nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = dict[str, Any]
CLASSES = 3


class Wrapped(NamedTuple):
    """One model of the table.

    Attributes:
        build: makes the module.
        batch: makes its inputs, by keyword.
        loss: the loss of the module for a batch, and the module's whole output.
    """

    build: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    loss: Callable[[Any, Batch], tuple[Tensor, Any]]


def inside(module: Any, batch: Batch) -> tuple[Tensor, Any]:
    """The loss that the module itself computes from the labels in the batch."""
    out = module(**batch)
    return out.loss, out


def of_classes(module: Any, batch: Batch) -> tuple[Tensor, Any]:
    """Cross entropy of the logits, of the auxiliary ones too."""
    out = module(batch["x"])
    logits = (out,) if isinstance(out, Tensor) else tuple(y for y in out if y is not None)
    return sum(F.cross_entropy(y, batch["y"]) for y in logits), out  # type: ignore[return-value]


def images(size: int, *, batch: int = 3, frames: tuple[int, ...] = ()) -> Callable[[], Batch]:
    """Images or videos, and a class for each."""

    def make() -> Batch:
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(batch, 3, *frames, size, size, generator=generator, dtype=torch.float64)
        return {"x": x, "y": torch.arange(batch) % CLASSES}

    return make


def shaken(module: nn.Module) -> nn.Module:
    """The module in float64, away from the values of its initialisation that hide mistakes.

    Many scales begin at one, biases at zero, and some branches are switched off at first.
    """
    module = module.double()
    generator = torch.Generator().manual_seed(1)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    with torch.no_grad():
        for p in module.parameters():
            if p.ndim < 2 or p.count_nonzero() == 0:
                p.add_(noise(p), alpha=0.1)
        for name, b in module.named_buffers():
            if name.endswith("running_mean"):
                b.add_(noise(b), alpha=0.1)
            elif name.endswith("running_var"):
                b.mul_(noise(b).mul(0.1).exp())
    return module


# transformers


def hugging(kind: str, config: str, /, **settings: Any) -> nn.Module:
    """A model of transformers of a class, from a configuration of a class."""
    import transformers

    return getattr(transformers, kind)(getattr(transformers, config)(**settings))


def ids(vocabulary: int = 31, length: int = 7, seed: int = 0) -> Tensor:
    return torch.randint(3, vocabulary, (2, length), generator=torch.Generator().manual_seed(seed))


def pixels(size: int = 16, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, channels, size, size, generator=generator, dtype=torch.float64)


def padded() -> Tensor:
    """A mask of attention: the second sentence is shorter."""
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 5:] = 0
    return mask


_ENCODER = {
    "vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 20,
}  # fmt: skip
_DECODER = {**_ENCODER, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}

TRANSFORMERS: dict[str, Wrapped] = {
    "BERT": Wrapped(
        partial(hugging, "BertForSequenceClassification", "BertConfig", **_ENCODER),
        lambda: {"input_ids": ids(), "attention_mask": padded(), "labels": torch.tensor([0, 1])},
        inside,
    ),
    "BERT, masked": Wrapped(  # whose head is tied to the embedding
        partial(hugging, "BertForMaskedLM", "BertConfig", **_ENCODER),
        lambda: {"input_ids": ids(), "labels": ids(seed=1), "output_hidden_states": True},
        inside,
    ),
    "ELECTRA": Wrapped(
        partial(hugging, "ElectraForTokenClassification", "ElectraConfig", embedding_size=8, **_ENCODER),
        lambda: {"input_ids": ids(), "attention_mask": padded(), "labels": ids(seed=1) % 2},
        inside,
    ),
    "GPT-2": Wrapped(
        partial(
            hugging, "GPT2LMHeadModel", "GPT2Config", vocab_size=31, n_embd=16, n_layer=2, n_head=2,
            n_positions=20, bos_token_id=0, eos_token_id=1, loss_type="ForCausalLM",
        ),
        lambda: {"input_ids": ids(), "labels": ids(), "use_cache": False},
        inside,
    ),
    "Llama": Wrapped(
        partial(hugging, "LlamaForCausalLM", "LlamaConfig", **_DECODER),
        lambda: {"input_ids": ids(), "attention_mask": padded(), "labels": ids(), "use_cache": False},
        inside,
    ),
    "Qwen2": Wrapped(
        partial(hugging, "Qwen2ForCausalLM", "Qwen2Config", tie_word_embeddings=True, **_DECODER),
        lambda: {"input_ids": ids(), "labels": ids(), "use_cache": False},
        inside,
    ),
    "Mixtral": Wrapped(  # a mixture of experts
        partial(
            hugging, "MixtralForCausalLM", "MixtralConfig", num_local_experts=3, num_experts_per_tok=2,
            experts_implementation="eager", output_router_logits=True, sliding_window=4, **_DECODER,
        ),
        lambda: {"input_ids": ids(), "labels": ids(), "use_cache": False},
        inside,
    ),
    "T5": Wrapped(
        partial(
            hugging, "T5ForConditionalGeneration", "T5Config", vocab_size=31, d_model=16, d_kv=8, d_ff=24,
            num_layers=2, num_heads=2, decoder_start_token_id=0,
        ),
        lambda: {"input_ids": ids(), "labels": ids(length=5, seed=1), "use_cache": False},
        inside,
    ),
    "BART": Wrapped(
        partial(
            hugging, "BartForConditionalGeneration", "BartConfig", vocab_size=31, d_model=16,
            encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=20, encoder_layerdrop=0.3,
            pad_token_id=2, bos_token_id=0, eos_token_id=1, decoder_start_token_id=1,
            forced_eos_token_id=None,
        ),
        lambda: {"input_ids": ids(), "labels": ids(length=5, seed=1), "use_cache": False},
        inside,
    ),
    "ViT": Wrapped(
        partial(
            hugging, "ViTForImageClassification", "ViTConfig", hidden_size=16, num_hidden_layers=2,
            num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8,
            hidden_dropout_prob=0.1,
        ),
        lambda: {"pixel_values": pixels(), "labels": torch.tensor([0, 1])},
        inside,
    ),
    "Swin": Wrapped(
        partial(
            hugging, "SwinForImageClassification", "SwinConfig", image_size=16, patch_size=2, embed_dim=8,
            depths=[2, 2], num_heads=[1, 2], window_size=2, drop_path_rate=0.3,
        ),
        lambda: {"pixel_values": pixels(), "labels": torch.tensor([0, 1])},
        inside,
    ),
    "ResNet": Wrapped(
        partial(
            hugging, "ResNetForImageClassification", "ResNetConfig", embedding_size=8, hidden_sizes=[8, 16],
            depths=[1, 2], layer_type="basic",
        ),
        lambda: {"pixel_values": pixels(), "labels": torch.tensor([0, 1])},
        inside,
    ),
    "CLIP": Wrapped(
        partial(
            hugging, "CLIPModel", "CLIPConfig", projection_dim=8,
            text_config={**_ENCODER, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
            vision_config={
                "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "intermediate_size": 24, "image_size": 16, "patch_size": 8,
            },
        ),
        lambda: {"input_ids": ids(), "pixel_values": pixels(), "return_loss": True},
        inside,
    ),
    "Wav2Vec2": Wrapped(  # whose convolution of positions is parametrised
        partial(
            hugging, "Wav2Vec2ForCTC", "Wav2Vec2Config", vocab_size=11, hidden_size=16, num_hidden_layers=2,
            num_attention_heads=2, intermediate_size=24, conv_dim=(8, 8), conv_stride=(5, 2),
            conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2, apply_spec_augment=False, layerdrop=0.3,
        ),
        lambda: {"input_values": pixels(20, 1).reshape(2, 400), "labels": ids(11, 3)},
        inside,
    ),
    "Whisper": Wrapped(  # whose positions in the encoder are not trained
        partial(
            hugging, "WhisperForConditionalGeneration", "WhisperConfig", vocab_size=31, num_mel_bins=8,
            d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_source_positions=8,
            max_target_positions=12, pad_token_id=2, bos_token_id=0, eos_token_id=1,
            decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
        ),
        lambda: {"input_features": pixels(16, 8)[:, :, 0], "labels": ids(length=5), "use_cache": False},
        inside,
    ),
}  # fmt: skip


# timm


def of_timm(name: str, **settings: Any) -> nn.Module:
    """One of the small models that timm makes for its own tests."""
    import timm

    return timm.create_model(name, num_classes=CLASSES, **settings)


TIMM: dict[str, Wrapped] = {
    "byobnet": Wrapped(partial(of_timm, "test_byobnet"), images(32), of_classes),
    "convnext": Wrapped(partial(of_timm, "test_convnext", drop_path_rate=0.3), images(32), of_classes),
    "efficientnet": Wrapped(
        partial(of_timm, "test_efficientnet", drop_path_rate=0.3), images(32), of_classes
    ),
    "mambaout": Wrapped(partial(of_timm, "test_mambaout"), images(32), of_classes),
    "maxvit": Wrapped(partial(of_timm, "test_maxvit", img_size=64), images(64), of_classes),
    "nfnet": Wrapped(partial(of_timm, "test_nfnet", drop_rate=0.2), images(32), of_classes),
    "resnet": Wrapped(partial(of_timm, "test_resnet", drop_block_rate=0.2), images(32), of_classes),
    "vit": Wrapped(partial(of_timm, "test_vit", img_size=32, attn_drop_rate=0.1), images(32), of_classes),
}
