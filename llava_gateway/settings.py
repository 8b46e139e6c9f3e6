"""Every setting, declared once: the flag (`--max-body-mb`), the environment variable (`LLAVA_MAX_BODY_MB`), the TOML key (`max_body_mb`)
and the table in the README come from here.
"""

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

Network = IPv4Network | IPv6Network
AspectRatio = Literal["crop", "pad", "resize"]
ApiName = Literal["openai", "deepinfra", "sambastudio", "text_generation_webui", "llava_worker", "chat_ui"]


def _split(value: object) -> object:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _hosts(value: object) -> object:
    return [host.strip().lower() for host in value.split(",") if host.strip() not in ("", "none")] if isinstance(value, str) else value


def _modules(value: object) -> object:
    """vLLM's two forms of an adapter, of which JSON has commas of its own."""
    given = value if isinstance(value, (list, tuple)) else [value]
    parts = [[each] if isinstance(each, str) and each.lstrip().startswith("{") else _split(each) for each in given]
    return [item for part in parts for item in (part if isinstance(part, list) else [part])]


def default_of(name: str) -> str:
    """A setting's default as one would write it on the command line; empty if it has none."""
    default = Settings.model_fields[name].default
    return ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)


class SettingsError(Exception):
    """Settings that cannot be, alone or together; the message is one line for the operator."""


