"""Finds a model in a directory or on the hub."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from llava_gateway.convert.source import ConvertError

WANTED = ("*.json", "*.safetensors", "*.bin", "*.model")


def locate(name: str, flag: str) -> Path:
    """Return the model's directory. A model of the hub is downloaded into the hub's cache.

    `flag`: the option that names the model on the command line, for error messages. Raises ConvertError.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ConvertError(f"{flag} {name} is a file; give the directory that holds config.json")
    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except HFValidationError:
        raise ConvertError(f"{flag}: there is no directory {name}") from None
    except (OSError, HfHubHTTPError):
        raise ConvertError(
            f"{flag}: {name} is no directory here, and the hub does not give it; where there is internet, run `hf download "
            f"{name} --local-dir DIR`, and give DIR here as {flag}"
        ) from None
