"""A loopback NDIF: the server's side of nnsight's protocol for a few small models, with faults on demand.

It speaks what NDIF's API and model actors speak, as https://github.com/ndif-team/ndif documents it (docs/reference,
docs/concepts, docs/errors): `/subscribe`, `/request`, `/response/{id}`, `/env`; the statuses in their order; a result
on the socket or behind an address; errors as `{"detail": ...}` or as the job's own traceback. Envelopes, blocks and
results are read, run and written by nnsight's own classes. `/control` is for the tests: it sets faults, and tells what
was asked and answered.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import linecache
import sys
import traceback
import uuid
from contextlib import suppress
from importlib.metadata import packages_distributions, version

import torch
import zstandard
from nnsight import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from nnsight.tracing.globals import BLOCKS, SOURCES
from nnsight.tracing.tracer import _saves, dec, inc
from nnsight.tracing.util import clean_traceback, filter_traceback
from nnsight.util import to_import_path
from packaging.version import Version
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler

QUIET = {"queue": 0, "drop": [], "close": [], "fail": {}, "status": None, "minimum": None, "socket": 20 * 2**20}


class Ndif:
    """What the routes share: the models by their keys, open sockets, one queue, the faults, and the log of jobs."""

    def __init__(self, paths: list[str], api_key: str):
        task = {"revision": None, "task": "text-generation"}
        keys = {f"{to_import_path(TransformersModel)}:{json.dumps({'repo_id': path, **task})}": path for path in paths}
        self.paths, self.models, self.api_key = keys, {}, api_key
        self.sockets: dict[str, Subscribe] = {}
        self.responses: dict[str, str] = {}
        self.results: dict[str, bytes] = {}
        self.queue: asyncio.Queue = asyncio.Queue()
        self.faults, self.log = dict(QUIET), []

    def tell(self, job: dict, status: Status, description: str = "", data: object = None) -> None:
        """Send a status down the job's socket; for a job without one keep the latest for `/response`."""
        response = ResponseModel(id=job["id"], status=status, description=description, data=data)
        job["statuses"].append(status.value)
        if not job["session"]:
            self.responses[job["id"]] = response.model_dump_json()
        elif job["session"] in self.sockets:
            binary = isinstance(data, bytes)
            message = response.pickle() if binary else response.model_dump_json()
            with suppress(WebSocketClosedError):  # nobody listens any more: what is sent now is lost
                self.sockets[job["session"]].write_message(message, binary=binary)

    async def work(self) -> None:
        """Take jobs off the queue, one at a time."""
        while True:
            job, request, blob = await self.queue.get()
            try:
                await self.do(job, request, blob)
            except Exception:
                traceback.print_exc()
                self.tell(job, Status.ERROR, "Error starting model. Please try again later.")

    async def do(self, job: dict, request: RequestModel, blob: bytes) -> None:
        """Take one job through its statuses."""
        for position in range(self.faults["queue"], 0, -1):
            self.tell(job, Status.QUEUED, f"Moved to position {position} in Queue.")
            await asyncio.sleep(0.02)
        self.tell(job, Status.QUEUED, "Moved to position 0 in Queue.")
        if request.model_key not in self.models:
            self.tell(job, Status.PROVISIONING, "Model is being provisioned.")
            if request.model_key not in self.paths:
                self.tell(job, Status.ERROR, "Could not deploy this model. The cluster has no room for it.")
                return
            self.tell(job, Status.DEPLOYING, "Model is being deployed.")
            self.models[request.model_key] = await asyncio.to_thread(load, self.paths[request.model_key])
        model = self.models[request.model_key]
        self.tell(job, Status.DISPATCHED, "Your job has been sent to the model.")
        self.tell(job, Status.RUNNING, "Your job has started running.")
        socket = self.sockets.get(job["session"])
        if job["number"] in self.faults["drop"]:
            socket.ws_connection.stream.close()
        if job["number"] in self.faults["close"]:
            socket.close(1012, "service restart")
        planned = self.faults["fail"].get(str(job["number"]))
        try:
            model._remoteable_set_env(request.env)
            saved = await asyncio.to_thread(execute, model, blob, request.compress, planned)
        except Exception as error:
            self.tell(job, Status.ERROR, said(error))
            return
        with io.BytesIO() as file:
            torch.save(saved, file)
            result = file.getvalue()
        job["raw"] = len(result)
        result = zstandard.ZstdCompressor(level=3).compress(result) if request.compress else result
        job["sent"] = len(result)
        if job["session"] and len(result) <= self.faults["socket"]:
            self.tell(job, Status.COMPLETED, "Your job has been completed.", result)
        else:
            self.results[job["id"]] = result
            self.tell(job, Status.COMPLETED, "Your job has been completed.", f"{job['host']}/result/{job['id']}")


def load(path: str) -> TransformersModel:
    """Load a model with its weights, as a model actor does when it starts."""
    model = TransformersModel(path, task="text-generation", dispatch=True, dtype=torch.float32)
    model._module.requires_grad_(False)
    return model


