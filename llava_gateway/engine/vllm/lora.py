"""LoRA adapters on vLLM.

The gateway checks each adapter before the engine gets it. vLLM does not report a weight that fits no layer of the model, and answers as if
the adapter had no such weight. vLLM would also open pickles. An adapter that cannot be loaded while the engine answers ends the engine.
"""

import argparse
import asyncio
import copy
import json
import logging
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_gateway.engine.vllm.compat import health, lora
from llava_gateway.errors import EngineFailed, EngineStartError, GatewayError, InvalidRequest, TooManyRequests, Unavailable
from llava_gateway.files import read_file
from llava_gateway.model_info import LoraAdapter

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from vllm.lora.peft_helper import PEFTHelper
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

log = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The two files of an adapter, as peft writes them."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""The types of weights that are accepted, as safetensors names them."""
MAX_LOADED = 64
"""Adapters that vLLM keeps in memory, unless more are given at the start."""
SUPPORTED_KINDS = ("llava", "llava_next")
"""The values of `model_type` in config.json for which vLLM supports LoRA."""
POLL_INTERVAL = 0.25
"""Seconds between two looks at whether the engine has died."""
PARAM = "lora_path"
RETRY_AFTER = 1
"""Seconds after which a client may try again to replace an adapter that is in use."""


def lora_flags(adapters: int) -> tuple[str, ...]:
    """Return vLLM's flags for so many adapters at the start.

    `max_loras` adapters fit into one batch, and requests for other adapters wait. `max_cpu_loras` adapters are kept in memory.
    """
    return ("--enable-lora", "--max-loras", str(max(adapters, 4)), "--max-cpu-loras", str(max(adapters, MAX_LOADED)))


def check_lora_support(config: dict[str, Any]) -> None:
    """Raise EngineStartError if vLLM does not support LoRA for a model. `config`: the model's config.json."""
    if config.get("model_type", SUPPORTED_KINDS[0]) not in SUPPORTED_KINDS:
        kind = config["model_type"]
        raise EngineStartError(f"vLLM has no LoRA for {kind} models; leave out --lora-modules, --lora-dir and --enable-lora")


def reserve_slots(arguments: argparse.Namespace, *, cpu: bool) -> None:
    """Add room to `--max-cpu-loras` of vLLM's arguments, and on a CPU to `--max-loras`, for adapters that do not count.

    One adapter is there twice while it is replaced: requests that already use the old one keep it. On a CPU one slot more stays empty:
    if a batch has prompts with and without adapters, vLLM 0.32 on a CPU applies the adapter in the last slot to a prompt without one.
    """
    if cpu:
        arguments.max_loras += 2
    arguments.max_cpu_loras = max(arguments.max_cpu_loras or 0, arguments.max_loras) + 1


