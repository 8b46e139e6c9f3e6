"""Chats, and the demo model's description, for tests of prompts."""

from typing import Any

from llava_gateway.demo import CHECKPOINT
from llava_gateway.model_info import ModelInfo, VisionConfig
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import ImageSource, ImageUrl, Message, Text

IMAGE = ImageUrl("data:,", "image")
LLAVA_HF_TEMPLATE = (  # in the manner of llava-hf/llava-1.5-7b-hf: images first, each text followed by a space
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATS: list[list[Message]] = [
    [Message("user", (Text("Hello"),))],
    [Message("user", (IMAGE, Text("Describe this image.")))],
    [Message("user", (Text("Describe these images."), IMAGE, IMAGE))],
    [Message("user", (Text("One."), IMAGE, Text("Two.")))],
    [Message("system", (Text("Be brief."),)), Message("user", (IMAGE, Text("What?"))), Message("assistant", (Text("Red."),)),
     Message("user", (IMAGE, Text("And now? Zażółć gęślą jaźń 🦙\n\ttabs")))],
]  # fmt: skip


def model_info(template: str | None = None) -> ModelInfo:
    """Return the demo model's description. `template`: replaces its chat template."""
    return ModelInfo(
        tokenizer=Tokenizer((CHECKPOINT / "tokenizer.json").read_text()),
        chat_template=template or (CHECKPOINT / "chat_template.jinja").read_text(),
        special_tokens={"bos_token": "<s>", "eos_token": "</s>"},
        image_token="<image>",
        vision=VisionConfig(336, lambda width, height: 576, min_image_tokens=576, max_image_tokens=576),
        context_length=4096,
    )


def huggingface(chat: list[Message]) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": [huggingface_part(part) for part in message.content]} for message in chat]


def huggingface_part(part: Text | ImageSource) -> dict[str, str]:
    return {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image"}
