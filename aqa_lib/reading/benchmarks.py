"""Know the published sets by their columns: what they call a field, where replies stand, by which rule they are judged.

`tables -> [benchmarks] -> dataset, predictions`. MMAU and AVQA have readers of their own in `dataset`. The others are
here, so that a file is read as it was published, with no `--columns`; docs/benchmarks.md says what was checked. None of
these files was at hand: the columns are those that their cards and scorers name.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from . import forms
from .tables import Rows


@dataclass(frozen=True)
class Benchmark:
    """A published set. has, one_of: columns that tell it from the others; columns: our names to its own.

    output: where its scorer looks for replies. rule: one of `results.rules.RULES`. open: values of its `category` whose
    answers only a judge model or a program can mark. text_answers: an answer is a choice's text, never an index.
    """

    name: str
    has: frozenset[str]
    one_of: frozenset[str] = frozenset()
    columns: Mapping[str, str] = field(default_factory=dict)
    output: str = "model_output"
    rule: str = "words"
    open: tuple[str, ...] = ()
    text_answers: bool = False


MMAR = Benchmark(
    "MMAR",
    frozenset({"audio_path", "question", "choices", "answer", "modality", "category"}),
    columns={"audio": "audio_path", "task": "modality"},
    output="answer_prediction",
    text_answers=True,
)
MMSU = Benchmark(
    "MMSU",
    frozenset({"audio_path", "question", "choice_a", "choice_b", "answer_gt"}),
    columns={"audio": "audio_path", "answer": "answer_gt"},
    output="response",
    rule="letter",
)
ADQA = Benchmark(
    "ADQA",
    frozenset({"audio_path", "question_text", "multi_choice"}),
    columns={"audio": "audio_path", "question": "question_text", "choices": "multi_choice"},
    rule="exact",
    text_answers=True,
)
AUDIO_MCQ = Benchmark(
    "AudioMCQ",
    frozenset({"audio_path", "question", "choices", "answer", "source_dataset"}),
    columns={"audio": "audio_path"},
    rule="choice",
    text_answers=True,
)
MMAU_PRO = Benchmark(
    "MMAU-Pro",
    frozenset({"audio_path", "question", "choices", "answer", "category"}),
    one_of=frozenset({"task_identifier", "length_type", "perceptual_skills", "reasoning_skills"}),
    columns={"audio": "audio_path"},
    rule="choice",
    open=("open", "instruction following"),
    text_answers=True,
)
BENCHMARKS = {one.name: one for one in (MMAR, MMSU, ADQA, MMAU_PRO, AUDIO_MCQ)}
MARK = "benchmark"  # the field of a question's meta, and of a prediction, that names its set
SUBMISSION = {"question", "answer"}  # the columns of an ADQA submission: a question's id, and a choice's text


def detect(rows: Rows) -> Benchmark | None:
    """Find the set that rows are from, by their columns; None where it is none of these.

    ADQA has AVQA's columns; what tells them apart is that its answers are texts, or withheld.
    """
    readable = [row for _, row in rows if isinstance(row, dict)]
    names = {key for row in readable for key in row}
    known = names | {"audio_path"} if "audio" in names else names
    for benchmark in BENCHMARKS.values():
        if not benchmark.has <= known or (benchmark.one_of and not benchmark.one_of & names):
            continue
        kinds = {type(row.get("answer")) for row in readable if row.get("answer") is not None}
        if benchmark is ADQA and (kinds - {str} or (not kinds and "answer" in names)):
            continue
        return benchmark
    return None


def columns(benchmark: Benchmark, names: Iterable[str]) -> dict[str, str]:
    """Map our names to the set's; on the hub its clips are often in a column `audio`."""
    return {**benchmark.columns, **({"audio": "audio"} if "audio" in names else {})}


def is_open(row: object, benchmark: Benchmark | None) -> bool:
    """Whether a row asks for a free answer, which needs a judge model: by its category, or for lack of choices."""
    if benchmark is None or not benchmark.open or not isinstance(row, Mapping):
        return False
    choices = row.get("choices")
    few = choices is None or (isinstance(choices, list | tuple) and len(choices) < 2)
    return few or row.get("category") in benchmark.open


def closed(rows: Rows, benchmark: Benchmark | None) -> tuple[Rows, Counter]:
    """Divide rows into those that can be judged here, and the number of open ones by category."""
    if benchmark is None or not benchmark.open:
        return rows, Counter()
    aside = [row for _, row in rows if is_open(row, benchmark)]
    kept = [(place, row) for place, row in rows if not is_open(row, benchmark)]
    return kept, Counter(str(row.get("category")) for row in aside)  # type: ignore[attr-defined]


def told(open_ones: Mapping[str, int]) -> str:
    """Name and count open questions in a sentence.

    >>> told({"open": 2, "instruction following": 1})
    '3 open questions (2 open, 1 instruction following) need a judge model'
    """
    kinds = ", ".join(f"{count} {kind}" for kind, count in open_ones.items())
    return f"{sum(open_ones.values())} open questions ({kinds}) need a judge model"


def plain(raw: Mapping, benchmark: Benchmark, names: Iterable[str]) -> dict:
    """Turn a row of a finished file into `question, choices, answer, model_output`, next to its own fields.

    names: the file's columns. Raises ValueError where choices or answer cannot be read.
    """
    ours = {key: raw.get(theirs) for key, theirs in benchmark.columns.items() if key in ("question", "answer", "task")}
    among = raw.get(benchmark.columns.get("choices", "choices"))
    if among is None:
        among = {label: raw.get(column) for label, column in forms.columns(names).items()}
    found = forms.choices(among)
    output = {"model_output": raw[benchmark.output]} if benchmark.output in raw else {}
    return {**raw, **ours, **output, "choices": list(found.texts), MARK: benchmark.name}
