"""Score finished predictions, ours or anybody's, without a model.

`predictions -> [scoring] -> comparison -> report`. Three readings side by side: MMAU's official rule; strict
(the answer read from the reply equals the right choice); and how many replies could not be read at all. The
paper gives only the first, without intervals and without controls.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .. import prompt, reward
from ..dataset import show
from ..predictions import GROUPS, Predictions, PredictionsError, group
from ..reading import benchmarks
from ..runtime.errors import AqaError
from ..runtime.escape import markdown
from ..runtime.files import fingerprint
from . import mmau, rules, stats

RULES = ("official", "strict")


@dataclass(frozen=True)
class Rate:
    """A count out of a total, with its percentage and interval.

    >>> print(Rate(645, 1000), Rate(0, 0))
    64.5 [61.5, 67.4] -
    """

    right: int
    n: int

    @property
    def percent(self) -> float:
        return 100 * self.right / self.n if self.n else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval, in percent."""
        low, high = stats.wilson(self.right, self.n) if self.n else (float("nan"),) * 2
        return 100 * low, 100 * high

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.percent:.1f} [{low:.1f}, {high:.1f}]" if self.n else "-"

    def to_dict(self) -> dict:
        known = {"percent": self.percent, "interval": list(self.interval)} if self.n else {}
        return {"right": self.right, "n": self.n} | known


@dataclass(frozen=True)
class Report:
    """What a file of predictions scores; scores are None if all answers are withheld."""

    name: str
    data: str
    n: int  # questions asked
    official: Rate | None
    strict: Rate | None
    unreadable: Rate
    outside: Rate  # read, but none of the choices
    tagged: Rate  # in the form that the prompt asked for
    uniform: float | None
    first_choice: float | None
    by: dict[str, dict[str, dict[str, Rate]]] = field(default_factory=dict)  # "task", "sound", rule
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict:
        """Return everything as plain numbers and strings, for JSON."""
        rates = {
            key: None if rate is None else rate.to_dict()
            for key in (*RULES, "unreadable", "outside", "tagged")
            for rate in [getattr(self, key)]
        }
        by = {
            key: {value: {rule: rate.to_dict() for rule, rate in rules.items()} for value, rules in values.items()}
            for key, values in self.by.items()
        }
        lines = {"uniform_guess": self.uniform, "first_choice": self.first_choice}
        texts = {"name": self.name, "data": self.data, "n": self.n, "notes": list(self.notes)}
        return texts | rates | lines | {"by": by}

    def markdown(self) -> str:
        """Format the scores as text: percent and 95 % Wilson interval."""
        lines = [f"## {markdown(self.name)}", ""]
        lines += [f"{markdown(self.data)}, {self.n} questions; percent [95 % interval]", ""]
        if self.official:
            lines += ["| | n | official rule | strict |", "|---|---|---|---|"]
            for key, values in self.by.items():
                for value, rates in values.items():
                    official, strict = rates["official"], rates["strict"]
                    name = f"{key}: {markdown(value) or '(none)'}"
                    lines.append(f"| {name} | {official.n} | {official} | {strict} |")
            lines += [f"| **all** | {self.official.n} | **{self.official}** | **{self.strict}** |"]
            lines += [f"| first choice always | | {self.first_choice:.1f} | |"]
            lines += [f"| uniform guess | | {self.uniform:.1f} | |", ""]
        lines += [
            f"Replies: {self.unreadable} unreadable, {self.outside} read but none of the choices, "
            f"{self.tagged} in the form asked for."
        ]
        return "\n".join([*lines, *(f"Note: {markdown(note)}" for note in self.notes)]) + "\n"


def score(run: Predictions | Sequence[dict]) -> Report:
    """Score predictions by every rule, in total and by task, difficulty, category and sub-category.

    Missing and empty predictions count as wrong, and `notes` says how many there are. Withheld answers are not scored.
    """
    run = run if isinstance(run, Predictions) else Predictions("predictions", list(run))
    once(run)
    rows, n, notes = run.rows, asked(run), []
    replies = [row for row in rows if row["model_output"] is not None]
    missing, empty = n - len(replies), sum(not mmau.words(official_text(row)) for row in replies)
    if len(rows) < n:
        notes.append(f"{n - len(rows)} of {n} questions were not reached: the run is not finished; run it again.")
    if missing:
        notes.append(f"{missing} of {n} questions have no prediction; they count as wrong.")
    if empty:
        notes.append(f"{empty} predictions contain no words; they count as wrong.")
    if tags := sum("<answer>" in official_text(row) for row in replies):
        notes.append(f"the official rule reads {tags} outputs with their <answer> tags as they stand.")
    if run.open_ones:
        notes.append(f"{benchmarks.told(run.open_ones)}; they are not scored.")
    if sets := {row[benchmarks.MARK]: rules.of(row) for row in rows if row.get(benchmarks.MARK)}:
        notes += [f"the official rule is {name}'s: {rules.SAID[rule]}." for name, rule in sets.items()]
    answered = [row for row in rows if row["answer"]]
    if len(answered) < len(rows):
        notes.append(f"{len(rows) - len(answered)} of {len(rows)} answers are withheld; they are not scored.")
    outside = [row["prediction"] and prompt.choice_of(row["prediction"], row["choices"]) is None for row in replies]
    formed = reward.form_of(run.settings.get("style"))
    tagged = formed([None] * len(replies), [row["model_output"] for row in replies])
    totals, by = dict.fromkeys(RULES), {}
    if answered:
        judged = {rule: [judge(row, rule) for row in answered] for rule in RULES}
        counts = run.meta.get("counts", {}) if len(answered) == len(rows) else {}
        totals = {rule: Rate(sum(judged[rule]), max(len(answered), n if counts else 0)) for rule in RULES}
        by = {key: _by_group(answered, judged, key, counts.get(key, {})) for key in GROUPS}
    return Report(
        name=run.name,
        data=data_version(run),
        n=n,
        **totals,
        unreadable=Rate(sum(not row["prediction"] for row in replies), len(replies)),
        outside=Rate(sum(map(bool, outside)), len(replies)),
        tagged=Rate(int(sum(tagged)), len(replies)),
        uniform=mmau.uniform_guess(answered) if answered else None,
        first_choice=mmau.first_choice(answered) if answered else None,
        by={key: values for key, values in by.items() if set(values) != {""}},
        notes=tuple(notes),
    )


