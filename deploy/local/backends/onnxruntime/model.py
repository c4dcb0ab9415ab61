"""Python-based ONNX Runtime backend, with the name of Triton's C++ backend.

The tritonserver of nvidia-pytriton has no ONNX Runtime backend. Triton runs this file for every model whose
configuration has ``backend: "onnxruntime"``. So the same model repository works here and, with the C++
backend, in NVIDIA's container. Like the C++ backend, this one supports the following parts of a model
configuration: file name; names, types and dims of the tensors; instance kind; thread counts in `parameters`;
batching. It also reads a parameter that the C++ backend ignores: `cpu_rows_per_run`, the maximum number of
rows per run of the model on a CPU, so that intermediate results stay in the cache.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"

THREAD_PARAMETERS = {
    "intra_op_thread_count": "intra_op_num_threads",
    "inter_op_thread_count": "inter_op_num_threads",
}
"""Parameter of the C++ backend -> attribute of onnxruntime.SessionOptions; 0 means all cores in both."""

RUN_ERRORS = (ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.RuntimeException)
"""Exceptions of a run; these classes of onnxruntime have no common base class."""

Batch = dict[str, np.ndarray]
"""Tensor name -> array."""


class TritonPythonModel:
    """The class that Triton's Python backend instantiates, once per model instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model and check that it has the tensors of its configuration."""
        self.config = json.loads(args["model_config"])
        path = _model_path(args, self.config)
        self.session = onnxruntime.InferenceSession(
            str(path),
            _session_options(self.config),
            providers=_providers(args["model_instance_kind"], args["model_instance_device_id"], self.config),
        )
        pb_utils.Logger.log_info(
            f"{args['model_instance_name']} runs on {', '.join(self.session.get_providers())}"
        )
        self.joins_requests = self.config["max_batch_size"] > 0
        self.rows_per_run = self._rows_per_run()
        self.input_types = {
            tensor["name"]: pb_utils.triton_string_to_numpy(tensor["data_type"])
            for tensor in self.config["input"]
        }
        _check_tensors("input", self.config["input"], self.session.get_inputs(), path)
        _check_tensors("output", self.config["output"], self.session.get_outputs(), path)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request; requests with inputs of one shape share a run of the model.

        Raises
        ------
        TritonModelException
            If every request failed. Triton then counts the requests as failed, as with the C++ backend.
            Triton 2.51 counts error responses of a Python model as successes.
        """
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        batches = [self._inputs(request) for request in requests]
        for position, batch in enumerate(batches):
            key = [array.shape[1:] for array in batch.values()] if self.joins_requests else [position]
            groups[tuple(key)].append(position)

        responses: list[Any] = [None] * len(requests)
        for positions in groups.values():
            group_responses = self._answer(
                [batches[position] for position in positions],
                [requests[position].requested_output_names() for position in positions],
            )
            for position, response in zip(positions, group_responses, strict=True):
                responses[position] = response
        if all(response.has_error() for response in responses):
            raise pb_utils.TritonModelException(responses[0].error().message())
        return responses

    def _rows_per_run(self) -> int | None:
        """Return the maximum number of rows per run, or None for all rows of a batch."""
        text = self.config.get("parameters", {}).get("cpu_rows_per_run", {}).get("string_value")
        on_cpu = self.session.get_providers() == [CPU_PROVIDER]
        return int(text) if text and on_cpu and self.joins_requests else None

    def _inputs(self, request: Any) -> Batch:
        return {
            name: pb_utils.get_input_tensor_by_name(request, name).as_numpy().astype(dtype, copy=False)
            for name, dtype in self.input_types.items()
        }

    def _answer(self, batches: list[Batch], outputs: list[list[str]]) -> list[Any]:
        """Run several requests as one batch; if that raises, run each alone."""
        joined = {name: _concatenate([batch[name] for batch in batches]) for name in self.input_types}
        names = sorted(set().union(*outputs))
        try:
            results = dict(zip(names, self._run(names, joined), strict=True))
        except RUN_ERRORS as error:
            if len(batches) == 1:
                return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))]
            alone = [self._answer([batch], [own]) for batch, own in zip(batches, outputs, strict=True)]
            return [response for (response,) in alone]
        return _split(results, batches, outputs)

    def _run(self, names: list[str], inputs: Batch) -> list[np.ndarray]:
        rows = _row_count(inputs)
        if self.rows_per_run is None or rows <= self.rows_per_run:
            return self.session.run(names, inputs)
        results = [
            self.session.run(
                names, {name: array[first : first + self.rows_per_run] for name, array in inputs.items()}
            )
            for first in range(0, rows, self.rows_per_run)
        ]
        return [np.concatenate(outputs) for outputs in zip(*results, strict=True)]


def _split(results: Batch, batches: list[Batch], outputs: list[list[str]]) -> list[Any]:
    """Return the response to each request, with its rows of a joint run's results."""
    # Without batching (max_batch_size 0), results have no batch dimension to split.
    if len(batches) == 1:
        return [_response(results, outputs[0])]
    responses = []
    first = 0
    for batch, names in zip(batches, outputs, strict=True):
        stop = first + _row_count(batch)
        responses.append(_response({name: results[name][first:stop] for name in names}, names))
        first = stop
    return responses


