"""How vLLM reads the files of a LoRA adapter, so that the gateway can check an adapter as vLLM would load it.

vLLM does not say that a weight fits no layer, and it answers as if the adapter had no such weight. Without the functions below the gateway
could not refuse such an adapter. Read in vLLM 0.32.0.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import LoRAConfig, ModelConfig
    from vllm.lora.peft_helper import PEFTHelper


def parse_adapter_config(config: dict[str, Any]) -> "PEFTHelper":
    """Return vLLM's reading of an `adapter_config.json`. Raises ValueError, TypeError or AttributeError if it is not a LoRA's.

    Touches: `PEFTHelper.from_dict`.
    Without it: `adapter_rank` and `check_adapter_config` would have to read the fields themselves.
    """
    from vllm.lora.peft_helper import PEFTHelper

    return PEFTHelper.from_dict(config)


def check_adapter_config(adapter: "PEFTHelper", limits: "LoRAConfig") -> None:
    """Raise ValueError if vLLM does not support such an adapter, or if its rank is above `--max-lora-rank`.

    Touches: `PEFTHelper.validate_legal`.
    Without it: `AsyncLLM.add_lora` fails with the same message, but only in the server's log.
    """
    adapter.validate_legal(limits)


def adapter_rank(adapter: "PEFTHelper", weight: str) -> int:
    """Return the rank that an adapter has at the layer of a weight.

    `weight`: the weight's name in the adapter's file.

    Touches: `PEFTHelper.get_rank_and_scaling` and `parse_fine_tuned_lora_name`.
    Without it: `r` of the adapter's configuration, unless that has a `rank_pattern`.
    """
    from vllm.lora.utils import parse_fine_tuned_lora_name

    rank, _ = adapter.get_rank_and_scaling(parse_fine_tuned_lora_name(weight)[0])
    return int(rank)


def layer_name_mapper(config: "ModelConfig") -> Any:
    """Return vLLM's `WeightsMapper` from the layer names of peft, for old and new versions of transformers, to those of vLLM.

    Touches: `get_model_cls`, the model class's `hf_to_vllm_mapper` and `WeightsMapper.get_rename_mapper`.
    """
    from vllm.model_executor.model_loader.utils import get_model_cls

    return get_model_cls(config).hf_to_vllm_mapper.get_rename_mapper()


def map_layer_name(mapper: Any, name: str) -> str:
    """Return vLLM's name of a layer of the Hugging Face model.

    Touches: `WeightsMapper.map_name`.
    """
    return str(mapper.map_name(name))


def parse_weight_name(mapper: Any, weight: str) -> tuple[str, bool]:
    """Return vLLM's name of the layer that a weight adapts, and whether the weight is the half A of the pair. Raises ValueError.

    `weight`: the weight's name in the adapter's file.

    Touches: `parse_fine_tuned_lora_name`.
    """
    from vllm.lora.utils import parse_fine_tuned_lora_name

    layer, is_a = parse_fine_tuned_lora_name(weight, mapper)
    return str(layer), bool(is_a)