class Settings(BaseSettings):
    """What an operator can set. Flags win over the environment, the environment over `llava-gateway.toml`."""

    model_config = SettingsConfigDict(env_prefix="LLAVA_", extra="forbid", frozen=True, toml_file="llava-gateway.toml")

    model: str = Field(
        "", description="a directory or a Hugging Face id; empty: llava-hf/llava-1.5-7b-hf with an NVIDIA GPU, else the demo"
    )
    served_model_name: str = Field("", description="the name clients ask for; empty: the model's")
    model_alias: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="more names of the model, comma separated; NAME=TEMPLATE has chats with that name use that template"
    )
    template: str = Field(
        "",
        description="a built-in conversation template's name (docs/dialects.md), or a file of Jinja, instead of the model's own",
    )
    lora_modules: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_modules)] = Field(
        (), description="LoRA adapters, each a model of its own: NAME=DIRECTORY, comma separated, or vLLM's JSON (docs/lora.md)"
    )
    lora_dir: str = Field(
        "", description="directory below which admin keys may load adapters while the server runs; empty: nobody may (docs/lora.md)"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    apis: Annotated[tuple[ApiName, ...], NoDecode, BeforeValidator(_split)] = Field(
        get_args(ApiName), description="what is spoken: dialects, and `page`, the chat page; comma separated"
    )
    more_ports: Annotated[tuple[int, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="ports to listen on besides, comma separated: clients of other servers expect theirs, such as 5000 and 5005"
    )
    max_running: int = Field(256, ge=1, description="requests worked on at once")
    max_queued: int = Field(1024, ge=0, description="requests that may wait for a place; more are answered 429")
    max_running_tokens: int = Field(1_000_000, ge=1, description="prompt tokens worked on at once, images counted")
    max_queued_tokens: int = Field(1_000_000, ge=1, description="prompt tokens that may wait; more are answered 429")
    queue_timeout: float = Field(60.0, gt=0, description="seconds that a request may wait for a place; then it is answered 429")
    request_timeout: float = Field(
        600.0, gt=0, description="seconds that a request may take in all; then it is answered 504, or its stream ends"
    )
    max_body_mb: int = Field(64, ge=1, description="largest request body, in MiB")
    max_bodies_mb: int = Field(
        1024,
        ge=1,
        description="memory for request bodies, as sent and as parsed, and as much for waiting image files, in MiB; more are answered 429",
    )
    max_answers_mb: int = Field(
        1024, ge=1, description="memory of answers that are being made, in MiB, log probabilities above all; more are answered 429"
    )
    body_timeout: float = Field(60.0, gt=0, description="seconds that a request's body may take to arrive; then it is answered 408")
    head_timeout: float = Field(10.0, gt=0, description="seconds that a connection may take to send a request's headers")
    send_timeout: float = Field(30.0, gt=0, description="seconds that a client may read nothing of what it was sent; then it is cut off")
    max_connections: int = Field(4096, ge=1, description="open connections; more are closed at once")
    default_max_tokens: int = Field(1024, ge=1, description="length of an answer whose request sets none, in tokens")
    keep_alive: float = Field(15.0, gt=0, description="longest silence of a stream, in seconds: a comment (`: keep-alive`) ends it")
    shutdown_timeout: int = Field(30, ge=0, description="seconds that running requests get to finish when the server is told to stop")
    max_image_mb: int = Field(20, ge=1, description="largest image file, in MiB")
    max_image_megapixels: int = Field(50, ge=1, description="largest image, in millions of pixels")
    image_aspect_ratio: Literal["auto", "crop", "pad", "resize"] = Field(
        "auto",
        description="how images become square: `crop`, `pad` (as the original LLaVA), `resize`, or `auto`, as the model's own processor",
    )
    max_request_image_mb: int = Field(64, ge=1, description="largest image files of one request together, in MiB")
    max_request_megapixels: int = Field(200, ge=1, description="largest images of one request together, in millions of pixels")
    image_threads: int = Field(
        2,
        ge=1,
        description="threads that decode images; as many again for those over a million pixels, and twice as many processes, "
        "started when needed, for files whose cost is not known beforehand",
    )
    image_cpu_seconds: float = Field(10.0, gt=0, description="CPU time that one image may take; then it is answered 400")
    image_cache_mb: int = Field(256, ge=0, description="memory for prepared images, in MiB; a chat never decodes the same picture twice")
    image_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_hosts)] = Field(
        ("*",), description="hosts that image URLs may name, comma separated: `*` any, `*.example.com` any below, `none` fetches no URL"
    )
    image_proxy: str = Field(
        "", description="fetch image URLs through this proxy (http://host:port), which then decides what names lead to"
    )
    image_timeout: float = Field(10.0, gt=0, description="seconds that fetching one image URL may take in all")
    image_connect_timeout: float = Field(3.0, gt=0, description="seconds that connecting to an image's host may take")
    image_read_timeout: float = Field(5.0, gt=0, description="seconds that an image's host may be silent")
    image_redirects: int = Field(3, ge=0, description="redirects that an image URL may take")
    image_downloads: int = Field(32, ge=1, description="images fetched at once; others wait within their time")
    image_url_ttl: float = Field(
        60.0, ge=0, description="longest time an image URL is not fetched again, in seconds, if its HTTP headers allow that"
    )
    allow_networks: Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="networks that image URLs may reach although they are not public, such as 10.1.0.0/16, comma separated"
    )
    engine_timeout: float = Field(
        60.0, gt=0, description="seconds without an answer from the engine's loop after which it is ended and started anew"
    )
    on_engine_death: Literal["restart", "exit"] = Field(
        "restart", description="`exit` ends the gateway with status 1, for an orchestrator that starts it anew"
    )
    api_keys: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="keys that requests may come with, comma separated; better in the environment or in a keys file"
    )
    keys_file: str = Field("", description="file of hashed keys with names and limits, which `llava-gateway keys` writes")
    auth: Literal["auto", "none"] = Field(
        "auto", description="`auto` wants keys unless it listens on loopback only; `none` serves whoever can reach the port"
    )
    rate_limit_storage: str = Field(
        "memory", description="where keys' rates are counted: `memory`, or a redis:// URL that several gateways share"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="web origins whose pages may call this server, such as https://chat.example.com, comma separated; `*` is any"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least weight of what is logged; `debug` begins with all settings"
    )
    log_format: Literal["text", "json"] = Field("text", description="how lines of the log look")
    usage_log: str = Field("", description="file that gets a line of JSON for each request: its key, model and tokens")
    trace_endpoint: str = Field(
        "", description="where spans go by OTLP over HTTP, such as http://localhost:4318/v1/traces; needs llava-gateway[otel]"
    )
    feedback_dir: str = Field(
        "", description="directory that keeps answers that users vote up, down or flag, with the pictures; empty: nothing is kept"
    )
    feedback_max_mb: int = Field(10_240, ge=1, description="most that the feedback directory may hold, in MiB; more votes are answered 507")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)
