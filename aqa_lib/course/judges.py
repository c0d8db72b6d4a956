"""Judge the answers to the exercises of notebooks 00 to 03.

`[judges] -> judges_later -> exercises`. A judge gets an answer, and what else of the notebook it has to know. It
returns one sentence that says where the answer errs, or None if it is right; it knows the mistakes readers make.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from .. import prompt, reward
from ..audio import Clip
from ..dataset import Question
from ..results import mmau


class Untried(Exception):
    """The answer is still the empty one that the notebook came with."""


@dataclass(frozen=True)
class Exercise:
    """wanted: the form of an answer; hint: a push; right: what a right answer shows; judge: see above."""

    wanted: str
    hint: str
    right: str
    judge: Callable[..., str | None]


EXERCISES: dict[str, dict[int, Exercise]] = {}  # by notebook and number


def exercise(notebook: str, n: int, wanted: str, hint: str, right: str) -> Callable:
    """Register a function as the judge of an exercise."""

    def register(judge: Callable[..., str | None]) -> Callable[..., str | None]:
        EXERCISES.setdefault(notebook, {})[n] = Exercise(wanted, hint, right, judge)
        return judge

    return register


def numbers(answer: object) -> list[float]:
    """List the numbers in an answer: one, a sequence, an array or a tensor of any shape."""
    answer = answer.tolist() if hasattr(answer, "tolist") else answer
    if isinstance(answer, Iterable) and not isinstance(answer, str | bytes):
        return [number for part in answer for number in numbers(part)]
    return [float(answer)]  # type: ignore[arg-type]


def near(value: float, wanted: float, by: float = 0.01) -> bool:
    """Tell whether a number is another, up to `by`."""
    return abs(value - wanted) <= by


def counted(answer: object, truth: int, n: int, others: Mapping[int, str], otherwise: str) -> str | None:
    """Judge a count out of n. others: what to say of other counts; otherwise: of any that is not among them."""
    (count,) = numbers(answer)
    if count == truth:
        return None
    if near(count, truth / n, 0.005):
        return "That is the share; give the count."
    return others.get(count, otherwise)  # type: ignore[call-overload]


def tried(result: object) -> object:
    """Return what a reader's function gave; raises Untried where that is nothing yet."""
    if result is None or result is ...:
        raise Untried
    return result


# -- 00, a tour ------------------------------------------------------------------------------------------------------


@exercise(
    "00",
    1,
    wanted="check(1, mine, question), with `mine` a Question",
    hint='`replace(question, question="...", choices=("yes", "no"), answer="yes")` from `dataclasses` keeps the clip.',
    right="Words that it never met are hard for a tiny model, whatever the clip.",
)
def own_question(mine: Question, question: Question) -> str | None:
    if mine.question == question.question:
        return "That is the question that was asked already; ask another."
    if mine.audio != question.audio:
        return "Keep the clip: only question, choices and answer are yours."
    if len(set(mine.choices)) < 2:
        return "Give at least two different choices."
    if mine.answer not in mine.choices:
        return f"The answer {mine.answer!r} is not one of your choices, so no reply could be right."
    return None


@exercise(
    "00",
    2,
    wanted="check(2, own), with `own` a Clip",
    hint='`own = audio.load("my.mp3")`, or `audio.load((wave, rate))` for numbers that you made.',
    right="A sound from outside its world gets an answer too: a model has no way to say that it does not know.",
)
def own_sound(own: Clip) -> str | None:
    if not isinstance(own, Clip):
        return f"That is a {type(own).__name__}, and the model wants a Clip: put it through audio.load."
    return None


@exercise(
    "00",
    3,
    wanted="check(3, [share of eight tries, share of one])",
    hint="Sample a group of 8 a question, reward it, and take the maximum of each group; then a group of 1 at "
    "temperature 0.",
    right="The gap is what GRPO can win: the right reply is in the model, it is not the likeliest yet.",
)
def best_of_eight(shares) -> str | None:
    best, greedy = numbers(shares)
    if max(best, greedy) > 1:
        return "Give shares between 0 and 1: divide by the number of questions."
    if best < greedy:
        return "One try seldom beats the best of eight: are the two the other way round?"
    return None


# -- 01, data preparation --------------------------------------------------------------------------------------------


@exercise(
    "01",
    1,
    wanted="a whole number",
    hint="Seconds first: samples over rate. Then a column every 10 ms; then two halvings, the first rounded up.",
    right="12.3 s are 1,230 columns, 615 steps of the tower and 307 tokens. The second channel changes nothing.",
)
def tokens_of_a_clip(count) -> str | None:
    (count,) = numbers(count)
    mistakes = {
        1230: "Those are the columns of the picture; the tower halves them twice.",
        615: "That is one halving; the pooling halves once more (and two channels count once: they are mixed).",
        614: "Two channels are mixed into one before anything is counted.",
        308: "The second halving rounds down.",
        848: "The clip is resampled first: at 16,000 Hz it has fewer samples.",
        847: "The clip is resampled first: at 16,000 Hz it has fewer samples.",
    }
    return None if count == 307 else mistakes.get(int(count), "Start from the seconds: 542,430 / 44,100.")


@exercise(
    "01",
    2,
    wanted='a dictionary, as {"question": "prompt", ...}',
    hint="`dataset.read(..., columns=names)`; the keys of `names` are what the package says, its values what your file "
    "says.",
    right="Every form of file is read by naming its columns; none has to be rewritten.",
)
def own_columns(names: dict) -> str | None:
    wanted = {"question": "prompt", "audio": "sound", "choices": "options", "answer": "key"}
    if {value: key for key, value in names.items()} == wanted:
        return "The other way round: the package's name first, your file's name after the colon."
    if missing := [name for name in wanted if name not in names]:
        return f"The package also has to know which column holds {missing[0]!r}."
    wrong = [name for name in wanted if names[name] != wanted[name]]
    return f"{names[wrong[0]]!r} is not the column that holds {wrong[0]!r}." if wrong else None


