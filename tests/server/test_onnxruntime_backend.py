"""The Python-based ONNX Runtime backend and the parts of a model configuration that it supports."""

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from deploy.local import LocalServer, ServerError

TABLE_GRAPH = """
<ir_version: 8, opset_import: ["": 17]>
table (int64[N, 1] INDEX) => (float[N, 1] VALUE, float[N, 1] SQUARE) <float[4] values = {1.0, 2.0, 3.0, 4.0}>
{
    VALUE = Gather (values, INDEX)
    SQUARE = Mul (VALUE, VALUE)
}
"""

TABLE_CONFIG = """
backend: "onnxruntime"
default_model_filename: "graph.onnx"
max_batch_size: 64
input [ { name: "INDEX" data_type: TYPE_INT64 dims: [ 1 ] } ]
output [
  { name: "VALUE" data_type: TYPE_FP32 dims: [ 1 ] },
  { name: "SQUARE" data_type: TYPE_FP32 dims: [ 1 ] }
]
instance_group [ { count: 1 kind: KIND_CPU } ]
dynamic_batching { max_queue_delay_microseconds: 200000 }
parameters [ { key: "intra_op_thread_count" value: { string_value: "1" } } ]
"""


SUM_GRAPH = """
<ir_version: 8, opset_import: ["": 17]>
sum (float[N] VALUES) => (float[1] SUM) { SUM = ReduceSum <keepdims = 1> (VALUES) }
"""

SUM_CONFIG = """
backend: "onnxruntime"
default_model_filename: "graph.onnx"
input [ { name: "VALUES" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "SUM" data_type: TYPE_FP32 dims: [ 1 ] } ]
instance_group [ { count: 2 kind: KIND_CPU } ]
"""


ROW_COUNT_GRAPH = """
<ir_version: 8, opset_import: ["": 17]>
row_count (float[N, 1] VALUES) => (int64[N, 1] ROWS, float[N, 1] SAME)
<int64[2] row = {1, 1}, int64[1] first = {0}, int64[1] second = {1}>
{
    shape = Shape (VALUES)
    count = Slice (shape, first, second)
    cell = Reshape (count, row)
    ROWS = Expand (cell, shape)
    SAME = Identity (VALUES)
}
"""

ROW_COUNT_CONFIG = """
backend: "onnxruntime"
default_model_filename: "graph.onnx"
max_batch_size: 64
input [ { name: "VALUES" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [
  { name: "ROWS" data_type: TYPE_INT64 dims: [ 1 ] },
  { name: "SAME" data_type: TYPE_FP32 dims: [ 1 ] }
]
instance_group [ { count: 1 kind: KIND_CPU } ]
parameters [ { key: "cpu_rows_per_run" value: { string_value: "4" } } ]
"""


