"""LLaVA's page takes the form of a prompt from the name of the model: the name that it gets must make it pick the right one."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from helpers.in_process import client_of
from helpers.llava_worker import PAGE_NAME, page_template
from helpers.requests import MODEL
from helpers.silent_engine import SilentEngine
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.api.llava_worker.page_names import CHATML, LLAMA_2, MISTRAL, V0, VICUNA, fitting_name, page_form
from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.model_info import ModelInfo
from llava_gateway.serving.gateway import Gateway
from llava_gateway.serving.model_registry import ServedModel
from llava_gateway.settings import Settings

FORMS = {
    "llava_v0": V0,
    "llava_v1": VICUNA,
    "vicuna_v1": VICUNA,
    "mpt": CHATML,
    "chatml_direct": CHATML,
    "llava_llama_2": LLAMA_2,
    "llama_2": LLAMA_2,
    "mistral_instruct": MISTRAL,
}
"""The forms of LLaVA's conversation templates. The other templates have tags around images, or do not exist."""
PROMPTS = {
    V0: "A chat.###Human: Hello###Assistant:",
    VICUNA: "USER: Hello ASSISTANT:",
    CHATML: "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    LLAMA_2: "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHello [/INST]",
    MISTRAL: "[INST] Hello [/INST]",
}
WORDS = ("llava", "LLaVA", "v1", "v1.6-34b", "mistral", "Mixtral", "orca", "hermes", "llama-2", "mpt", "mmtag", "plain", "finetune", "7b")


@given(st.lists(st.sampled_from(WORDS)).map("-".join))
def test_form_of_a_name_is_that_of_the_template_that_the_page_picks(name: str) -> None:
    assert page_form(name) == FORMS.get(page_template(name), "")


@pytest.mark.parametrize(
    ("name", "form", "listed"),
    [
        ("llava-demo", VICUNA, "llava-demo-v1"),
        ("llava-v1.5-7b", VICUNA, "llava-v1.5-7b"),
        ("llava-hf/llava-1.5-7b-hf", VICUNA, "llava-hf/llava-1.5-7b-hf-v1"),
        ("llava-hf/llava-v1.6-mistral-7b-hf", MISTRAL, "llava-hf/llava-v1.6-mistral-7b-hf"),
        ("llava-hf/llava-v1.6-34b-hf", CHATML, "llava-hf/llava-v1.6-34b-hf"),
        ("llava-hf/llava-onevision-qwen2-7b-ov-hf", CHATML, "llava-hf/llava-onevision-qwen2-7b-ov-hf-mpt"),
        ("liuhaotian/LLaVA-7b-delta-v0", V0, "liuhaotian/LLaVA-7b-delta-v0"),
        ("checkpoint", VICUNA, "checkpoint"),
        ("checkpoint", V0, "llava-checkpoint-v0"),
        ("checkpoint", CHATML, "llava-checkpoint-mpt"),
        ("checkpoint", LLAMA_2, "checkpoint-llama-2"),
    ],
)
def test_page_picks_the_template_of_the_model_for_the_listed_name(name: str, form: str, listed: str) -> None:
    assert fitting_name(name, PROMPTS[form]) == listed
    assert FORMS[page_template(listed)] == form


def test_model_that_no_template_of_the_page_fits_keeps_its_name() -> None:
    assert fitting_name("llama3-llava", "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>") == "llama3-llava"


def ask(work: Callable[[httpx.AsyncClient], Any], names: tuple[str, ...] = (), template: str = "") -> Any:
    """Return the result of `work` with a client of a gateway that serves the demo model. `names`: its aliases."""

    class Engine(SilentEngine):
        async def start(self) -> ModelInfo:
            info = await super().start()
            return dataclasses.replace(info, chat_template=template) if template else info

    async def scenario() -> Any:
        gateway = Gateway(Settings(model=MODEL), [ServedModel(MODEL, Supervisor(Engine, 10), more_names=names)])
        async with client_of(gateway) as http:
            return await work(http)

    return asyncio.run(scenario())


async def _models(http: httpx.AsyncClient) -> list[str]:
    return list((await http.post("/list_models")).json()["models"])


def test_aliases_are_listed_under_the_names_that_fit_their_own_templates() -> None:
    assert ask(_models, ("llava-other", "llava-chatml=chatml")) == [PAGE_NAME, "llava-other-v1", "llava-chatml-mpt"]


def test_name_that_the_operator_has_already_given_is_listed_once() -> None:
    assert ask(_models, (PAGE_NAME,)) == [PAGE_NAME]


def test_template_that_refuses_a_greeting_does_not_break_the_list() -> None:
    assert ask(_models, template="{{ raise_exception('no') }}") == [MODEL]
