"""align_mask's own metrics, on Triton's metrics port.

| metric | labels | value |
| --- | --- | --- |
| `align_mask_faces_total` | | faces in successful responses |
| `align_mask_refused_faces_total` | `reason` | invalid faces |
| `align_mask_refused_requests_total` | | requests rejected for their faces or tensors, not for a full queue |
| `align_mask_stage_seconds_total` | `stage` | time spent in each stage |
| `align_mask_batch_faces` | (histogram) | faces per dynamic batch, invalid ones included |
| `align_mask_heartbeat_seconds` | `model_instance` | Unix time of the last progress, or now while idle |
| `align_mask_failed_batches` | `model_instance` | consecutive batches in which every request raised |

Each metric also has the label `model`, like Triton's own. All instances add to the same time series, except
for the last two metrics. The heartbeat stops when an instance's process died, was stopped or hangs in a
batch. `align_mask_failed_batches` shows an instance that is alive but fails every batch, for example after a
sticky CUDA error. Triton itself detects these states only from release 26.04 on, partly through `is_ready`.

Setting one metric takes 20 microseconds. All metrics of a batch take 0.2 ms, while the computation of one
face takes 4 ms. So a background thread flushes the aggregated metrics.
"""

import contextlib
import dataclasses
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import triton_python_backend_utils as pb_utils

from align_mask.face_checks import REASONS
from align_mask.stage_clock import STAGES

BATCH_FACES_BUCKETS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
"""Upper bounds of the buckets of `align_mask_batch_faces`; the last bound is max_batch_size."""

FLUSH_DELAY_SECONDS = 0.2
"""Delay between a response and the update of the metrics."""

HEARTBEAT_INTERVAL_SECONDS = 1.0
"""Interval between updates of the heartbeat; a batch that ends in between updates it too."""

FAILURES_UNTIL_NOT_READY = 3
"""Consecutive failed batches; the same number as `FAILURES` in deploy/docker/probe.py."""


@dataclasses.dataclass
class Tally:
    """Counts of one dynamic batch, or the sums of several.

    Attributes
    ----------
    batch_faces : list of int
        Faces in each dynamic batch.
    successful_faces : int
        Faces in successful responses.
    rejected_requests : int
        Requests rejected for an invalid face or invalid tensors.
    invalid_faces : Counter of str
        Invalid faces by reason.
    seconds : dict of str to float
        Time by stage.
    """

    batch_faces: list[int] = dataclasses.field(default_factory=list)
    successful_faces: int = 0
    rejected_requests: int = 0
    invalid_faces: Counter[str] = dataclasses.field(default_factory=Counter)
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))

    @property
    def is_empty(self) -> bool:
        """Whether no batch was counted. A batch of requests with wrong tensors has no faces."""
        return not (self.batch_faces or self.rejected_requests)

    def add(self, other: "Tally") -> None:
        """Add the counts of another tally."""
        self.batch_faces += other.batch_faces
        self.successful_faces += other.successful_faces
        self.rejected_requests += other.rejected_requests
        self.invalid_faces.update(other.invalid_faces)
        for stage, seconds in other.seconds.items():
            self.seconds[stage] += seconds


