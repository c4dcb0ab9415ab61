"""The client's logic without I/O: batches of faces, the state machine of a request, retries, answers."""
