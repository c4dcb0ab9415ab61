"""What the simulation takes from the shipped files, so that it has no second copy of their numbers."""

from pathlib import Path

import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from benchmarks.autoscaling.hpa import Autoscaler, Policy, Rules
from benchmarks.autoscaling.pod import Limits

PROJECT = Path(__file__).resolve().parent.parent.parent
MANIFEST = PROJECT / "deploy" / "k8s" / "fleet" / "autoscaler.yaml"
MODELS = PROJECT / "model_repository"

RATIO = "triton_face_queue_compute_ratio"
PENDING = "triton_face_pending_requests"
"""The metrics' names in the manifest."""


def read_autoscaler(path: Path = MANIFEST) -> Autoscaler:
    """Read a HorizontalPodAutoscaler of autoscaling/v2 whose metrics are averages over pods."""
    spec = yaml.safe_load(path.read_text())["spec"]
    return Autoscaler(
        least=spec["minReplicas"],
        most=spec["maxReplicas"],
        targets={
            metric["pods"]["metric"]["name"]: _quantity(metric["pods"]["target"]["averageValue"])
            for metric in spec["metrics"]
        },
        up=_rules(spec["behavior"]["scaleUp"]),
        down=_rules(spec["behavior"]["scaleDown"]),
    )


def read_limits() -> Limits:
    """Read what bounds a pod from the configurations of align_mask and hog."""
    align_mask, hog = (_config(name) for name in ("align_mask", "hog"))
    return Limits(
        instances=align_mask.instance_group[0].count,
        later_instances=hog.instance_group[0].count,
        batch_faces=align_mask.max_batch_size,
        queue_requests=align_mask.dynamic_batching.default_queue_policy.max_queue_size,
    )


def _quantity(text: str | float) -> float:
    """Read a Kubernetes quantity; of its suffixes the manifest has m, for thousandths."""
    text = str(text)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def _rules(behavior: dict) -> Rules:
    return Rules(
        window=behavior["stabilizationWindowSeconds"],
        policies=tuple(
            Policy(one["type"], one["value"], one["periodSeconds"]) for one in behavior["policies"]
        ),
        select=behavior.get("selectPolicy", "Max"),
    )


def _config(name: str) -> model_config_pb2.ModelConfig:
    text = (MODELS / name / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())
