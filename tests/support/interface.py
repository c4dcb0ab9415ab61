"""The fixed interface of the four models: name, type and shape per face of each tensor."""

FRAMES = ("FRAMES", "TYPE_FP32", [3, -1, -1])
FRAMES_UINT8 = ("FRAMES_UINT8", "TYPE_UINT8", [3, -1, -1])
LANDMARKS = ("LANDMARKS", "TYPE_FP32", [68, 2])
MASKED_FACES = ("MASKED_FACES", "TYPE_FP32", [3, 112, 112])
ALIGNED_FACES = ("ALIGNED_FACES", "TYPE_FP32", [3, 112, 112])
ALIGNED_LANDMARKS = ("ALIGNED_LANDMARKS", "TYPE_INT64", [68, 2])
AFFINE = ("AFFINE", "TYPE_FP32", [2, 3])
MASK = ("MASK", "TYPE_BOOL", [112, 112])
HOG = ("HOG", "TYPE_FP32", [5408])
POSE = ("POSE", "TYPE_FP32", [6])
LANDMARKS_OUT = ("LANDMARKS_OUT", "TYPE_FP32", [68, 2])

INTERFACE = {
    "align_mask": (
        [FRAMES, FRAMES_UINT8, LANDMARKS],
        [MASKED_FACES, ALIGNED_FACES, ALIGNED_LANDMARKS, AFFINE, MASK],
    ),
    "hog": ([MASKED_FACES], [HOG]),
    "pose_mlp": ([LANDMARKS], [POSE, LANDMARKS_OUT]),
    "ensemble": ([FRAMES, FRAMES_UINT8, LANDMARKS], [HOG, POSE, ALIGNED_LANDMARKS, AFFINE, MASK]),
}
"""Model -> its inputs and outputs, in order."""

MAX_BATCH_SIZE = 128

ENSEMBLE_OUTPUTS = tuple(name for name, _, _ in INTERFACE["ensemble"][1])
ALIGN_OUTPUTS = tuple(name for name, _, _ in INTERFACE["align_mask"][1])
