"""The gateway as an application of Ray Serve. Its config file names it: `import_path: llava_gateway.cluster:build` (docs/cluster.md).

The ingress deployment's replicas are the gateway without an engine. Each model is a deployment, and each of its replicas has an engine.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from llava_gateway.app import Launch, build_app, launch_of
from llava_gateway.cluster.delta_receiver import DeltaReceiver
from llava_gateway.cluster.delta_sender import client_context
from llava_gateway.cluster.engine import RayEngine
from llava_gateway.cluster.metrics import MetricsPage, exposition, metrics_page
from llava_gateway.cluster.ray_compat import process_stderr
from llava_gateway.cluster.replica import Replica
from llava_gateway.cluster.replica_registry import replicas_of
from llava_gateway.cluster.router import ImageAffinityRouter
from llava_gateway.engine.base import Engine
from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.observability import logging as logs
from llava_gateway.serving.gateway import Gateway
from llava_gateway.serving.model_registry import ModelRegistry, ServedModel
from llava_gateway.settings import ImageStartEnd, Settings, SettingsError

NO_ACCESS_LOG = {"enable_access_log": False}
"""Ray Serve's logging options. The gateway itself logs a line for each request."""
INGRESS = "ingress"
"""The name of the ingress deployment."""
NOT_FOR_CLUSTERS = (
    *("model", "served_model_name", "model_alias", "template", "image_start_end", "lora_modules", "on_engine_death"),
    *("host", "port", "more_ports", "head_timeout", "send_timeout", "max_connections", "timeout_keep_alive"),
)
"""Settings that belong to a model, or to the HTTP server, which is Ray Serve's."""
NEED_SHARED_DISK = ("lora_dir", "feedback_dir")
"""Settings that name a directory, which all replicas would have to share."""


class ModelConfig(BaseModel):
    """A model, and the deployment that serves it."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = Field(min_length=1, description="a directory that every node has, or a Hugging Face id; `llava-demo`: the demo")
    served_model_name: str = ""
    model_alias: str = ""
    template: str = ""
    image_start_end: ImageStartEnd = "auto"
    lora_modules: list[str] | str = ""
    engine_flags: list[str] = Field([], description="vLLM's own flags, as on its command line")
    affinity: bool = Field(True, description="whether a chat stays with the replica that has its images")
    deployment: dict[str, Any] = Field({}, description="Ray Serve's options: num_replicas, autoscaling_config, ray_actor_options, ...")


class ClusterConfig(BaseModel):
    """`args` of the application in Ray Serve's config file."""

    model_config = ConfigDict(extra="forbid")

    models: list[ModelConfig] = Field(min_length=1)
    """A request that names no model goes to the first."""
    ingress: dict[str, Any] = Field({}, description="Ray Serve's options of the ingress deployment")
    settings: dict[str, Any] = Field({}, description="the gateway's settings, as in llava-gateway.toml")


def build(config: ClusterConfig) -> serve.Application:
    """Return the application of Ray Serve. Raises SettingsError, or pydantic's ValidationError."""
    settings = _settings(config)
    common = {"graceful_shutdown_timeout_s": settings.shutdown_timeout, "logging_config": NO_ACCESS_LOG}
    launches, engines = [], []
    for name, model in zip(_deployment_names(config), config.models, strict=True):
        launch = launch_of(_settings(config, model), model.engine_flags)
        options = {"name": name, "max_ongoing_requests": settings.max_running} | common | _checked(model.deployment)
        affinity = {"affinity": model.affinity}
        options["request_router_config"] = RequestRouterConfig(request_router_class=ImageAffinityRouter, request_router_kwargs=affinity)
        engine = serve.deployment(Replica).options(**options)
        engines.append(engine.bind(launch.model, launch.flags, launch.adapters, settings))
        launches.append(launch)
    ModelRegistry(_served_models(config, launches, itertools.repeat(_no_engine)))  # raises SettingsError for a name that is used twice
    # Above the gateway's own limits, so that they are reached first: the gateway answers 429, and Ray Serve would let requests wait.
    max_requests = (settings.max_running + settings.max_queued) * len(launches) + 8
    options = {"name": INGRESS, "max_ongoing_requests": max_requests} | common | config.ingress
    return serve.deployment(Ingress).options(**options).bind(config, launches, engines)


