"""Images that cannot be read or fetched are refused with the code that OpenAI has for them."""

import zlib

import httpx
import pytest
from helpers.errors import refused
from helpers.origin import Origin
from helpers.requests import body, image_part

from llava_gateway.demo.images import data_uri, draw, encode

GRID = ("red", "blue", "green", "orange")
IMAGE = encode(draw(GRID))
CHAT = "/v1/chat/completions"
URL = "messages[0].content[0].image_url.url"
BROKEN_IMAGES = [
    ("data:image/png;base64,!!!!", "invalid_base64_image"),
    ("data:image/png,rawbytes", "invalid_base64_image"),
    ("data:image/png;base64", "invalid_base64_image"),
    ("data:image/png;base64,", "empty_image_file"),
    (data_uri(b"hello, world"), "invalid_image_format"),
    (data_uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "invalid_image_format"),
    (data_uri(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "invalid_image_format"),
    (data_uri(b"SIMPLE  =                    T"), "invalid_image_format"),
    (data_uri(IMAGE[: len(IMAGE) // 2]), "invalid_image"),
    (data_uri(IMAGE[:8] + bytes(100)), "invalid_image"),
    (data_uri(encode(draw(GRID), "JPEG")[:600]), "invalid_image"),
    (data_uri(encode(draw(GRID, (1, 4000)))), "invalid_image"),
    (data_uri(encode(draw(GRID, (4000, 1)))), "invalid_image"),
    ("ftp://example.com/x.png", "invalid_image_url"),
    ("file:///etc/passwd", "invalid_image_url"),
    ("/etc/passwd", "invalid_image_url"),
    ("C:\\x.png", "invalid_image_url"),
    ("http://", "invalid_image_url"),
    ("http://[", "invalid_image_url"),
    ("http://user:pass@example.com/", "invalid_image_url"),
    ("http://127.0.0.1\\@1.1.1.1/", "invalid_image_url"),
    ("http://127.0.0.%31/", "invalid_image_url"),
    ("http://2130706433/", "invalid_image_url"),
    ("http://0x7f.1/", "invalid_image_url"),
    ("http://exa\tmple.com/", "invalid_image_url"),
    ("http://x:99999/", "invalid_image_url"),
    ("http://169.254.169.254/latest/meta-data/", "invalid_image_url"),
    ("http://10.0.0.1/", "invalid_image_url"),
    ("http://192.168.0.1/", "invalid_image_url"),
    ("http://100.64.0.1/", "invalid_image_url"),
    ("http://0.0.0.0/", "invalid_image_url"),
    ("http://[::1]/", "invalid_image_url"),
    ("http://[::ffff:10.0.0.1]/", "invalid_image_url"),
    ("http://[fe80::1]/", "invalid_image_url"),
    ("http://[64:ff9b::a00:1]/", "invalid_image_url"),
    ("http://[2002:a00:1::]/", "invalid_image_url"),
    ("http://[2001:0:4136:e378:8000:63bf:80ff:fffe]/", "invalid_image_url"),
    ("http://[fe80::5efe:a00:1]/", "invalid_image_url"),
    ("http://224.0.0.1/", "invalid_image_url"),
    ("data:text/html,<b>", "invalid_base64_image"),
]


@pytest.mark.parametrize(("url", "code"), BROKEN_IMAGES, ids=lambda value: value[:40])
def test_broken_image_is_named_in_the_error(http: httpx.Client, url: str, code: str) -> None:
    refused(http.post(CHAT, json=body(image_part(url), "Describe this image.")), 400, URL, code)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/missing", "failed_to_download_image"),
        ("/loop", "failed_to_download_image"),
        ("/to-private", "invalid_image_url"),
        ("/to-file", "invalid_image_url"),
        ("/text", "invalid_image_format"),
        ("/lies", "image_too_large"),
        ("/endless", "image_too_large"),
        ("/drip", "failed_to_download_image"),
        ("/silent", "failed_to_download_image"),
        ("/short", "failed_to_download_image"),
        ("/coded/gzip,gzip/bomb-twice", "failed_to_download_image"),
    ],
)
def test_misbehaving_image_server_gets_an_error_code(http: httpx.Client, origin: Origin, path: str, code: str) -> None:
    refused(http.post(CHAT, json=body(image_part(origin.url + path), "Describe this image.")), 400, URL, code)


def test_unreachable_image_server_gets_an_error_code(http: httpx.Client) -> None:
    refused(http.post(CHAT, json=body(image_part("http://127.0.0.1:9/x"), "hi")), 400, URL, "failed_to_download_image")
    refused(http.post(CHAT, json=body(image_part("http://no-such-host.invalid/x"), "hi")), 400, URL, "failed_to_download_image")


def test_pixel_bomb_is_refused(http: httpx.Client) -> None:
    """The file has a few KB and declares 20000 x 20000 pixels."""
    header = IMAGE[:16] + (20000).to_bytes(4) * 2 + IMAGE[24:]
    header = header[:29] + zlib.crc32(header[12:29]).to_bytes(4) + header[33:]
    refused(http.post(CHAT, json=body(image_part(data_uri(header)), "hi")), 400, URL, "image_too_large")


def test_url_in_text_is_never_fetched(http: httpx.Client, origin: Origin) -> None:
    before = len(origin.requests)
    assert http.post(CHAT, json=body(f"![x]({origin.url}/picture) {origin.url}/picture")).status_code == 200
    assert len(origin.requests) == before
