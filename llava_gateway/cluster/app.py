"""The gateway on a cluster: an application for Ray Serve, which `import_path: llava_gateway.cluster:build` names (docs/cluster.md).

Ingress replicas are this gateway without an engine; each model is a deployment whose replicas have an engine each.
"""

import itertools
import re
import sys
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
from llava_gateway.cluster.metrics import Page, exposition, page
from llava_gateway.cluster.replica import Replica
from llava_gateway.cluster.replica_registry import replicas_of
from llava_gateway.cluster.router import ImageAffinityRouter
from llava_gateway.engine.base import Engine
from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.observability import logging as logs
from llava_gateway.serving.gateway import Gateway
from llava_gateway.serving.model_registry import ModelRegistry, ServedModel
from llava_gateway.settings import Settings, SettingsError

QUIET = {"enable_access_log": False}
"""The gateway writes a line for each request itself."""
INGRESS = "ingress"
NOT_HERE = (
    *("model", "served_model_name", "model_alias", "template", "lora_modules", "on_engine_death"),
    *("host", "port", "more_ports", "head_timeout", "send_timeout", "max_connections"),
)
"""Settings that belong to a model, or to the server in front, which is Ray Serve's."""
NOT_SHARED = ("lora_dir", "feedback_dir")
"""Those that name a disk, which all replicas would have to share."""


class ModelConfig(BaseModel):
    """A model, and the replicas that serve it."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = Field(min_length=1, description="a directory that every node has, or a Hugging Face id; `llava-demo`: the demo")
    served_model_name: str = ""
    model_alias: str = ""
    template: str = ""
    lora_modules: list[str] | str = ""
    engine_flags: list[str] = Field([], description="vLLM's own, as on its command line")
    affinity: bool = Field(True, description="whether a chat stays with the replica that has its images")
    deployment: dict[str, Any] = Field({}, description="Ray Serve's options: num_replicas, autoscaling_config, ray_actor_options, ...")


class ClusterConfig(BaseModel):
    """`args` of the application in Ray Serve's config file."""

    model_config = ConfigDict(extra="forbid")

    models: list[ModelConfig] = Field(min_length=1)
    """The first is meant where a request names no model."""
    ingress: dict[str, Any] = Field({}, description="Ray Serve's options of the ingress deployment")
    settings: dict[str, Any] = Field({}, description="the gateway's, as llava-gateway.toml has them")


def build(config: ClusterConfig) -> serve.Application:
    """Raises SettingsError and pydantic's ValidationError."""
    settings = _settings(config)
    patience = {"graceful_shutdown_timeout_s": settings.shutdown_timeout, "logging_config": QUIET}
    launches, engines = [], []
    for name, model in zip(_deployment_names(config), config.models, strict=True):
        launch = launch_of(_settings(config, model), model.engine_flags)
        options = {"name": name, "max_ongoing_requests": settings.max_running} | patience | _checked(model.deployment)
        affinity = {"affinity": model.affinity}
        options["request_router_config"] = RequestRouterConfig(request_router_class=ImageAffinityRouter, request_router_kwargs=affinity)
        engine = serve.deployment(Replica).options(**options)
        engines.append(engine.bind(launch.model, launch.flags, launch.adapters, settings))
        launches.append(launch)
    ModelRegistry(_served_models(config, launches, itertools.repeat(_no_engine)))  # for their names
    places = (settings.max_running + settings.max_queued) * len(launches) + 8  # the gateway's own limits are to be met first, which say 429
    options = {"name": INGRESS, "max_ongoing_requests": places} | patience | config.ingress
    return serve.deployment(Ingress).options(**options).bind(config, launches, engines)


@serve.ingress()
class Ingress:
    """The gateway, in front of engines that are somewhere else."""

    def __init__(self, config: ClusterConfig, launches: list[Launch], engines: list[DeploymentHandle[Any]]) -> None:
        settings = _settings(config)
        logs.set_up(settings, sys.__stderr__)  # what Ray Serve has for sys.stderr keeps lines back
        delta_receiver = DeltaReceiver(client_context())
        makers = [partial(_engine, handle, delta_receiver, launch) for handle, launch in zip(engines, launches, strict=True)]
        served_models = _served_models(config, launches, makers)
        self._deployments = [*engines, serve.get_deployment_handle(serve.get_replica_context().deployment)]
        self._app = build_app(Gateway(settings, served_models), exposition=self._exposition)

    def __serve_build_asgi_app__(self) -> Starlette:
        return self._app

    async def metrics(self) -> Page:
        """For another ingress that is asked for them."""
        return page(ours=True)

    async def _exposition(self) -> bytes:
        return await exposition(self._deployments)


def _engine(handle: DeploymentHandle[Any], delta_receiver: DeltaReceiver, launch: Launch) -> Engine:
    return RayEngine(handle, delta_receiver, lambda: replicas_of(handle.deployment_name), launch.adapters)


def _served_models(config: ClusterConfig, launches: Sequence[Launch], makers: Iterable[Callable[[], Engine]]) -> list[ServedModel]:
    """Raises SettingsError."""
    served_models = []
    for model, launch, make in zip(config.models, launches, makers, strict=False):
        settings = _settings(config, model)
        supervisor = Supervisor(make, settings.engine_timeout, adapters=launch.adapters)
        served_models.append(ServedModel(launch.name, supervisor, settings.template, settings.model_alias))
    return served_models


def _no_engine() -> Engine:
    raise NotImplementedError


def _settings(config: ClusterConfig, model: ModelConfig | None = None) -> Settings:
    """Those of the gateway, or of one that would serve this model alone. Raises SettingsError."""
    for name in NOT_HERE:
        if name in config.settings:
            raise SettingsError(f"settings: {name} is not for a cluster, or stands with the model (docs/cluster.md)")
    if "api_keys" in config.settings or "@" in config.settings.get("rate_limit_storage", ""):
        raise SettingsError("settings: Ray logs and shows what stands here; give secrets as LLAVA_API_KEYS and LLAVA_RATE_LIMIT_STORAGE")
    settings = Settings(**config.settings)
    for name in NOT_SHARED:
        if getattr(settings, name):
            raise SettingsError(f"{name} is not for a cluster, whose replicas share no disk (docs/cluster.md)")
    if settings.auth == "auto" and not settings.api_keys and not settings.keys_file:
        raise SettingsError("set settings.keys_file or LLAVA_API_KEYS; or auth: none if everybody who reaches the cluster may use it")
    if model is None:
        return settings
    return Settings(**config.settings, **model.model_dump(include=set(Settings.model_fields)))


def _deployment_names(config: ClusterConfig) -> Iterator[str]:
    """A name for each model, as Ray's dashboard and its metrics show it: its own, with its number if it is not the first."""
    taken = {INGRESS}
    for number, model in enumerate(config.models):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.served_model_name or model.model).strip("-.") or "model"
        name = f"{name}-{number}" if number else name
        while name in taken:
            name += f"-{number}"
        taken.add(name)
        yield name


def _checked(deployment: dict[str, Any]) -> dict[str, Any]:
    """Raises SettingsError."""
    if "request_router_config" in deployment:
        raise SettingsError("deployment: request_router_config is the gateway's own; `affinity: false` beside it switches affinity off")
    autoscaling = deployment.get("autoscaling_config")
    if isinstance(autoscaling, dict) and 0 in (autoscaling.get("min_replicas"), autoscaling.get("initial_replicas")):
        raise SettingsError("deployment: autoscaling to no replica at all is not supported; set min_replicas to 1 or more")
    return deployment
