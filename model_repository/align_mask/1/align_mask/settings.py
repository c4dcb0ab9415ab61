"""The parameters of align_mask's model configuration, read once when an instance starts."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


class SettingsError(ValueError):
    """The model configuration is invalid; the message names the parameter and its valid values."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The parameters of align_mask; config.pbtxt gives the reason for each value.

    Attributes
    ----------
    face_size : int
        Side of the square aligned face, pixels.
    box_enlarge : float
        Side of the aligned square divided by the larger side of the bounding box of eyes, nose tip and
        mouth corners.
    fill : float
        Fill value of aligned pixels outside the frame.
    min_frame_side, max_frame_pixels : int
        Minimum side and maximum area of a frame, pixels.
    max_request_pixels : int
        Maximum area of all frames of a request together, pixels.
    max_landmark_distance : float
        Maximum distance of a landmark outside its frame, pixels.
    torch_threads : int
        Number of torch threads per model instance.
    masked_faces_on_device : bool
        Whether a GPU instance returns MASKED_FACES in GPU memory instead of host memory.
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
        """Read the settings from a model configuration in Triton's JSON form.

        Raises
        ------
        SettingsError
            If a parameter is missing or out of range, or the outputs' dims do not match face_size.
        """
        parameters = config.get("parameters", {})
        texts = {
            field.name: str(parameters.get(field.name, {}).get("string_value", ""))
            for field in dataclasses.fields(cls)
        }
        settings = cls(
            face_size=_whole_number(texts, "face_size"),
            box_enlarge=_number(texts, "box_enlarge"),
            fill=_number(texts, "fill", above=-math.inf),
            min_frame_side=_whole_number(texts, "min_frame_side"),
            max_frame_pixels=_whole_number(texts, "max_frame_pixels"),
            max_request_pixels=_whole_number(texts, "max_request_pixels"),
            max_landmark_distance=_number(texts, "max_landmark_distance"),
            torch_threads=_whole_number(texts, "torch_threads"),
            masked_faces_on_device=_boolean(texts, "masked_faces_on_device"),
        )
        _check_output_dims(config, settings.face_size)
        return settings


def _number(texts: Mapping[str, str], name: str, above: float = 0) -> float:
    try:
        value = float(texts[name])
    except ValueError:
        value = math.nan
    if above < value < math.inf:
        return value
    raise _invalid(texts, name, "a finite number" + (" above 0" if above == 0 else ""))


def _whole_number(texts: Mapping[str, str], name: str) -> int:
    if texts[name].isdecimal() and int(texts[name]) > 0:
        return int(texts[name])
    raise _invalid(texts, name, "a whole number above 0")


def _boolean(texts: Mapping[str, str], name: str) -> bool:
    if texts[name] in ("true", "false"):
        return texts[name] == "true"
    raise _invalid(texts, name, "true or false")


def _invalid(texts: Mapping[str, str], name: str, expected: str) -> SettingsError:
    return SettingsError(
        f"align_mask/config.pbtxt: parameter {name} must be {expected}, it is {texts[name]!r}"
    )


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
                f"align_mask/config.pbtxt: output {output['name']} has dims {dims}, face_size {face_size} "
                f"needs {expected[output['name']]}; run `python -m export hog --face-size {face_size}`, "
                "which updates all configs"
            )
