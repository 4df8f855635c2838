"""gRPC: a thin shell each for clients and servers, synchronous and `grpc.aio`; what they share is in `outgoing`, `incoming`.

Nothing here imports grpc until a shell is activated.
"""
