"""Judge the answers to the exercises of notebooks 04 to 08; see `judges`.

`judges -> [judges_later] -> exercises`.
"""

from collections.abc import Callable, Mapping, Sequence

from .. import prompt
from ..dataset import Question
from ..predictions import Predictions, group
from ..results import causes, mmau
from ..results import real as real_results
from ..results.report import Table
from . import inspection
from .judges import EXERCISES, counted, exercise, near, numbers, tried

__all__ = ["EXERCISES"]


# -- 04, rewards or answers ------------------------------------------------------------------------------------------


@exercise(
    "04",
    1,
    wanted="a probability, as one number",
    hint="Set 1 - p equal to the root of p (1 - p) and square both sides. p = 1 is one solution; there is another.",
    right="Below one half SFT pulls harder on the right reply, above it GRPO does.",
)
def equal_pull(p) -> str | None:
    (p,) = numbers(p)
    if near(p, 1, 1e-6):
        return "At 1 both pulls are zero, so they are equal, but nobody pulls. There is a second solution."
    return None if near(p, 0.5, 0.02) else f"At {p:g} SFT pulls with {1 - p:.2f}, GRPO with {(p * (1 - p)) ** 0.5:.2f}."


@exercise(
    "04",
    2,
    wanted="two numbers: the pull on the wrong label, cat, and on the likely reply, dog",
    hint="SFT's pull on a label of probability p is 1 - p. DFT multiplies it by p.",
    right="The wrong label hardly pulls any more, since the model would hardly say it: that is the whole repair.",
)
def dft_pulls(pulls) -> str | None:
    cat, dog = numbers(pulls)
    if near(cat, 0.992, 0.005):
        return "That is SFT's pull; DFT multiplies it by the label's probability."
    if near(cat, 0.136, 0.005) and near(dog, 0.0076, 0.001):
        return "The other way round: first the wrong label, cat."
    if not near(cat, 0.0076, 0.001):
        return f"The label cat has probability p[3]; {cat:.3g} is not p (1 - p) for it."
    return (
        None if near(dog, 0.136, 0.005) else f"The reply dog has probability p[0]; {dog:.3g} is not p (1 - p) for it."
    )


@exercise(
    "04",
    3,
    wanted="check(3, count, asked.train), with a count of questions",
    hint='`question.meta["heard"]` is what sounds in the clip; compare it with `question.answer`.',
    right="A perfect ear would contradict about one training label in six.",
)
def heard(count, train: Sequence[Question]) -> str | None:
    truth = sum(question.meta.get("heard") == question.answer for question in train)
    marked = sum(question.meta.get("question_relation") == "Sound" for question in train)
    others = {
        marked: "Those are the questions marked Sound; some labels of the others can be heard as well.",
        len(train) - truth: "Those are the labels that cannot be heard.",
    }
    return counted(count, truth, len(train), others, "Count the questions whose answer is what sounds in the clip.")


# -- 05, MMAU evaluation ---------------------------------------------------------------------------------------------


@exercise(
    "05",
    1,
    wanted="a reply, as a string; the choices are rising then falling, and staying the same",
    hint="The official rule takes a set of words, and a set knows no order.",
    right="The words have changed places, and the rule cannot see it.",
)
def fooled(reply: str) -> str | None:
    among = ["rising then falling", "staying the same"]
    if {"not", "no", "never", "isn't", "neither"} & mmau.words(reply):
        return "Without a negation, please: that trap is known."
    if not mmau.official(reply, among[0], among):
        return "The official rule calls it wrong: it wants rising, then and falling, and no word of the other choice."
    if prompt.matches(prompt.extract_answer(reply), among[0], among):
        return "The strict rule takes it as well."
    return None


@exercise(
    "05",
    2,
    wanted="the number of questions in each run, roughly",
    hint="A share p of n questions has variance p (1 - p) / n, and a difference of two the sum of both. 1.96 of its "
    "standard errors must fit into 0.034.",
    right="So on MMAU's 1,000 questions, a difference of 3.4 points between two single runs is within chance.",
)
def needed(n) -> str | None:
    (n,) = numbers(n)
    variances = 0.645 * 0.355 + 0.611 * 0.389
    due = (1.96 / 0.034) ** 2 * variances
    if near(n, due, 0.06 * due):
        return None
    if near(n, due / 2, 0.06 * due):
        return "That is the variance of one run; the difference has the variance of both."
    if near(n, due / 1.96**2, 0.03 * due):
        return "That is for one standard error; 95 % takes 1.96 of them."
    if near(n, due / 4, 0.03 * due):
        return "Each run's share has a variance of its own, and the two add up."
    return "It is between a thousand and two thousand."


