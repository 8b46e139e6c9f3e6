"""All settings, each declared once.

A setting's flag (`--max-body-mb`), its environment variable (`LLAVA_MAX_BODY_MB`), its TOML key (`max_body_mb`) and its row in
docs/settings.md come from its declaration here.
"""

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

Network = IPv4Network | IPv6Network
AspectRatio = Literal["crop", "pad", "resize"]
ImageStartEnd = Literal["auto", "on", "off"]
ApiName = Literal["openai", "deepinfra", "anthropic", "ollama", "sambastudio", "text_generation_webui", "llava_worker", "chat_ui"]


def _split(value: object) -> object:
    """Return a comma-separated string as a list. Other values are returned unchanged, for pydantic to check."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _hosts(value: object) -> object:
    """Return a comma-separated string as a list of host names in lower case; `none` is the empty list."""
    return [host.strip().lower() for host in value.split(",") if host.strip() not in ("", "none")] if isinstance(value, str) else value


def _modules(value: object) -> object:
    """Return LoRA adapters in vLLM's two forms, `NAME=DIRECTORY` and JSON, as a list. Commas within JSON do not separate adapters."""
    values = value if isinstance(value, (list, tuple)) else [value]
    parts = [[each] if isinstance(each, str) and each.lstrip().startswith("{") else _split(each) for each in values]
    return [item for part in parts for item in (part if isinstance(part, list) else [part])]


