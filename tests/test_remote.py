"""Remote jobs, against a loopback NDIF: a process of its own, without austeer, that speaks nnsight's protocol.

What comes back equals what the same weights give here; what travels is counted and measured at the server; and each way
of failing ends in one sentence, without the API key, with the finished parts kept.
"""

from __future__ import annotations

import io
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from cloudpickle import CloudPickler
from ndif.loopback import Loopback, make_environment
from nnsight.modeling import huggingface
from nnsight.schema.config import CONFIG
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel
from torch import Tensor
from transformers import LogitsProcessorList

import austeer as au
from austeer import diagnostics, generation, models, momentum, remote, scoring
from austeer.benchmarks import Item
from austeer.data import ContrastivePair
from austeer.models import encode, info
from austeer.sites import Place, weight
from austeer.steering import Operator, apply
from austeer.tasks import Task

OPENINGS = [
    "When I opened the letter",
    "The soup",
    "On the way home from work we",
    "Two birds and",
    "My neighbour said",
]
ANSWERS = [" was warm and bright", " tasted of nothing", " saw it", " one", " that all is well"]
PAIRS = [
    ContrastivePair(
        f"{opening} {number}", " was wonderful", f" was awful and cold{' too' * (number % 3)}", f"t{number % 5}"
    )
    for number, opening in enumerate(OPENINGS * 5)
]
TASK = Task("by hand", "choice", [Item("The sky is", (" blue",), (" seven", " a"), "g")] * 2, "here", "No split.")


@pytest.fixture(scope="module")
def weights(plain: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the tiny Llama, as both sides load it."""
    directory = tmp_path_factory.mktemp("weights")
    plain("llama").save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def ndif(weights: Path, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """The server, with the tiny model and the default one, as nnsight's configured host."""
    where = tmp_path_factory.mktemp("ndif")
    default = models._default_weights()
    server = Loopback(make_environment(where / "environment"), [weights, default], where / "stderr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CONFIG.API, "HOST", server.host)
        patch.setattr(CONFIG.API, "APIKEY", server.api_key)
        patch.setattr(remote, "PAUSES", (0, 0))
        patch.setenv("NO_PROXY", "127.0.0.1")
        for path in (weights, default):  # the one thing that nnsight asks the hub for: a model's canonical name
            patch.setitem(huggingface._ID_CACHE, str(path), str(path))
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def healthy(ndif: Loopback) -> Loopback:
    ndif.faults()
    remote._kept.clear()
    return ndif


@pytest.fixture(scope="module")
def here(weights: Path) -> Any:
    return au.load(weights)


@pytest.fixture(scope="module")
def there(weights: Path, ndif: Loopback) -> Any:
    return au.load(weights, remote=True)


@pytest.fixture(scope="module")
def rehearsed(weights: Path) -> Any:
    return au.load(weights, remote="local")


@pytest.fixture(scope="module")
def steer(here: Any) -> Callable[[Any], au.Steering]:
    """Gives the same steering for any of the three models."""
    found = au.methods.DirectionalAUSteer(au.activation_momentum(here, PAIRS).top(12), 20.0)
    return lambda model: au.Steering(found.operators, info(model), found.about)


def momentum_tensors(model: Any) -> dict[str, Tensor]:
    found = au.activation_momentum(model, PAIRS)
    return {name: getattr(found, name) for name in ("higher", "lower", "total", "squares", "pairs")}


def text_scores(model: Any, steering: Any) -> dict[str, Any]:
    log_p, first = scoring.log_probability_and_first(model, ANSWERS, OPENINGS, steering)
    return {
        "perplexity": au.perplexity(model, ANSWERS, OPENINGS),
        "steered": au.perplexity(model, OPENINGS, None, steering),
        "log p": log_p,
        "first": first,
        "kl": au.kl(model, OPENINGS, steering),
    }


def tensors_of(steering: au.Steering) -> dict[str, Tensor]:
    return dict(steering.operators[0].tensors)


def evaluated(model: Any, steering: Any) -> dict[str, Tensor]:
    report = au.evaluate(model, TASK, steering)
    prices = {name: value for name, value in report.price.items() if name != "time"}
    return {**report.scores, "price": torch.tensor(list(prices.values()))}


JOBS: dict[str, Callable[[Any, Any], Any]] = {
    "collect": lambda model, _: dict(zip("+-", au.collect(model, PAIRS[:7], "neuron"), strict=True)),
    "momentum": lambda model, _: momentum_tensors(model),
    "generate": lambda model, steering: au.generate(
        model, OPENINGS, [steering, None, -steering, None, steering * 2], max_new_tokens=6, min_new_tokens=6,
        repetition_penalty=1.3, rows_per_pass=2,
    ),
    "audit": lambda model, steering: repr(au.audit(model, steering, OPENINGS[0], max_new_tokens=3)),
    "scores": text_scores,
    "caa": lambda model, _: tensors_of(au.methods.CAA.fit(model, PAIRS, layer=1)),
    "iti": lambda model, _: tensors_of(au.methods.ITI.fit(model, PAIRS, heads=3)),
    "sadi": lambda model, _: tensors_of(au.methods.SADI(model, au.activation_momentum(model, PAIRS), 3, 0.5)),
    "evaluate": evaluated,
}  # fmt: skip


def assert_alike(one: Any, other: Any) -> None:
    """Texts, counts and positions exactly, other numbers to rounding: sums come back as float32."""
    if not isinstance(one, dict):
        assert one == other
        return
    for name, value in one.items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), other[name].double(), rtol=1e-4, atol=1e-5, equal_nan=True), name
        else:
            assert torch.equal(value, other[name]), name


