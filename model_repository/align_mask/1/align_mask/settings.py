"""The parameters of align_mask's config.pbtxt, read once when an instance starts."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


class SettingsError(ValueError):
    """The config is not usable; the message names the parameter and what it should be."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What align_mask is configured to do; config.pbtxt says why each number is what it is.

    Attributes
    ----------
    face_size : int
        Side of the square aligned face, pixels.
    box_enlarge : float
        Side of the framed square over the larger side of the anchors' box.
    fill : float
        Value of aligned pixels that lie outside the frame.
    min_frame_side, max_frame_pixels : int
        Smallest side and largest area of a frame, pixels.
    max_request_pixels : int
        Largest area of all frames of a request together, pixels.
    max_landmark_distance : float
        How far outside its frame a landmark may lie, pixels.
    torch_threads : int
        Threads that one model instance computes with.
    masked_faces_on_device : bool
        Return MASKED_FACES in the memory that holds them, a GPU's too, instead of in host memory.
    """

    face_size: int
    box_enlarge: float
    fill: float
    min_frame_side: int
    max_frame_pixels: int
    max_request_pixels: int
    max_landmark_distance: float
    torch_threads: int
    masked_faces_on_device: bool

    @classmethod
    def from_model_config(cls, config: Mapping[str, Any]) -> "Settings":
        """Read the settings out of a model configuration, as Triton hands it over in JSON.

        Raises
        ------
        SettingsError
            When a parameter is missing or out of range, or the outputs' dims do not fit face_size.
        """
        parameters = config.get("parameters", {})
        settings = cls(
            **{field.name: _read(parameters, field.name, field.type) for field in dataclasses.fields(cls)}
        )
        _check_output_dims(config, settings.face_size)
        return settings


def _read(parameters: Mapping[str, Any], name: str, kind: type) -> int | float | bool:
    text = parameters.get(name, {}).get("string_value", "")
    if kind is bool:
        if text not in ("true", "false"):
            raise SettingsError(
                f"align_mask/config.pbtxt: parameter {name} must be true or false, it is {text!r}"
            )
        return text == "true"
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    lowest = -math.inf if name == "fill" else 0
    if not lowest < value < math.inf:
        raise SettingsError(
            f"align_mask/config.pbtxt: parameter {name} must be a finite "
            f"{'whole ' if kind is int else ''}number{' above 0' if lowest == 0 else ''}, it is {text!r}"
        )
    return value


def _check_output_dims(config: Mapping[str, Any], face_size: int) -> None:
    expected = {
        "MASKED_FACES": [3, face_size, face_size],
        "ALIGNED_FACES": [3, face_size, face_size],
        "MASK": [face_size, face_size],
    }
    for output in config["output"]:
        dims = [int(size) for size in output["dims"]]
        if dims != expected.get(output["name"], dims):
            raise SettingsError(
                f"align_mask/config.pbtxt: output {output['name']} has dims {dims}, face_size "
                f"{face_size} makes them {expected[output['name']]}; change one of the two"
            )
