"""LoRA adapters on vLLM. Each is looked at here before the engine is given it: of what fits no layer of the model vLLM says nothing and
answers as the model alone would, pickles it opens, and what it cannot load while it answers kills it."""

import argparse
import asyncio
import copy
import json
import logging
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_gateway.errors import EngineFailed, EngineStartError, GatewayError, InvalidRequest, Unavailable
from llava_gateway.files import read_file
from llava_gateway.types import LoraAdapter

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from vllm.lora.peft_helper import PEFTHelper
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

log = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FLOATS = ("F64", "F32", "F16", "BF16")
MAX_LOADED = 64
ADAPTABLE = ("llava", "llava_next")
"""Values of config.json's `model_type` for which vLLM has LoRA."""
LOOK_INTERVAL = 0.25
PARAM = "lora_path"


def lora_flags(at_start: int) -> tuple[str, ...]:
    """vLLM's, for so many adapters given at the start. `max_loras` of them can be in one batch, and requests for others wait for that;
    `max_cpu_loras` are kept in memory."""
    return ("--enable-lora", "--max-loras", str(max(at_start, 4)), "--max-cpu-loras", str(max(at_start, MAX_LOADED)))


def check_adaptable(config: dict[str, Any]) -> None:
    """`config`: the model's config.json. Raises EngineStartError."""
    if config.get("model_type", ADAPTABLE[0]) not in ADAPTABLE:
        kind = config["model_type"]
        raise EngineStartError(f"vLLM has no LoRA for {kind} models; leave out --lora-modules, --lora-dir and --enable-lora")


def leave_a_slot_empty(arguments: argparse.Namespace) -> None:
    """On a CPU vLLM 0.32 gives a prompt without an adapter, in a batch with others, the adapter in the last slot. That is ours, and empty:
    it comes on top of `--max-loras`, and no more than those are loaded there."""
    arguments.max_loras += 1
    arguments.max_cpu_loras = max(arguments.max_cpu_loras or 0, arguments.max_loras)


