"""Errors of 2D landmarkers: jaw points that slide to the silhouette, systematic offsets, and jitter.

Sizes are in eye distances: the distance of the outer eye corners in a frontal view at the same depth.
"""

import torch

from export.pose.training.head import JAW, JAW_STEPS

REGIONS = (
    (0, 17), (17, 22), (22, 27), (27, 31), (31, 36), (36, 42), (42, 48), (48, 68),
)  # fmt: skip
"""Ranges of landmarks with a common offset: jaw, brows, nose bridge, nose base, eyes, mouth."""

JITTER = 0.02
"""Largest standard deviation of the independent noise of a face."""

POINT_OFFSET = 0.008
"""Standard deviation of a landmarker's offset, drawn for each face and point."""

TRAINING_POINT_OFFSET = 0.02
"""`POINT_OFFSET` in training. A network that relies less on single points is more accurate on real faces."""

REGION_OFFSET = 0.008
"""Standard deviation of the common offset of a region."""

CONTOUR_SCALE = 0.04
"""Standard deviation of the factor (mean 1) that scales the jaw contour about the nose."""

CONTOUR_SHIFT = 0.25
"""Standard deviation, in landmark spacings, of the shift of jaw points along the contour."""

CONTOUR_SHIFT_LENGTH = 2.0
"""Correlation length of that shift, in landmark spacings."""


def slide_contour(projected: torch.Tensor, sideways: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Move jaw points towards the visible silhouette.

    On a turned head the cheek hides the far side of the jaw. A 2D landmarker then marks the visible outline:
    the outermost of the surface points between the jaw and the middle of the face.

    Parameters
    ----------
    projected : Tensor, shape (N, 68 + 17 * steps, 2)
        Projections of the landmarks, then of `HeadModel`'s slide targets, step by step.
    sideways : Tensor, shape (N, 2)
        Image direction of the head's x axis.
    strength : Tensor, shape (N,)
        0 (the jaw point, as a 3D landmarker marks it) to 1 (the silhouette).

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


def add_noise(
    landmarks: torch.Tensor,
    eye_distance: torch.Tensor,
    generator: torch.Generator,
    point_offset: float = POINT_OFFSET,
) -> torch.Tensor:
    """Add the shift of the contour, offsets of points and regions, and jitter.

    Parameters
    ----------
    landmarks : Tensor, shape (N, 68, 2)
    eye_distance : Tensor, shape (N,)
        Eye distance in the units of `landmarks`.
    generator : torch.Generator
        Source of randomness.
    point_offset : float
        Standard deviation of the offset of each point, in eye distances.

    Returns
    -------
    Tensor, shape (N, 68, 2)
    """
    count = len(landmarks)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    jitter = JITTER * torch.rand(count, 1, 1, generator=generator) ** 2
    displacement = jitter * normal(count, 68, 2) + point_offset * normal(count, 68, 2)
    bias = REGION_OFFSET * normal(count, len(REGIONS), 2)
    displacement = displacement + bias[:, _region_of_landmark()]
    contour = _shift_along(landmarks[:, JAW], normal(count, JAW.stop))
    middle = landmarks[:, 27:36].mean(dim=1, keepdim=True)
    contour = middle + (contour - middle) * (1 + CONTOUR_SCALE * normal(count, 1, 1))
    moved = torch.cat([contour, landmarks[:, JAW.stop :]], dim=1)
    return moved + eye_distance[:, None, None] * displacement


def _region_of_landmark() -> torch.Tensor:
    lengths = torch.tensor([stop - start for start, stop in REGIONS])
    return torch.repeat_interleave(torch.arange(len(REGIONS)), lengths)


def _shift_along(contour: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Move contour points along their polyline by a smooth random number of spacings.

    `noise` ``[N, 17]`` is standard normal. The shifts of neighbours are correlated, and both sides move
    almost symmetrically. Beyond its ends the polyline continues straight.
    """
    last = contour.shape[1] - 1
    index = torch.arange(last + 1.0)
    smoothing = torch.exp(-((index[:, None] - index) ** 2) / (2 * CONTOUR_SHIFT_LENGTH**2))
    smoothing = smoothing / smoothing.norm(dim=1, keepdim=True)
    offset = noise @ smoothing.T
    symmetric = (offset - offset.flip(1)) / 2**0.5
    offset = CONTOUR_SHIFT * (0.9 * symmetric + 0.3 * offset)
    position = index + offset
    lower = position.floor().clamp(0, last - 1).long()
    fraction = (position - lower)[..., None]
    start = contour.gather(1, lower[..., None].expand(-1, -1, 2))
    stop = contour.gather(1, (lower + 1)[..., None].expand(-1, -1, 2))
    return start + fraction * (stop - start)
