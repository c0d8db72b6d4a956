"""Fill the tables in README and in pages of docs from `data/results/`: `python -m aqa_lib.results.readme`.

No figure in them is typed by hand. A block lies between `<!-- name -->` and `<!-- /name -->`; a test compares each
with what the files say.
"""

import json
import re

from .. import scale
from . import dose, methods, real, stats
from .comparison import interval
from .scoring import Rate

RESULTS = scale.ROOT / "data" / "results"
TASKS = ("sound", "music", "speech")
PAGES = tuple(scale.ROOT / name for name in ("README.md", "docs/laboratory.md", "docs/real_recordings.md"))


def demo() -> str:
    """Format what `make demo` printed, one row per seed: `demo-SEED.json`."""
    made = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("demo-*.json"))]
    lines = ["| model | sound | music | speech | average | tags |", "|---|---|---|---|---|---|"]
    names = {"base, silence": "base, silence instead of sound", "base": "base"} if made else {}
    rows = [(words, made[0]["scores"][name]) for name, words in names.items()]
    rows += [(f"GRPO, seed {one['seed']}", one["scores"]["GRPO"]) for one in made]
    for name, row in rows:
        low, high = row["average"]["interval"]
        cells = [f"{row[task]['percent']:.1f}" for task in TASKS]
        average = f"{row['average']['percent']:.1f} [{low:.1f}, {high:.1f}]"
        lines.append(f"| {' | '.join([name, *cells, average])} | {row['tags']['percent']:.1f} |")
    if not made:
        return "(not run)"
    gains = [one["scores"]["GRPO"]["average"]["percent"] - one["scores"]["base"]["average"]["percent"] for one in made]
    seeds, minutes = ", ".join(str(one["seed"]) for one in made), max(one["minutes"] for one in made)
    n = rows[0][1]["average"]["n"]
    return "\n".join(lines) + (
        f"\n\nPercent of {n} test questions, greedy, prompt 2 [95 %]; gains of "
        f"{', '.join(f'{gain:+.1f}' for gain in gains)} points in seeds {seeds}, in at most {minutes:.1f} minutes. "
        "Another processor rounds differently, so the same seed is another run there: expect numbers within the "
        "intervals, not these digits."
    )


def found(name: str) -> dict:
    """Read a file of results; {} if its command has not been run."""
    file = RESULTS / name
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def gaps() -> str:
    """Write GRPO minus SFT at each share of wrong labels as one sentence: `dose.jsonl`."""
    rows = dose.points(dose.read(RESULTS / "dose.jsonl"), "wrong")
    each = ", ".join(f"{row['GRPO - SFT']} with {100 * float(row['wrong']):g} %" for row in rows)
    return f"GRPO minus SFT at learning rate 1e-4, points [95 %]: {each} wrong labels."


def study() -> str:
    """Format the study's rows and the verdicts on the paper's findings: `study.json`."""
    if not (made := found("study.json")):
        return "(not run)"
    n = made["runs"][0]["n"]
    lines = [f"| row | percent of {n} questions [95 %] | seeds |", "|---|---|---|"]
    for row in made["means"]:
        seeds = ", ".join(f"{seed:.1f}" for seed in row["seeds"])
        name = row["name"].replace("base-", "base, prompt ")
        lines.append(f"| {name} | {interval(row['mean'])} | {seeds} |")
    lines += ["", "| the paper finds | here, points [95 %] | p, corrected | verdict |", "|---|---|---|---|"]
    for row in made["findings"]:
        points = interval((row["points"], row["low"], row["high"]), signed=True)
        lines.append(f"| {row['claim']} | {points} | {stats.p_text(row['p_holm'])} | {row['verdict']} |")
    rates = ", ".join(f"{row} {rate:g}" for row, rate in made["rates"].items())
    return "\n".join([*lines, "", f"Learning rates: {rates}."])