@exercise(
    "05",
    3,
    wanted="a table of report.build",
    hint='`report.build(..., rule="strict")` gives tables; the last is on your questions.',
    right="Where both rules give the same verdict, it does not depend on how replies are read.",
)
def strict_table(table: Table) -> str | None:
    if isinstance(table, list):
        return "report.build gives a list of tables; take the last, which is on your questions."
    return None if table.rule == "strict" else f"This table was built by the {table.rule} rule."


# -- 06, the reasoning ablation --------------------------------------------------------------------------------------


@exercise(
    "06",
    1,
    wanted="a function agrees(prompts, completions, choices, **columns) that returns one number per completion",
    hint='`relation(reply, among)` is "alone" where the thought names the answer and no other choice.',
    right='It can be hacked: "<think>a dog</think><answer>a dog</answer>" earns it without any thinking.',
)
def agrees(answer: Callable) -> str | None:
    thoughts = {"It is a dog.": 1.0, "A dog, not a cat.": 0.0, "It is a cat.": 0.0, "It barks.": 0.0}
    said = [f"<think>{text}</think><answer>a dog</answer>" for text in thoughts]
    paid = numbers(
        tried(answer(prompts=None, completions=said, choices=[["a dog", "a cat"]] * 4, answer=["a dog"] * 4))
    )
    if len(paid) != 4:
        return "A reward returns a list, one number for each completion."
    for (text, due), got in zip(thoughts.items(), paid, strict=True):
        if got != due:
            return f"The thought {text!r} before the answer 'a dog' should earn {due:g}, and earns {got:g}."
    return None


@exercise(
    "06",
    2,
    wanted="two lengths in tokens: with a shared prompt, and with a repeated one",
    hint="Shared: when is 8 n more than 280? Repeated: when is 8 n more than 8 times 280?",
    right="With a shared prompt, answers soon cost more than the prompt; repeated, only those longer than it do.",
)
def outweigh(lengths) -> str | None:
    shared, repeated = numbers(lengths)
    if (shared, repeated) == (36, 281):
        return None
    if (repeated, shared) == (36, 281):
        return "The other way round: first the shared prompt."
    if (shared, repeated) in ((35, 280), (35, 281), (36, 280)):
        return "At 8 x 35 = 280 and at 280 = 280 the two are equal; they outweigh from the next token on."
    return "Compare all answer tokens with all prompt tokens of the row (shared), and of the eight rows (repeated)."


@exercise(
    "06",
    3,
    wanted="check(3, put_in, base[:10]), with the right choice's ten probabilities in percent",
    hint='`choice_probabilities(tuned, processor, q, 3, thought="<think>la la la</think>")[q.answer]`, ten times.',
    right="If nonsense moves it as little as a true thought does, the answer does not read the thought.",
)
def nonsense(put_in, before) -> str | None:
    put_in, before = numbers(put_in), numbers(before)
    if len(put_in) != len(before):
        return f"Give {len(before)} probabilities, one per question; the moves can be read off those."
    if min(put_in) < 0 or max(put_in) > 100.01:
        return "Those are no probabilities in percent."
    if max(put_in) <= 1 < max(before):
        return "In percent, please, as those without a thought."
    return None


# -- 07, error inspection --------------------------------------------------------------------------------------------


@exercise(
    "07",
    1,
    wanted='check(1, worst, sure["grpo"]), with rows of the trained run',
    hint='`inspection.select` has an order "least sure of the right choice first", and needs the probabilities for it.',
    right="Listen to the first of them: some are the model's fault, and some the question's.",
)
def most_surely_wrong(worst: Sequence[Mapping], sure: Mapping[str, Mapping[str, float]]) -> str | None:
    if any(causes.kind(row) != "wrong" for row in worst):
        return 'There are right answers among them: wanted="wrong" leaves them out.'
    if any(row["id"] not in sure for row in worst):
        return "Take the hundred questions whose probabilities are known."
    chances = [sure[row["id"]][row["answer"]] for row in worst]
    if chances == sorted(chances):
        return None if chances else "No row is left."
    if chances == sorted(chances, reverse=True):
        return "The other way round: where the right choice has the least probability, it is most surely wrong."
    return "They are not sorted by the probability of the right choice."


