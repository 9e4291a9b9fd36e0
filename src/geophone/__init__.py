"""Geophone: shake a network's input, record how the disturbance travels, read why the network holds or breaks.

>>> import geophone
>>> geophone.scan(my_model, "fashion_mnist_mini", "GaussianNoise, LinfPGD", out="report.html")
>>> rows = geophone.measure(my_model, (images, labels), geophone.grid("LinfPGD(eps=8/255)"))
>>> for batch in geophone.record(my_model, geophone.load("mnist").test.batches(256), ["layer*.relu*"]): ...
"""

import lazy_loader

__version__ = "0.1.0"
# A name's module is imported when the name is first used: `geophone --help` needs no torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
