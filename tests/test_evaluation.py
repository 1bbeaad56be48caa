"""Reports: scores against hand-made answers, intervals and paired tests against known cases."""

import math
from typing import Any

import pytest
import torch

import austeer as au
from austeer import evaluation
from austeer.benchmarks import Item
from austeer.tasks import Task

SURE = Item("The sky is", (" blue",), (" seven",), "a")


def task(kind: str, *items: Item) -> Task:
    return Task("by hand", kind, list(items), "here", "No split.")


def report(score: list[float], items: list[Item] | None = None) -> au.Report:
    items = items or [Item(f"question {number}", (" a",), (" b",), "g") for number in range(len(score))]
    return au.Report(task("choice", *items), "m", "none", {"accuracy": torch.tensor(score)}, 0.5)


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the model say given texts, and gives its continuations given log-probabilities."""

    def say(texts: list[str], log_p: dict[str, float] | None = None) -> None:
        monkeypatch.setattr(evaluation, "generate", lambda model, prompts, *_, **__: texts[: len(prompts)])
        monkeypatch.setattr(evaluation, "price", lambda *_: {})

        def score(
            model: Any, answers: list[str], prompts: list[str], steering: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            said = dict(zip(dict.fromkeys(prompts), texts, strict=False))
            first = [model.tokenizer(said.get(prompt) or "?").input_ids[0] for prompt in prompts]
            found = [log_p[prompt + answer] for prompt, answer in zip(prompts, answers, strict=True)]
            return torch.tensor(found), torch.tensor(first)

        if log_p:
            monkeypatch.setattr(evaluation, "log_probability_and_first", score)

    return say


def test_the_likeliest_continuation_wins_and_the_margin_says_by_how_much(tiny: Any, spoken: Any) -> None:
    items = [Item("p", (" a", " b"), (" c",), "g"), Item("q", (" a",), (" c",), "g")]
    spoken([" b", "x"], {"p a": -5.0, "p b": -1.0, "p c": -2.0, "q a": -3.0, "q c": -1.0})
    found = au.evaluate(tiny("llama"), task("choice", *items))
    assert found.scores["accuracy"].tolist() == [1.0, 0.0]
    assert found.scores["margin"].tolist() == [1.0, -2.0]
    assert found.scores["right first token"].tolist() == [1.0, 0.0]
    assert "calibrated accuracy" not in found.scores  # the items have different labels
    assert found.chance == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_calibration_takes_off_what_a_label_gets_everywhere(tiny: Any, spoken: Any) -> None:
    items = [Item("p", (" yes",), (" no",), "g"), Item("q", (" no",), (" yes",), "g")]
    spoken(["", ""], {"p yes": -1.0, "p no": -4.0, "q yes": -2.0, "q no": -3.0})  # "yes" is liked, less so after q
    found = au.evaluate(tiny("llama"), task("choice", *items))
    assert found.scores["accuracy"].tolist() == [1.0, 0.0]
    assert found.scores["calibrated accuracy"].tolist() == [1.0, 1.0]


def test_several_right_answers_share_their_probability(tiny: Any, spoken: Any) -> None:
    spoken([], {"p a": math.log(0.2), "p b": math.log(0.1), "p c": math.log(0.3)})
    found = au.evaluate(tiny("llama"), task("multiple", Item("p", (" a", " b"), (" c",), "g")))
    assert found.mean() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (" 3 and 4 make 7.", 1.0), (" It is 7 apples\n\nQuestion: what is 8?", 1.0), (" 7,000", 0.0), (" seven", 0.0),
        (" 14/2", 1.0), (" 7/2", 0.0), (" 7.0", 1.0), (" -7", 0.0), (" 7 or 8", 0.0),
    ],
)  # fmt: skip
def test_the_last_number_of_the_answer_counts(tiny: Any, spoken: Any, text: str, right: float) -> None:
    spoken([text])
    assert au.evaluate(tiny("llama"), task("number", Item("p", ("7",), (), "g"))).mean() == right


def test_refusals_and_hostile_words_are_found_by_what_is_written_down(tiny: Any, spoken: Any) -> None:
    items = [Item(text, (), (), "g") for text in "abcd"]
    spoken([" I'm sorry, but no.", " Sure, here is a plan.", " I cannot do that.", " You can bake it."])
    assert au.evaluate(tiny("llama"), task("refusal", *items)).scores["refused (by phrases)"].tolist() == [1, 0, 1, 0]
    spoken([" a murder most foul", " a lovely day", " we hate this", " tables"])
    assert au.evaluate(tiny("llama"), task("toxicity", *items)).scores["hostile words (proxy)"].tolist() == [1, 0, 1, 0]


def test_the_phrases_find_one_in_five_of_the_books_own_refusals() -> None:
    """As the page on responsible use says of this proxy."""
    refusals = [pair.positive for pair in au.load_pairs("refusal")]
    assert sum(bool(evaluation.REFUSALS.search(text)) for text in refusals) / len(refusals) == pytest.approx(
        0.2, abs=0.02
    )


def test_a_text_is_scored_up_to_a_limit(model: Any) -> None:
    long = "The soup was warm and thick. " * 200
    found = au.evaluate(model, task("text", Item(long, (), (), "g")))
    ids = model.tokenizer(long).input_ids[: evaluation.TEXT_TOKENS]
    assert found.mean() == pytest.approx(au.perplexity(model, [model.tokenizer.decode(ids)]).item(), rel=1e-4)


@pytest.fixture(scope="module")
def loud(model: Any) -> au.Steering:
    return au.methods.CAA.fit(model, au.split(au.load_pairs("sentiment")).train[:24], layer=20, alpha=20.0)


def test_a_steering_reaches_every_score_and_is_paid_for(model: Any, loud: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUSTEER_DATA", raising=False)
    plain, steered = (au.evaluate(model, task("choice", SURE, SURE), steering) for steering in (None, loud))
    assert plain.mean() == 1.0
    assert plain.price["perplexity"] == pytest.approx(1.0, abs=1e-6)
    assert steered.price["perplexity"] > 1.5
    assert not torch.equal(plain.scores["margin"], steered.scores["margin"])
    assert "CAA" in repr(steered)
    assert "No split." in repr(steered)


def test_intervals_hold_the_mean_and_narrow_with_more_items() -> None:
    few, many = report([0.0, 1.0] * 10), report([0.0, 1.0] * 200)
    (a, b), (c, d) = few.interval(), many.interval()
    assert a < 0.5 < b
    assert c < 0.5 < d
    assert d - c < (b - a) / 2
    assert report([1.0] * 5).interval() == (1.0, 1.0)


def test_a_gain_is_paired_and_tested_exactly() -> None:
    base, better = report([0.0] * 10 + [1.0] * 10), report([1.0] * 6 + [0.0] * 4 + [1.0] * 10)
    found = better.gain_over(base)
    assert found["gain"] == pytest.approx(0.3)
    assert found["p"] == pytest.approx(2 * 0.5**6)
    assert found["low"] > 0
    assert better.gain_over(better)["p"] == 1.0


def test_reports_on_other_items_are_not_compared() -> None:
    with pytest.raises(ValueError, match="other items"):
        report([1.0, 0.0]).gain_over(report([1.0, 0.0], [SURE, SURE]))


def test_a_report_escapes_markup() -> None:
    assert "<b>" not in au.Report(task("choice", SURE), "<b>", "<b>", {"accuracy": torch.ones(1)}, 0.5)._repr_html_()


def test_a_price_names_what_it_was_measured_on(model: Any, monkeypatch: pytest.MonkeyPatch, loud: Any) -> None:
    monkeypatch.delenv("AUSTEER_DATA", raising=False)
    unrelated = task("choice", SURE, SURE)
    plain, paid = (evaluation.price(model, steering, unrelated) for steering in (None, loud))
    assert plain == {
        "perplexity": pytest.approx(1.0, abs=1e-6), "repetition": plain["repetition"], "degenerate": 0.0, "time": 1.0,
        "kl on openings": 0.0, "by hand accuracy": 0.0,
    }  # fmt: skip
    assert paid["perplexity"] > 1.5
    assert paid["kl on openings"] > 0.1
    assert paid["time"] > 0.5


def test_every_report_says_what_happens_to_an_unrelated_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("AUSTEER_DATA", str(tmp_path))
    assert evaluation.unrelated_to("boolq") is None
    monkeypatch.setattr(evaluation, "on_disk", lambda name: True)
    monkeypatch.setattr(evaluation, "load_task", lambda name, n: (name, n))
    assert evaluation.unrelated_to("boolq") == ("copa_balanced", 100)
    assert evaluation.unrelated_to("copa") == ("winogrande", 100)


def test_text_that_repeats_itself_counts_as_degenerate(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    monkeypatch.setattr(evaluation, "_openings", lambda: ["a", "b"])
    monkeypatch.setattr(evaluation, "generate", lambda *_, **__: ["so so so so so so", "one two three four five"])
    found = evaluation.text_prices(model, [None])[0]
    assert (found["repetition"], found["degenerate"]) == (pytest.approx(0.375), 0.5)


def test_a_readers_own_function_scores_the_continuations(tiny: Any, spoken: Any) -> None:
    def shouts(texts: list[str]) -> list[int]:
        return [text.count("!") for text in texts]

    spoken(["No.", "Yes! Yes!"])
    prompts = [au.Prompt("a"), au.Prompt("b")]
    report = au.evaluate(tiny("llama"), au.own_task("loud", prompts, shouts))
    assert report.scores["shouts"].tolist() == [0.0, 2.0]
    with pytest.raises(ValueError, match=r"<lambda> returned shape \(\) for 2 texts; return one number each"):
        au.evaluate(tiny("llama"), au.own_task("loud", prompts, lambda texts: sum(map(len, texts))))


def test_the_mood_of_what_follows_an_opening(model: Any, spoken: Any) -> None:
    spoken([" I love this wonderful day.", " The table."])
    found = au.evaluate(model, task("mood", Item("a", (), (), "g"), Item("b", (), (), "g")))
    assert found.mean() == pytest.approx(au.sentiment([" I love this wonderful day."]).item() / 2)
