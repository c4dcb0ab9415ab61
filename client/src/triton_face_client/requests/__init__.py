"""The sans-I/O core: faces cut into requests, the state of a request, retries, answers."""