def pulls() -> str:
    """Format how hard right and wrong labels pull: `mechanism.json`."""
    if not (made := found("mechanism.json")):
        return "(not run)"
    lines = ["| label | SFT, median (quartiles) | GRPO, median (quartiles) | groups without deviation (%) [95 %] |"]
    lines.append("|---|---|---|---|")
    for kind in ("right", "wrong"):
        row = made[kind]
        norms = " | ".join(f"{middle:.2f} ({low:.2f} to {high:.2f})" for low, middle, high in (row["sft"], row["grpo"]))
        lines.append(f"| {kind} | {norms} | {Rate(row['silent'], row['n'])} |")
    return "\n".join(lines)


def tries() -> str:
    """Format what a trained model answered to its training questions, asked several times: `unheard.json`."""
    if not (made := found("unheard.json")):
        return "(not run)"
    lines = [f"| relation | questions | wrong in all {made['tries']} tries (%) [95 %] | right, of all tries (%) |"]
    lines.append("|---|---|---|---|")
    for name, row in made["groups"].items():
        never = row["wrong_in_all"]
        wrong = interval((never["percent"], *never["interval"]))
        lines.append(f"| {name} | {never['n']} | {wrong} | {interval(row['right'])} |")
    return "\n".join(lines)


def heard() -> str:
    """Format what an alignment of real parts taught: `alignment.json`."""
    return dose.table(real.hearing(made)) if (made := found("alignment.json")) else "(not run)"


def real_line(trials: list[dict]) -> str:
    """Write what rewards and answers gained on real sounds as one sentence: `real.jsonl`."""
    kinds = {(row["method"], row["wrong labels"]): row for row in real.gains(trials, "sound")}
    told = [
        f"{method} {row['minus base']} with {'right' if wrong == '0 %' else wrong + ' wrong'} labels"
        for (method, wrong), row in kinds.items()
    ]
    against = " and ".join(row["minus SFT"] for row in kinds.values() if row["minus SFT"])
    return (
        "**On real recordings**, with two small pretrained parts that were joined and aligned on one CPU core "
        f"([how](docs/real_recordings.md)), points gained on sounds [95 %]: {', '.join(told)}; "
        f"GRPO minus SFT: {against}."
    )


def blocks() -> dict[str, str]:
    """Return each block's text by its name."""
    rows, others = (dose.read(RESULTS / name) for name in ("dose.jsonl", "methods.jsonl"))
    trials = real.read(RESULTS / "real.jsonl")
    bases = [row["last"] for row in others if row["method"] == "base"]
    return {
        "demo": demo(),
        "gaps": gaps(),
        "dose": dose.table(dose.points(rows, "wrong")),
        "rate": dose.table(dose.points(rows, "rate")),
        "steps": dose.table(dose.points(rows, "steps")),
        "repaired": dose.table(dose.repaired(rows)),
        "mechanism": dose.table(dose.mechanism(rows)),
        "pulls": pulls(),
        "methods": dose.table(methods.labelled(others)),
        "votes": dose.table(methods.vote(others, bases[0]) if bases else []),
        "study": study(),
        "heard": heard(),
        "real-line": real_line(trials),
        "real": dose.table(real.scores(trials)),
        "real-sounds": dose.table(real.gains(trials, "sound")),
        "real-all": dose.table(real.gains(trials)),
        "real-ears": dose.table(real.ears(trials)),
        "real-unsaid": dose.table(real.unsaid(trials)),
        "real-rates": dose.table(real.rates(trials)),
        "real-spent": dose.table(real.spent(trials)),
        "tries": tries(),
    }


def filled(text: str) -> str:
    """Return a text with every block filled."""
    for name, block in blocks().items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda found, block=block: f"{found[1]}{block}\n{found[2]}",
            text,
            flags=re.DOTALL,
        )
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    dose.plot(dose.read(RESULTS / "dose.jsonl"), ("wrong", "rate"), path=RESULTS / "dose.svg")
