"""Images within texts, as `<img src="data:image/jpeg;base64,...">`."""

import re
from collections.abc import Mapping

from llava_gateway.chat import ImageUrl
from llava_gateway.errors import InvalidRequest

TAG = "<img src="
IMAGE = re.compile(TAG + r"""["'](data:[^"'<>]*+)["'][^<>]*+>""")
MAX_IMAGES = 1024
"""Of a request, in all its texts."""


def take_apart(texts: Mapping[str, str], *, every: bool) -> dict[str, list[str | ImageUrl]]:
    """Texts, by the names of their fields, as pieces of text and the images between them. Unless `every`, the last image of all is the
    only one: the others' tags are left out. Tags without a `data:` URI are text. InvalidRequest for too many."""
    if sum(text.count(TAG) for text in texts.values()) > MAX_IMAGES:
        param = next(name for name, text in texts.items() if TAG in text)
        raise InvalidRequest(f"{param}: there may be at most {MAX_IMAGES} images.", param=param)
    split = {name: IMAGE.split(text) for name, text in texts.items()}  # every second piece is a URI
    left_out = 0 if every else sum(len(pieces) // 2 for pieces in split.values()) - 1
    taken: dict[str, list[str | ImageUrl]] = {}
    for name, pieces in split.items():
        taken[name] = []
        for index, piece in enumerate(pieces):
            if index % 2 == 0:
                taken[name].append(piece)
            elif left_out > 0:
                left_out -= 1
            else:
                taken[name].append(ImageUrl(piece, name))
    return taken
