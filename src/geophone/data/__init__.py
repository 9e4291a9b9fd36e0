"""Data sets: uint8 images with fixed, seeded train, validation and test parts.

>>> data = load("fashion_mnist_mini")
>>> for batch in data.test.batches(256): ...
"""

from geophone.data.arrays import fashion_mnist_mini, npz
from geophone.data.catalogue import as_split, load
from geophone.data.dataset import ImageData, Split
from geophone.data.images.artificial import synthetic
from geophone.data.images.augment import crop_flip
from geophone.data.images.cifar import cifar10, cifar100
from geophone.data.images.corrupted import cifar10_c, cifar100_c, imagenet_c, tiny_imagenet_c
from geophone.data.images.folders import imagefolder, tiny_imagenet
from geophone.data.images.idx import fashion_mnist, mnist

__all__ = [
    "ImageData",
    "Split",
    "as_split",
    "cifar10",
    "cifar10_c",
    "cifar100",
    "cifar100_c",
    "crop_flip",
    "fashion_mnist",
    "fashion_mnist_mini",
    "imagefolder",
    "imagenet_c",
    "load",
    "mnist",
    "npz",
    "synthetic",
    "tiny_imagenet",
    "tiny_imagenet_c",
]
