"""A gateway on a real socket whose engine never answers, for measures of the memory of requests: `python silent_engine.py PORT`."""

import asyncio
import sys
from collections.abc import Callable

import uvicorn

from llava_gateway.app import create_app
from llava_gateway.demo import CHECKPOINT
from llava_gateway.http.uvicorn_protocol import http_protocol
from llava_gateway.model_info import LoraAdapter, ModelInfo, VisionConfig
from llava_gateway.settings import Settings
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import Delta, Prompt, SamplingParams, StructuredOutput, Usage


class SilentEngine:
    """An engine with the demo model's tokenizer and template, a long context, and one token for each image."""

    stage = ""
    dead = False

    async def start(self) -> ModelInfo:
        return ModelInfo(
            tokenizer=Tokenizer((CHECKPOINT / "tokenizer.json").read_text()),
            chat_template=(CHECKPOINT / "chat_template.jinja").read_text(),
            special_tokens={"bos_token": "<s>", "eos_token": "</s>"},
            image_token="<image>",
            vision=VisionConfig(336, lambda width, height: 1, min_image_tokens=1, max_image_tokens=1),
            context_length=1 << 16,
        )

    async def check_structured_output(self, structured_output: StructuredOutput) -> None:
        pass

    async def load_adapter(self, adapter: LoraAdapter) -> None:
        pass

    async def unload_adapter(self, adapter: LoraAdapter) -> None:
        pass

    async def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        stream: bool,
        usage: Usage,
        on_delta: Callable[[Delta], None],
        on_text: Callable[[str, int], None] | None = None,
    ) -> None:
        await asyncio.Future()

    async def check(self, timeout: float) -> None:
        pass

    async def stop(self) -> None:
        pass


if __name__ == "__main__":
    settings = Settings(model="llava-demo")
    uvicorn.run(
        create_app(settings, engine=SilentEngine),
        port=int(sys.argv[1]),
        http=http_protocol(settings),
        log_level="error",
        ws_max_size=settings.max_body_mb << 20,
        ws_max_queue=1,
        ws_per_message_deflate=False,
    )
