"""Makes large images smaller before they are packed: fewer bytes to read and decode, and not the recipe's pixels."""

from __future__ import annotations

import io

from PIL import Image


class Undecodable(ValueError):  # noqa: N818 - what it is, not what went wrong here
    """An image that Pillow cannot decode."""


def shrink(encoded: bytes, longest_side_px: int, quality: int) -> bytes:
    """A JPEG (4:2:0, RGB) with the longest side at most this long, bicubic; what is small enough comes back as it is.

    Rotation by EXIF is neither applied nor kept, as the recipe ignores it. Images of more than 8 bits stay as they
    are: Pillow would saturate them. Undecodable when it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if max(image.size) <= longest_side_px or image.mode.startswith(("I", "F")):
                return encoded
            scale = longest_side_px / max(image.size)
            width, height = (max(1, round(side * scale)) for side in image.size)
            small = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's kinds for bad files
        raise Undecodable(str(error)) from error
    out = io.BytesIO()
    small.save(out, "JPEG", quality=quality)
    return out.getvalue()
