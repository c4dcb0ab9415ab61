"""What 2D landmarkers do to the true projections: sliding contours, habits and jitter.

All sizes are relative to the outer eye distance as a frontal view at the same depth would show it.
"""

import torch

from export.pose.training.head import JAW, JAW_STEPS

REGIONS = (
    (0, 17), (17, 22), (22, 27), (27, 31), (31, 36), (36, 42), (42, 48), (48, 68),
)  # fmt: skip
"""Landmarks that are misplaced together: jaw, brows, bridge, nose base, eyes, mouth."""

JITTER = 0.02
"""Largest standard deviation of independent noise."""

POINT_HABIT = 0.008
"""Standard deviation of a landmarker's own idea of where a point is, drawn per face and point."""

TRAINING_HABIT = 0.02
"""The same while training: a network that trusts single points less carries over better to real faces."""

REGION_BIAS = 0.008
"""Standard deviation of the shift of a region as a whole."""

CONTOUR_PULL = 0.04
"""Standard deviation of the contour's scale about the centre of the face (pulled in or out)."""

CONTOUR_SHIFT = 0.25
"""Standard deviation, in landmark spacings, by which contour points wander along the contour."""

CONTOUR_SMOOTHNESS = 2.0
"""Number of spacings over which contour points wander together."""


def slide_contour(projected: torch.Tensor, sideways: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Let contour points slide to the visible silhouette.

    On a turned head the far side of the jaw hides behind the cheek. A 2D landmarker then marks the
    outline it sees: the outermost of the surface points between the jaw and the middle of the face.

    Parameters
    ----------
    projected : Tensor, shape (N, 68 + 17 * steps, 2)
        Projections of the landmarks and of the slide targets, step by step.
    sideways : Tensor, shape (N, 2)
        Image direction of the head's x axis.
    strength : Tensor, shape (N,)
        0 (the jaw point itself, as a 3D landmarker gives it) to 1 (fully on the silhouette).

    Returns
    -------
    Tensor, shape (N, 68, 2)
    """
    landmarks = projected[:, :68]
    jaw = landmarks[:, JAW]
    count = jaw.shape[1]
    slides = projected[:, 68:].unflatten(1, (len(JAW_STEPS), count))
    candidates = torch.cat([jaw[:, None], slides], dim=1)
    side = torch.ones(count)
    side[: count // 2] = -1.0
    direction = sideways / sideways.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    reach = torch.einsum("nspc,nc->nsp", candidates, direction) * side
    outermost = reach.argmax(dim=1)[:, None, :, None].expand(-1, 1, -1, 2)
    silhouette = candidates.gather(1, outermost)[:, 0]
    silhouette[:, count // 2] = jaw[:, count // 2]
    moved = jaw + strength[:, None, None] * (silhouette - jaw)
    return torch.cat([moved, landmarks[:, count:]], dim=1)


def disturb(
    landmarks: torch.Tensor,
    scale: torch.Tensor,
    generator: torch.Generator,
    point_habit: float = POINT_HABIT,
) -> torch.Tensor:
    """Add a landmarker's contour convention, habits, regional bias and jitter.

    Parameters
    ----------
    landmarks : Tensor, shape (N, 68, 2)
    scale : Tensor, shape (N,)
        Length of one eye distance in the image.
    generator : torch.Generator
        Source of randomness.
    point_habit : float
        Takes the place of `POINT_HABIT`.

    Returns
    -------
    Tensor, shape (N, 68, 2)
    """
    count = len(landmarks)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    jitter = JITTER * torch.rand(count, 1, 1, generator=generator) ** 2
    displacement = jitter * normal(count, 68, 2) + point_habit * normal(count, 68, 2)
    bias = REGION_BIAS * normal(count, len(REGIONS), 2)
    displacement = displacement + bias[:, _region_of_landmark()]
    contour = _wander(landmarks[:, JAW], normal(count, JAW.stop))
    middle = landmarks[:, 27:36].mean(dim=1, keepdim=True)
    contour = middle + (contour - middle) * (1 + CONTOUR_PULL * normal(count, 1, 1))
    moved = torch.cat([contour, landmarks[:, JAW.stop :]], dim=1)
    return moved + scale[:, None, None] * displacement


def _region_of_landmark() -> torch.Tensor:
    lengths = torch.tensor([stop - start for start, stop in REGIONS])
    return torch.repeat_interleave(torch.arange(len(REGIONS)), lengths)


def _wander(contour: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
    """Move contour points along their polyline by a smooth random number of spacings.

    `normal` ``[N, 17]`` is standard normal. Neighbours move together, and both sides nearly alike;
    beyond the ends the last segments are extended.
    """
    last = contour.shape[1] - 1
    index = torch.arange(last + 1.0)
    smoothing = torch.exp(-((index[:, None] - index) ** 2) / (2 * CONTOUR_SMOOTHNESS**2))
    smoothing = smoothing / smoothing.norm(dim=1, keepdim=True)
    offset = normal @ smoothing.T
    symmetric = (offset - offset.flip(1)) / 2**0.5
    offset = CONTOUR_SHIFT * (0.9 * symmetric + 0.3 * offset)
    position = index + offset
    lower = position.floor().clamp(0, last - 1).long()
    fraction = (position - lower)[..., None]
    start = contour.gather(1, lower[..., None].expand(-1, -1, 2))
    stop = contour.gather(1, (lower + 1)[..., None].expand(-1, -1, 2))
    return start + fraction * (stop - start)