class LoraManager:
    """What one engine has loaded. Never more than it keeps in memory: one that vLLM had to read again from its directory, and could not,
    would kill the engine."""

    def __init__(self, engine: "AsyncLLM") -> None:
        self._engine = engine
        self._config = engine.vllm_config.lora_config
        self._loaded: dict[int, LoRARequest] = {}

    def request(self, adapter: LoraAdapter) -> "LoRARequest":
        """What vLLM is told beside a prompt. Raises Unavailable if the adapter is not loaded, as after a restart that found it broken."""
        if adapter.number not in self._loaded:
            raise Unavailable(f"The adapter {adapter.name!r} is not loaded; the server's log says why.", code="adapter_not_loaded")
        return self._loaded[adapter.number]

    async def load(self, adapter: LoraAdapter) -> None:
        """Raises InvalidRequest for one that cannot be used; Unavailable if the engine dies."""
        from vllm.lora.request import LoRARequest

        if self._config is None:
            raise InvalidRequest("The engine was started without LoRA (--no-enable-lora).", param=PARAM)
        if len(self._loaded) >= self._room():
            raise InvalidRequest(f"The engine has no room for more than {len(self._loaded)} adapters; unload one first.", param=PARAM)
        await asyncio.to_thread(self._check, Path(adapter.path))
        # vLLM's caches know an adapter by this name, so it is new each time: another adapter's answers are not to come from them.
        request = LoRARequest(f"{adapter.name}#{adapter.number}", adapter.number, adapter.path)
        try:
            await self._answered(self._engine.add_lora(request))
        except EngineFailed as error:
            log.error("vLLM does not load the adapter %s: %s", adapter.name, error.__cause__)
            await self._remove(adapter.number)  # of which it may have kept a part
            raise InvalidRequest("The engine cannot load this adapter; the server's log says why.", param=PARAM) from error
        self._loaded[adapter.number] = request

    async def unload(self, adapter: LoraAdapter) -> None:
        """Raises EngineFailed, or Unavailable if the engine dies."""
        if adapter.number in self._loaded:
            await self._remove(adapter.number)
            del self._loaded[adapter.number]

    def _room(self) -> int:
        from vllm.platforms import current_platform

        return int(self._config.max_loras - 1 if current_platform.is_cpu() else self._config.max_cpu_loras)

    async def _remove(self, number: int) -> None:
        await self._answered(self._engine.remove_lora(number))

    async def _answered(self, question: "Awaitable[object]") -> None:
        """Wait for the engine's answer, which never comes if it dies over it. Raises EngineFailed with vLLM's error as its cause, and
        Unavailable."""
        asked = asyncio.ensure_future(question)
        try:
            while not asked.done():
                await asyncio.wait((asked,), timeout=LOOK_INTERVAL)
                if self._engine.errored:
                    raise Unavailable("The engine has died.", code="engine_dead", retry_after=10)
            asked.result()
        except GatewayError:
            raise
        except Exception as error:
            raise EngineFailed("The engine could not do this to an adapter.") from error
        finally:
            asked.cancel()

    def _check(self, path: Path) -> None:
        """Raises InvalidRequest."""
        try:
            adapter = _read_config(path / CONFIG)
            adapter.validate_legal(self._config)
            found = _read_shapes(path / WEIGHTS)
        except OSError:
            raise InvalidRequest(f"There is no {CONFIG}, or no {WEIGHTS} beside it.", param=PARAM) from None
        except ValueError as error:
            raise InvalidRequest(f"This adapter cannot be used: {str(error).rstrip('.')}.", param=PARAM) from error
        self._check_shapes(found, adapter)

    def _check_shapes(self, found: dict[str, list[int]], adapter: "PEFTHelper") -> None:
        """Each weight has to be half of a pair that fits a layer of the language model. Raises InvalidRequest."""
        from vllm.lora.utils import parse_fine_tuned_lora_name

        pairs: dict[str, set[bool]] = {}
        for name, shape in found.items():
            try:
                layer, is_a = parse_fine_tuned_lora_name(name, self._names)
            except ValueError:
                raise InvalidRequest(f"This adapter cannot be used: {name[:200]} is not a weight of a LoRA.", param=PARAM) from None
            if layer not in self._layers:
                why = f"{layer[:200]} is no layer of this language model that can be adapted"
                raise InvalidRequest(f"This adapter cannot be used: {why}.", param=PARAM)
            rank, _ = adapter.get_rank_and_scaling(parse_fine_tuned_lora_name(name)[0])
            width, height = self._layers[layer]
            if shape != (fits := [rank, width] if is_a else [height, rank]):
                raise InvalidRequest(f"This adapter is not for this model: {name} is {shape}, and {fits} would fit.", param=PARAM)
            pairs.setdefault(layer, set()).add(is_a)
        if not pairs or any(len(halves) < 2 for halves in pairs.values()):
            raise InvalidRequest(f"This adapter cannot be used: weights are missing from {WEIGHTS}.", param=PARAM)

    @cached_property
    def _names(self) -> Any:
        """Maps peft's names of layers, of old and new transformers, to vLLM's."""
        return self._model_class.hf_to_vllm_mapper.get_rename_mapper()

    @cached_property
    def _model_class(self) -> Any:
        from vllm.model_executor.model_loader.utils import get_model_cls

        return get_model_cls(self._engine.vllm_config.model_config)

    @cached_property
    def _layers(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear layer that can be adapted, by vLLM's name: the language model's, without its head."""
        import torch
        from transformers import AutoModelForImageTextToText

        with torch.device("meta"):  # shapes without weights
            model = AutoModelForImageTextToText.from_config(copy.deepcopy(self._engine.vllm_config.model_config.hf_config))
        named = ((self._names._map_name(name), layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear))
        return {name: (layer.in_features, layer.out_features) for name, layer in named if name.startswith("language_model.model.")}


def _read_config(path: Path) -> "PEFTHelper":
    """Raises OSError, and ValueError if this is no LoRA's."""
    from vllm.lora.peft_helper import PEFTHelper

    try:
        config = json.loads(read_file(path, 1 << 20))
        if config["peft_type"] != "LORA":
            raise ValueError(f"its peft_type is {str(config['peft_type'])[:50]}, not LORA")
        if type(config["r"]) is not int or type(config["lora_alpha"]) not in (int, float):
            raise TypeError
        return PEFTHelper.from_dict(config)
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{CONFIG} is not a LoRA's, as peft writes it") from None


def _read_shapes(path: Path) -> dict[str, list[int]]:
    """Of all weights, by name. Raises OSError, and ValueError if the file is broken."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():  # opening a FIFO would wait for its writer
        raise FileNotFoundError
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
            if any(each.get_dtype() not in FLOATS for each in slices.values()):
                raise ValueError(f"{WEIGHTS} has weights that are not floating-point numbers")
            return {name: each.get_shape() for name, each in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{WEIGHTS} cannot be read: {error}") from error
