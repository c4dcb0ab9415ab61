"""Model configurations as protobuf: the fixed interface, and consistency between models and profiles."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from align_mask.settings import Settings, SettingsError
from deploy.local.photograph import photograph
from export.hog.configs import configured_settings
from export.hog.settings import HogSettings
from export.repository import DEFAULT_REPOSITORY, read_config
from tests.support.interface import INTERFACE, MAX_BATCH_SIZE

ONNX_TYPE = {"TYPE_FP32": onnx.TensorProto.FLOAT}


def config(name: str) -> model_config_pb2.ModelConfig:
    return read_config(DEFAULT_REPOSITORY, name)


def tensors(values: list[model_config_pb2.ModelInput]) -> list[tuple[str, str, list[int]]]:
    """Return name, type and dims of each tensor, as in `INTERFACE`."""
    return [
        (value.name, model_config_pb2.DataType.Name(value.data_type), list(value.dims)) for value in values
    ]


@pytest.mark.parametrize("name", INTERFACE)
def test_tensors_equal_the_interface(name: str):
    inputs, outputs = INTERFACE[name]
    assert tensors(config(name).input) == inputs
    assert tensors(config(name).output) == outputs
    assert config(name).name == name


def test_each_model_has_its_backend():
    assert [config(name).backend for name in ("align_mask", "hog", "pose_mlp")] == [
        "python",
        "onnxruntime",
        "onnxruntime",
    ]
    assert config("ensemble").platform == "ensemble"


def test_all_models_batch_up_to_the_same_size():
    assert {config(name).max_batch_size for name in INTERFACE} == {MAX_BATCH_SIZE}
    for name in ("align_mask", "hog", "pose_mlp"):
        assert config(name).HasField("dynamic_batching")


def test_default_configs_work_with_and_without_gpu():
    for name in ("align_mask", "hog", "pose_mlp"):
        groups = config(name).instance_group
        assert [model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind) for group in groups] == [
            "KIND_AUTO"
        ]


@pytest.mark.parametrize("name", ["hog", "pose_mlp"])
def test_tensors_of_onnx_files_equal_their_configs(repository: Path, name: str):
    graph = onnx.load(repository / name / "1" / "model.onnx").graph
    for configured, built in ((config(name).input, graph.input), (config(name).output, graph.output)):
        assert [
            (
                value.name,
                value.type.tensor_type.elem_type,
                [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]],
            )
            for value in built
        ] == [(tensor, ONNX_TYPE[kind], dims) for tensor, kind, dims in tensors(configured)]


def test_ensemble_connects_tensors_of_the_same_type_and_shape():
    ensemble = config("ensemble")
    known = {name: (kind, dims) for name, kind, dims in tensors(ensemble.input)}
    for step in ensemble.ensemble_scheduling.step:
        model = config(step.model_name)
        of_model = {name: (kind, dims) for name, kind, dims in tensors([*model.input, *model.output])}
        assert {tensor.name for tensor in model.input} == set(step.input_map)
        for model_tensor, ensemble_tensor in {**step.input_map, **step.output_map}.items():
            expected = of_model[model_tensor]
            assert known.setdefault(ensemble_tensor, expected) == expected
    for name, kind, dims in tensors(ensemble.output):
        assert known[name] == (kind, dims)


def test_no_ensemble_output_is_input_of_a_step():
    """If an ensemble output were the input of a step, Triton would run steps that a request does not need."""
    ensemble = config("ensemble")
    step_inputs = {name for step in ensemble.ensemble_scheduling.step for name in step.input_map.values()}
    assert step_inputs.isdisjoint(output.name for output in ensemble.output)


def test_ensemble_steps_run_one_after_the_other():
    """Each later step needs an output of the previous: Triton 2.51 loses rejections of parallel steps."""
    steps = config("ensemble").ensemble_scheduling.step
    producer = {name: step.model_name for step in steps for name in step.output_map.values()}
    needs = {
        step.model_name: {producer[name] for name in step.input_map.values() if name in producer}
        for step in steps
    }
    assert needs == {"pose_mlp": set(), "align_mask": {"pose_mlp"}, "hog": {"align_mask"}}


def test_every_queue_has_maximum_length_and_timeout():
    reject = model_config_pb2.ModelQueuePolicy.TimeoutAction.REJECT
    policies = {
        name: config(name).dynamic_batching.default_queue_policy for name in ("align_mask", "hog", "pose_mlp")
    }
    for policy in policies.values():
        assert policy.timeout_action == reject
        assert 0 < policy.default_timeout_microseconds <= 10_000_000
        assert policy.allow_timeout_override
    # Under overload, the queue of align_mask must be full first, before a rejected request has cost work.
    assert 0 < policies["align_mask"].max_queue_size < policies["hog"].max_queue_size
    assert policies["pose_mlp"].max_queue_size > policies["align_mask"].max_queue_size


def test_every_model_has_at_least_two_instances_and_hog_more_than_align_mask():
    """With one instance and a full queue, Triton 2.51's batcher sleeps for half a second between batches."""
    for folder in ("", "configs/cpu", "configs/gpu"):
        counts = {}
        for name in ("align_mask", "hog", "pose_mlp"):
            path = DEFAULT_REPOSITORY / name / (f"{folder}.pbtxt" if folder else "config.pbtxt")
            profile = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
            counts[name] = sum(group.count for group in profile.instance_group)
        assert 2 <= counts["align_mask"] < counts["hog"]
        assert counts["pose_mlp"] >= 2


