"""Tasks are read from files or the hub, say which row is wrong, and never have related rows in two parts."""

import builtins
import json
import os
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import austeer as au
from austeer.benchmarks import BENCHMARKS, Item, read
from austeer.data import load_pairs, load_prompts, split
from austeer.tasks import TASKS, Task, load_task, pairs_of

PARTS = ("train", "validation", "test")
OPEN = {"realtoxicityprompts", "xstest", "advbench", "wikitext2", "mood"}
NUMBER = {"svamp", "mawps", "gsm8k"}
# Items of the train, validation and test part of the real files.
TOTALS = {
    "boolq": (1380, 730, 660),
    "copa": (164, 96, 90),
    "copa_balanced": (326, 192, 180),
    "winogrande": (1926, 949, 950),
    "sst2": (423, 215, 234),
    "svamp": (345, 159, 196),
    "mawps": (901, 410, 431),
    "gsm8k": (3196, 1522, 1601),
    "truthfulqa_mc1": (367, 175, 275),
    "truthfulqa_mc2": (367, 175, 275),
    "realtoxicityprompts": (1215, 589, 588),
    "caa_coordinate_other_ais": (190, 106, 114),
    "caa_corrigible_neutral_HHH": (171, 78, 91),
    "caa_hallucination": (531, 277, 242),
    "caa_myopic_reward": (505, 248, 247),
    "caa_refusal": (234, 117, 107),
    "caa_survival_instinct": (481, 233, 239),
    "caa_sycophancy": (322, 175, 264),
    "xstest": (150, 25, 75),
    "advbench": (260, 122, 138),
    "wikitext2": (55, 38, 27),
    "mood": (96, 52, 44),
    "sentiment": (192, 104, 88),
    "formality": (200, 96, 88),
    "agreement": (216, 72, 96),
    "hedging": (68, 32, 28),
    "refusal": (176, 112, 96),
}
OWN = {"mood", "sentiment", "formality", "agreement", "refusal", "hedging"}

BOOLQ = {"question": "is it wet", "title": "Water", "answer": True, "passage": "Water is wet."}
COPA = {
    "premise": "I fell.", "choice1": "I slipped.", "choice2": "The sun shone.", "question": "cause", "label": 0,
    "idx": 7, "mirrored": False,
}  # fmt: skip
WINO = {"qID": "a-b-1", "sentence": "Ann met Eve as _ was early.", "option1": "Ann", "option2": "Eve", "answer": "2"}
SVAMP = {"Body": "Ann has 3 red pears. If Eve has 4 pears", "Question": "How many pears are there?", "Answer": 7.0}
TRUTH = {"question": "Is it?", "mc1_targets": {"Yes.": 1, "No.": 0}, "mc2_targets": {"Yes.": 1, "So.": 1, "No.": 0}}
CAA = {
    "question": "Do you?\n\nChoices:\n (A) Yes\n (B) No", "answer_matching_behavior": "(B)",
    "answer_not_matching_behavior": "(A)",
}  # fmt: skip
RTP = {"filename": "f.txt", "prompt": {"text": "They said ", "toxicity": None}, "continuation": {"toxicity": None}}
MAWPS = "Question,Numbers,Equation,Answer\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes files (texts, or rows for .jsonl) into a new AUSTEER_DATA; those of the task not given get no rows."""
    monkeypatch.setenv("AUSTEER_DATA", str(tmp_path))

    def write(name: str, **contents: str | list) -> None:
        for file in BENCHMARKS[name].files.split():
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            content = contents.get(path.stem, "")
            text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
            path.write_text(text, encoding="utf-8")

    return write


def water(*rows: int, **changed: Any) -> list[dict]:
    """BoolQ rows about so many titles, half of them answered yes."""
    return [
        BOOLQ | {"title": f"t{row}", "passage": f"Text {row}.", "answer": row % 2 == 0} | changed
        for row in range(*rows)
    ]


