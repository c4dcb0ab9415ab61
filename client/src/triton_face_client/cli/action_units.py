"""Action units in the commands: only servers with an AU checkpoint compute them."""

import contextlib
from collections.abc import Iterable

from tritonclient.utils import InferenceServerException

from triton_face_client.client import FaceFeatureClient
from triton_face_client.errors import NOT_FOUND, FaceServiceError, ServiceUnavailableError
from triton_face_client.requests.model_config import ACTION_UNIT_MODELS

WEIGHTS_PARAMETER = "weights_sha256"


def served_action_units(client: FaceFeatureClient) -> tuple[str, ...]:
    """Return the names of the server's action units; an empty tuple if the server computes none.

    Raises
    ------
    FaceServiceError
        If the server does not respond.
    """
    try:
        return client.action_unit_names()
    except ServiceUnavailableError as error:
        if error.status() != NOT_FOUND:
            raise
        return ()


def served_checkpoint(client: FaceFeatureClient) -> str:
    """Return the SHA-256 of the AU checkpoint that the server uses now; an empty text if it does not tell.

    Raises
    ------
    FaceServiceError
        If the server does not respond or computes no action units.
    """
    model = ACTION_UNIT_MODELS[0]
    try:
        response = client.connection.get_model_config(
            model, headers=client.headers, client_timeout=client.timeout
        )
    except InferenceServerException as error:
        raise client.config_error(error, model) from None
    return str(response.config.parameters[WEIGHTS_PARAMETER].string_value)


def check_checkpoints(servers: Iterable[FaceFeatureClient], expected: str) -> None:
    """Raise a FaceServiceError if a server uses another AU checkpoint; skip unreachable servers.

    Parameters
    ----------
    servers : iterable of FaceFeatureClient
        A client of each server.
    expected : str
        SHA-256 of the checkpoint.
    """
    for server in servers:
        with contextlib.suppress(ServiceUnavailableError):
            found = served_checkpoint(server)
            if found != expected:
                raise FaceServiceError(
                    f"the server at {server.target} has the AU checkpoint {found[:12]}, but this run began "
                    f"with {expected[:12]}: serve the same checkpoint again and repeat the command, or add "
                    "--restart",
                )
