"""DeepInfra's address of the OpenAI API, on this server: a client of theirs needs another host, and no other line.

LLAVA_URL=http://127.0.0.1:8000 python examples/deepinfra.py
"""

import base64
import os
from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("LLAVA_URL", "http://127.0.0.1:8000") + "/v1/openai", api_key=os.environ.get("LLAVA_KEY", "none"))
model = next(iter(client.models.list())).id  # with --model-alias llava-hf/llava-1.5-7b-hf DeepInfra's name of it works, too
picture = base64.b64encode((Path(__file__).parent / "pictures" / "first.png").read_bytes()).decode()

completion = client.chat.completions.create(
    model=model,
    temperature=0,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
                {"type": "text", "text": "Describe this image."},
            ],
        }
    ],
)
print(completion.choices[0].message.content)