@exercise(
    "01",
    3,
    wanted="check(3, replies, versions), with one reply for each version, in their order",
    hint="`inputs.encode(processor, words, version)` for each version, then `inputs.collate` and one greedy "
    "`rollout.sample` for all.",
    right="Where a reply changed, the model used what the version lost; where it did not, it had no need of it here.",
)
def replies_to_versions(replies, versions) -> str | None:
    replies = [reply[0] if isinstance(reply, list) else reply for reply in replies]
    if len(replies) != len(versions):
        return f"There are {len(versions)} versions and {len(replies)} replies: ask about each."
    if not all(isinstance(reply, str) for reply in replies):
        return "Those are token ids; rollout.decode turns them into text."
    return None


# -- 02, reward design -----------------------------------------------------------------------------------------------


@exercise(
    "02",
    1,
    wanted="a function brief(prompts, completions, completion_ids, **columns) that returns one number per completion",
    hint="From 6 tokens to 12 the reward falls along a line, (12 - n) / 6; `min` and `max` keep it between 0 and 1.",
    right="And a warning comes with it: a model that is paid for brevity may learn to say nothing at all.",
)
def brief(answer: Callable) -> str | None:
    lengths = [4, 6, 9, 12, 30]
    columns = {"completion_ids": [[1] * n for n in lengths], "answer": ["dog"] * 5, "choices": [["dog", "cat"]] * 5}
    paid = tried(answer(prompts=None, completions=[""] * 5, **columns))
    if not isinstance(paid, list | tuple) or len(paid) != 5:
        return "A reward returns a list, one number for each completion."
    for n, got, due in zip(lengths, numbers(paid), [1, 1, 0.5, 0, 0], strict=True):
        if not near(got, due, 1e-6):
            return f"An answer of {n} tokens should earn {due:g}, and earns {got:g}."
    return None


@exercise(
    "02",
    2,
    wanted="the two weights, as (accuracy, format)",
    hint="Write down what the four replies are paid with weights a and f: a + f, a, f and 0. Which order is wanted?",
    right="Any format weight above 0 and below that of accuracy does it; in a shell it is --reward_weights 1 0.5.",
)
def weights(answer) -> str | None:
    a, f = numbers(answer)
    if f <= 0:
        return "Now tags earn a right answer nothing, and the one in tags has to be paid most."
    if a == f:
        return "A right answer without tags and a wrong one in tags are still paid the same."
    return "A wrong answer in tags is paid more than a right one without." if f > a else None


@exercise(
    "02",
    3,
    wanted="a reply, as a string; dog is right, cat the other choice",
    hint="MMAU's rule looks for words anywhere in a reply; the strict reward wants a choice and nothing else.",
    right="Paid by MMAU's rule, a model may talk for a page as long as the right word falls and no wrong one does.",
)
def official_not_strict(reply: str) -> str | None:
    if not mmau.official(reply, "dog", ["dog", "cat"]):
        return "MMAU's rule calls this wrong too: it must hold the word dog, and not the word cat."
    if reward.accuracy(None, [reply], ["dog"], [["dog", "cat"]]) == [1.0]:
        return (
            f"The strict reward reads {prompt.extract_answer(reply)!r} from this and pays it: say more than the choice."
        )
    return None


# -- 03, GRPO training -----------------------------------------------------------------------------------------------


@exercise(
    "03",
    1,
    wanted="all advantages that can occur, as a list of numbers",
    hint="Three cases: the first answer is better, the second is, or neither. Does it matter by how much?",
    right="Only 0 and ±0.71, however far apart the rewards: two answers tell which is better, not by how much.",
)
def of_two(values) -> str | None:
    found = {round(value, 2) for value in numbers(values)}
    found = {0.0 if value == 0 else value for value in found}
    if {1.0, -1.0} & found:
        return "Close, but the deviation here is the unbiased one: it divides by n - 1, which is 1."
    if {0.5, -0.5} & found:
        return "That is the distance from the mean; it is still to be divided by the deviation."
    if found == {0.71, -0.71}:
        return "One case is missing: what if both answers earn the same?"
    if found in ({0.0, 0.71}, {0.0, -0.71}):
        return "If one answer is better than the mean, what about the other?"
    return None if found == {0.0, 0.71, -0.71} else "Try group_advantages(torch.tensor([[1.0, 0.0]])), and other pairs."


@exercise(
    "03",
    2,
    wanted="the favoured group's rewards, as [2, 0, 0, 0] or [2, 1, 1, 1]",
    hint="Take off the mean of each group and do not divide. Which numbers are larger?",
    right="Divided, both give the same advantages. Undivided, the group whose rewards differ more pulls twice as hard.",
)
def favoured(group) -> str | None:
    group = sorted(numbers(group), reverse=True)
    if group == [2, 1, 1, 1]:
        return "Without the division its advantages are 0.75 and -0.25. What are the other group's?"
    return None if group == [2, 0, 0, 0] else "Answer with one of the two groups."


@exercise(
    "03",
    3,
    wanted="the KL at the first step, as one number",
    hint='`recipes.grpo(folder, beta=0.04, max_steps=5, logging_steps=1)`, then `plotting.read_metrics(...)["kl"]`.',
    right="Zero but for rounding: before its first step the policy is its own reference.",
)
def first_kl(kl) -> str | None:
    (kl,) = numbers(kl)
    if near(kl, 0.04, 1e-9):
        return "That is β, the weight of the KL in the loss, not the KL."
    return None if abs(kl) < 1e-3 else "Look at the very first step, before anything was learned."
