"""Where a job runs: here, in batches that fit, or on NDIF in bounded requests; what broke goes on where it stopped."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx
import torch
from nnsight import save
from nnsight.intervention.backends.remote import RemoteError
from nnsight.intervention.serialization import CustomCloudPickler
from nnsight.schema.config import CONFIG
from pydantic import ValidationError
from websocket import WebSocketException

from austeer.models import info

PASSES_PER_REQUEST = 32  # bounds how long a request keeps others waiting, and what a broken one loses
BYTES_PER_REQUEST = 2**26  # bounds what comes back
PAUSES = (1, 5)  # seconds before a request whose connection was lost is sent again

_kept: dict[str, Any] = {}  # what came back of the last job that broke, by what was asked


def bundles(model, batches: Iterable, size: Callable[[Any], int] = lambda batch: 0) -> Iterator[list]:
    """Group batches into what one call of a job takes: one batch here; on a remote model as many as a request may hold.

    Args:
        model: a model from `load()`.
        batches: one for each forward pass or generation.
        size: how many bytes come back for a batch.
    """
    bundle, held = [], 0
    for batch in batches:
        full = not info(model).remote or len(bundle) == PASSES_PER_REQUEST or held + size(batch) > BYTES_PER_REQUEST
        if bundle and full:
            yield bundle
            bundle, held = [], 0
        bundle.append(batch)
        held += size(batch)
    if bundle:
        yield bundle


def run(
    model, job: Callable, bundles: Iterable[list], *shared, again: Callable[[list], tuple] | None = None
) -> Iterator[tuple[list, Any]]:
    """Yield `(bundle, job(model, bundle, *shared))` for every bundle; on a remote model each is one request.

    Here, where a bundle is one batch, a batch for which the memory is too small is halved until it fits, and so are
    all later ones; a warning says once which size that is.

    The job opens its traces itself, and returns tensors on the CPU. On NDIF it runs beside the model, where there is
    torch but no austeer: it arrives as source, with what it names.

    What came back is kept until the last bundle is done. If the job breaks, or is interrupted, the same call goes on
    with the first bundle that is missing.

    Args:
        model: a model from `load()`.
        job: called with the model, a bundle, and `shared`.
        bundles: lists of batches; a batch is a tuple that begins with the numbers of its rows.
        shared: what every call is given.
        again: makes the batch of some rows; without it no batch is halved.

    Raises:
        torch.OutOfMemoryError: one row alone does not fit.
        PermissionError: NDIF did not accept the API key.
        ConnectionError: NDIF cannot be reached, or the connection was lost more often than a request is repeated.
        OSError: NDIF refused the job or failed at it; the message gives its reason.
    """
    if not info(model).remote:
        yield from _halving(model, job, bundles, shared, again)
        return
    done: dict[str, Any] = {}
    try:
        for bundle in bundles:
            asked = _digest((info(model), job, bundle, shared))
            done[asked] = _kept[asked] if asked in _kept else _request(model, job, bundle, shared, len(done))
            yield bundle, done[asked]
    except BaseException:  # an interrupt, too, and an error of whoever takes the results
        if done:
            _kept.clear()
            _kept.update(done)
        raise
    for asked in done:
        _kept.pop(asked, None)


def _halving(
    model, job: Callable, bundles: Iterable[list], shared: tuple, again: Callable[[list], tuple] | None
) -> Iterator[tuple[list, Any]]:
    """Run bundles of one batch each here, in as many parts as the memory asks for."""
    parts, told = 1, False
    for bundle in bundles:
        rows = bundle[0][0] if again else [None]
        start, size = 0, -(-len(rows) // parts)
        while start < len(rows):
            if parts > 1:
                bundle = [again(rows[start : start + size])]
            try:
                result = job(model, bundle, *shared)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                result, parts, size = None, 2 * parts, -(-size // 2)
            if result is None:  # out of the handler, whose error keeps what filled the memory
                gc.collect()
                continue
            if parts > 1 and not told:
                told = True
                warnings.warn(
                    f"The memory is too small for {len(rows)} rows in one pass; the job goes on with {size}. "
                    "A smaller tokens_per_pass or rows_per_pass starts there.",
                    stacklevel=3,
                )
            gc.collect(1)  # a pass that was stopped early leaves cycles, which hold all of its tensors
            yield bundle, result
            result, start = None, start + size


class _ByValue(CustomCloudPickler):
    """Pickles equal tensors to equal bytes; torch's own pickles hold addresses in memory."""

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor):
            return str(obj.dtype), tuple(obj.shape), obj.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
        return super().persistent_id(obj)


def _digest(question: tuple) -> str:
    with io.BytesIO() as file:
        _ByValue(file).dump(question)
        return hashlib.sha256(file.getvalue()).hexdigest()


def _request(model, job: Callable, bundle: list, shared: tuple, finished: int) -> Any:
    """Run a job as one request, again after a pause where the connection was lost; raise one sentence if it fails."""
    for pause in (*PAUSES, None):
        try:
            with model.session(remote=info(model).remote):
                result = save(job(model, bundle, *shared))
            return result
        except (RemoteError, WebSocketException, httpx.HTTPError, OSError, ValidationError, json.JSONDecodeError) as e:
            failure = _failure(e)
        if pause is None or not isinstance(failure, ConnectionError):
            break
        time.sleep(pause)
    # Outside of the handler: what NDIF says of a key quotes it, and must not be printed as the cause of this error.
    kept = f"; what came back before ({finished} of its requests) is kept, and the same call goes on from there"
    raise type(failure)(f"{failure}{kept if finished else ''}.")


def _failure(error: Exception) -> OSError:
    """Say in one clause, without the API key, what an error of nnsight's means and what to do."""
    said, answer = _clause(str(error)), getattr(error.__cause__, "response", None)
    if isinstance(error, RemoteError) and not isinstance(error.__cause__, httpx.TransportError):
        said = said.removeprefix("Failed to send request: ")
        if answer is not None and (answer.status_code in (401, 403) or "API key" in said):
            return PermissionError(
                f"NDIF did not accept the API key ({said}): set NDIF_API_KEY before Python starts, or run "
                "`nnsight login` once"
            )
        if answer is not None:
            return OSError(f"NDIF refused the job ({said})")
        if re.search(r"(deploy|provision|start)(ing)? (this )?model", said):
            return OSError(f"NDIF does not run this model ({said}); `nnsight.status()` lists those that it runs")
        return OSError(f"The job failed on NDIF ({said})")
    if isinstance(error, (ValidationError, json.JSONDecodeError)):
        if isinstance(error, ValidationError) and error.errors()[0]["type"] != "json_invalid":
            return OSError("NDIF gave an answer that this version of nnsight does not know; update nnsight")
        said = "the server closed it"  # nnsight read the end of the connection as an empty message
    if isinstance(error, httpx.HTTPStatusError):
        said = f"HTTP {error.response.status_code} for the result"  # its own text quotes a signed address
    return ConnectionError(f"The connection to NDIF at {CONFIG.API.HOST} was lost or could not be made ({said})")


def _clause(text: str) -> str:
    """Return the last line of a text, such as a traceback, as part of a sentence; the API key is taken out."""
    if CONFIG.API.APIKEY:
        text = text.replace(CONFIG.API.APIKEY, "<the key>")
    line = (text.strip().splitlines() or ["no reason was given"])[-1]
    return line.split(" -+-+- ")[0].strip().rstrip(".").replace(". ", "; ")
