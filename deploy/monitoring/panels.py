"""Panels of the Grafana dashboard: titles, descriptions and queries, row by row.

`{...}` in a query stands for the pods selected by the dashboard's variables. Panels use the series of
`recording_rules.yaml` instead of repeating an expression.
"""

import dataclasses
from pathlib import Path

import yaml

AUTOSCALER = Path(__file__).resolve().parent.parent / "k8s" / "fleet" / "autoscaler.yaml"


@dataclasses.dataclass(frozen=True)
class Query:
    """A query and the legend of its series.

    Attributes
    ----------
    expression : str
        PromQL with `{...}`, alone or with further labels, for the selected pods.
    legend : str
        Grafana's legend format: labels in double braces.
    """

    expression: str
    legend: str


@dataclasses.dataclass(frozen=True)
class Panel:
    """A panel of the dashboard.

    Attributes
    ----------
    title, description : str
        Grafana shows the description as the panel's tooltip.
    unit : str
        Grafana's name of the unit.
    queries : tuple of Query
        One or more series of each query are drawn.
    threshold : float, optional
        Value of the threshold line.
    kind : str
        Grafana's panel type.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    threshold: float | None = None
    kind: str = "timeseries"


def scaling_targets(manifest: Path = AUTOSCALER) -> dict[str, float]:
    """Return an autoscaler's target per pod by name of the metric.

    Targets are plain quantities or have the suffix m (thousandths).
    """
    metrics = yaml.safe_load(manifest.read_text())["spec"]["metrics"]
    targets = {}
    for metric in metrics:
        quantity = str(metric["pods"]["target"]["averageValue"])
        thousandths = quantity.endswith("m")
        targets[metric["pods"]["metric"]["name"]] = float(quantity.rstrip("m")) / (1000 if thousandths else 1)
    return targets


def for_pod(expression: str, namespace: str, pod: str) -> str:
    """Return a query of the dashboard as Grafana sends it when one pod is selected."""
    return expression.replace("$namespace", namespace).replace("$pod", pod)


_TARGETS = scaling_targets()


def _mean_ms(stage: str) -> str:
    """Return the query of a request's mean time in one of Triton's stages, ms by model."""
    return (
        f"sum by (model) (rate(nv_inference_{stage}_duration_us{{...}}[1m])) / 1000"
        " / clamp_min(sum by (model) (rate(nv_inference_request_success{...}[1m])), 0.001)"
    )


ROWS: dict[str, tuple[Panel, ...]] = {
    "Load": (
        Panel(
            "Faces answered",
            "Faces per second, by pod.",
            "faces/s",
            (Query("sum by (pod) (triton_face:faces:rate{...})", "{{pod}}"),),
        ),
        Panel(
            "Failed requests",
            "By model and reason. BACKEND: internal error of the model. REJECTED: the request waited too "
            "long in the queue. OTHER, for an ensemble: full queue or invalid face; Triton 2.51 counts each "
            "twice.",
            "reqps",
            (
                Query(
                    "sum by (model, reason) (rate(nv_inference_request_failure{...}[1m]))",
                    "{{model}} {{reason}}",
                ),
            ),
        ),
        Panel(
            "Invalid faces",
            "Rejected faces, by reason. A face that is sent again counts again.",
            "faces/s",
            (Query("sum by (reason) (rate(align_mask_refused_faces_total{...}[1m]))", "{{reason}}"),),
        ),
    ),
    "Scaling": (
        Panel(
            "Queue time over compute time",
            "First scaling metric, by pod: time a request waits for align_mask over the time it is computed. "
            "Above the line the autoscaler adds pods.",
            "none",
            (Query("triton_face:queue_compute:ratio{...}", "{{pod}}"),),
            threshold=_TARGETS["triton_face_queue_compute_ratio"],
        ),
        Panel(
            "Queued requests",
            "Second scaling metric, by pod: one-minute mean of the queue of align_mask, which holds 64 "
            "requests, and with action units of the queue of au. Above the line the autoscaler adds pods.",
            "none",
            (Query("triton_face:pending_requests:avg{...}", "{{pod}}"),),
            threshold=_TARGETS["triton_face_pending_requests"],
        ),
        Panel(
            "Pods",
            "Pods that Prometheus reaches, and all pods that it scrapes.",
            "none",
            (
                Query('sum(up{..., job="triton-face"})', "reached"),
                Query('count(up{..., job="triton-face"})', "all"),
            ),
        ),
    ),
    "Latency": (
        Panel(
            "Request latency in the server",
            "Median and 99th percentile of the ensembles over the last minute, without the network. The "
            "panel shows the slowest pod and ensemble, because percentiles cannot be averaged.",
            "ms",
            (
                Query(
                    "max by (quantile)"
                    ' (nv_inference_request_summary_us{..., model=~"ensemble|action_units"}) / 1000',
                    "p{{quantile}}",
                ),
            ),
        ),
        Panel(
            "Queue and compute time, mean",
            "Mean time of a request in each model's queue and in its computation.",
            "ms",
            (
                Query(_mean_ms("queue"), "{{model}} queue"),
                Query(_mean_ms("compute_infer"), "{{model}} compute"),
            ),
        ),
        Panel(
            "Time per face in align_mask",
            "Mean time by stage. On a GPU the warp runs asynchronously: its time counts in the stage that "
            "copies the results.",
            "ms",
            (
                Query(
                    "1000 * sum by (stage) (rate(align_mask_stage_seconds_total{...}[1m]))"
                    " / scalar(clamp_min(sum(rate(align_mask_faces_total{...}[1m])), 0.001))",
                    "{{stage}}",
                ),
            ),
        ),
    ),
    "Dynamic batches and stub processes": (
        Panel(
            "Faces per batch, mean",
            "Mean size of align_mask's dynamic batches, by pod. The maximum is 128.",
            "none",
            (
                Query(
                    "sum by (pod) (rate(align_mask_batch_faces_sum{...}[1m]))"
                    " / clamp_min(sum by (pod) (rate(align_mask_batch_faces_count{...}[1m])), 0.001)",
                    "{{pod}}",
                ),
            ),
        ),
        Panel(
            "Batches by number of faces",
            "Dynamic batches of align_mask per minute.",
            "none",
            (Query("sum by (le) (increase(align_mask_batch_faces_bucket{...}[1m]))", "{{le}}"),),
            kind="heatmap",
        ),
        Panel(
            "Heartbeats of align_mask's instances",
            "Changes per minute. 0: the instance's process died, was stopped or hangs.",
            "none",
            (Query("triton_face:heartbeats:changes{...}", "{{pod}} {{model_instance}}"),),
            threshold=1,
        ),
    ),
    "Errors and nodes": (
        Panel(
            "Internal errors",
            "Requests per second that a model failed: a dead stub process, or an exception.",
            "reqps",
            (Query("triton_face:faults:rate{...}", "{{pod}}"),),
        ),
        Panel(
            "CPU of the node",
            "Utilisation of the whole node that a pod runs on, as Triton reads it.",
            "percentunit",
            (Query("nv_cpu_utilization{...}", "{{pod}}"),),
        ),
        Panel(
            "Memory of the node",
            "Memory in use on the whole node that a pod runs on, as Triton reads it.",
            "bytes",
            (Query("nv_cpu_memory_used_bytes{...}", "{{pod}}"),),
        ),
    ),
    "GPUs": (
        Panel(
            "GPU utilisation",
            "Fraction of the time in which a kernel ran. It does not show how much of the GPU a kernel used, "
            "so do not scale on it.",
            "percentunit",
            (Query("nv_gpu_utilization{...}", "{{pod}}"),),
        ),
        Panel(
            "GPU memory",
            "In use, and total.",
            "bytes",
            (
                Query("nv_gpu_memory_used_bytes{...}", "{{pod}} in use"),
                Query("nv_gpu_memory_total_bytes{...}", "{{pod}} total"),
            ),
        ),
        Panel("GPU power", "Power draw.", "watt", (Query("nv_gpu_power_usage{...}", "{{pod}}"),)),
    ),
}
