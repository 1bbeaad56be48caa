"""Do the tests bite? Change one thing in momentum, steering or sites, and see whether a fast part of the tests fails.

    python bench/mutants.py --minutes 9        # goes on where it stopped; prints the share killed and the survivors

Each mutant is a copy of the package with one node of its syntax tree changed, and runs in a forked process that finds
PyTorch, transformers and nnsight imported already. In place of the default model there is a random one of three layers,
so tests of the default model are left out. A mutant on which the tests never end counts as killed.

Of the 160 drawn (of 558), 139 were killed. The 21 that survived, and why:

- No test can tell them apart. A sort that is not stable keeps ties in order on the CPU all the same; a sign of 1 or -1
  may multiply or divide; a variance is never equal to its bound; a number below chance is looked up in a list with one
  entry more; None is as false as False (twice); a place is told by layer x 3^32 + index, or minus it, as well (twice);
  block 1 is built like block 0, and layer 1 like layer 0 (three times); lists of one length need no check of their
  lengths; no block of today's transformers gives a tuple of three.
- They act on requests to a remote model only, whose tests (tests/test_remote.py) start a server and are not among the
  fast ones: how many groups a request may have (five times), and whether counts are made where the model is.
- They change a progress bar that stays, and the line at which a warning points.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGETS = ("momentum", "steering", "sites")
RESULTS = ROOT / "_build" / "mutants.jsonl"
SAMPLE, SEED, LIMIT = 160, 0, 300  # mutants; of the draw; seconds for one of them
LEAST = 0.85  # of the mutants that must be noticed
FAST = "not default_model and not real_model and not gemma and not qwen and not neox and not kind"
FAST += " and (not mistral or bak)"  # a Mistral is baked as a Llama
FIRST = {  # what is run for each file, the likeliest to fail first
    "momentum": ["tests/test_momentum.py", "tests/test_properties.py", "tests/test_bad_inputs.py"],
    "steering": ["tests/test_properties.py", "tests/test_bad_inputs.py", "tests/test_steering.py"],
    "sites": ["tests/test_sites.py", "tests/test_bad_inputs.py", "tests/test_steering.py"],
}
SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def variants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield what may stand in a node's place, each with a name."""
    new = copy.deepcopy(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        new.ops[0] = SWAPS[type(node.ops[0])]()
        yield "comparison", new
    elif isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in SWAPS:
        new.op = SWAPS[type(node.op)]()
        yield "operator", new
    elif isinstance(node, ast.UnaryOp):
        yield "unary operator gone", node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        new.value = not node.value if isinstance(node.value, bool) else node.value + 1
        yield "constant", new
    elif isinstance(node, (ast.If, ast.IfExp)):
        new.test = ast.UnaryOp(ast.Not(), new.test)
        yield "condition turned", new
    elif isinstance(node, ast.Return) and node.value is not None:
        new.value = ast.Constant(None)
        yield "returns None", new
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "call gone", ast.Pass()


def of_code(node: ast.AST, path: tuple = ()) -> Iterator[tuple[tuple, ast.AST]]:
    """Yield the nodes that run, with the way to them: no annotation, no text, no message of an error."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or isinstance(node, (ast.Raise, ast.JoinedStr)):
            continue
        for place, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                yield (*path, (name, place)), child
                yield from of_code(child, (*path, (name, place)))


def mutants(target: str) -> list[tuple[str, Callable[[], str]]]:
    """Return (what was changed where, how to make the whole file with it) for every mutant of a file."""
    tree, found = ast.parse((ROOT / "austeer" / f"{target}.py").read_text()), []
    for path, node in of_code(tree):
        for kind, new in variants(node):
            before, after = (ast.unparse(ast.fix_missing_locations(one)).splitlines()[0] for one in (node, new))
            place = f"{target}.py:{node.lineno}:{node.col_offset}"
            found.append((f"{place}: {kind}: {before}  ->  {after}", partial(changed, tree, path, new)))
    return found


def changed(tree: ast.Module, path: tuple, new: ast.AST) -> str:
    """Return the text of a tree with another node at the end of a path."""
    tree = copy.deepcopy(tree)
    owner = tree
    for name, place in path[:-1]:
        owner = getattr(owner, name) if place is None else getattr(owner, name)[place]
    name, place = path[-1]
    if place is None:
        setattr(owner, name, new)
    else:
        getattr(owner, name)[place] = new
    return ast.unparse(ast.fix_missing_locations(tree))


def passes(target: str, source: str | None) -> bool | None:
    """Whether the tests pass on a mutant (None: on the file as it is, said aloud), in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(ROOT / "austeer", Path(directory) / "austeer", ignore=shutil.ignore_patterns("__pycache__"))
        (Path(directory) / "data").symlink_to(ROOT / "data")
        if source is not None:
            (Path(directory) / "austeer" / f"{target}.py").write_text(source)
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            os._exit(_run_tests(directory, target, aloud=source is None))
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status) == 0
            time.sleep(0.05)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return False