class LoraManager:
    """The adapters that one engine has loaded.

    There are never more than vLLM keeps in memory. vLLM would read a further one from its directory again, and a failure there would end
    the engine. One place is kept for an adapter that replaces another one of its name.
    """

    def __init__(self, engine: "AsyncLLM") -> None:
        self._engine = engine
        self._config = engine.vllm_config.lora_config
        self._loaded: dict[int, LoRARequest] = {}

    def request(self, adapter: LoraAdapter) -> "LoRARequest":
        """Return the object that vLLM gets with a prompt for this adapter.

        Raises Unavailable if the adapter is not loaded, which happens if it could not be loaded after a restart.
        """
        if adapter.number not in self._loaded:
            raise Unavailable(f"The adapter {adapter.name!r} is not loaded; the server's log says why.", code="adapter_not_loaded")
        return self._loaded[adapter.number]

    async def load(self, adapter: LoraAdapter) -> None:
        """Check an adapter and load it. Raises InvalidRequest if it cannot be used, Unavailable if the engine dies."""
        from vllm.lora.request import LoRARequest

        if self._config is None:
            raise InvalidRequest("The engine was started without LoRA (--no-enable-lora).", param=PARAM)
        self._check_room(adapter.name)
        await asyncio.to_thread(self._check, Path(adapter.path))
        # The name is new at each load, because vLLM's caches know an adapter by it: they must not hold answers of an earlier adapter.
        request = LoRARequest(f"{adapter.name}#{adapter.number}", adapter.number, adapter.path)
        try:
            await self._wait(self._engine.add_lora(request))
        except EngineFailed as error:
            log.error("vLLM could not load the adapter %s: %s", adapter.name, error.__cause__)
            await self._remove(adapter.number)  # vLLM may have kept a part of it
            raise InvalidRequest("The engine cannot load this adapter; the server's log says why.", param=PARAM) from error
        self._loaded[adapter.number] = request

    async def unload(self, adapter: LoraAdapter) -> None:
        """Unload an adapter, if it is loaded. Raises EngineFailed, or Unavailable if the engine dies."""
        if adapter.number in self._loaded:
            await self._remove(adapter.number)
            del self._loaded[adapter.number]

    def _check_room(self, name: str) -> None:
        """Raise InvalidRequest or TooManyRequests if another adapter called `name` has no place. See `reserve_slots`."""
        from vllm.platforms import current_platform

        most = int(self._config.max_loras - 2 if current_platform.is_cpu() else self._config.max_cpu_loras - 1)
        replaces = any(request.lora_name.rpartition("#")[0] == name for request in self._loaded.values())
        if len(self._loaded) > most or (len(self._loaded) == most and not replaces):
            if replaces:
                message = "Requests still use adapters that were replaced or unloaded. Try again when they have ended."
                raise TooManyRequests(message, code="adapter_in_use", retry_after=RETRY_AFTER)
            raise InvalidRequest(f"The engine has no room for more than {most} adapters; unload one first.", param=PARAM)

    async def _remove(self, number: int) -> None:
        await self._wait(self._engine.remove_lora(number))

    async def _wait(self, question: "Awaitable[object]") -> None:
        """Wait for the engine's answer, which never comes if the engine dies meanwhile.

        Raises EngineFailed with vLLM's error as its cause, or Unavailable.
        """
        asked = asyncio.ensure_future(question)
        try:
            while not asked.done():
                await asyncio.wait((asked,), timeout=POLL_INTERVAL)
                if health.is_dead(self._engine):
                    raise Unavailable("The engine has died.", code="engine_dead", retry_after=10)
            asked.result()
        except GatewayError:
            raise
        except Exception as error:
            raise EngineFailed("The engine could not load or unload an adapter.") from error
        finally:
            asked.cancel()

    def _check(self, path: Path) -> None:
        """Raise InvalidRequest if the adapter in this directory cannot be used."""
        try:
            adapter = _read_config(path / CONFIG)
            lora.check_adapter_config(adapter, self._config)
            shapes = _read_shapes(path / WEIGHTS)
        except OSError:
            raise InvalidRequest(f"There is no {CONFIG}, or no {WEIGHTS} beside it.", param=PARAM) from None
        except ValueError as error:
            raise InvalidRequest(f"This adapter cannot be used: {str(error).rstrip('.')}.", param=PARAM) from error
        self._check_shapes(shapes, adapter)

    def _check_shapes(self, shapes: dict[str, list[int]], adapter: "PEFTHelper") -> None:
        """Raise InvalidRequest unless the weights are whole pairs, and each pair fits a layer of the language model.

        `shapes`: by the names in the adapter's file.
        """
        halves: dict[str, set[bool]] = {}
        for weight, shape in shapes.items():
            try:
                layer, is_a = lora.parse_weight_name(self._layer_names, weight)
            except ValueError:
                raise InvalidRequest(f"This adapter cannot be used: {weight[:200]} is not a weight of a LoRA.", param=PARAM) from None
            if layer not in self._layers:
                reason = f"{layer[:200]} is not a layer of this language model that LoRA can adapt"
                raise InvalidRequest(f"This adapter cannot be used: {reason}.", param=PARAM)
            rank = lora.adapter_rank(adapter, weight)
            inputs, outputs = self._layers[layer]
            if shape != (fitting := [rank, inputs] if is_a else [outputs, rank]):
                raise InvalidRequest(f"This adapter is not for this model: {weight} is {shape}, and {fitting} would fit.", param=PARAM)
            halves.setdefault(layer, set()).add(is_a)
        if not halves or any(len(pair) < 2 for pair in halves.values()):
            raise InvalidRequest(f"This adapter cannot be used: weights are missing from {WEIGHTS}.", param=PARAM)

    @cached_property
    def _layer_names(self) -> Any:
        """Maps peft's names of layers to vLLM's."""
        return lora.layer_name_mapper(self._engine.vllm_config.model_config)

    @cached_property
    def _layers(self) -> dict[str, tuple[int, int]]:
        """The number of inputs and of outputs of each linear layer that LoRA can adapt, by vLLM's name of the layer.

        These are the layers of the language model, without its head.
        """
        import torch
        from transformers import AutoModelForImageTextToText

        with torch.device("meta"):  # shapes without weights
            model = AutoModelForImageTextToText.from_config(copy.deepcopy(self._engine.vllm_config.model_config.hf_config))
        linear = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear))
        named = ((lora.map_layer_name(self._layer_names, name), layer) for name, layer in linear)
        return {name: (layer.in_features, layer.out_features) for name, layer in named if name.startswith("language_model.model.")}


def _read_config(path: Path) -> "PEFTHelper":
    """Read an `adapter_config.json`. Raises OSError, or ValueError if it is not a LoRA's."""
    try:
        config = json.loads(read_file(path, 1 << 20))
        if config["peft_type"] != "LORA":
            raise ValueError(f"its peft_type is {str(config['peft_type'])[:50]}, not LORA")
        if type(config["r"]) is not int or type(config["lora_alpha"]) not in (int, float):
            raise TypeError
        return lora.parse_adapter_config(config)
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{CONFIG} is not a LoRA's, as peft writes it") from None


def _read_shapes(path: Path) -> dict[str, list[int]]:
    """Return the shapes of all weights in a file, by name. Raises OSError, or ValueError if the file is damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():  # opening a FIFO would wait for a writer
        raise FileNotFoundError
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is not a dict
            if any(each.get_dtype() not in FLOATS for each in slices.values()):
                raise ValueError(f"{WEIGHTS} has weights that are not floating-point numbers")
            return {name: each.get_shape() for name, each in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{WEIGHTS} cannot be read: {error}") from error
