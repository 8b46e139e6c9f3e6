"""Use the gateway with a client of DeepInfra's OpenAI API. Only the host in the base URL changes.

LLAVA_URL=http://127.0.0.1:8000 python examples/deepinfra.py
"""

import base64
import os
from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("LLAVA_URL", "http://127.0.0.1:8000") + "/v1/openai", api_key=os.environ.get("LLAVA_KEY", "none"))
model = next(iter(client.models.list())).id  # or DeepInfra's name, if the server runs with --model-alias llava-hf/llava-1.5-7b-hf
image = base64.b64encode((Path(__file__).parent / "pictures" / "first.png").read_bytes()).decode()

completion = client.chat.completions.create(
    model=model,
    temperature=0,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
                {"type": "text", "text": "Describe this image."},
            ],
        }
    ],
)
print(completion.choices[0].message.content)