def add_model(repository: Path, name: str, graph: str, config: str) -> None:
    """Add a model to a repository, from its graph in ONNX's text format and the text of its config.pbtxt."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(f'name: "{name}"\n{config}')
    onnx.save(onnx.parser.parse_model(graph), folder / "graph.onnx")


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpcclient.InferenceServerClient]:
    repository = tmp_path_factory.mktemp("small_models")
    add_model(repository, "table", TABLE_GRAPH, TABLE_CONFIG)
    add_model(repository, "sum", SUM_GRAPH, SUM_CONFIG)
    add_model(repository, "row_count", ROW_COUNT_GRAPH, ROW_COUNT_CONFIG)
    with LocalServer(repository) as server, grpcclient.InferenceServerClient(server.grpc_url) as connected:
        yield connected


def look_up(
    connection: grpcclient.InferenceServerClient, index: list[int], outputs: list[str]
) -> list[np.ndarray]:
    tensor = grpcclient.InferInput("INDEX", [len(index), 1], "INT64")
    tensor.set_data_from_numpy(np.array(index, dtype=np.int64)[:, None])
    requested = [grpcclient.InferRequestedOutput(name) for name in outputs]
    result = connection.infer("table", [tensor], outputs=requested)
    return [result.as_numpy(name) for name in outputs]


def test_reads_file_name_types_and_outputs(connection: grpcclient.InferenceServerClient):
    value, square = look_up(connection, [3, 0], ["VALUE", "SQUARE"])
    np.testing.assert_array_equal(value, [[4], [1]])
    np.testing.assert_array_equal(square, [[16], [1]])
    (alone,) = look_up(connection, [2], ["SQUARE"])
    np.testing.assert_array_equal(alone, [[9]])


def test_batches_requests_and_fails_only_invalid_ones(connection: grpcclient.InferenceServerClient):
    """Index 9 is outside the table. The run of the batch raises; only requests with this index may fail."""
    requests = [[0], [1, 2], [9], [3], [2, 2, 2], [0, 9], [1]]

    def send(index: list[int]) -> np.ndarray | str:
        try:
            return look_up(connection, index, ["VALUE"])[0]
        except InferenceServerException as error:
            return error.message()

    before = connection.get_inference_statistics("table").model_stats[0]
    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        responses = list(pool.map(send, requests))
    after = connection.get_inference_statistics("table").model_stats[0]
    assert after.execution_count - before.execution_count < len(requests)
    for index, response in zip(requests, responses, strict=True):
        if 9 in index:
            assert "9" in response
            assert "Gather" in response
        else:
            np.testing.assert_array_equal(response[:, 0], np.array(index) + 1)


def test_failed_batch_counts_as_failed(connection: grpcclient.InferenceServerClient):
    """Like the C++ backend, so that the liveness probe notices a model that fails every request."""

    def failed() -> int:
        return connection.get_inference_statistics("table").model_stats[0].inference_stats.fail.count

    before = failed()
    with pytest.raises(InferenceServerException, match="Gather"):
        look_up(connection, [9], ["VALUE"])
    assert failed() == before + 1
    look_up(connection, [1], ["VALUE"])
    assert failed() == before + 1


def test_model_without_batching_gets_one_request_per_run(connection: grpcclient.InferenceServerClient):
    """Requests have different shapes and run on two instances."""

    def sum_below(count: int) -> float:
        tensor = grpcclient.InferInput("VALUES", [count], "FP32")
        tensor.set_data_from_numpy(np.arange(count, dtype=np.float32))
        return connection.infer("sum", [tensor]).as_numpy("SUM").item()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(sum_below, range(1, 41)))
    assert sums == [count * (count - 1) / 2 for count in range(1, 41)]


@pytest.mark.parametrize(("count", "rows"), [(1, [1]), (4, [4] * 4), (10, [4] * 8 + [2] * 2)])
def test_cpu_rows_per_run_splits_large_batches(
    connection: grpcclient.InferenceServerClient, count: int, rows: list[int]
):
    values = np.arange(count, dtype=np.float32)[:, None]
    tensor = grpcclient.InferInput("VALUES", [count, 1], "FP32")
    result = connection.infer("row_count", [tensor.set_data_from_numpy(values)])
    assert result.as_numpy("ROWS")[:, 0].tolist() == rows
    np.testing.assert_array_equal(result.as_numpy("SAME"), values)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("TYPE_INT64", "TYPE_INT32"), r"'INDEX'.*tensor\(int64\).*TYPE_INT32"),
        (('"SQUARE"', '"CUBE"'), r"no output 'CUBE'.*SQUARE.*VALUE"),
        (('"graph.onnx"', '"other.onnx"'), r"no ONNX file for table.*make models"),
    ],
)
def test_load_fails_if_config_does_not_fit_model(tmp_path: Path, change: tuple[str, str], reason: str):
    add_model(tmp_path, "table", TABLE_GRAPH, TABLE_CONFIG)
    config = tmp_path / "table" / "config.pbtxt"
    config.write_text(config.read_text().replace(*change))
    with pytest.raises(ServerError, match=reason):
        LocalServer(tmp_path).__enter__()
