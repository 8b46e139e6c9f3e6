"""The pictures of the benchmark's requests: photographs that no server has in a cache, and grids for which the answer is known."""

import base64
import io
import itertools
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image, ImageDraw

from llava_gateway.demo.images import Grid, draw
from llava_gateway.loadtest.bodies import photograph, with_new_pixels


@dataclass(frozen=True)
class Kind:
    """A kind of image files."""

    name: str
    size: tuple[int, int]
    """Width and height in pixels, as stored."""
    image_format: str = "JPEG"
    rotated: bool = False
    """The picture is stored turned left, and EXIF tells viewers to turn it right, as phones do."""


JPEGS = (Kind("12 MP JPEG", (4000, 3000)), Kind("2 MP JPEG", (1600, 1200)), Kind("0.1 MP JPEG", (384, 288)))
MEDIUM = JPEGS[1]
SCREENSHOT = Kind("1920x1080 screenshot (PNG)", (1920, 1080), "PNG")
OTHERS = (
    Kind("12 MP JPEG of a phone, rotated", (4000, 3000), rotated=True),
    Kind("2 MP PNG", (1600, 1200), "PNG"),
    Kind("2 MP WEBP", (1600, 1200), "WEBP"),
    SCREENSHOT,
)
ORIENTATION, TURN_RIGHT = 0x0112, 6
"""The tag of EXIF and its value."""


def new_pictures(kind: Kind) -> Iterator[str]:
    """Yield an endless series of data URIs. Each picture has new bytes and new pixels.

    JPEGs are new in the whole run. Other formats are encoded once in a run and repeat for each server, which has no cache from before.
    """
    if kind.image_format != "JPEG":
        yield from (_other(kind, number) for number in itertools.count())
        return
    photo = _photograph(kind)
    for number in itertools.count(secrets.randbits(40)):
        yield data_uri(with_new_pixels(photo, number))


def grid_picture(kind: Kind, grid: Grid) -> str:
    """Return a data URI of a grid in this size and format."""
    if not kind.rotated:
        return data_uri(_encode(draw(grid, kind.size), kind))
    width, height = kind.size
    return data_uri(_encode(draw(grid, (height, width)).transpose(Image.Transpose.ROTATE_90), kind))


def data_uri(content: bytes) -> str:
    """Return image bytes as a data URI. Servers recognise the format by the bytes."""
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


class PictureHost(ThreadingHTTPServer):
    """An HTTP server that has a URL for each picture."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _PictureHandler)
        self.pictures: dict[str, bytes] = {}

    def url(self, uri: str) -> str:
        """Return the URL of a picture that is given as a data URI."""
        path = f"/{len(self.pictures)}.jpg"
        self.pictures[path] = base64.b64decode(uri.partition(",")[2])
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


@contextmanager
def picture_host() -> Iterator[PictureHost]:
    """Run a `PictureHost` until the block ends."""
    with PictureHost() as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        yield host
        host.shutdown()


class _PictureHandler(BaseHTTPRequestHandler):
    server: PictureHost

    def do_GET(self) -> None:
        content = self.server.pictures[self.path]
        self.send_response(200)
        self.send_header("content-type", "image/jpeg")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@cache
def _photograph(kind: Kind) -> bytes:
    photo = photograph(*kind.size)
    if not kind.rotated:
        return photo
    segment = _exif().tobytes()
    return photo[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + photo[2:]


@cache
def _other(kind: Kind, number: int) -> str:
    picture = _pixels(kind).copy()
    picture.paste((number % 256, number // 256, 0), (0, 0, 14, 14))
    return data_uri(_encode(picture, kind))


@cache
def _pixels(kind: Kind) -> Image.Image:
    if kind != SCREENSHOT:
        return Image.open(io.BytesIO(photograph(*kind.size))).convert("RGB")
    screen = Image.new("RGB", kind.size, "white")
    pen = ImageDraw.Draw(screen)
    pen.rectangle((0, 0, 1920, 60), "#20262e")
    pen.rectangle((0, 60, 320, 1080), "#eef1f4")
    for line in range(50):
        pen.text((16, 80 + 20 * line), f"file_{line:03}.py", "#33506b")
        pen.text(
            (340, 80 + 20 * line),
            f"{line:4}  result[{line}] = compute(values[{line * 7 % 31}], scale={line / 8})  # as before" * 2,
            "#222222",
        )
    return screen


def _encode(picture: Image.Image, kind: Kind) -> bytes:
    buffer = io.BytesIO()
    if kind.image_format == "JPEG":
        picture.save(buffer, "JPEG", quality=90, exif=_exif() if kind.rotated else Image.Exif())
    elif kind.image_format == "WEBP":
        picture.save(buffer, "WEBP", quality=85, method=2)
    else:
        picture.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = TURN_RIGHT
    return exif
