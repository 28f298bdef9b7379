"""Data: batches, splits and one-hot labels; readers of published data sets, image and batch augmentations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxlike.rooms import room

if TYPE_CHECKING:
    from fluxlike.data.collation import collate
    from fluxlike.data.folds import kfolds, shuffleobs
    from fluxlike.data.images import (
        IMAGENET_MEAN,
        IMAGENET_STD,
        Normalise,
        RandomHorizontalFlip,
        RandomResizedCrop,
        resize_and_crop,
    )
    from fluxlike.data.labels import onecold, onehot, onehotbatch
    from fluxlike.data.loader import DataLoader
    from fluxlike.data.mapped import mapobs
    from fluxlike.data.mixing import CutMix, MixUp
    from fluxlike.data.observations import num_observations, splitobs
    from fluxlike.data.readers.cifar import CIFAR10, CIFAR100, read_class_names
    from fluxlike.data.readers.csv_table import CSVTable, read_csv
    from fluxlike.data.readers.idx import MNIST, read_idx
    from fluxlike.data.readers.image_folder import ImageFolder
    from fluxlike.data.readers.pictures import read_image

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MNIST",
    "CSVTable",
    "CutMix",
    "DataLoader",
    "ImageFolder",
    "MixUp",
    "Normalise",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "collate",
    "kfolds",
    "mapobs",
    "num_observations",
    "onecold",
    "onehot",
    "onehotbatch",
    "read_class_names",
    "read_csv",
    "read_idx",
    "read_image",
    "resize_and_crop",
    "shuffleobs",
    "splitobs",
]

#: The module of each public name, below this package.
WHEN_USED = {
    "CIFAR10": "readers.cifar",
    "CIFAR100": "readers.cifar",
    "CSVTable": "readers.csv_table",
    "CutMix": "mixing",
    "DataLoader": "loader",
    "IMAGENET_MEAN": "images",
    "IMAGENET_STD": "images",
    "ImageFolder": "readers.image_folder",
    "MNIST": "readers.idx",
    "MixUp": "mixing",
    "Normalise": "images",
    "RandomHorizontalFlip": "images",
    "RandomResizedCrop": "images",
    "collate": "collation",
    "kfolds": "folds",
    "mapobs": "mapped",
    "num_observations": "observations",
    "onecold": "labels",
    "onehot": "labels",
    "onehotbatch": "labels",
    "read_class_names": "readers.cifar",
    "read_csv": "readers.csv_table",
    "read_idx": "readers.idx",
    "read_image": "readers.pictures",
    "resize_and_crop": "images",
    "shuffleobs": "folds",
    "splitobs": "observations",
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = room(__name__, __all__, {n: f"{__name__}.{home}" for n, home in WHEN_USED.items()})