def test_settings_equal_those_of_py_feats_au_classifiers():
    settings = Settings.from_model_config(
        json_format.MessageToDict(config("align_mask"), preserving_proto_field_name=True)
    )
    assert settings.face_size == 112
    assert (settings.box_enlarge, settings.fill) == (2.5, 128)
    assert configured_settings(DEFAULT_REPOSITORY) == HogSettings()
    assert config("hog").output[0].dims[0] == HogSettings().feature_length(settings.face_size)


@pytest.mark.parametrize("profile_name", ["cpu", "gpu"])
@pytest.mark.parametrize("name", ["align_mask", "hog", "pose_mlp"])
def test_profile_changes_only_instances_warm_up_and_cuda_arena(name: str, profile_name: str):
    path = DEFAULT_REPOSITORY / name / "configs" / f"{profile_name}.pbtxt"
    profile = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    assert {group.kind for group in profile.instance_group} == {
        model_config_pb2.ModelInstanceGroup.Kind.Value(f"KIND_{profile_name.upper()}")
    }
    assert [warmup.batch_size for warmup in profile.model_warmup][:2] == [1, 8]
    expected = config(name)
    for field in ("instance_group", "model_warmup"):
        profile.ClearField(field)
        expected.ClearField(field)
    for added in set(profile.parameters) - set(expected.parameters):
        assert added == "arena_extend_strategy"
        del profile.parameters[added]
    assert profile == expected


@pytest.mark.parametrize("name", ["align_mask", "pose_mlp"])
def test_warm_up_landmarks_equal_the_demo_landmarks(name: str):
    crop, landmarks = photograph()
    warm_up = np.fromfile(DEFAULT_REPOSITORY / name / "warmup" / "landmarks", dtype="<f4").reshape(68, 2)
    np.testing.assert_allclose(warm_up, landmarks * 112 / crop.shape[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("face_size", "96", r"MASKED_FACES has dims \[3, 112, 112\].*\[3, 96, 96\].*--face-size 96"),
        ("face_size", "112.5", "face_size must be a whole number above 0, it is '112.5'"),
        ("box_enlarge", "-1", "box_enlarge must be a finite number above 0, it is '-1'"),
        ("fill", "nan", "fill must be a finite number, it is 'nan'"),
        ("max_frame_pixels", "", "max_frame_pixels must be a whole number above 0, it is ''"),
        ("masked_faces_on_device", "yes", "masked_faces_on_device must be true or false, it is 'yes'"),
    ],
)
def test_settings_error_names_invalid_parameter(name: str, text: str, message: str):
    invalid = config("align_mask")
    invalid.parameters[name].string_value = text
    with pytest.raises(SettingsError, match=message):
        Settings.from_model_config(json_format.MessageToDict(invalid, preserving_proto_field_name=True))
