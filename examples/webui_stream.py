"""Stream an answer with text-generation-webui's API over a WebSocket: python examples/webui_stream.py [IMAGE]

Requires the package `websockets`, which is installed with the server.
"""

import base64
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from websockets.sync.client import connect

server = os.environ.get("LLAVA_URL", "http://127.0.0.1:8000").replace("http", "ws", 1)
path = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/pictures/first.png")
image = f'<img src="data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}">'
greedy = {"do_sample": False, "repetition_penalty": 1.0}


def events(endpoint: str, request: dict) -> Iterator[dict]:
    """Yield the events of an answer."""
    with connect(f"{server}/api/v1/{endpoint}", max_size=None) as socket:
        socket.send(json.dumps(request))
        for message in socket:
            event = json.loads(message)
            if event["event"] == "stream_end":
                return
            if event["event"] == "error":
                sys.exit(event["error"]["message"])
            yield event


for event in events("stream", {"prompt": f"USER: {image}\nDescribe this image. ASSISTANT:", "max_new_tokens": 200, **greedy}):
    print(event["text"], end="", flush=True)
print()

printed = ""
request = {"user_input": f"{image}\nWhat color is the top left?", "history": {"internal": [], "visible": []}, "mode": "instruct", **greedy}
for event in events("chat-stream", request):
    answer = event["history"]["visible"][-1][1]  # each event has the whole answer so far
    print(answer[len(printed) :], end="", flush=True)
    printed = answer
print()