@serve.ingress()
class Ingress:
    """The gateway, in front of engines in other processes."""

    def __init__(self, config: ClusterConfig, launches: list[Launch], engines: list[DeploymentHandle[Any]]) -> None:
        settings = _settings(config)
        logs.set_up(settings, process_stderr())
        delta_receiver = DeltaReceiver(client_context())
        makers = [partial(_engine, handle, delta_receiver, launch) for handle, launch in zip(engines, launches, strict=True)]
        served_models = _served_models(config, launches, makers)
        self._deployments = [*engines, serve.get_deployment_handle(serve.get_replica_context().deployment)]
        self._app = build_app(Gateway(settings, served_models), exposition=self._exposition)

    def __serve_build_asgi_app__(self) -> Starlette:
        """Return the ASGI app. Ray Serve calls this method."""
        return self._app

    async def metrics(self) -> MetricsPage:
        """Return this process's metrics, for the ingress replica that Prometheus has asked."""
        return metrics_page(gateway=True)

    async def _exposition(self) -> bytes:
        return await exposition(self._deployments)


def _engine(handle: DeploymentHandle[Any], delta_receiver: DeltaReceiver, launch: Launch) -> Engine:
    return RayEngine(handle, delta_receiver, lambda: replicas_of(handle.deployment_name), launch.adapters)


def _served_models(config: ClusterConfig, launches: Sequence[Launch], makers: Iterable[Callable[[], Engine]]) -> list[ServedModel]:
    """Return the models with their engines. `makers`: for each model a function that creates its engine. Raises SettingsError."""
    served_models = []
    for model, launch, make in zip(config.models, launches, makers, strict=False):
        settings = _settings(config, model)
        supervisor = Supervisor(make, settings.engine_timeout, adapters=launch.adapters)
        served_models.append(
            ServedModel(
                launch.name, supervisor, settings.template, settings.model_alias, launch.model, image_start_end=settings.image_start_end
            )
        )
    return served_models


def _no_engine() -> Engine:
    raise NotImplementedError


def _settings(config: ClusterConfig, model: ModelConfig | None = None) -> Settings:
    """Return the settings of the gateway. With `model`: the settings of a gateway for this model alone. Raises SettingsError."""
    for name in NOT_FOR_CLUSTERS:
        if name in config.settings:
            raise SettingsError(f"settings: {name} is not for a cluster, or belongs to a model (docs/cluster.md)")
    if "api_keys" in config.settings or any("@" in config.settings.get(name, "") for name in ("rate_limit_storage", "state")):
        raise SettingsError(
            "settings: Ray logs and shows these settings; give secrets as LLAVA_API_KEYS, LLAVA_RATE_LIMIT_STORAGE and LLAVA_STATE"
        )
    settings = Settings(**config.settings)
    for name in NEED_SHARED_DISK:
        if getattr(settings, name):
            raise SettingsError(f"{name} is not for a cluster, whose replicas share no disk (docs/cluster.md)")
    if settings.auth == "auto" and not settings.api_keys and not settings.keys_file:
        raise SettingsError("set settings.keys_file or LLAVA_API_KEYS; or auth: none if every client that can reach the cluster may use it")
    if model is None:
        return settings
    return Settings(**config.settings, **model.model_dump(include=set(Settings.model_fields)))


def _deployment_names(config: ClusterConfig) -> Iterator[str]:
    """Yield a name for each model's deployment, which Ray's dashboard and the metrics show.

    It is the model's own name, with the number of the model unless that is the first.
    """
    taken = {INGRESS}
    for number, model in enumerate(config.models):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.served_model_name or model.model).strip("-.") or "model"
        name = f"{name}-{number}" if number else name
        while name in taken:
            name += f"-{number}"
        taken.add(name)
        yield name


def _checked(deployment: dict[str, Any]) -> dict[str, Any]:
    """Return Ray Serve's options of a model's deployment. Raises SettingsError."""
    if "request_router_config" in deployment:
        raise SettingsError("deployment: request_router_config cannot be set; `affinity: false` of the model switches affinity off")
    autoscaling = deployment.get("autoscaling_config")
    if isinstance(autoscaling, dict) and 0 in (autoscaling.get("min_replicas"), autoscaling.get("initial_replicas")):
        raise SettingsError("deployment: autoscaling to 0 replicas is not supported; set min_replicas to 1 or more")
    return deployment
