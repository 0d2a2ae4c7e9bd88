"""deit_fast: trains DeiT on ImageNet-1k from JPEG files by the official recipe, as fast as the hardware allows."""

__version__ = "0.1.0"
