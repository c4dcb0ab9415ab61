"""align_mask's own metrics, which Triton shows on its metrics port beside those of every model.

| metric | labels | what |
| --- | --- | --- |
| `align_mask_faces_total` | | faces answered |
| `align_mask_refused_faces_total` | `reason` | faulty faces, by what was wrong |
| `align_mask_refused_requests_total` | | requests refused, for a faulty face or for their tensors |
| `align_mask_stage_seconds_total` | `stage` | time spent, by stage of the work |
| `align_mask_batch_faces` | (histogram) | faces in each dynamic batch, refused ones included |
| `align_mask_heartbeat_seconds` | `model_instance` | Unix time when it was last free, or began its batch |

Each also has the label `model`, as Triton's own metrics have. Instances add to the same metrics, but for the
heartbeat: it stands still when an instance's process died, was stopped or hangs in a batch, which Triton
itself sees late (the first from 26.04) or never (the others).

Telling Triton takes 20 microseconds a value, 0.2 ms for the batch of one face that takes 4. So a thread tells
it a moment later, the sum of what has come together since.
"""

import contextlib
import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Iterator

import triton_python_backend_utils as pb_utils

from face_checks import REASONS
from stage_clock import STAGES

BATCH_SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
"""Upper bounds of the histogram; the last one is max_batch_size."""

LAG_SECONDS = 0.2
"""How far the metrics may trail the answers."""

BEAT_SECONDS = 2.0
"""Between two heartbeats of an idle instance."""


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
    def something(self) -> bool:
        """Tell whether there was a batch; one whose requests could not be read has no faces."""
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
        counter, histogram = pb_utils.MetricFamily.COUNTER, pb_utils.MetricFamily.HISTOGRAM
        gauge = pb_utils.MetricFamily.GAUGE
        faces = _family("faces_total", "faces answered", counter)
        refused = _family("refused_faces_total", "faulty faces, by reason", counter)
        requests = _family("refused_requests_total", "requests refused", counter)
        seconds = _family("stage_seconds_total", "seconds spent, by stage", counter)
        batches = _family("batch_faces", "faces in a dynamic batch", histogram)
        beats = _family("heartbeat_seconds", "when the instance was last free or began its batch", gauge)
        # A metric goes with its family's Python object.
        self._families = [faces, refused, requests, seconds, batches, beats]
        self._faces = faces.Metric(labels=own)
        self._requests = requests.Metric(labels=own)
        self._batches = batches.Metric(labels=own, buckets=BATCH_SIZES)
        # All of them from the start: a rate needs a value before the first event.
        self._refused = {reason: refused.Metric(labels=own | {"reason": reason}) for reason in REASONS}
        self._seconds = {stage: seconds.Metric(labels=own | {"stage": stage}) for stage in STAGES}
        self._heartbeat = beats.Metric(labels=own | {"model_instance": instance})
        self._batch_began: float | None = None
        self._untold = Tally()
        self._changed = threading.Condition()
        self._closing = False
        self._teller = threading.Thread(target=self._tell_on, name="metrics", daemon=True)
        self._teller.start()

    def add(self, tally: Tally) -> None:
        """Count a dynamic batch."""
        if not self._teller.is_alive():  # it has said why in the log; batches must not pile up behind it
            return
        with self._changed:
            self._untold.add(tally)
            self._changed.notify()

    @contextlib.contextmanager
    def batch_under_way(self) -> Iterator[None]:
        """Let the heartbeat stand still until the end of the block."""
        self._batch_began = time.time()
        try:
            yield
        finally:
            self._batch_began = None

    def close(self) -> None:
        """Tell Triton the rest and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._teller.join()

    def _tell_on(self) -> None:
        """Wait for something to tell, let more come together, tell it; until closed."""
        closing = False
        while not closing:
            self._heartbeat.set(self._batch_began or time.time())
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._untold.something, BEAT_SECONDS)
                self._changed.wait_for(lambda: self._closing, LAG_SECONDS)
                untold, self._untold, closing = self._untold, Tally(), self._closing
            self._tell(untold)

    def _tell(self, tally: Tally) -> None:
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