@exercise(
    "07",
    2,
    wanted='check(2, deaf, runs["grpo"], silent["grpo"]), with rows of the trained run',
    hint='`inspection.pairs` of the run and its silent control says "both right" of a question that needs no ears.',
    right="Such a right answer says nothing about hearing: a guess, or a habit, gives it too.",
)
def no_ears(deaf: Sequence[Mapping], run: Predictions, silent: Predictions) -> str | None:
    found, pairs = {row["id"] for row in deaf}, inspection.pairs(run, silent)
    names = {kind: {name for name, its in pairs.items() if its == kind} for kind in inspection.PAIRS[1:]}
    if found == names["both right"]:
        return None
    if found == names["only A"]:
        return "Those need ears: with silence they are lost."
    if found == names["both right"] | names["only B"]:
        return "Some of these are right with silence alone; the trained model must have them right as well."
    return f"{len(found - names['both right'])} too many and {len(names['both right'] - found)} missing."


@exercise(
    "07",
    3,
    wanted='check(3, levels, runs["grpo"]), with what causes.count gives',
    hint='`causes.count(run, guesses, by="difficulty")`.',
    right="Mind the intervals before you tell a story: few questions are hard, and fewer of them are lost.",
)
def by_difficulty(levels: Mapping[str, Mapping], run: Predictions) -> str | None:
    known = {group(row, "difficulty") for row in run.rows}
    if set(levels) - {"all"} == known:
        return None
    if set(levels) - {"all"} == {group(row, "task") for row in run.rows}:
        return "Those are counts by task; by difficulty is asked for."
    return f"One entry for each of {', '.join(sorted(known))} is wanted."


# -- 08, real sound ---------------------------------------------------------------------------------------------------


@exercise(
    "08",
    1,
    wanted="check(1, W, states, words), with four numbers [[a, b], [c, d]]",
    hint="The logit of word i for state j is words[i] @ W @ states[j]. Which W turns one into the other?",
    right="Four numbers translate one language of two words; the tiny projector has twelve thousand.",
)
def projector(W, states, words) -> str | None:
    a, b, c, d = numbers(W)
    logits = [
        [sum(w[i] * ((a, b), (c, d))[i][j] * s[j] for i in (0, 1) for j in (0, 1)) for w in words.tolist()]
        for s in states.tolist()
    ]
    right = [row[place] > row[1 - place] for place, row in enumerate(logits)]
    if all(right):
        return None
    if not any(right):
        return "It names both sounds, each by the other's word: change the sign of every number."
    return f"It names the {'first' if right[0] else 'second'} sound, and calls the other one the same."


@exercise(
    "08",
    2,
    wanted="check(2, count, report), with a count of clips",
    hint='`report["facts"]["sound"]` has `heard`, what the probe names, and `after`, what the model says.',
    right="What the probe names is there to be said: so much is left for rewards, or for a longer alignment.",
)
def unsaid(count, report: Mapping) -> str | None:
    row = report["facts"]["sound"]
    all_of_them = "Those are all that the model does not name; the probe does not name all of them either."
    otherwise = "Subtract what the model says after the alignment from what the probe hears."
    return counted(count, row["heard"] - row["after"], row["n"], {row["n"] - row["after"]: all_of_them}, otherwise)


@exercise(
    "08",
    3,
    wanted="check(3, points, trials), with one number",
    hint='`real_results.verdicts(rows, "sound")` is (seeds, n) of right and wrong; `groups(trials)` finds the rows.',
    right="Seed 0 is one draw. Set it next to the other seeds in the table before you quote it.",
)
def gained(points, trials: Sequence[Mapping]) -> str | None:
    (points,) = numbers(points)
    (base,) = [row for row in trials if row["method"] == "base"]
    some = real_results.groups(trials)
    first = {method: rows[0] for (method, wrong), rows in some.items() if not wrong}
    share = real_results.verdicts
    gain = {
        (method, task): 100 * float(share([row], task).mean() - share([base], task).mean())
        for method, row in first.items()
        for task in ("sound", "all")
    }
    if near(points, gain["grpo", "sound"], 0.06):
        return None
    if near(points, gain["grpo", "sound"] / 100, 0.0006):
        return "In points, please: hundredths."
    if near(points, gain["grpo", "all"], 0.06):
        return "That is over all test questions; take the sounds alone."
    if "sft" in first and near(points, gain["sft", "sound"], 0.06):
        return "That is SFT's gain."
    return "Subtract the base's share of right sounds from that of GRPO with right labels and seed 0."
