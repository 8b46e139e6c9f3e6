"""Describe images with Anthropic's Python SDK as a stream: python examples/anthropic_messages.py [IMAGE ...]"""

import base64
import os
import sys
from pathlib import Path

from anthropic import Anthropic

client = Anthropic(base_url=os.environ.get("LLAVA_URL", "http://127.0.0.1:8000"), api_key=os.environ.get("LLAVA_KEY", "none"))
model = next(iter(client.models.list())).id
for path in sys.argv[1:] or ["examples/pictures/first.png", "examples/pictures/second.jpg"]:
    media_type = "image/png" if path.endswith(".png") else "image/jpeg"
    image = {"type": "base64", "media_type": media_type, "data": base64.b64encode(Path(path).read_bytes()).decode()}
    content = [{"type": "image", "source": image}, {"type": "text", "text": "Describe this image."}]
    with client.messages.stream(
        model=model, max_tokens=200, messages=[{"role": "user", "content": content}], extra_body={"temperature": 0}
    ) as stream:
        for text in stream.text_stream:
            print(text, end="", flush=True)
    print(f" [{stream.get_final_message().stop_reason}]")