def _run_tests(directory: str, target: str, aloud: bool) -> int:
    import pytest
    import torch

    torch.set_num_threads(1)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # anyio's cannot be imported after nnsight
    sys.path.insert(0, directory)
    if not aloud:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    try:
        _small_default()
        options = ["-x", "-q", "-p", "no:cacheprovider", "-k", FAST, "--durations=8", "-W", "ignore"]
        return int(pytest.main([*options, "--rootdir", str(ROOT), *(str(ROOT / file) for file in FIRST[target])]))
    except BaseException:  # a mutant that cannot even be imported
        return 1


def _small_default() -> None:
    """Let `au.load()` give a random model of three layers, with the default model's tokenizer."""
    import torch
    import transformers

    import austeer as au

    real = au.load
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        num_hidden_layers=3, max_position_embeddings=256, initializer_range=0.2, tie_word_embeddings=False,
    )  # fmt: skip

    def load(model=None, **options):
        if model is None and not options:
            torch.manual_seed(0)
            module = transformers.AutoModelForCausalLM.from_config(config).eval()
            return real(module, tokenizer=copy.deepcopy(TOKENIZER))
        return real(model, **options)

    au.load = load


def main() -> None:
    """Run as many mutants as fit into the time, and say how many of those run so far were killed."""
    given = argparse.ArgumentParser()
    given.add_argument("--minutes", type=float, default=9)
    given.add_argument("--share", default="0/1", help="i/n: every n-th mutant from i on, for n processes side by side")
    given = given.parse_args()
    until, (part, parts) = time.monotonic() + 60 * given.minutes, map(int, given.share.split("/"))
    drawn = [mutant for target in TARGETS for mutant in mutants(target)]
    everything = len(drawn)
    drawn = random.Random(SEED).sample(drawn, SAMPLE)
    RESULTS.parent.mkdir(exist_ok=True)
    done = {row["mutant"]: row["killed"] for row in map(json.loads, RESULTS.open())} if RESULTS.exists() else {}

    global TOKENIZER
    import hypothesis  # noqa: F401
    import nnsight  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoTokenizer, LlamaForCausalLM  # noqa: F401

    cache = Path(os.environ.get("AUSTEER_CACHE", Path.home() / ".cache" / "austeer"))
    TOKENIZER = AutoTokenizer.from_pretrained(next(cache.glob("SmolLM2-135M-Instruct-????????")))
    if not done and part == 0:
        for target in TARGETS:
            start = time.monotonic()
            if not passes(target, None):
                sys.exit(f"The tests of {target} fail without any change.")
            print(f"{target}: the tests pass in {time.monotonic() - start:.0f} s", flush=True)
    for name, source in drawn[part::parts]:
        if name in done or time.monotonic() > until:
            continue
        done[name] = not passes(name.partition(".")[0], source())
        with RESULTS.open("a") as file:
            file.write(json.dumps({"mutant": name, "killed": done[name]}) + "\n")
        print("killed  " if done[name] else "SURVIVES", name, flush=True)
    print(f"{sum(done.values())} of {len(done)} killed; {SAMPLE} drawn of {everything}")
    if len(done) == SAMPLE and sum(done.values()) < LEAST * SAMPLE:
        sys.exit(f"Less than {LEAST:.0%} killed: write tests that notice the survivors.")


if __name__ == "__main__":
    main()
