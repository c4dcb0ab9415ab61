"""The dashboard's panels, row by row: what each shows and the queries behind it.

A query's `{...}` stands for the pods that the dashboard's variables choose. Ratios, rates of faces and what
the autoscaler sees are the recorded series of `recording_rules.yaml`, never written out again here.
"""

import dataclasses
from pathlib import Path

import yaml

AUTOSCALER = Path(__file__).resolve().parent.parent / "k8s" / "fleet" / "autoscaler.yaml"


@dataclasses.dataclass(frozen=True)
class Query:
    """A query and how its series are called.

    Attributes
    ----------
    expression : str
        PromQL with `{...}` for the chosen pods, also beside other labels.
    legend : str
        Grafana's name for a series, labels in double braces.
    """

    expression: str
    legend: str


@dataclasses.dataclass(frozen=True)
class Panel:
    """A graph.

    Attributes
    ----------
    title, description : str
        Above it, and behind its (i).
    unit : str
        Grafana's name of the unit.
    queries : tuple of Query
        What it shows.
    threshold : float, optional
        A line where things become worse.
    kind : str
        Grafana's kind of panel.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    threshold: float | None = None
    kind: str = "timeseries"


def scaling_targets(manifest: Path = AUTOSCALER) -> dict[str, float]:
    """Return what an autoscaler aims at: a pod's mean of each metric, by its name.

    Of the suffixes of Kubernetes' quantities, m for thousandths is known.
    """
    metrics = yaml.safe_load(manifest.read_text())["spec"]["metrics"]
    found = {}
    for metric in metrics:
        quantity = str(metric["pods"]["target"]["averageValue"])
        thousandths = quantity.endswith("m")
        found[metric["pods"]["metric"]["name"]] = float(quantity.rstrip("m")) / (1000 if thousandths else 1)
    return found


def for_pod(expression: str, namespace: str, pod: str) -> str:
    """Return a query of the dashboard as Grafana sends it when one pod is chosen."""
    return expression.replace("$namespace", namespace).replace("$pod", pod)


_TARGETS = scaling_targets()


def _mean_ms(what: str) -> str:
    """Return the mean time of a request in one of Triton's counters of microseconds, ms by model."""
    return (
        f"sum by (model) (rate(nv_inference_{what}_duration_us{{...}}[1m])) / 1000"
        " / clamp_min(sum by (model) (rate(nv_inference_request_success{...}[1m])), 0.001)"
    )


ROWS: dict[str, tuple[Panel, ...]] = {
    "Load": (
        Panel(
            "Faces",
            "Answered, by pod.",
            "faces/s",
            (Query("sum by (pod) (triton_face:faces:rate{...})", "{{pod}}"),),
        ),
        Panel(
            "Requests that failed",
            "By model and reason. A full queue and a faulty face are OTHER of the ensemble, each twice on "
            "Triton 2.51; BACKEND is a fault of ours; REJECTED waited for too long.",
            "reqps",
            (
                Query(
                    "sum by (model, reason) (rate(nv_inference_request_failure{...}[1m]))",
                    "{{model}} {{reason}}",
                ),
            ),
        ),
        Panel(
            "Faces refused, by reason",
            "What is wrong with faces that come; a request that is sent again counts again.",
            "faces/s",
            (Query("sum by (reason) (rate(align_mask_refused_faces_total{...}[1m]))", "{{reason}}"),),
        ),
    ),
    "Scaling": (
        Panel(
            "Waiting over computing",
            "The scaling metric, by pod. At the line the autoscaler wants more pods.",
            "none",
            (Query("triton_face:queue_compute:ratio{...}", "{{pod}}"),),
            threshold=_TARGETS["triton_face_queue_compute_ratio"],
        ),
        Panel(
            "Requests that wait for align_mask",
            "The other scaling metric, by pod; 64 may.",
            "none",
            (Query("triton_face:pending_requests:avg{...}", "{{pod}}"),),
            threshold=_TARGETS["triton_face_pending_requests"],
        ),
        Panel(
            "Pods that answer Prometheus",
            "And all it knows of.",
            "none",
            (
                Query('sum(up{..., job="triton-face"})', "answering"),
                Query('count(up{..., job="triton-face"})', "all"),
            ),
        ),
    ),
    "Latency": (
        Panel(
            "A request, within the server",
            "The slowest pod's quantiles of the ensemble, over Triton's own window of a minute. Quantiles of "
            "pods cannot be averaged.",
            "ms",
            (
                Query(
                    'max by (quantile) (nv_inference_request_summary_us{..., model="ensemble"}) / 1000',
                    "p{{quantile}}",
                ),
            ),
        ),
        Panel(
            "Stages of a request, mean",
            "Waiting for an instance and being computed, by model.",
            "ms",
            (
                Query(_mean_ms("queue"), "{{model}} waits"),
                Query(_mean_ms("compute_infer"), "{{model}} computes"),
            ),
        ),
        Panel(
            "A face in align_mask",
            "Time by stage; on a GPU that of the pixels is in 'io'.",
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
    "Batches and stubs": (
        Panel(
            "Faces in a batch, mean",
            "By pod; 128 is the most.",
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
            "Faces in a batch",
            "How many batches of which size, a minute.",
            "none",
            (Query("sum by (le) (increase(align_mask_batch_faces_bucket{...}[1m]))", "{{le}}"),),
            kind="heatmap",
        ),
        Panel(
            "Heartbeats of align_mask's instances",
            "Changes a minute. 0 is a stub that died, was stopped or hangs.",
            "none",
            (Query("triton_face:heartbeats:changes{...}", "{{pod}} {{model_instance}}"),),
            threshold=1,
        ),
    ),
    "Machines": (
        Panel(
            "CPU of the machine",
            "Triton's reading of the whole machine a pod is on.",
            "percentunit",
            (Query("nv_cpu_utilization{...}", "{{pod}}"),),
        ),
        Panel(
            "Memory of the machine",
            "The same.",
            "bytes",
            (Query("nv_cpu_memory_used_bytes{...}", "{{pod}}"),),
        ),
        Panel(
            "Faults of our own",
            "Requests a second that a model failed: a stub that died, an error in the code.",
            "reqps",
            (Query("triton_face:faults:rate{...}", "{{pod}}"),),
        ),
    ),
    "GPUs": (
        Panel(
            "Utilisation",
            "A share of time, not of the GPU: no sign to scale by.",
            "percentunit",
            (Query("nv_gpu_utilization{...}", "{{pod}}"),),
        ),
        Panel(
            "Memory",
            "Used, of what there is.",
            "bytes",
            (
                Query("nv_gpu_memory_used_bytes{...}", "{{pod}}"),
                Query("nv_gpu_memory_total_bytes{...}", "{{pod}} has"),
            ),
        ),
        Panel("Power", "Drawn.", "watt", (Query("nv_gpu_power_usage{...}", "{{pod}}"),)),
    ),
}