def default_of(name: str) -> str:
    """Return a setting's default as written on the command line; empty if the setting has none. Raises KeyError."""
    default = Settings.model_fields[name].default
    return ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def url_host(host: str) -> str:
    """Return a host as URLs have it: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def server_url(settings: "Settings") -> str:
    """Return the URL of the server, from its host and its port."""
    return f"{'https' if settings.ssl_certfile else 'http'}://{url_host(settings.host)}:{settings.port}"


class SettingsError(Exception):
    """A setting is invalid, or two settings contradict each other. The message is one line for the operator."""


class Settings(BaseSettings):
    """The settings of a server.

    A keyword argument (a flag, on the command line) has priority over the environment, and the environment over `llava-gateway.toml` in the
    working directory. Settings are immutable. Raises pydantic's ValidationError for an unknown name or an invalid value.

        settings = Settings(model="llava-demo", port=8080, max_running=64, image_hosts=("*.example.com",))
    """

    model_config = SettingsConfigDict(env_prefix="LLAVA_", extra="forbid", frozen=True, toml_file="llava-gateway.toml")

    model: str = Field(
        "", description="a directory or a Hugging Face id; empty: llava-hf/llava-1.5-7b-hf with an NVIDIA GPU, otherwise the demo model"
    )
    served_model_name: str = Field("", description="the model's name for clients; empty: the directory's name or the Hugging Face id")
    model_alias: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="further names of the model, comma separated; NAME=TEMPLATE selects a built-in chat template for that name"
    )
    template: str = Field(
        "",
        description="a chat template instead of the model's own: the name of a built-in one (docs/dialects.md), a Jinja file, or Jinja "
        "itself",
    )
    image_start_end: ImageStartEnd = Field(
        "auto",
        description="`<im_start>` and `<im_end>` around each image of a prompt: `on`, `off`, or `auto`, as the model was trained "
        "(docs/dialects.md)",
    )
    tools_auto: Literal["answer", "prompt"] = Field(
        "answer",
        description="what `tools` do if the model may choose, and its chat template does not render tools: `answer` leaves them out, "
        "`prompt` writes them into the system message (docs/openai.md)",
    )
    tool_call_parser: Literal["auto", "hermes", "llama3_json", "mistral"] = Field(
        "auto",
        description="form in which the model writes calls of tools, if its chat template renders tools; `auto`: as the template does",
    )
    lora_modules: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_modules)] = Field(
        (), description="LoRA adapters, which clients use like models: NAME=DIRECTORY, comma separated, or vLLM's JSON (docs/lora.md)"
    )
    lora_dir: str = Field(
        "", description="directory from which admin keys may load LoRA adapters while the server runs; empty: not allowed (docs/lora.md)"
    )
    webui_images: Literal["last", "all"] = Field(
        "last",
        description="images of a request that text-generation-webui's API uses: the `last` one or `all`; a request's "
        "`add_all_images_to_prompt` has priority",
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    apis: Annotated[tuple[ApiName, ...], NoDecode, BeforeValidator(_split)] = Field(
        get_args(ApiName), description="APIs to serve, comma separated; `chat_ui` is the chat page"
    )
    more_ports: Annotated[tuple[int, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="further ports to listen on, comma separated: clients of other servers expect ports such as 5000 and 5005"
    )
    uds: str = Field("", description="path of a Unix domain socket to listen on, instead of `--host` and `--port`")
    controller: str = Field(
        "",
        description="URL of LLaVA's controller, such as http://localhost:10000, where this server registers as a worker "
        "(docs/llava-worker.md)",
    )
    worker_address: str = Field(
        "", description="URL under which users of `--controller` reach this server; empty: from `--host` and `--port`"
    )
    root_path: str = Field("", description="path under which a proxy serves this server, such as /llava")
    ssl_keyfile: str = Field("", description="private key of the certificate, in PEM")
    ssl_certfile: str = Field("", description="TLS certificate with its chain, in PEM; the server then speaks https")
    ssl_ca_certs: str = Field("", description="certificates of the authorities that sign clients' certificates, in PEM")
    ssl_cert_reqs: int = Field(0, ge=0, le=2, description="clients' certificates: 0 none, 1 optional, 2 required")
    ssl_ciphers: str = Field("", description="TLS ciphers in OpenSSL's format; empty: Python's choice")
    max_running: int = Field(256, ge=1, description="upper bound of requests that run at the same time")
    max_queued: int = Field(1024, ge=0, description="upper bound of requests that wait for a slot; further ones are answered 429")
    max_running_tokens: int = Field(
        1_000_000, ge=1, description="upper bound of the prompt tokens of running requests, image tokens included"
    )
    max_queued_tokens: int = Field(
        1_000_000, ge=1, description="upper bound of the prompt tokens of waiting requests; further ones are answered 429"
    )
    queue_timeout: float = Field(60.0, gt=0, description="seconds that a request may wait for a slot; then it is answered 429")
    request_timeout: float = Field(
        600.0, gt=0, description="seconds that a request may take in total; then it is answered 504, or its stream ends with an error"
    )
    max_body_mb: int = Field(64, ge=1, description="upper bound of a request body, in MiB")
    max_bodies_mb: int = Field(
        1024,
        ge=1,
        description="memory for all request bodies, raw and parsed, and the same amount again for image and video files that wait, in MiB; "
        "further requests are answered 429",
    )
    max_answers_mb: int = Field(
        1024,
        ge=1,
        description="memory for all unfinished answers, in MiB; log probabilities take the most; further requests are answered 429",
    )
    body_timeout: float = Field(60.0, gt=0, description="seconds in which a request body must arrive; then the request is answered 408")
    head_timeout: float = Field(10.0, gt=0, description="seconds in which a connection must send a request's headers; then it is closed")
    send_timeout: float = Field(30.0, gt=0, description="seconds after which a connection is closed whose client does not read")
    max_connections: int = Field(4096, ge=1, description="upper bound of open connections; further ones are closed at once")
    default_max_tokens: int = Field(1024, ge=1, description="upper bound of an answer in tokens, for requests that set none")
    keep_alive: float = Field(15.0, gt=0, description="seconds of silence after which a stream sends a comment (`: keep-alive`)")
    timeout_keep_alive: int = Field(
        75, ge=1, description="seconds that a connection may be idle between two requests; proxies in front should use a shorter time"
    )
    shutdown_timeout: int = Field(
        30, ge=0, description="seconds that running requests may take to finish after the server has been told to stop"
    )
    max_image_mb: int = Field(20, ge=1, description="upper bound of an image file, in MiB")
    max_image_megapixels: int = Field(50, ge=1, description="upper bound of an image, in millions of pixels")
    image_aspect_ratio: Literal["auto", "crop", "pad", "resize"] = Field(
        "auto",
        description="how images become square: `crop`, `pad` (as the original LLaVA does), `resize`, or `auto` (as the model's own "
        "processor does)",
    )
    max_request_image_mb: int = Field(64, ge=1, description="upper bound of all image files of one request together, in MiB")
    max_request_megapixels: int = Field(200, ge=1, description="upper bound of all images of one request together, in millions of pixels")
    image_threads: int = Field(
        2,
        ge=1,
        description="threads that decode images; the same number again decodes images of more than a million pixels; twice as many "
        "processes, started on demand, decode files whose cost is not known in advance, and as many again decode videos",
    )
    image_cpu_seconds: float = Field(
        10.0, gt=0, description="upper bound of the CPU time for decoding one image, in seconds; then the request is answered 400"
    )
    image_cache_mb: int = Field(256, ge=0, description="memory for prepared images, in MiB; a chat never decodes the same image twice")
    image_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_hosts)] = Field(
        ("*",),
        description="hosts that image URLs may name, comma separated: `*` is any host, `*.example.com` any subdomain, `none` no "
        "host at all",
    )
    image_proxy: str = Field("", description="proxy for image URLs (http://host:port); the proxy then resolves host names")
    image_timeout: float = Field(10.0, gt=0, description="seconds that the download of one image may take in total")
    image_connect_timeout: float = Field(3.0, gt=0, description="seconds that the connection to an image's host may take")
    image_read_timeout: float = Field(5.0, gt=0, description="seconds that an image's host may be silent")
    image_redirects: int = Field(3, ge=0, description="upper bound of redirects from an image URL")
    image_downloads: int = Field(
        32, ge=1, description="upper bound of simultaneous image downloads; further ones wait, within `--image-timeout`"
    )
    image_url_ttl: float = Field(
        60.0,
        ge=0,
        description="upper bound of the time during which a downloaded image is used without a new request to its URL, in seconds; "
        "the HTTP headers of its host may shorten it",
    )
    allow_networks: Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="networks that image URLs may reach although they are not public, comma separated, such as 10.1.0.0/16"
    )
    video_frames: int = Field(
        32, ge=1, description="frames that the model sees of a video, spread over its length; fewer if the model's context is small"
    )
    max_video_mb: int = Field(
        64,
        ge=1,
        description="upper bound of a video file, in MiB; a `data:` URI must also fit into `--max-body-mb`, and takes a third more",
    )
    max_request_videos: int = Field(8, ge=1, description="upper bound of the videos of one request")
    max_request_video_mb: int = Field(128, ge=1, description="upper bound of all video files of one request together, in MiB")
    max_video_seconds: int = Field(600, ge=1, description="upper bound of the length of a video, in seconds")
    video_cpu_seconds: float = Field(
        60.0, gt=0, description="upper bound of the CPU time for decoding one video, in seconds; then the request is answered 400"
    )
    video_cache_mb: int = Field(256, ge=0, description="memory for prepared videos, in MiB; a chat never decodes the same video twice")
    video_timeout: float = Field(60.0, gt=0, description="seconds that the download of one video may take in total")
    video_downloads: int = Field(
        4, ge=1, description="upper bound of simultaneous video downloads; further ones wait, within `--video-timeout`"
    )
    engine_timeout: float = Field(
        60.0, gt=0, description="seconds without a sign of life from the engine after which it is ended and restarted"
    )
    fast_paths: Literal["on", "off"] = Field(
        "on",
        description="on: where it can, the gateway's own code reads vLLM's tokens and normalises images; off: vLLM's own code, which needs "
        "more CPU time",
    )
    on_engine_death: Literal["restart", "exit"] = Field(
        "restart",
        description="what to do when the engine has died: `restart` it, or `exit` with status 1, for an orchestrator that restarts "
        "the server",
    )
    api_keys: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="API keys, comma separated; the environment or a keys file is safer"
    )
    keys_file: str = Field("", description="file of hashed API keys with names and limits; `llava-gateway keys` writes it")
    auth: Literal["auto", "none"] = Field(
        "auto",
        description="`auto` requires an API key unless the server listens on loopback only; `none` serves every client that reaches "
        "the port",
    )
    rate_limit_storage: str = Field(
        "memory", description="where the rates of API keys are counted: `memory`, or a redis:// URL that several gateways share"
    )
    state: str = Field(
        "memory",
        description="where uploaded files and responses are kept: `memory`, or a redis:// URL that several gateways share (docs/files.md)",
    )
    files_mb: int = Field(
        256, ge=1, description="memory for all uploaded files, in MiB; further uploads are answered 429; a Redis has its own bound"
    )
    files_mb_per_key: int = Field(64, ge=1, description="memory for the uploaded files of one API key, in MiB")
    files_ttl: int = Field(86_400, ge=1, description="seconds after which an uploaded file expires")
    responses_mb: int = Field(
        256, ge=1, description="memory for all stored responses, in MiB; the oldest make room for new ones; a Redis has its own bound"
    )
    responses_mb_per_key: int = Field(64, ge=1, description="memory for the stored responses of one API key, in MiB")
    responses_ttl: int = Field(86_400, ge=1, description="seconds after which a stored response expires")
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="web origins whose pages may call this server, comma separated, such as https://chat.example.com; `*` is any origin"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="minimum level of log lines; `debug` also logs all settings at the start"
    )
    log_format: Literal["text", "json"] = Field("text", description="format of log lines")
    usage_log: str = Field("", description="file that gets one line of JSON per request, with its key, model and tokens")
    trace_endpoint: str = Field(
        "", description="OTLP/HTTP collector that receives trace spans, such as http://localhost:4318/v1/traces; needs llava-gateway[otel]"
    )
    feedback_dir: str = Field(
        "", description="directory for answers that users rate or flag, with their images; empty: feedback is not collected"
    )
    feedback_max_mb: int = Field(
        10_240, ge=1, description="upper bound of the feedback directory, in MiB; further feedback is answered 507"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources of settings, the one with the highest priority first. pydantic-settings calls this."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)