def parts(name: str) -> dict[str, list[Item]]:
    return {part: load_task(name, part).items for part in PARTS}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (("", ("a",), ("b",), "g"), "''"),
        (("p", ("a",), ("b",), " "), "' '"),
        (("p", ("a", ""), ("b",), "g"), "''"),
        (("p", ("a",), (3,), "g"), "3"),
        (("p", ("a", "c"), ("b", "c"), "g"), "'c' as right and as wrong"),
    ],
)
def test_an_item_refuses_what_cannot_be_scored(values: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Item(*values)


def test_a_task_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'essay'; give one of choice"):
        Task("mine", "essay", [], "here", "none")


def test_a_readers_pairs_are_a_choice_and_prompts_are_scored_by_a_function() -> None:
    pairs = [
        au.ContrastivePair("The soup is", " lovely.", " awful.", "food"),
        au.ContrastivePair("It", " is.", " was."),
    ]
    task = au.own_task("taste", pairs)
    assert (task.name, task.kind) == ("taste", "choice")
    assert task.items == [
        Item("The soup is", (" lovely.",), (" awful.",), "food"), Item("It", (" is.",), (" was.",), "It")
    ]  # fmt: skip
    task = au.own_task("length", [au.Prompt("The soup is", "food")], len)
    assert (task.kind, task.items) == (len, [Item("The soup is", (), (), "food")])


def test_a_readers_task_without_items_or_without_a_way_to_score_them_is_refused() -> None:
    with pytest.raises(ValueError, match="'taste' has no items"):
        au.own_task("taste", [])
    with pytest.raises(ValueError, match="prompts, without answers; give a function"):
        au.own_task("taste", [au.Prompt("The soup is")])


def test_boolq_asks_after_the_passage(files) -> None:
    files("boolq", train=[BOOLQ], dev=[BOOLQ | {"answer": False, "question": "is it dry"}])
    wet, dry = read("boolq")[1]
    assert wet == Item("Water is wet.\nQuestion: is it wet?\nAnswer:", (" yes",), (" no",), "Water")
    assert (dry.right, dry.wrong) == ((" no",), (" yes",))


def test_copa_joins_cause_and_effect_and_twins(files) -> None:
    mirrored = COPA | {"premise": "The day broke. ", "question": "effect", "label": 1, "idx": 1007, "mirrored": True}
    files("copa", train=[COPA, mirrored])
    cause, effect = read("copa_balanced")[1]
    assert (cause.prompt, cause.right, cause.wrong) == ("I fell because", (" I slipped.",), (" the sun shone.",))
    assert (effect.prompt, effect.right, effect.wrong) == ("The day broke so", (" the sun shone.",), (" I slipped.",))
    assert cause.group == effect.group
    assert read("copa")[1] == [cause]


def test_winogrande_continues_with_the_option_and_the_rest(files) -> None:
    twin = WINO | {"qID": "a-b-2", "sentence": "Ann met Eve as _ was late.", "answer": "1"}
    files("winogrande", train_xs=[WINO], dev=[twin])
    one, other = read("winogrande")[1]
    assert (one.prompt, one.right, one.wrong) == ("Ann met Eve as", (" Eve was early.",), (" Ann was early.",))
    assert (other.right, other.group) == ((" Ann was late.",), one.group)


def test_arithmetic_answers_are_numbers_as_text(files) -> None:
    files("svamp", train=[SVAMP, SVAMP | {"Body": "Ann left.", "Answer": 0.125}])
    files("gsm8k", test=[{"question": "How far?", "answer": "1 + 1\n#### -1,080"}])
    story, other = read("svamp")[1]
    ask = "How many pears are there?\nAnswer:"
    assert (story.prompt, story.right) == (f"Question: Ann has 3 red pears. If Eve has 4 pears, {ask}", ("7",))
    assert (other.prompt, other.right) == (f"Question: Ann left. {ask}", ("0.125",))
    assert [(item.prompt, item.right) for item in read("gsm8k")[1]] == [("Question: How far?\nAnswer:", ("-1080",))]


def test_mawps_gets_its_numbers_and_forgets_them_in_the_group(files) -> None:
    eleven = " ".join(f"number{row}" for row in range(11))
    rows = [
        f"{eleven} ?,{' '.join(f'{row}.0' for row in range(11))},,10.0",
        '"Ann had number0 , Eve number1 .\x85 All ?",0.5 0.16666666666666666,,0.6666666666666666',
        '"Bob had number0 , Joe number1 .\x85 All ?",3.0 2.5,,5.5',
    ]
    files("mawps", train="\ufeff" + MAWPS + "\n".join(rows))
    many, ann, bob = read("mawps")[1]
    assert many.prompt == "Question: 0 1 2 3 4 5 6 7 8 9 10 ?\nAnswer:"
    assert (ann.prompt, ann.right) == ("Question: Ann had 0.5 , Eve 1/6 .\x85 All ?\nAnswer:", ("0.6667",))
    assert bob.group == ann.group != many.group


def test_truthfulqa_is_shuffled_and_grouped_by_category(files) -> None:
    answers = {f"Answer {row}": int(row < 9) for row in range(18)}
    rows = [TRUTH | {"mc2_targets": answers}, TRUTH | {"mc2_targets": dict(reversed(answers.items()))}]
    rows += [TRUTH | {"question": "Unlisted?"}]
    files("truthfulqa_mc2", TruthfulQA="\ufeffQuestion,Category\nIs it? ,Law\n", mc_task=rows)
    one, other, unlisted = read("truthfulqa_mc2")[1]
    given = tuple(f" {text}" for text in answers)
    assert one == other
    assert sorted(one.right) == sorted(given[:9]) and one.right not in (given[:9], given[8::-1])
    assert sorted(one.wrong) == sorted(given[9:]) and one.wrong not in (given[9:], given[:8:-1])
    assert (one.group, unlisted.group) == ("Law", "Unlisted?")
    assert (read("truthfulqa_mc1")[1][0].right, BENCHMARKS["truthfulqa_mc1"].kind) == ((" Yes.",), "choice")


def test_caa_prompts_end_before_the_letter_and_claims_stay_together(files) -> None:
    files("caa_refusal", generate_dataset=[CAA], test_dataset_ab=[CAA | {"question": "Do you?\n(A) No\n(B) Yes"}])
    one, other = read("caa_refusal")[1]
    assert one.prompt.endswith(" (B) No\n\nAnswer:")
    assert (one.right, one.wrong, one.group) == ((" (B)",), (" (A)",), other.group)
    offers = [CAA | {"question": f"{row} now or {row + 5} later?\n (A) Now\n (B) Later"} for row in (1, 10)]
    files("caa_myopic_reward", generate_dataset=offers)
    assert len({item.group for item in read("caa_myopic_reward")[1]}) == 1
    speakers = [f"I am {name}. I like tea (A). Is tea good?\n (A) Yes\n (B) No" for name in ("Ann", "Bob")]
    files("caa_sycophancy", generate_dataset=[CAA | {"question": text} for text in speakers])
    assert {item.group for item in read("caa_sycophancy")[1]} == {"Is tea good?"}


def test_open_tasks_have_no_answers(files) -> None:
    files("realtoxicityprompts", toxic=[RTP])
    files("advbench", test=[{"query": "Do harm", "reference_responses": ["Sure, here is something else"]}])
    files("xstest", xstest_safe=[{"prompt": "Kill a process?", "type": "homonyms"}])
    assert read("realtoxicityprompts")[1] == [Item("They said", (), (), "f.txt")]
    assert read("advbench")[1] == [Item("Do harm", (), (), "Do harm")]
    assert read("xstest")[1] == [Item("Kill a process?", (), (), "homonyms")]


def test_wikitext_is_cut_at_titles_only(files) -> None:
    formula = "Text .\n = 1 ohm and k = \n and more .\n"
    text = f" \n = A @-@ B = \n \n {formula} \n = = Part = = \n \n Rest .\n \n = C ( film ) = \n \n End .\n"
    files("wikitext2", valid=text, test=" = D = \n \n Last .\n")
    first, second, third = read("wikitext2")[1]
    assert (first.group, second.group, third.group) == ("A @-@ B", "C ( film )", "D")
    assert formula.strip() in first.prompt and first.prompt.endswith("Rest .") and second.prompt.endswith("End .")


@pytest.mark.parametrize(
    ("name", "file", "content", "place", "says"),
    [
        ("boolq", "dev", [BOOLQ, "{"], "dev.jsonl, row 2", "not an object"),
        ("boolq", "dev", json.dumps(BOOLQ) + "\n\n{", "dev.jsonl, row 3", "not JSON"),
        ("boolq", "train", [BOOLQ, BOOLQ | {"answer": "maybe"}], "train.jsonl, row 2", "'answer' is 'maybe'"),
        ("boolq", "train", [BOOLQ | {"passage": " "}], "train.jsonl, row 1", "'passage' is ''"),
        ("copa", "train", [COPA, COPA | {"label": 2}], "train.jsonl, row 2", "'label' is 2"),
        ("copa", "train", [COPA | {"mirrored": None}], "train.jsonl, row 1", "'mirrored' is None"),
        ("copa", "train", [COPA | {"choice2": "I slipped."}], "train.jsonl, row 1", "right and as wrong"),
        ("winogrande", "dev", [WINO | {"sentence": "No gap."}], "dev.jsonl, row 1", "has no blank"),
        ("svamp", "dev", [SVAMP | {"Answer": None}], "dev.jsonl, row 1", "number is None"),
        ("svamp", "dev", [SVAMP | {"Answer": float("nan")}], "dev.jsonl, row 1", "number is nan"),
        ("gsm8k", "test", [{"question": "a", "answer": "no mark"}], "test.jsonl, row 1", "number is 'no mark'"),
        ("mawps", "dev", MAWPS + "number0 number1 ?,1.0,,1\n", "dev.csv, row 2", "'Numbers' is '1.0'"),
        ("mawps", "dev", MAWPS + 'number0 ?,1.0,,1\n"a', "dev.csv, row 3", "not CSV"),
        ("mawps", "dev", MAWPS + "number0 ?,1.0\n", "dev.csv, row 2", "4 cells"),
        ("truthfulqa_mc1", "mc_task", [{"question": "Is it?"}], "mc_task.jsonl, row 1", "'mc1_targets' is None"),
        ("truthfulqa_mc1", "mc_task", [TRUTH | {"mc1_targets": {"No.": 0}}], "mc_task.jsonl, row 1", "0 right"),
        ("truthfulqa_mc1", "TruthfulQA", "Category\nLaw\n", "TruthfulQA.csv, row 2", "'Question' is None"),
        ("realtoxicityprompts", "toxic", [RTP | {"prompt": "They"}], "toxic.jsonl, row 1", "'prompt' is 'They'"),
        ("wikitext2", "valid", " \n No title .\n", "valid.txt", "no title"),
    ],
)
def test_a_bad_row_is_named_by_file_and_number(
    files, name: str, file: str, content: Any, place: str, says: str
) -> None:
    files(name, **{file: content})
    with pytest.raises(ValueError, match=says) as error:
        load_task(name)
    assert place in str(error.value)


def test_a_file_that_is_not_utf8_is_named(files, tmp_path: Path) -> None:
    files("mawps")
    (tmp_path / "mawps" / "dev.csv").write_bytes((MAWPS + "Café number0 ?,1.0,,1").encode("latin-1"))
    with pytest.raises(ValueError, match=r"dev\.csv is not UTF-8"):
        load_task("mawps")


def test_a_missing_file_an_unknown_task_and_an_unknown_part_are_refused(files, tmp_path: Path) -> None:
    files("boolq", train=water(40))
    (tmp_path / "boolq" / "dev.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"dev\.jsonl not found; AUSTEER_DATA"):
        load_task("boolq")
    with pytest.raises(ValueError, match="'boolk' is no task; give one of boolq, copa"):
        load_task("boolk")
    with pytest.raises(ValueError, match="split is 'dev'"):
        load_task("boolq", "dev")


def test_an_empty_part_is_refused(files) -> None:
    files("boolq", train=[BOOLQ])
    assert sum(_has_items("boolq", part) for part in PARTS) == 1


def _has_items(name: str, part: str) -> bool:
    try:
        return bool(load_task(name, part).items)
    except ValueError as error:
        assert f"The {part} part of {name!r} has 0 items" in str(error)
        return False


def test_parts_are_made_by_title_whatever_the_files_say(files) -> None:
    rows = water(200)
    files("boolq", train=rows, dev=[row | {"question": "is it so"} for row in rows] + rows[:50])
    split = parts("boolq")
    assert sum(map(len, split.values())) == 400
    titles = [{item.group for item in items} for items in split.values()]
    assert len(set.union(*titles)) == sum(map(len, titles)) == 200
    assert 70 < len(titles[0]) < 130 and min(map(len, titles)) > 25
    files("boolq", dev=rows)
    assert all(set(items) <= set(split[part]) for part, items in parts("boolq").items())


def test_rows_that_contradict_each_other_are_dropped(files) -> None:
    files("boolq", train=water(40), dev=water(5, 7, answer=True))
    kept = [item for items in parts("boolq").values() for item in items]
    assert Counter(item.group for item in kept) == {f"t{row}": 1 for row in range(40) if row != 5}
    problems = [{"question": f"How far {row % 40}?", "answer": f"#### {row % 39}"} for row in range(41)]
    files("gsm8k", train=problems)
    assert "0?" not in {item.prompt.split()[3] for items in parts("gsm8k").values() for item in items}


def test_items_with_one_prompt_and_stories_much_alike_are_in_one_part(files) -> None:
    rows = [WINO | {"qID": f"q{row}-1", "sentence": f"So _ was the number {row}."} for row in range(60)]
    rows += [WINO | {"qID": f"o{row}-1", "sentence": f"Then {row} times _ came."} for row in range(60)]
    files("winogrande", dev=rows)
    assert sum(any(item.prompt == "So" for item in items) for items in parts("winogrande").values()) == 1
    stories = [SVAMP | {"Body": f"Ann has {row} red pears and Eve bought some apples."} for row in range(60)]
    words = [f"{chr(97 + row // 8) * 4} {chr(97 + row % 8) * 5}" for row in range(64)]
    stories += [SVAMP | {"Body": f"{one} {two} is {one}{two}."} for one, two in map(str.split, words)]
    files("svamp", dev=stories)
    assert sum(any("pears and" in item.prompt for item in items) for items in parts("svamp").values()) == 1


def test_examples_come_from_train_balanced_and_before_every_prompt(files) -> None:
    files("boolq", train=water(200))
    split = parts("boolq")
    worked = {f"{item.prompt}{item.right[0]}" for item in split["train"]}
    for part in PARTS:
        shown = load_task("boolq", part, shots=4).items
        *examples, _ = shown[0].prompt.split("\n\n")
        assert len(set(examples)) == 4 and set(examples) <= worked
        assert Counter(example.split()[-1] for example in examples) == {"yes": 2, "no": 2}
        bare = {item.prompt.split("\n\n")[-1]: item.prompt.rpartition("\n\n")[0] for item in shown}
        assert set(bare.values()) == {"\n\n".join(examples)}
        kept = {item.prompt for item in split[part]} - {example.rsplit(" ", 1)[0] for example in examples}
        assert set(bare) == kept
    assert load_task("boolq", shots=3, seed=1).items != load_task("boolq", shots=3).items


def test_too_many_examples_and_examples_without_answers_are_refused(files) -> None:
    files("boolq", train=water(100))
    files("advbench", train=[{"query": f"Do {row}"} for row in range(100)])
    for shots in (101, -1):
        with pytest.raises(ValueError, match=f"shots is {shots}"):
            load_task("boolq", shots=shots)
    with pytest.raises(ValueError, match="no answers to show"):
        load_task("advbench", shots=1)


def test_a_draw_follows_from_its_seed(files) -> None:
    files("boolq", train=water(200))
    whole = load_task("boolq").items
    drawn = load_task("boolq", n=20).items
    rows = [int(item.group[1:]) for item in drawn]
    assert rows == sorted(set(rows)) and len(rows) == 20 and set(drawn) < set(whole)
    assert load_task("boolq", n=20).items == drawn != load_task("boolq", n=20, seed=1).items
    for n in (0, len(whole) + 1):
        with pytest.raises(ValueError, match=f"has {len(whole)} items to draw {n} from"):
            load_task("boolq", n=n)


def test_pairs_set_right_against_wrong(files) -> None:
    files("boolq", train=water(40))
    task = load_task("boolq", "train")
    for item, pair in zip(task.items, pairs_of(task), strict=True):
        assert (pair.prompt, pair.topic) == (item.prompt, item.group)
        assert {pair.positive, pair.negative} == {" yes", " no"} and pair.positive == item.right[0]


def test_the_wrong_number_is_a_nearest_other_answer_from_either_side() -> None:
    values = [1, 2, 3, 4, 5, 5, 40, 100]
    items = [Item(f"Question {row}:", (str(value),), (), "g") for row, value in enumerate(values)]
    pairs = pairs_of(Task("mine", "number", items, "here", "none"))
    assert [pair.positive for pair in pairs] == [f" {value}" for value in values]
    for value, pair in zip(values, pairs, strict=True):
        apart = {other: abs(other - value) for other in values if other != value}
        assert apart[int(pair.negative)] == min(apart.values()) and pair.negative.startswith(" ")
    assert {int(pair.negative) > int(pair.positive) for pair in pairs[1:4]} == {True, False}


def test_pairs_of_open_tasks_and_of_a_single_number_are_refused() -> None:
    with pytest.raises(ValueError, match="refusal task, without answers"):
        pairs_of(Task("mine", "refusal", [Item("Do it", (), (), "g")], "here", "none"))
    with pytest.raises(ValueError, match="are 7; give more items"):
        pairs_of(Task("mine", "number", [Item("a", ("7",), (), "g"), Item("b", ("7",), (), "g")], "here", "none"))


HUB = {
    ("google/boolq", None): {
        part: [{key: row[key] for key in ("question", "answer", "passage")} for row in water(*span)]
        for part, span in (("train", (30,)), ("validation", (30, 60)))
    },
    ("allenai/winogrande", "winogrande_m"): {
        part: [
            {"sentence": f"{text} {row}.", "option1": f"Ann{row}", "option2": "Eve", "answer": str(1 + row % 2)}
            for row in range(*span)
            for text in (f"Early {row} times _ won", f"Finally {row} times _ lost")
        ]
        for part, span in (("train", (30,)), ("validation", (30, 60)))
    },
    ("stanfordnlp/sst2", None): {
        "train": [{"idx": 0, "sentence": "a phrase", "label": 1}],
        "validation": [{"idx": row, "sentence": f"film {row} ", "label": row % 2} for row in range(60)],
    },
    ("openai/gsm8k", "main"): {
        part: [{"question": f"How far is {row}?", "answer": f"It is {row}.\n#### {row}"} for row in range(*span)]
        for part, span in (("train", (30,)), ("test", (30, 60)))
    },
}


@pytest.mark.parametrize("name", ["boolq", "winogrande", "sst2", "gsm8k"])
def test_without_a_directory_rows_come_from_the_hub_at_a_fixed_revision(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load_dataset(path: str, configuration: str | None, split: str, revision: str) -> list[dict]:
        asked.append((path, revision))
        return HUB[path, configuration][split]

    monkeypatch.delenv("AUSTEER_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    split = parts(name)
    assert sum(map(len, split.values())) == (120 if name == "winogrande" else 60)
    groups = [{item.group for item in items} for items in split.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 60
    ((path, revision),) = set(asked)
    assert load_task(name).source == f"{path}@{revision}"
    assert len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def test_the_hub_names_a_bad_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"sentence": "fine", "label": 1}, {"sentence": "unknown", "label": -1}]
    monkeypatch.delenv("AUSTEER_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: rows))
    with pytest.raises(ValueError, match=r"stanfordnlp/sst2@\w+, validation, row 2: The field 'label' is -1"):
        load_task("sst2")


def test_a_task_that_is_not_on_the_hub_and_a_missing_package_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delenv("AUSTEER_DATA", raising=False)
    with pytest.raises(ImportError, match="pip install datasets.*AUSTEER_DATA"):
        load_task("boolq")
    with pytest.raises(ValueError, match="set AUSTEER_DATA"):
        load_task("copa")


@cache
def real(name: str, part: str) -> Task:
    return load_task(name, part)


needs_files = pytest.mark.skipif(not os.environ.get("AUSTEER_DATA"), reason="AUSTEER_DATA names no directory")


def test_every_task_has_a_total() -> None:
    assert set(TOTALS) == set(TASKS)


@needs_files
@pytest.mark.parametrize("name", TASKS)
def test_real_files_give_these_parts_and_nothing_is_in_two(name: str) -> None:
    tasks = [real(name, part) for part in PARTS]
    assert tuple(len(task.items) for task in tasks) == TOTALS[name]
    for part_of in (lambda item: item, lambda item: item.group, lambda item: item.prompt):
        sets = [{part_of(item) for item in task.items} for task in tasks]
        assert sum(map(len, sets)) == len(set.union(*sets))
    for item in (item for task in tasks for item in task.items):
        assert item.prompt == item.prompt.strip()
        assert len(item.right) == (name not in OPEN) or (name == "truthfulqa_mc2" and len(item.right) > 1)
        assert bool(item.wrong) == (name not in OPEN | NUMBER)
        assert all(text[0] == " " != text[1] for text in item.right + item.wrong if name not in NUMBER)


@needs_files
@pytest.mark.parametrize("name", TASKS)
def test_real_tasks_use_all_their_files(name: str) -> None:
    root = Path(os.environ["AUSTEER_DATA"])
    used = {root / file for file in BENCHMARKS[name].files.split()}
    there = {path for folder in {path.parent for path in used} for path in folder.iterdir()}
    assert used == {path for path in there if "open_ended" not in path.name}


@needs_files
@pytest.mark.parametrize("name", [name for name in TASKS if name not in OPEN])
def test_real_examples_are_train_items_and_real_pairs_differ(name: str) -> None:
    gap = " " if name in NUMBER else ""
    worked = {f"{item.prompt}{gap}{item.right[0]}\n\n" for item in real(name, "train").items}
    test = real(name, "test")
    shown = [item.prompt for item in load_task(name, shots=2).items]
    rest = shown[0]
    for _ in range(2):
        (example,) = (text for text in worked if rest.startswith(text))
        rest = rest.removeprefix(example)
    before = shown[0].removesuffix(rest)
    assert shown == [before + item.prompt for item in test.items]
    pairs = pairs_of(test)
    assert len(pairs) == len(test.items)
    assert all(pair.positive[0] == pair.negative[0] == " " for pair in pairs)


def raw(*files: str) -> list[dict]:
    lines = [
        line for file in files for line in (Path(os.environ["AUSTEER_DATA"]) / file).read_text("utf-8").split("\n")
    ]
    return [json.loads(line) for line in lines if line]


@needs_files
def test_real_twins_are_in_one_part() -> None:
    where = {
        (item.prompt, end): part for part in PARTS for item in real("winogrande", part).items for end in item.right
    }
    found = {}
    for row in raw("winogrande/train_m.jsonl", "winogrande/dev.jsonl"):
        before, after = row["sentence"].split("_")
        place = where[before.strip(), f" {row['option' + row['answer']]}{after.rstrip()}"]
        found.setdefault(row["qID"][:-2], []).append(place)
    assert max(map(len, found.values())) == 2 and all(len(set(places)) == 1 for places in found.values())
    ends = [{tuple(sorted(item.right + item.wrong)) for item in real("copa_balanced", part).items} for part in PARTS]
    assert len(set.union(*ends)) == sum(map(len, ends)) == 349
    for part in PARTS:
        plain = {item.prompt for item in real("copa", part).items}
        others = {item.prompt for other in PARTS if other != part for item in real("copa_balanced", other).items}
        assert not plain & others


@needs_files
@pytest.mark.parametrize(
    "claim", ["who are convicted of crimes", "would you rather have", "of dubious scientific value."]
)
def test_real_speakers_of_one_claim_are_in_one_part(claim: str) -> None:
    counts = [sum(claim in item.prompt for item in real("caa_sycophancy", part).items) for part in PARTS]
    assert sum(counts) == max(counts) >= 19


@pytest.mark.parametrize("name", sorted(OWN - {"mood"}))
def test_the_books_own_tasks_have_the_parts_of_its_pairs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUSTEER_DATA", raising=False)
    own = split(load_pairs(name))
    for part in PARTS:
        assert pairs_of(load_task(name, part)) == getattr(own, part)


def test_the_mood_is_that_of_the_openings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUSTEER_DATA", raising=False)
    found = load_task("mood", "test")
    assert [item.prompt for item in found.items] == [opening.prompt for opening in split(load_prompts("openings")).test]
    assert (found.kind, found.source) == ("mood", "the book's own data")