def _response(results: Batch, names: list[str]) -> Any:
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, np.ascontiguousarray(results[name])) for name in names]
    )


def _row_count(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _concatenate(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _model_path(args: dict[str, str], config: dict[str, Any]) -> Path:
    folder = Path(args["model_repository"]) / args["model_version"]
    path = folder / (config.get("default_model_filename") or "model.onnx")
    if not path.is_file():
        raise pb_utils.TritonModelException(
            f"{path} is missing; build it with `python -m export` or `make models`"
        )
    return path


def _session_options(config: dict[str, Any]) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    for parameter, attribute in THREAD_PARAMETERS.items():
        text = config.get("parameters", {}).get(parameter, {}).get("string_value", "0")
        setattr(options, attribute, int(text))
    return options


def _providers(kind: str, device_id: str, config: dict[str, Any]) -> list[Any]:
    """Return the CPU provider, preceded by CUDA for a GPU instance if this onnxruntime has it."""
    if kind != "GPU":
        return [CPU_PROVIDER]
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        pb_utils.Logger.log_warn(
            f"Triton found GPU {device_id}, but this onnxruntime supports only the CPU and runs "
            "there; install onnxruntime-gpu to use the GPU"
        )
        return [CPU_PROVIDER]
    return [(CUDA_PROVIDER, _cuda_options(config) | {"device_id": device_id}), CPU_PROVIDER]


def _cuda_options(config: dict[str, Any]) -> dict[str, str]:
    """Return the parameters of the configuration's execution accelerator "cuda"."""
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    for accelerator in accelerators.get("gpu_execution_accelerator", []):
        if accelerator["name"] == "cuda":
            return dict(accelerator["parameters"])
    return {}


def _check_tensors(
    kind: str, configured: list[dict[str, Any]], built: list[onnxruntime.NodeArg], path: Path
) -> None:
    """Compare the configured tensors with the model's, like the C++ backend when it loads a model."""
    in_model = {tensor.name: tensor for tensor in built}
    for tensor in configured:
        name, dims = tensor["name"], [int(size) for size in tensor["dims"]]
        if name not in in_model:
            raise pb_utils.TritonModelException(f"{path} has no {kind} {name!r}, it has {sorted(in_model)}")
        model_type = in_model[name].type
        dtype = np.dtype(pb_utils.triton_string_to_numpy(tensor["data_type"])).name
        if model_type != f"tensor({_onnx_name(dtype)})":
            raise pb_utils.TritonModelException(
                f"{kind} {name!r} of {path} is {model_type}, the config says {tensor['data_type']}"
            )
        shape = in_model[name].shape
        if not _dims_agree(dims, shape[1:] if len(shape) > len(dims) else shape):
            raise pb_utils.TritonModelException(
                f"{kind} {name!r} of {path} has shape {shape}, the config's dims are {dims}"
            )


def _onnx_name(numpy_name: str) -> str:
    """Return ONNX Runtime's name of a NumPy type."""
    return {"float32": "float", "float64": "double"}.get(numpy_name, numpy_name)


def _dims_agree(configured: list[int], built: list[Any]) -> bool:
    return len(configured) == len(built) and all(
        expected == -1 or not isinstance(size, int) or expected == size
        for expected, size in zip(configured, built, strict=True)
    )
