"""A collector of traces: real OTLP over HTTP and gRPC, kept for tests to look at."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc


@dataclass(kw_only=True)
class Collector:
    """What was told. Until `answers` is set, nobody gets an answer."""

    url: str = ""
    raw: list[bytes] = field(default_factory=list)
    answers: threading.Event = field(default_factory=threading.Event)

    def take(self, body):
        self.raw.append(body)
        self.answers.wait(30)

    @property
    def resources(self):
        """The resources of all that came, as dictionaries."""
        messages = [pb.ExportTraceServiceRequest.FromString(body) for body in self.raw]
        return [part.resource for message in messages for part in message.resource_spans]

    @property
    def spans(self):
        """All spans that came, in the order of their beginnings."""
        messages = [pb.ExportTraceServiceRequest.FromString(body) for body in self.raw]
        found = [
            read(span)
            for message in messages
            for part in message.resource_spans
            for scope in part.scope_spans
            for span in scope.spans
        ]
        return sorted(found, key=lambda span: span.began_ns)

    def named(self, name):
        return [span for span in self.spans if span.name == name]

    def wait_for(self, name):
        """The first span of that name, once it came."""
        until = time.monotonic() + 20
        while not (found := self.named(name)):
            assert time.monotonic() < until, f"no span {name}; {[s.name for s in self.spans]}"
            time.sleep(0.02)
        return found[0]

    def tree(self, parent=""):
        """Names below a span, each with its own, in the order of their beginnings."""
        return [(span.name, self.tree(span.id)) for span in self.spans if span.parent == parent]


def read(span):
    return SimpleNamespace(
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        kind=span.kind,
        began_ns=span.start_time_unix_nano,
        took_s=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        is_failed=span.status.code == 2,
        values=values(span.attributes),
    )


def values(attributes):
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@contextmanager
def collecting(*, answers=True):
    """Collect over HTTP."""
    collector = Collector()
    if answers:
        collector.answers.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/traces"
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_): ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield collector
    finally:
        collector.answers.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def collecting_by_grpc(*, answers=True):
    """Collect over gRPC."""
    collector = Collector()
    if answers:
        collector.answers.set()

    class Service(pb_grpc.TraceServiceServicer):
        def Export(self, request, context):
            collector.take(request.SerializeToString())
            return pb.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    pb_grpc.add_TraceServiceServicer_to_server(Service(), server)
    collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        collector.answers.set()
        server.stop(0).wait()
