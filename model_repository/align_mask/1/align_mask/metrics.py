"""align_mask's own metrics, which Triton shows on its metrics port beside those of every model.

| metric | labels | what |
| --- | --- | --- |
| `align_mask_faces_total` | | faces answered |
| `align_mask_refused_faces_total` | `reason` | faulty faces, by what was wrong |
| `align_mask_refused_requests_total` | | requests refused, for a faulty face or for their tensors |
| `align_mask_stage_seconds_total` | `stage` | time spent, by stage of the work |
| `align_mask_batch_faces` | (histogram) | faces in each dynamic batch, refused ones included |
| `align_mask_heartbeat_seconds` | `model_instance` | Unix time of its last progress; now, while idle |
| `align_mask_failed_batches` | `model_instance` | batches in a row in which every request raised |

Each also has the label `model`, as Triton's own metrics have. All instances add to the same metrics, except
the last two. The heartbeat stops when an instance's process died, was stopped or hangs, which Triton
detects from 26.04 (a dead process) or never (the others). An instance whose batches all fail, as after a
sticky CUDA error, still has a heartbeat.

Setting a value of Triton's takes 20 microseconds, 0.2 ms for the batch of one face that takes 4. So a
background thread flushes the sums a moment later.
"""

import contextlib
import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Iterator

import triton_python_backend_utils as pb_utils

from align_mask.face_checks import REASONS
from align_mask.stage_clock import STAGES

BATCH_SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
"""Upper bounds of the histogram; the last one is max_batch_size."""

LAG_SECONDS = 0.2
"""How far the metrics may trail the answers."""

BEAT_SECONDS = 1.0
"""Between two updates of the heartbeat, unless a batch ends in between."""

FAILED_BATCHES = 3
"""An instance that fails so many batches in a row has to be replaced; deploy/docker/probe.py has the same."""


@dataclasses.dataclass
class Tally:
    """What one batch, or several, came to.

    Attributes
    ----------
    batches : list of int
        Faces in each dynamic batch.
    answered : int
        Faces of requests that were answered.
    refused_requests : int
        Requests that were not.
    faults : Counter of str
        Faulty faces by reason.
    seconds : Counter of str
        Time spent, by stage.
    """

    batches: list[int] = dataclasses.field(default_factory=list)
    answered: int = 0
    refused_requests: int = 0
    faults: Counter[str] = dataclasses.field(default_factory=Counter)
    seconds: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def has_batches(self) -> bool:
        """Whether there was a batch; one whose requests could not be read has no faces."""
        return bool(self.batches or self.refused_requests)

    def add(self, other: "Tally") -> None:
        """Add another one to this one."""
        self.batches += other.batches
        self.answered += other.answered
        self.refused_requests += other.refused_requests
        self.faults.update(other.faults)
        self.seconds.update(other.seconds)


class Metrics:
    """The metrics of one model instance.

    Parameters
    ----------
    model, instance : str
        The model's name and the instance's.
    """

    def __init__(self, model: str, instance: str) -> None:
        own = {"model": model}
        of_instance = own | {"model_instance": instance}
        counter, histogram = pb_utils.MetricFamily.COUNTER, pb_utils.MetricFamily.HISTOGRAM
        gauge = pb_utils.MetricFamily.GAUGE
        faces = _family("faces_total", "faces answered", counter)
        refused = _family("refused_faces_total", "faulty faces, by reason", counter)
        requests = _family("refused_requests_total", "requests refused", counter)
        seconds = _family("stage_seconds_total", "seconds spent, by stage", counter)
        batches = _family("batch_faces", "faces in a dynamic batch", histogram)
        beats = _family("heartbeat_seconds", "when the instance was last idle or made progress", gauge)
        failed = _family("failed_batches", "batches in a row that failed", gauge)
        # A metric goes with its family's Python object.
        self._families = [faces, refused, requests, seconds, batches, beats, failed]
        self._faces = faces.Metric(labels=own)
        self._requests = requests.Metric(labels=own)
        self._batches = batches.Metric(labels=own, buckets=BATCH_SIZES)
        # All of them from the start: a rate needs a value before the first event.
        self._refused = {reason: refused.Metric(labels=own | {"reason": reason}) for reason in REASONS}
        self._seconds = {stage: seconds.Metric(labels=own | {"stage": stage}) for stage in STAGES}
        self._heartbeat = beats.Metric(labels=of_instance)
        self._failed_batches = failed.Metric(labels=of_instance)
        self._failed_in_a_row = 0
        self._last_progress: float | None = None
        self._pending = Tally()
        self._changed = threading.Condition()
        self._closing = False
        self._flusher = threading.Thread(target=self._flush_loop, name="metrics", daemon=True)
        self._flusher.start()

    @property
    def is_failing(self) -> bool:
        """Whether the last `FAILED_BATCHES` batches failed."""
        return self._failed_in_a_row >= FAILED_BATCHES

    def add(self, tally: Tally) -> None:
        """Count a dynamic batch; one that answered a face ends a row of failures."""
        if tally.answered:
            self._failed_in_a_row = 0
        if not self._flusher.is_alive():  # it has said why in the log; batches must not pile up behind it
            return
        with self._changed:
            self._pending.add(tally)
            self._changed.notify()

    def progress(self) -> None:
        """Note that the batch in progress has made some."""
        self._last_progress = time.time()

    @contextlib.contextmanager
    def batch_in_progress(self) -> Iterator[None]:
        """Let the heartbeat follow `progress` until the end of the block.

        A block that an exception ends is a batch that failed.
        """
        self.progress()
        failed_in_a_row = self._failed_in_a_row + 1
        try:
            yield
            failed_in_a_row = self._failed_in_a_row
        finally:
            self._failed_in_a_row = failed_in_a_row
            self._last_progress = None

    def close(self) -> None:
        """Flush what is pending and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._flusher.join()

    def _flush_loop(self) -> None:
        """Beat, wait for a batch or the next beat, let more come together, flush it; until closed."""
        closing = False
        while not closing:
            self._heartbeat.set(self._last_progress or time.time())
            self._failed_batches.set(self._failed_in_a_row)
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closing or self._pending.has_batches, BEAT_SECONDS - LAG_SECONDS
                )
                self._changed.wait_for(lambda: self._closing, LAG_SECONDS)
                pending, self._pending, closing = self._pending, Tally(), self._closing
            self._flush(pending)

    def _flush(self, tally: Tally) -> None:
        for faces in tally.batches:
            self._batches.observe(faces)
        values = [(self._faces, tally.answered), (self._requests, tally.refused_requests)]
        values += [(self._refused[reason], count) for reason, count in tally.faults.items()]
        values += [(self._seconds[stage], spent) for stage, spent in tally.seconds.items()]
        for metric, value in values:
            if value:
                metric.increment(value)


def _family(name: str, description: str, kind: object) -> "pb_utils.MetricFamily":
    return pb_utils.MetricFamily(name=f"align_mask_{name}", description=description, kind=kind)