def execute(model: TransformersModel, blob: bytes, compress: bool, planned: str | None) -> dict:
    """Rebuild a block from its source, run it beside the model, and return what it saved, by name."""
    sources, blocks, lines = dict(SOURCES), dict(BLOCKS), dict(linecache.cache)
    inc()
    try:
        tracer = RequestModel.deserialize(blob, model._remoteable_persistent_objects(), compress)
        if planned:
            raise RuntimeError(planned)
        tracer.execute(tracer.info.code)
        saves = _saves()
        return {name: value for name, value in tracer.info.frame.f_locals.items() if id(value) in saves}
    finally:
        dec()
        model.interleaver.cancel()
        for cache, before in ((SOURCES, sources), (BLOCKS, blocks), (linecache.cache, lines)):
            cache.clear()  # nnsight keys them by file and line and never looks again: the next job may differ
            cache.update(before)


def said(error: Exception) -> str:
    """Return the traceback that a user gets to see: without nnsight's frames and without this file's."""
    kept = filter_traceback(clean_traceback(error.__traceback__), lambda frame: frame.f_code.co_filename != __file__)
    return "".join(traceback.format_exception(type(error), error, kept))


class Handler(RequestHandler):
    """Answers errors as NDIF does, `{"detail": ...}`."""

    def initialize(self, ndif: Ndif) -> None:
        self.ndif = ndif

    def write_error(self, status_code: int, **named) -> None:
        error = named["exc_info"][1]
        self.finish({"detail": error.log_message if isinstance(error, HTTPError) else "Internal server error."})


def refuse(status: int, detail: str) -> None:
    raise HTTPError(status, detail)


class Request(Handler):
    """Takes a job in: version gate, API key, envelope and payload."""

    def post(self) -> None:
        ndif, headers = self.ndif, self.request.headers
        if ndif.faults["status"]:
            refuse(*ndif.faults["status"])
        minimum, have = ndif.faults["minimum"], headers.get("nnsight-version", "")
        if minimum and Version(have) < Version(minimum):
            refuse(
                400,
                f"Client nnsight version {have} is below the minimum supported {minimum}. Please "
                "`pip install --upgrade nnsight`.",
            )
        key = headers.get("ndif-api-key")
        if not key:
            refuse(401, "Missing or invalid API key. Please visit https://login.ndif.us/ to get one.")
        try:
            uuid.UUID(key)
        except ValueError:
            refuse(400, f"Invalid API key format: '{key}'. API keys must be in the format: xxxxxxxx-xxxx-....")
        if key != ndif.api_key:
            refuse(403, "Invalid API key.")
        request, blob = (
            RequestModel.model_validate_json(self.get_body_argument("data")),
            self.request.files["blob"][0]["body"],
        )
        job = {
            "id": uuid.uuid4().hex, "number": len(ndif.log) + 1, "session": request.session_id, "received": len(blob),
            "statuses": [], "host": f"{self.request.protocol}://{self.request.host}",
        }  # fmt: skip
        ndif.log.append(job)
        ndif.queue.put_nowait((job, request, blob))
        response = ResponseModel(id=job["id"], status=Status.RECEIVED, description="Your job has been received.")
        self.finish(response.model_dump_json())


class Subscribe(WebSocketHandler):
    """Opens a session: names it, then carries the statuses of the jobs that give its name."""

    def initialize(self, ndif: Ndif) -> None:
        self.ndif, self.name = ndif, uuid.uuid4().hex

    def open(self) -> None:
        self.ndif.sockets[self.name] = self
        self.write_message(json.dumps({"session_id": self.name}))

    def on_close(self) -> None:
        self.ndif.sockets.pop(self.name, None)


class Stored(Handler):
    """Gives out by id what was kept: the latest status of a job without a socket, or a result."""

    def initialize(self, ndif: Ndif, kept: str) -> None:
        self.ndif, self.kept = ndif, getattr(ndif, kept)

    def get(self, name: str) -> None:
        if name not in self.kept:
            refuse(404, "Not found.")
        self.finish(self.kept[name])


class Environment(Handler):
    """Says what Python and packages are here."""

    def get(self) -> None:
        packages = {name: version(found[0]) for name, found in packages_distributions().items()}
        self.finish({"python_version": sys.version, "packages": packages})


class Control(Handler):
    """For the tests: GET tells what jobs there were since the last POST, which sets the faults."""

    def get(self) -> None:
        self.finish({"jobs": self.ndif.log})

    def post(self) -> None:
        self.ndif.faults, self.ndif.log = {**QUIET, **json.loads(self.request.body)}, []
        self.finish({})


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--api-key", required=True)
    parser.add_argument("--model", action="append", required=True)
    arguments = parser.parse_args()
    ndif = Ndif(arguments.model, arguments.api_key)
    shared = {"ndif": ndif}
    application = Application([
        ("/request", Request, shared), ("/subscribe", Subscribe, shared), ("/env", Environment, shared),
        ("/response/(.*)", Stored, {**shared, "kept": "responses"}),
        ("/result/(.*)", Stored, {**shared, "kept": "results"}), ("/control", Control, shared),
    ])  # fmt: skip
    sockets = bind_sockets(0, "127.0.0.1")
    HTTPServer(application).add_sockets(sockets)
    print(sockets[0].getsockname()[1], flush=True)
    await ndif.work()


if __name__ == "__main__":
    asyncio.run(main())
