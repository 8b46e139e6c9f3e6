"""Decoding and resizing with vector instructions: JPEGs by libjpeg-turbo (simplejpeg), and resizing by torch.

The gateway's process has torch because of vLLM. Pillow's own resizing uses no vector instructions, and takes six times as long. Torch
resizes as the Hugging Face processors do, so a JPEG that is decoded in its full size has exactly their pixels. simplejpeg decodes to the
same pixels as Pillow, into an array that torch reads without a copy.
"""

import numpy as np
import simplejpeg  # type: ignore[import-untyped]  # it has no types
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
"""Height x width x 3, in RGB."""
TURNS: dict[int, tuple[bool, int, int]] = {
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}
"""By EXIF orientation, how pixels become upright: whether rows and columns are exchanged, then the steps down and across."""


def decode_jpeg(data: bytes, size: tuple[int, int], scale: int) -> Pixels | None:
    """Return the pixels of a JPEG of RGB, as they are in its file. None: Pillow has to decode it.

    `size`: the width and height that the file declares. `scale`: 1, 2, 4 or 8; the JPEG is decoded at this fraction of its size.
    """
    width, height = (-(-side // scale) for side in size)
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, min_factor=1)
    except ValueError:  # such as a file that is cut short: Pillow decides whether enough of it is there
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def to_pixels(image: Image.Image) -> Pixels:
    """Return the pixels of an RGB image."""
    return np.array(image)


def resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Return the pixels in another size (width and height), by the bicubic filter with antialiasing, as Hugging Face's processors do."""
    if pixels.shape[:2] == (size[1], size[0]):
        return pixels
    import torch  # waits if another thread is just importing it

    torch.set_num_threads(1)  # holds for this thread; more would wait for each other and spin
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(planes, (size[1], size[0]), mode="bicubic", antialias=True)
    result: Pixels = resized[0].permute(1, 2, 0).numpy()
    return result


def turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Return the pixels turned by an EXIF orientation."""
    exchanged, down, across = TURNS.get(orientation, (False, 1, 1))
    return (pixels.swapaxes(0, 1) if exchanged else pixels)[::down, ::across]


def crop(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Return the middle of the pixels. `size`: its width and height."""
    left, top = (pixels.shape[1] - size[0]) // 2, (pixels.shape[0] - size[1]) // 2
    return pixels[top : top + size[1], left : left + size[0]]


def to_image(pixels: Pixels) -> Image.Image:
    """Return the pixels as an image."""
    return Image.fromarray(np.ascontiguousarray(pixels))
