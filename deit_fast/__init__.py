"""deit_fast: trains DeiT on ImageNet-1k from JPEG files by the official recipe, as fast as the hardware allows."""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout `python -m deit_fast` finds this folder before an installed package, whose other three folders setup.py
# had put into it: here they are found beside it.
_checkout = Path(__file__).parent.parent
if (_checkout / "setup.py").is_file() and (_checkout / "dali_pipelines").is_dir():
    __path__.append(str(_checkout))
