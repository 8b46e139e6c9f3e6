"""Tag the pictures of a folder with the OpenAI SDK: python examples/tag_folder.py [FOLDER [TAG ...]]

Each tag is a statement about the picture. A line has the picture's name, and the tags with a probability of at least 0.5.
"""

import base64
import mimetypes
import os
import sys
from pathlib import Path

from openai import OpenAI

THRESHOLD = 0.5
client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/pictures")
tags = sys.argv[2:] or ["The top left is red.", "The top left is yellow.", "The bottom right is white.", "The bottom right is purple."]

for path in sorted(folder.iterdir()):
    media_type = mimetypes.guess_type(path)[0] or ""
    if not media_type.startswith("image/"):
        continue
    picture = f"data:{media_type};base64," + base64.b64encode(path.read_bytes()).decode()
    decision = client.decisions.create(
        model=model,
        input=[{"role": "user", "content": [{"type": "input_image", "image_url": picture}]}],
        questions=[{"type": "predicate", "name": tag, "instructions": tag} for tag in tags],
    )
    found = [f"{answer.name} ({answer.probability:.2f})" for answer in decision.answers if answer.probability >= THRESHOLD]
    print(f"{path.name}: {', '.join(found) or '-'}")
