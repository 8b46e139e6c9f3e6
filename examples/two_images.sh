#!/usr/bin/env bash
# Two images in one request, with curl: examples/two_images.sh [BASE_URL]
set -euo pipefail
cd "$(dirname "$0")/pictures"
base_url=${1:-http://127.0.0.1:8000/v1}

curl -sS --fail-with-body "$base_url/chat/completions" -H 'content-type: application/json' --data-binary @- <<JSON
{
  "model": "llava-demo",
  "temperature": 0,
  "messages": [{
    "role": "user",
    "content": [
      {"type": "image_url", "image_url": {"url": "data:image/png;base64,$(base64 <first.png | tr -d '\n')"}},
      {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,$(base64 <second.jpg | tr -d '\n')"}},
      {"type": "text", "text": "Describe these images."}
    ]
  }]
}
JSON
echo
