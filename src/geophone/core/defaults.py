"""Defaults that the command line shows before anything heavy is imported."""

SIZES = ("demo", "small", "full")
"""How much of a study."""

PERTURBATIONS_OF_A_SCAN = "noise, corruption, FGSM, LinfPGD"
CURVES_OF_A_SCAN = "LinfAPGD(steps=20)"
