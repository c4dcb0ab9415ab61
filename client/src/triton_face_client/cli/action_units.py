"""Action units in the commands: only servers with an AU checkpoint compute them."""

from triton_face_client.client import FaceFeatureClient
from triton_face_client.errors import NOT_FOUND, ServiceUnavailableError


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
