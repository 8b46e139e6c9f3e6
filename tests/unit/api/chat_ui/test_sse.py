"""The chat page's reader of event streams."""

import json
import subprocess
from pathlib import Path

from helpers.programs import NODE

from llava_gateway.api.chat_ui.router import FILES


def test_event_stream_is_read_as_the_standard_says(tmp_path: Path) -> None:
    stream = ': keep-alive\n\ndata: {"a":"ü"}\r\n\r\nid: 1\ndata:1\ndata: 2\n\n\n: more\n\ndata: [DONE]\n\ndata: torn'.encode()
    (tmp_path / "sse.mjs").write_bytes(FILES["sse.js"])
    (tmp_path / "read.mjs").write_text(
        f"""import {{ events }} from "./sse.mjs";
        const bytes = Uint8Array.from({list(stream)});
        for (const size of [1, 3, 1000]) {{
            const pieces = Array.from({{ length: Math.ceil(bytes.length / size) }}, (_, i) => bytes.slice(i * size, (i + 1) * size));
            const read = [];
            for await (const data of events(new Response(ReadableStream.from(pieces)).body)) read.push(data);
            console.log(JSON.stringify(read));
        }}"""
    )
    ended = subprocess.run([NODE, "read.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True)
    assert [json.loads(line) for line in ended.stdout.splitlines()] == [['{"a":"ü"}', "1\n2", "[DONE]"]] * 3
