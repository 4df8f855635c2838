"""A writer without a store, and an HTTP server that says when it listens."""

import threading
from collections import Counter
from concurrent.futures import Future
from contextlib import contextmanager

import uvicorn

DEADLINE_S = 20


class FakeWriter:
    """Keeps what it is given; commits at once, or when told to, or never."""

    def __init__(self, *, held=False, refusal=None, failure=None):
        self.held, self.refusal, self.failure = held, refusal, failure
        self.appended = []
        self.futures = []
        self.arrived = threading.Semaphore(0)

    def append(self, batches):
        if self.refusal is not None:
            raise self.refusal
        future: Future[None] = Future()
        self.appended.append(dict(batches))
        self.futures.append(future)
        if not self.held:
            self.commit(future)
        self.arrived.release()
        return future

    def commit(self, future):
        if self.failure is not None:
            future.set_exception(self.failure)
        else:
            future.set_result(None)

    def wait_for(self, count):
        """Until `count` more requests have arrived."""
        for _ in range(count):
            assert self.arrived.acquire(timeout=DEADLINE_S), "no request arrived"

    def rows(self, table):
        return [row for batches in self.appended if table in batches for row in batches[table].to_pylist()]

    def errors(self):
        counts: Counter[str] = Counter()
        for row in self.rows("ingest_errors"):
            counts[row["reason"]] += row["count"]
        return dict(counts)


class _Server(uvicorn.Server):
    def __init__(self, config):
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets=None):
        await super().startup(sockets=sockets)
        self.listening.set()

    @property
    def port(self):
        return self.servers[0].sockets[0].getsockname()[1]


@contextmanager
def http_server(app):
    """The application on a port of its own; yields the port."""
    server = _Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.listening.wait(DEADLINE_S), "the HTTP server did not start"
        yield server.port
    finally:
        server.should_exit = True
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
