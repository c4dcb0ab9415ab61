"""`triton-face info`: show the server, its models and their statistics."""

import dataclasses
from typing import Any

from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from triton_face_client.cli.action_units import served_action_units, served_checkpoint
from triton_face_client.client import FaceFeatureClient
from triton_face_client.requests.model_config import ACTION_UNIT_MODELS

MODELS = ("ensemble", "align_mask", "hog", "pose_mlp")


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """A model and its statistics since the server started.

    Attributes
    ----------
    name, version : str
        Name and version on the server.
    ready : bool
        Whether the model is ready.
    batch_size : int
        Maximum number of faces per request.
    inputs, outputs : list of str
        Name, type and shape of each tensor; N is the number of faces, -1 any length.
    requests, failed : int
        Successful requests, and rejected or failed ones.
    faces : int
        Faces in the successful requests.
    faces_an_execution : float or None
        Mean number of faces per dynamic batch; None before the first batch.
    queue_ms, compute_ms : float or None
        Mean queue time and compute time of a request, milliseconds.
    """

    name: str
    version: str
    ready: bool
    batch_size: int
    inputs: list[str]
    outputs: list[str]
    requests: int
    failed: int
    faces: int
    faces_an_execution: float | None
    queue_ms: float | None
    compute_ms: float | None


@dataclasses.dataclass(frozen=True)
class ServerInfo:
    """A server and its models.

    Attributes
    ----------
    address, name, version : str
        Address of the gRPC endpoint; name and version of the server.
    ready : bool
        Whether the server and all of its models are ready.
    models : list of ModelInfo
        The service's models.
    action_units : list of str
        Names of the action units that the server computes; empty if it computes none.
    au_checkpoint : str
        SHA-256 of the AU checkpoint; empty without action units.
    """

    address: str
    name: str
    version: str
    ready: bool
    models: list[ModelInfo]
    action_units: list[str]
    au_checkpoint: str


def info(client: FaceFeatureClient) -> ServerInfo:
    """Query the server's metadata, model configurations and statistics.

    Raises
    ------
    FaceServiceError
        If the server does not respond or lacks a model.
    """
    connection = client.connection
    options = {"headers": client.headers, "client_timeout": client.timeout}
    try:
        metadata = connection.get_server_metadata(**options)
    except InferenceServerException as error:
        raise client.config_error(error, MODELS[0]) from None
    action_units = served_action_units(client)
    names = MODELS + ACTION_UNIT_MODELS if action_units else MODELS
    return ServerInfo(
        address=client.target,
        name=metadata.name,
        version=metadata.version,
        ready=connection.is_server_ready(**options),
        models=[_model(client, name, options) for name in names],
        action_units=list(action_units),
        au_checkpoint=served_checkpoint(client) if action_units else "",
    )


def as_text(server: ServerInfo) -> str:
    """Format the server and its models as tables."""
    lines = [
        f"{server.name} {server.version} at {server.address}, {'ready' if server.ready else 'NOT READY'}",
        "",
        "model         version  ready  requests  failed     faces  faces/execution  queue ms  compute ms",
    ]
    for model in server.models:
        figures = (model.faces_an_execution, model.queue_ms, model.compute_ms)
        per_execution, queue, compute = ("-" if value is None else f"{value:.2f}" for value in figures)
        lines.append(
            f"{model.name:<13} {model.version:<8} {'yes' if model.ready else 'NO':<6} {model.requests:>8} "
            f"{model.failed:>7} {model.faces:>9}  {per_execution:>15}  {queue:>8}  {compute:>10}"
        )
    if server.action_units:
        lines += ["", f"action units: {', '.join(server.action_units)}"]
        lines += [f"checkpoint, SHA-256: {server.au_checkpoint}"]
    for model in server.models:
        lines += ["", f"{model.name}, at most {model.batch_size} faces per request"]
        lines += [f"  in   {tensor}" for tensor in model.inputs]
        lines += [f"  out  {tensor}" for tensor in model.outputs]
    return "\n".join(lines)


def _model(client: FaceFeatureClient, name: str, options: dict[str, Any]) -> ModelInfo:
    try:
        config = client.connection.get_model_config(name, **options).config
        statistics = client.connection.get_inference_statistics(name, **options).model_stats[0]
        ready = client.connection.is_model_ready(name, **options)
    except InferenceServerException as error:
        raise client.config_error(error, name) from None
    return ModelInfo(
        name=name,
        version=statistics.version,
        ready=ready,
        batch_size=config.max_batch_size,
        inputs=[_tensor(tensor) for tensor in config.input],
        outputs=[_tensor(tensor) for tensor in config.output],
        **_statistics_fields(statistics),
    )


def _tensor(tensor: model_config_pb2.ModelInput | model_config_pb2.ModelOutput) -> str:
    datatype = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
    optional = ", optional" if getattr(tensor, "optional", False) else ""
    return f"{tensor.name} {datatype} [{', '.join(['N', *map(str, tensor.dims)])}]{optional}"


def _statistics_fields(statistics: service_pb2.ModelStatistics) -> dict[str, Any]:
    """Return the fields of `ModelInfo` from Triton's statistics of a model."""
    stats = statistics.inference_stats
    compute_ns = stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns
    return {
        "requests": stats.success.count,
        "failed": stats.fail.count,
        "faces": statistics.inference_count,
        "faces_an_execution": _ratio(statistics.inference_count, statistics.execution_count),
        "queue_ms": _ratio(stats.queue.ns / 1e6, stats.queue.count),
        "compute_ms": _ratio(compute_ns / 1e6, stats.compute_infer.count),
    }


def _ratio(total: float, count: int) -> float | None:
    return total / count if count else None
