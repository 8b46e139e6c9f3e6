"""Pillow's plugins, changed so that each file gives the picture that a browser shows.

Metadata is removed before Pillow parses it. `info["orientation"]` of an opened image is its EXIF orientation, if it is not upright.
"""

import io

from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, ImagePalette, JpegImagePlugin, PngImagePlugin, TiffImagePlugin
from PIL.WebPImagePlugin import WebPImageFile

from llava_gateway.errors import InvalidImage
from llava_gateway.images.bmp import DECODER, pixel_masks, with_raw_pixels
from llava_gateway.images.grey import to_eight_bits
from llava_gateway.images.jpeg_end import check_whole, has_end, with_end
from llava_gateway.images.metadata import clean_avif, clean_jpeg, clean_png, exif_orientation
from llava_gateway.images.tiff import clean_tiff


class Plugin(ImageFile.ImageFile):
    """A plugin that changes the file before Pillow reads it."""

    def read(self) -> bytes:
        """Return the file."""
        assert self.fp
        return self.fp.read()

    def replace(self, image: Image.Image) -> None:
        """Take the pixels of another image of the same size."""
        self.im, self._mode, self.palette = image.im, image.mode, image.palette
        self.info.pop("transparency", None)


class JpegFile(JpegImagePlugin.JpegImageFile, Plugin):
    """A JPEG without metadata. An end marker is added if it is missing."""

    _without_end: bytes | None = None

    def _open(self) -> None:
        data, orientation = clean_jpeg(self.read())
        if not has_end(data):
            self._without_end = data
            data = with_end(data)
        self.fp = io.BytesIO(data)
        super()._open()
        self.info["orientation"] = orientation

    def load_prepare(self) -> None:
        if self._without_end:
            check_whole(self._without_end)
            self._without_end = None
        super().load_prepare()


class PngFile(PngImagePlugin.PngImageFile, Plugin):
    """A PNG without metadata."""

    def _open(self) -> None:
        data, orientation = clean_png(self.read())
        self.fp = io.BytesIO(data)
        super()._open()
        self.info["orientation"] = orientation


class GifFile(GifImagePlugin.GifImageFile, Plugin):
    """A GIF whose screen is transparent where its first frame does not cover it."""

    def load_end(self) -> None:
        super().load_end()
        frame = self.dispose_extent
        if frame and frame != (0, 0, *self.size):
            screen = Image.new("RGBA", self.size)
            screen.paste(self.convert("RGBA").crop(frame), frame)
            self.replace(screen)


class BmpFile(BmpImagePlugin.BmpImageFile, Plugin):
    """A BMP with any masks. An alpha channel that is zero everywhere is left out: programs declare it and leave it empty."""

    def _open(self) -> None:
        data = self.read()
        masks = pixel_masks(data)
        self.fp = io.BytesIO(with_raw_pixels(data) if masks else data)
        super()._open()
        if masks:
            self._mode = "RGBA" if masks.alpha else "RGB"
            tile = self.tile[0]
            assert isinstance(tile.args, tuple)
            self.tile = [tile._replace(codec_name=DECODER, args=(masks, *tile.args[1:]))]

    def load_end(self) -> None:
        super().load_end()
        if self.mode == "RGBA" and self.getchannel("A").getextrema() == (0, 0):
            self.replace(self.convert("RGB"))


class TiffFile(TiffImagePlugin.TiffImageFile, Plugin):
    """A TIFF without metadata. Grey has 8 bits, and zero is black."""

    def _open(self) -> None:
        self._tiff = clean_tiff(self.read())
        self.fp = io.BytesIO(self._tiff.data)
        try:
            super()._open()
        except SyntaxError as error:
            raise InvalidImage("The TIFF stores its pixels in a way that is not supported; save it as a PNG.") from error
        self.info["orientation"] = self._tiff.orientation
        colors = self.tag_v2.get(TiffImagePlugin.COLORMAP)
        if colors and max(colors) < 256:  # some programs write colours of 8 bits instead of 16
            self.palette = ImagePalette.raw("RGB;L", bytes(colors))
        self.tile = [_in_native_order(tile) for tile in self.tile]

    def load_end(self) -> None:
        super().load_end()
        if self.mode in ("1", "L", "LA", "La", "I", "I;16", "I;16B", "F"):
            grey = self.convert("LA") if self.mode == "La" else self
            self.replace(to_eight_bits(grey, self._tiff.depth, is_inverted=self._tiff.is_inverted))


def _in_native_order(tile: ImageFile._Tile) -> ImageFile._Tile:
    """Return the part of a TIFF with the byte order of this machine, in which libtiff returns samples of 32 bits."""
    if tile.codec_name != "libtiff" or not isinstance(tile.args, tuple):
        return tile
    mode = {"F;32BF": "F;32NF", "I;32BS": "I;32NS"}.get(tile.args[0], tile.args[0])
    return tile._replace(args=(mode, *tile.args[1:]))


PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegFile,
    "PNG": PngFile,
    "WEBP": WebPImageFile,
    "GIF": GifFile,
    "BMP": BmpFile,
    "TIFF": TiffFile,
}
try:
    import pillow_heif
    from PIL import AvifImagePlugin
except ImportError:
    pass
else:

    class AvifFile(AvifImagePlugin.AvifImageFile, Plugin):
        """An AVIF without metadata. Its orientation is that of its own properties."""

        def _open(self) -> None:
            self.fp = io.BytesIO(clean_avif(self.read()))
            super()._open()
            self.info["orientation"] = exif_orientation(self.info.get("exif", b"").removeprefix(b"Exif\0\0"))

    pillow_heif.options.DECODE_THREADS = 1  # the decoder turns the image
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    PLUGINS |= {"HEIC": pillow_heif.HeifImageFile, "AVIF": AvifFile}
