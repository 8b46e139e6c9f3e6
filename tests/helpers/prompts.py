"""Chats, and the demo model's description, for tests of prompts."""

from typing import Any

from llava_gateway.demo import CHECKPOINT
from llava_gateway.model_info import ModelInfo, VisionConfig
from llava_gateway.prompts.templates import CURIOUS_HUMAN, CURIOUS_USER, LANGUAGE_AND_VISION
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
ASKED = [Message("user", (Text("What?"), IMAGE))]
ANSWERED = [*ASKED, Message("assistant", (Text("Red."),)), Message("user", (Text("And now?"),))]
SYSTEM = [Message("system", (Text("Be brief."),)), Message("user", (Text("Hi"),))]
GOLDEN: dict[str, tuple[str, str, str]] = {
    "llava-hf": (
        "USER: <image>\nWhat? ASSISTANT:",
        "USER: <image>\nWhat? ASSISTANT: Red. USER: And now? ASSISTANT:",
        "Be brief. USER: Hi ASSISTANT:",
    ),
    "llava-hf-eos": (
        "USER: <image>\nWhat? ASSISTANT:",
        "USER: <image>\nWhat? ASSISTANT: Red.</s>USER: And now? ASSISTANT:",
        "Be brief. USER: Hi ASSISTANT:",
    ),
    "llava-interleave": (
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n\nRed.<|im_end|>\n"
        "<|im_start|>user\n\nAnd now?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\n\nBe brief.<|im_end|>\n<|im_start|>user\n\nHi<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llava_v0": (
        f"{CURIOUS_HUMAN}###Human: <image>\nWhat?###Assistant:",
        f"{CURIOUS_HUMAN}###Human: <image>\nWhat?###Assistant: Red.###Human: And now?###Assistant:",
        "Be brief.###Human: Hi###Assistant:",
    ),
    "vicuna_v1": (
        f"{CURIOUS_USER} USER: <image>\nWhat? ASSISTANT:",
        f"{CURIOUS_USER} USER: <image>\nWhat? ASSISTANT: Red.</s>USER: And now? ASSISTANT:",
        "Be brief. USER: Hi ASSISTANT:",
    ),
    "llava_v1": (
        f"{CURIOUS_HUMAN} USER: <image>\nWhat? ASSISTANT:",
        f"{CURIOUS_HUMAN} USER: <image>\nWhat? ASSISTANT: Red.</s>USER: And now? ASSISTANT:",
        "Be brief. USER: Hi ASSISTANT:",
    ),
    "llava-sn": (
        f"{CURIOUS_HUMAN}\n\n### Human: What?\n<image>\n\n###",
        f"{CURIOUS_HUMAN}\n\n### Human: What?\n<image>\n\n### Assistant: Red.\n\n### Human: And now?\n\n###",
        "Be brief.\n\n### Human: Hi\n\n###",
    ),
    "llava_llama_2": (
        f"[INST] <<SYS>>\n{LANGUAGE_AND_VISION}\n<</SYS>>\n\n<image>\nWhat? [/INST]",
        f"[INST] <<SYS>>\n{LANGUAGE_AND_VISION}\n<</SYS>>\n\n<image>\nWhat? [/INST] Red. </s><s>[INST] And now? [/INST]",
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]",
    ),
    "mistral_instruct": (
        "[INST] <image>\nWhat? [/INST]",
        "[INST] <image>\nWhat? [/INST] Red. </s>[INST] And now? [/INST]",
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]",
    ),
    "chatml": (
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nWhat?<|im_end|><|im_start|>assistant\n",
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nWhat?<|im_end|>"
        "<|im_start|>assistant\nRed.<|im_end|><|im_start|>user\nAnd now?<|im_end|><|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n",
    ),
    "plain": ("<image>\nWhat?\n", "<image>\nWhat?\nRed.\nAnd now?\n", "Be brief.\nHi\n"),
}
"""The prompts of the three chats above, by the name of the template."""


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