class Metrics:
    """The metrics of one model instance.

    Parameters
    ----------
    model, instance : str
        Names of the model and of the instance.
    """

    def __init__(self, model: str, instance: str) -> None:
        model_label = {"model": model}
        instance_labels = model_label | {"model_instance": instance}
        counter, histogram = pb_utils.MetricFamily.COUNTER, pb_utils.MetricFamily.HISTOGRAM
        gauge = pb_utils.MetricFamily.GAUGE
        faces = _family("faces_total", "faces in successful responses", counter)
        invalid_faces = _family("refused_faces_total", "invalid faces, by reason", counter)
        requests = _family(
            "refused_requests_total", "requests rejected for an invalid face or wrong tensors", counter
        )
        seconds = _family("stage_seconds_total", "seconds spent, by stage", counter)
        batches = _family("batch_faces", "faces in a dynamic batch", histogram)
        heartbeat = _family("heartbeat_seconds", "when the instance was last idle or made progress", gauge)
        failed = _family("failed_batches", "consecutive batches that failed", gauge)
        # Triton removes a family's metrics when the family's Python object is garbage-collected.
        self._families = [faces, invalid_faces, requests, seconds, batches, heartbeat, failed]
        self._faces = faces.Metric(labels=model_label)
        self._rejected_requests = requests.Metric(labels=model_label)
        self._batch_faces = batches.Metric(labels=model_label, buckets=BATCH_FACES_BUCKETS)
        # All label values exist from the start: PromQL's rate() needs a value before the first event.
        self._invalid_faces = {
            reason: invalid_faces.Metric(labels=model_label | {"reason": reason}) for reason in REASONS
        }
        self._seconds = {stage: seconds.Metric(labels=model_label | {"stage": stage}) for stage in STAGES}
        self._heartbeat = heartbeat.Metric(labels=instance_labels)
        self._failed_batches = failed.Metric(labels=instance_labels)
        self._consecutive_failures = 0
        self._last_progress: float | None = None
        self._pending = Tally()
        self._changed = threading.Condition()
        self._closing = False
        self._flusher = threading.Thread(target=self._flush_loop, name="metrics", daemon=True)
        self._flusher.start()

    @property
    def is_failing(self) -> bool:
        """Whether the last `FAILURES_UNTIL_NOT_READY` batches failed."""
        return self._consecutive_failures >= FAILURES_UNTIL_NOT_READY

    def add(self, tally: Tally) -> None:
        """Count a dynamic batch. A batch with a successful request resets the count of failures.

        A batch in which every request is rejected changes this count in neither direction.
        """
        if tally.successful_faces:
            self._consecutive_failures = 0
        # If the flusher has died, drop the counts: nothing would flush them.
        if not self._flusher.is_alive():
            return
        with self._changed:
            self._pending.add(tally)
            self._changed.notify()

    def progress(self) -> None:
        """Record progress within the current batch."""
        self._last_progress = time.time()

    @contextlib.contextmanager
    def batch_in_progress(self) -> Iterator[None]:
        """Mark a batch: within the block the heartbeat is the time of the last `progress`, outside it now.

        The batch counts as failed if the block raises.
        """
        self.progress()
        failed = True
        try:
            yield
            failed = False
        finally:
            self._consecutive_failures += failed
            self._last_progress = None

    def close(self) -> None:
        """Flush pending counts and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._flusher.join()

    def _flush_loop(self) -> None:
        """Set the gauges, wait for a batch or the next heartbeat, collect further batches, flush; repeat."""
        closing = False
        while not closing:
            self._heartbeat.set(self._last_progress or time.time())
            self._failed_batches.set(self._consecutive_failures)
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closing or not self._pending.is_empty,
                    HEARTBEAT_INTERVAL_SECONDS - FLUSH_DELAY_SECONDS,
                )
                self._changed.wait_for(lambda: self._closing, FLUSH_DELAY_SECONDS)
                pending, self._pending, closing = self._pending, Tally(), self._closing
            self._flush(pending)

    def _flush(self, tally: Tally) -> None:
        for faces in tally.batch_faces:
            self._batch_faces.observe(faces)
        values: list[tuple[Any, float]] = [
            (self._faces, tally.successful_faces),
            (self._rejected_requests, tally.rejected_requests),
        ]
        values += [(self._invalid_faces[reason], count) for reason, count in tally.invalid_faces.items()]
        values += [(self._seconds[stage], spent) for stage, spent in tally.seconds.items()]
        for metric, value in values:
            if value:
                metric.increment(value)


def _family(name: str, description: str, kind: object) -> Any:
    return pb_utils.MetricFamily(name=f"align_mask_{name}", description=description, kind=kind)
