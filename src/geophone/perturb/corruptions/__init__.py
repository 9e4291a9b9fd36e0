"""The 19 corruptions of CIFAR-10-C, Tiny ImageNet-C and ImageNet-C, by their published names."""

from geophone.perturb.corruptions.base import PRESETS, Corruption, preset_for
from geophone.perturb.corruptions.blur import defocus_blur, gaussian_blur, glass_blur, motion_blur, zoom_blur
from geophone.perturb.corruptions.digital import brightness, contrast, pixelate, saturate
from geophone.perturb.corruptions.elastic import elastic_transform
from geophone.perturb.corruptions.frost import frost
from geophone.perturb.corruptions.jpeg import jpeg_compression
from geophone.perturb.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from geophone.perturb.corruptions.spatter import spatter
from geophone.perturb.corruptions.weather import fog, snow

__all__ = [
    "PRESETS",
    "Corruption",
    "brightness",
    "contrast",
    "defocus_blur",
    "elastic_transform",
    "fog",
    "frost",
    "gaussian_blur",
    "gaussian_noise",
    "glass_blur",
    "impulse_noise",
    "jpeg_compression",
    "motion_blur",
    "pixelate",
    "preset_for",
    "saturate",
    "shot_noise",
    "snow",
    "spatter",
    "speckle_noise",
    "zoom_blur",
]
