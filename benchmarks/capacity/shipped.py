"""What the simulation takes from the shipped files, so that it has no second copy of their numbers."""

from pathlib import Path

import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from benchmarks.capacity.hpa import Autoscaler, Policy, Rules
from benchmarks.capacity.pod import Limits
from deploy.local.server import DEFAULT_REPOSITORY
from deploy.monitoring.panels import AUTOSCALER, scaling_targets

RATIO = "triton_face_queue_compute_ratio"
PENDING = "triton_face_pending_requests"
"""The metrics' names in the manifest."""


def read_autoscaler(path: Path = AUTOSCALER) -> Autoscaler:
    """Read a HorizontalPodAutoscaler of autoscaling/v2 whose metrics are averages over pods."""
    spec = yaml.safe_load(path.read_text())["spec"]
    return Autoscaler(
        least=spec["minReplicas"],
        most=spec["maxReplicas"],
        targets=scaling_targets(path),
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


def _rules(behavior: dict) -> Rules:
    return Rules(
        window=behavior["stabilizationWindowSeconds"],
        policies=tuple(
            Policy(one["type"], one["value"], one["periodSeconds"]) for one in behavior["policies"]
        ),
        select=behavior.get("selectPolicy", "Max"),
    )


def _config(name: str) -> model_config_pb2.ModelConfig:
    text = (DEFAULT_REPOSITORY / name / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())