def _by_group(rows: list[dict], judged: dict[str, list[bool]], key: str, counts: dict[str, int]) -> dict:
    names = [group(row, key) for row in rows]
    return {
        value: {
            rule: Rate(
                sum(right for right, name in zip(rights, names, strict=True) if name == value),
                max(names.count(value), counts.get(value, 0)),
            )
            for rule, rights in judged.items()
        }
        for value in sorted({*names, *counts})
    }


def official_text(row: dict) -> str:
    """Return what the official rule reads from a row: our extracted answer, or anybody else's output as it stands."""
    return row.get("official", row["prediction"])


def judge(row: dict, rule: str) -> bool:
    """Return whether a row is right by the "official" or the "strict" rule; a missing prediction is wrong."""
    if rule == "official":
        return rules.judge(row, official_text(row))
    if rule != "strict":
        raise AqaError(f"rule {rule!r} is unknown; choose {' or '.join(RULES)}.")
    return prompt.matches(row["prediction"], row["answer"], row["choices"])


def asked(run: Predictions) -> int:
    """Count the questions of a run, reached or not."""
    return max(len(run.rows), sum(run.meta.get("counts", {}).get("task", {}).values()))


def questions_of(run: Predictions) -> str:
    """Return the fingerprint of a run's questions, including those not yet reached."""
    return run.settings.get("questions") or fingerprint(run.rows)


def data_version(run: Predictions) -> str:
    """Name the data of a run: a published version, a part of one, or the file's name and the start of its hash."""
    digest, content = run.settings.get("data_sha256") or "", questions_of(run)
    if mmau.version(content).startswith("MMAU"):
        return mmau.version(content)
    if mmau.version(digest).startswith("MMAU"):
        return f"{mmau.version(digest)}, {asked(run)} of its questions"
    file = run.labels.get("data")
    name = mmau.version(digest or content)
    return name.replace(mmau.UNKNOWN, file) if file else name


def complete(run: Predictions, questions: Sequence[dict]) -> Predictions:
    """Match a file's rows to the questions that were asked; a question without a row is a missing prediction.

    questions: rows with `id, question, choices, answer`; their answers and choices are the ones scored. Raises
    PredictionsError if a row belongs to none of them, or differs in its question, choices or answer, or if an id occurs
    twice.
    """
    once(run)
    known, there = {row["id"]: row for row in questions}, {row["id"]: row for row in run.rows}
    if strange := sorted(set(there) - set(known)):
        raise PredictionsError(f"{run.name}: predicts {show(strange[0])}, which is not one of the questions.")
    other = {name: what for name, row in there.items() if (what := _disagrees(row, known[name]))}
    if other:
        name, what = next(iter(other.items()))
        raise PredictionsError(
            f"{run.name}: {len(other)} of {len(there)} rows do not match the questions given; {show(name)} has a "
            f"different {what}: score them with the questions that were asked."
        )
    rows = [there[name] | row for name, row in known.items() if name in there]
    absent = [row | {"model_output": None, "prediction": ""} for name, row in known.items() if name not in there]
    return Predictions(run.name, [*rows, *absent], run.meta)


def _disagrees(row: dict, asked: dict) -> str | None:
    """Name where a row differs from its question; what it leaves out does not count."""

    def fold(text: str) -> str:
        return " ".join(str(text).split())

    if row["question"] and fold(row["question"]) != fold(asked["question"]):
        return "question"
    if sorted(map(fold, row["choices"])) != sorted(map(fold, asked["choices"])):
        return "list of choices"
    if row["answer"] and asked["answer"] and fold(row["answer"]) != fold(asked["answer"]):
        return "answer"
    return None


def once(run: Predictions) -> None:
    """Raise PredictionsError if an id occurs twice: one question would count as two."""
    counts = Counter(row["id"] for row in run.rows if "id" in row)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise PredictionsError(
            f"{run.name}: {len(twice)} ids occur more than once, {show(twice[0])} among them; keep one row for each."
        )
