"""gRPC: one thin shell for the client side, one for the server side. Nothing here imports grpc until it is activated."""

from provenance.patching import Patch


def patches() -> tuple[Patch, ...]:
    """Both sides' patches, not yet applied; imports grpc.

    Raises:
        ImportError: grpc is not installed, or not as this code knows it.
    """
    from provenance.grpc.client import client_patches
    from provenance.grpc.server import server_patches

    return client_patches() + server_patches()
