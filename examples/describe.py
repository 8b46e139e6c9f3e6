"""Describe images with the OpenAI SDK: python examples/describe.py [IMAGE ...]"""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id

paths = sys.argv[1:] or ["examples/pictures/first.png", "examples/pictures/second.jpg"]
images = ["data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode() for path in paths]

completion = client.chat.completions.create(
    model=model,
    messages=[
        {
            "role": "user",
            "content": [
                *({"type": "image_url", "image_url": {"url": image}} for image in images),
                {"type": "text", "text": "Describe these images." if len(images) > 1 else "Describe this image."},
            ],
        }
    ],
    temperature=0,
    max_tokens=200,
)
print(completion.choices[0].message.content)
usage = completion.usage
print(f"{usage.prompt_tokens} prompt tokens; {usage.prompt_tokens_details.image_tokens} for images")
