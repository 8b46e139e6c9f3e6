"""Ask about a video with the OpenAI SDK: python examples/video.py VIDEO [QUESTION]"""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id

path, question = sys.argv[1], " ".join(sys.argv[2:]) or "What happens in this video?"
url = path if "://" in path else "data:video/mp4;base64," + base64.b64encode(Path(path).read_bytes()).decode()

completion = client.chat.completions.create(
    model=model,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "video_url", "video_url": {"url": url}},
                {"type": "text", "text": question},
            ],
        }
    ],
    max_tokens=200,
)
print(completion.choices[0].message.content)
usage = completion.usage
print(f"{usage.prompt_tokens} prompt tokens; {usage.prompt_tokens_details.video_tokens} for the video")