@pytest.fixture(scope="module")
def expected(here: Any, steer: Any) -> Callable[[str], Any]:
    made = {}

    def give(job: str) -> Any:
        if job not in made:
            made[job] = JOBS[job](here, steer(here))
        return made[job]

    return give


@pytest.mark.parametrize("job", JOBS)
def test_a_job_gives_there_what_it_gives_here(
    job: str, expected: Any, healthy: Loopback, there: Any, steer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AUSTEER_DATA", raising=False)
    assert_alike(expected(job), JOBS[job](there, steer(there)))
    assert all(done["statuses"][-1] == "COMPLETED" for done in healthy.jobs())
    assert not remote._kept


@pytest.mark.parametrize("job", ["collect", "momentum", "generate", "audit", "scores"])
def test_a_rehearsal_gives_what_the_job_gives(job: str, expected: Any, rehearsed: Any, steer: Any) -> None:
    assert_alike(expected(job), JOBS[job](rehearsed, steer(rehearsed)))


def test_the_default_model_gives_there_what_it_gives_here(healthy: Loopback, model: Any) -> None:
    there = au.load(models._default_weights(), remote=True, bos=False)
    pairs = au.split(au.load_pairs("sentiment")).train[::24]
    ours, theirs = (au.activation_momentum(one, pairs) for one in (model, there))
    assert (ours.beta != theirs.beta).float().mean() < 0.001  # other batches, other rounding: a few x+ - x- near 0
    joy = au.methods.DirectionalAUSteer(ours.top(20), 12.0)
    said = au.generate(model, OPENINGS[:1], joy, max_new_tokens=8)
    joy = au.Steering(joy.operators, info(there), joy.about)
    assert said == au.generate(there, OPENINGS[:1], joy, max_new_tokens=8)
    assert healthy.jobs()[0]["statuses"][1:3] == ["PROVISIONING", "DEPLOYING"]


# What is where, and what travels.


def test_the_server_has_what_ndif_has_and_not_what_we_have(ndif: Loopback) -> None:
    packages = set(httpx.get(f"{ndif.host}/env", trust_env=False).json()["packages"])
    assert {"torch", "numpy", "transformers", "accelerate", "nnsight"} <= packages
    assert not {"austeer", "scipy", "sklearn", "torchdiffeq", "vaderSentiment", "matplotlib"} & packages


def test_500_pairs_are_one_request_and_counts_come_back_not_activations(healthy: Loopback, there: Any) -> None:
    found = au.activation_momentum(there, PAIRS * 20)
    (job,) = healthy.jobs()
    layers, width = found.higher.shape[1:]
    assert int(found.pairs.sum()) == 500
    assert job["raw"] < 16 * len(found.pairs) * layers * width + 5_000
    assert job["raw"] < 500 * 2 * layers * width * 4 / 10  # what the activations would take
    assert job["received"] < 100_000


def test_requests_are_bounded_in_passes_and_in_what_comes_back(
    healthy: Loopback, here: Any, there: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = au.activation_momentum(here, PAIRS)
    layers, width = expected.higher.shape[1:]
    monkeypatch.setattr(momentum, "BYTES_PER_REQUEST", 16 * layers * width * 2)  # two groups of the five
    found = au.activation_momentum(there, PAIRS)
    assert torch.equal(found.higher, expected.higher)
    assert [job["raw"] < 16 * 2 * layers * width + 5_000 for job in healthy.jobs()] == [True] * 3

    healthy.faults()
    monkeypatch.setattr(momentum, "PASSES_PER_REQUEST", 2)
    monkeypatch.setattr(momentum, "BYTES_PER_REQUEST", 2**26)
    found = au.activation_momentum(there, [*PAIRS, ContrastivePair("One", " more", " less", "")], tokens_per_pass=100)
    sides = [(pair.prompt + pair.positive, pair.prompt + pair.negative) for pair in PAIRS]
    tokens = sum(max(16, 2 * max(len(models.token_ids(here, side)) for side in both)) for both in sides)
    assert tokens / 200 <= len(healthy.jobs()) <= 2 * tokens / 200
    assert torch.equal(found.higher[:5], expected.higher)

    healthy.faults()
    monkeypatch.setattr(remote, "BYTES_PER_REQUEST", 5 * layers * width * 4)
    au.collect(there, OPENINGS * 3, tokens_per_pass=20)
    assert len(healthy.jobs()) == -(-len(OPENINGS * 3) // 5)
    assert all(job["raw"] < 5 * layers * width * 4 + 5_000 for job in healthy.jobs())


def test_a_scored_or_generated_job_is_one_request(healthy: Loopback, there: Any, steer: Any) -> None:
    au.perplexity(there, OPENINGS * 3, tokens_per_pass=30)
    au.generate(there, OPENINGS, steer(there), max_new_tokens=3, rows_per_pass=2)
    au.kl(there, OPENINGS, steer(there))
    au.audit(there, steer(there), OPENINGS[0], max_new_tokens=2)
    jobs = healthy.jobs()
    assert len(jobs) == 4
    assert all(job["raw"] < 10_000 for job in jobs)


class Sent:
    """Stands in for nnsight's backend, and keeps what would be sent."""

    def __call__(self, tracer: Any) -> None:
        self.payload = RequestModel.serialize(tracer)


@pytest.fixture
def sent(there: Any, monkeypatch: pytest.MonkeyPatch) -> Sent:
    sent = Sent()
    monkeypatch.setattr(type(there), "_remote_backend", lambda *_: sent)
    return sent


def test_what_runs_there_travels_as_source(
    sent: Sent, there: Any, steer: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_bytecode: set[Callable] = set()
    reduce = CloudPickler._dynamic_function_reduce
    monkeypatch.setattr(
        CloudPickler,
        "_dynamic_function_reduce",
        lambda self, function: as_bytecode.add(function) or reduce(self, function),
    )
    batch = encode(there, OPENINGS[:2])
    penalty = generation._PenaltyBlindToPadding(1.3, batch["attention_mask"])
    options = {"max_new_tokens": 2, "logits_processor": LogitsProcessorList([penalty])}
    for job, bundle, *shared in (
        (momentum._statistics, [([0], batch, torch.tensor([0]))], "ffn", torch.float32),
        (generation._continue, [([0], batch, [(slice(None), steer(there).operators)], options)]),
        (generation._watch, [batch], steer(there).operators, steer(there).operators[0].writes(), options),
        (scoring._divergence, [([0], batch)], steer(there).operators),
    ):
        with pytest.raises(UnboundLocalError):  # since nothing came back
            remote._request(there, job, bundle, shared, 0)
        assert job.__name__.encode() in sent.payload
    # Bytecode of one Python does not run on another. The methods that dataclass wrote for ModelInfo, which the model
    # has with it, are all that is left; nothing calls them there.
    theirs = [one for one in vars(models.ModelInfo).values() if callable(one)]
    assert as_bytecode <= {*theirs, *(getattr(one, "__wrapped__", one) for one in theirs)}


def test_no_operator_needs_what_does_not_travel() -> None:
    def kinds(kind: type) -> Iterator[type]:
        for one in kind.__subclasses__():
            yield one
            yield from kinds(one)

    for kind in {*kinds(Operator)}:
        if kind.__module__.startswith("austeer."):
            for name, method in vars(kind).items():
                code = getattr(method, "__code__", None)
                assert code is None or not code.co_freevars, f"{kind.__name__}.{name} uses {code.co_freevars}"


# Routes of the protocol.


def test_a_large_result_is_downloaded(healthy: Loopback, there: Any, expected: Any) -> None:
    healthy.faults(socket=0)
    assert_alike(expected("momentum"), momentum_tensors(there))


def test_a_trace_of_ones_own_may_be_submitted_and_polled(healthy: Loopback, there: Any, here: Any, steer: Any) -> None:
    operators, batch = steer(there).operators, encode(there, OPENINGS[:1])
    with there.trace(remote=True, blocking=False) as tracer:
        with tracer.invoke(batch):
            apply(there, tracer, [(slice(None), operators)])
        with tracer.invoke():
            logits = there.output.logits[:, -1].save()
    backend = tracer.backend
    while (found := backend()) is None:
        pass
    with torch.no_grad(), here.trace() as tracer:
        with tracer.invoke(batch):
            apply(here, tracer, [(slice(None), operators)])
        with tracer.invoke():
            logits = here.output.logits[:, -1].save()
    assert torch.allclose(found["logits"], logits, atol=1e-5)


def test_a_queue_is_waited_in_and_shown(healthy: Loopback, there: Any, capsys: pytest.CaptureFixture) -> None:
    healthy.faults(queue=3)
    au.perplexity(there, OPENINGS[:2])
    assert healthy.jobs()[0]["statuses"][:4] == ["QUEUED"] * 4
    assert "Moved to position 2 in Queue" in capsys.readouterr().out


# Failures.


def fails(there: Any, error: type[Exception], match: str) -> str:
    """Let a job fail; return its message, which must be one sentence and have no other error behind it."""
    with pytest.raises(error, match=match) as caught:
        au.perplexity(there, OPENINGS[:2])
    message = str(caught.value)
    assert message.endswith(".") and ". " not in message and "\n" not in message
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    return message


def test_a_server_error_is_its_last_line(healthy: Loopback, there: Any) -> None:
    healthy.faults(fail={"1": "CUDA out of memory. Tried to allocate 2 GiB."})
    message = fails(there, OSError, "The job failed on NDIF")
    assert "RuntimeError: CUDA out of memory; Tried to allocate 2 GiB)" in message


def test_a_crash_and_a_server_that_is_not_ready_are_told(healthy: Loopback, there: Any) -> None:
    healthy.faults(status=[500, "Internal server error."])
    fails(there, OSError, r"NDIF refused the job \(Internal server error\)")
    healthy.faults(status=[503, "Service temporarily unavailable: compute backend is reconnecting."])
    fails(there, OSError, "compute backend is reconnecting")


def test_a_wrong_key_is_told_without_the_key(healthy: Loopback, there: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, said in (
        (None, "Missing or invalid"),
        ("not-a-uuid-1234", "format: '<the key>'"),
        ("0" * 32, "Invalid API"),
    ):
        monkeypatch.setattr(CONFIG.API, "APIKEY", key)
        message = fails(there, PermissionError, "did not accept the API key.*set NDIF_API_KEY before Python starts")
        assert said in message
        assert key is None or key not in message


def test_a_model_that_is_not_deployed_is_told(
    healthy: Loopback, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").symlink_to(weights)
    monkeypatch.setitem(huggingface._ID_CACHE, str(tmp_path / "other"), "some/model")
    fails(au.load(tmp_path / "other", remote=True), OSError, "does not run this model.*no room.*nnsight.status")


def test_a_version_that_the_server_does_not_take_is_told(healthy: Loopback, there: Any) -> None:
    healthy.faults(minimum="99.0")
    fails(there, OSError, "Client nnsight version 0.8.* is below the minimum supported 99.0; Please `pip install")


def test_an_answer_of_a_newer_protocol_is_told(there: Any) -> None:
    with pytest.raises(ValueError) as unknown:
        ResponseModel(id="1", status="THROTTLED")
    assert "update nnsight" in str(remote._failure(unknown.value))


def test_no_server_at_all_is_told(there: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONFIG.API, "HOST", "http://127.0.0.1:9")
    fails(there, ConnectionError, "NDIF at http://127.0.0.1:9 was lost or could not be made .*refused")


@pytest.mark.parametrize("how", ["drop", "close"])
def test_a_connection_lost_once_is_made_again_and_nothing_is_done_twice(
    how: str, healthy: Loopback, there: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(momentum, "PASSES_PER_REQUEST", 1)
    monkeypatch.setattr(momentum, "TOKENS_PER_PASS", 100)
    healthy.faults(**{how: [2]})
    found = au.activation_momentum(there, PAIRS, tokens_per_pass=150)
    assert torch.equal(found.higher, expected("momentum")["higher"])
    again = len(healthy.jobs())
    healthy.faults()
    au.activation_momentum(there, PAIRS, tokens_per_pass=150)
    assert again == len(healthy.jobs()) + 1


@pytest.mark.parametrize("fault", [{"drop": [3, 4, 5]}, {"fail": {"3": "out of memory"}}])
def test_a_job_that_broke_goes_on_with_the_part_that_is_missing(
    fault: dict, healthy: Loopback, there: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(momentum, "PASSES_PER_REQUEST", 1)
    healthy.faults()
    au.activation_momentum(there, PAIRS, tokens_per_pass=150)
    parts = len(healthy.jobs())
    healthy.faults(**fault)
    with pytest.raises(
        OSError, match=r"; what came back before \(2 of its requests\) is kept, and the same call goes on from"
    ):
        au.activation_momentum(there, PAIRS, tokens_per_pass=150)
    healthy.faults()
    au.perplexity(there, OPENINGS[:1])  # another job in between takes nothing away
    healthy.faults()
    found = au.activation_momentum(there, PAIRS, tokens_per_pass=150)
    assert len(healthy.jobs()) == parts - 2
    assert torch.equal(found.higher, expected("momentum")["higher"])
    assert not remote._kept


def test_an_interrupted_job_goes_on_too(healthy: Loopback, there: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PASSES_PER_REQUEST", 1)

    def stop(rows: list[int], activations: Tensor) -> None:
        seen.extend(rows)
        if len(healthy.jobs()) == 2:
            raise KeyboardInterrupt

    au.collect(there, OPENINGS, tokens_per_pass=10)
    parts, seen = len(healthy.jobs()), []
    healthy.faults()
    with pytest.raises(KeyboardInterrupt):
        au.collect(there, OPENINGS, into=stop, tokens_per_pass=10)
    healthy.faults()
    seen.clear()
    au.collect(there, OPENINGS, into=lambda rows, _: seen.extend(rows), tokens_per_pass=10)
    assert sorted(seen) == list(range(5))
    assert len(healthy.jobs()) == parts - 2 > 0


def test_another_question_does_not_take_up_what_was_kept(healthy: Loopback, there: Any, here: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "PASSES_PER_REQUEST", 1)
        healthy.faults(fail={"2": "no"})
        with pytest.raises(OSError, match=r"\(1 of its requests\)"):
            au.perplexity(there, OPENINGS, tokens_per_pass=10)
    assert_alike({"": au.perplexity(here, ANSWERS)}, {"": au.perplexity(there, ANSWERS)})


# The API key.


def test_the_key_is_in_no_output_no_error_no_log_and_no_file(
    healthy: Loopback, there: Any, steer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    heard, written, sent = io.StringIO(), [], Sent()
    listener = logging.StreamHandler(heard)
    root = logging.getLogger()
    monkeypatch.setattr(root, "level", logging.DEBUG)
    root.addHandler(listener)
    monkeypatch.setattr(CONFIG.APP, "DEBUG", True)
    try:
        for key in (healthy.api_key, "canary-8d1f6a"):
            monkeypatch.setattr(CONFIG.API, "APIKEY", key)
            for faults in ({}, {"fail": {"1": f"a job that echoes {key}"}}, {"drop": [1, 2, 3]}, {"minimum": "99"}):
                healthy.faults(**faults)
                try:
                    written.append(repr(au.generate(there, OPENINGS[:1], steer(there), max_new_tokens=2)))
                except OSError as error:
                    written += traceback.format_exception(error)
            healthy.faults()
            steer(there).save(tmp_path / "joy.safetensors")
            units = au.activation_momentum(there, PAIRS[:4]) if key == healthy.api_key else None
            written += [
                repr(there),
                repr(info(there)),
                repr(steer(there)),
                repr(units),
                models.describe_run(remote=True),
            ]
            with monkeypatch.context() as patch, pytest.raises(UnboundLocalError):
                patch.setattr(type(there), "_remote_backend", lambda *_: sent)
                remote._request(there, scoring._divergence, [([0], encode(there, ["a", "a"]))], ((),), 0)
            everything = "".join([*written, heard.getvalue(), *capfd.readouterr()])
            assert len(everything) > 1000
            assert key not in everything
            assert key.encode() not in (tmp_path / "joy.safetensors").read_bytes() + sent.payload
    finally:
        root.removeHandler(listener)


# What needs the weights says so.


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (lambda model, steering: au.bake(model, steering), "weights of a remote model are not here; bake on a machine"),
        (lambda model, steering: au.steered(model, steering).__enter__(), "use au.generate"),
        (lambda model, _: diagnostics.logit_contributions(model, "a b", " a"), "use a local one to split a logit"),
        (lambda model, _: diagnostics.written_logits(model, Place(0, "attention")), "use a local one to look at what"),
        (lambda model, _: diagnostics.unembed(model, torch.ones(1, 32)), "use a local one to turn vectors into logits"),
        (lambda model, _: weight(model, Place(0, "neuron")), "weights of a remote model are not here"),
        (
            lambda model, _: diagnostics.sweep(model, ["a b"], Place(0, "attention"), torch.ones(1, 32)),
            "keeps a prompt's cache between passes and works on local models",
        ),
    ],
)
def test_what_needs_the_weights_refuses(job: Callable, reason: str, there: Any, steer: Any) -> None:
    with pytest.raises(ValueError, match=reason):
        job(there, steer(there))
