"""Draw the course's pictures: `python -m aqa_lib.course.figures` writes `notebooks/figures/*.svg`.

`drawing, the package -> [figures] -> notebooks`. It writes the same bytes every time. What a picture says about the
code, its shapes, rewards, advantages, masks and verdicts, is computed here by the package's own functions, so that no
picture outlives a change of them.
"""

import argparse
import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .. import audio, reward, scale
from ..large.planner import qwen2_audio_7b
from ..predictions import CONTROLS, Predictions
from ..results import causes, mmau
from . import figures_joining as joining
from . import figures_learning as learning
from . import render
from .drawing import SMALL, WIDTH, Drawing, wrap

FOLDER = render.FOLDER / "figures"
EXAMPLE = scale.ROOT / "data" / "results" / "example.json"  # of `make demo`


def course() -> Drawing:
    """Map the notebooks."""
    picture = Drawing("A map of the course", "", 474)
    rows = (
        ("begin", (0,)),
        ("prepare", (1, 2)),
        ("train", (3, 4)),
        ("judge", (5,)),
        ("ask why", (6, 7)),
        ("go real", (8,)),
    )
    hues, left, high, gap = ("grey", "green", "blue", "yellow", "pink", "orange"), 82, 58, 18
    for place, ((name, chapters), hue) in enumerate(zip(rows, hues, strict=True)):
        y, wide = 18 + place * (high + gap), (WIDTH - left - 16 - 20 * (len(chapters) - 1)) / len(chapters)
        picture.text(16, y + high / 2 + 5, name, "bold", hue)
        for column, number in enumerate(chapters):
            chapter, x = render.COURSE[number], left + column * (wide + 20)
            asked = wrap(chapter.question, wide - 16, SMALL)
            picture.rectangle(x, y, wide, high, hue)
            first = y + high / 2 - 8 * len(asked) + 5
            picture.text(x + wide / 2, first, f"{chapter.name[:2]}  {chapter.title}", "bold", anchor="middle")
            picture.lines(x + wide / 2, first + 16, asked, 15, size=SMALL, anchor="middle", space=wide - 8)
        if place:
            picture.arrow((left + WIDTH - 16) / 2, y - gap + 2, (left + WIDTH - 16) / 2, y - 2)
    picture.description = "Nine notebooks in six stages. " + " ".join(
        f"{name}: " + ", ".join(f"{render.COURSE[n].name[:2]} {render.COURSE[n].title}" for n in chapters) + "."
        for name, chapters in rows
    )
    return picture


def _mel(picture: Drawing, levels: np.ndarray, left: float, top: float, wide: float, high: float) -> None:
    """Shade a mel, (bands, columns) from 0 to 1, low bands first, in cells of `wide` by `high` units."""
    columns = levels.shape[1]
    for band, row in enumerate(levels[::-1]):
        start = 0
        for column in range(1, columns + 1):  # runs of one level make one rectangle
            if column == columns or row[column] != row[start]:
                if row[start]:
                    size = {"x": left + wide * start, "width": wide * (column - start), "height": high + 0.1}
                    shade = {"opacity": row[start]}
                    picture.add("rect", "blue-solid", y=top + high * band, **size, **shade)
                start = column


def before_after() -> Drawing:
    """Show one question, its clip, and the replies before and after training: `data/results/example.json`."""
    made = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    mel = np.array(made["mel"])
    picture = Drawing("One question, before and after GRPO", "", 236)
    picture.rectangle(16, 16, 232, 100, "blue", 4, 1)
    _mel(picture, mel / 9, 18, 18, 228 / mel.shape[1], 96 / mel.shape[0])
    picture.text(132, 134, "the clip, as the model sees it", size=SMALL, anchor="middle")
    picture.lines(268, 36, wrap(made["question"], 276), kind="bold")
    for place, choice in enumerate(made["choices"]):
        picture.text(268, 62 + 19 * place, choice, hue="green" if choice == made["answer"] else "")
    for place, (name, hue) in enumerate((("before", "grey"), ("after", "green"))):
        y = 148 + 40 * place
        picture.text(16, y + 22, f"{name} training", "bold")
        picture.box(130, y, 414, 32, made[name], hue=hue, head="mono", size=SMALL)
    picture.description = (
        f"{made['question']} The choices: {', '.join(made['choices'])}. Before training the model replies "
        f"{made['before']!r}, after it {made['after']!r}."
    )
    return picture


def hearing() -> Drawing:
    """Follow ten seconds of sound from the wave to the first word."""
    seconds, sizes = 10, qwen2_audio_7b()
    samples = seconds * audio.SAMPLE_RATE
    frames, bins = audio.num_frames(samples), sizes.audio_config.num_mel_bins
    places, tokens = audio.num_positions(frames), audio.num_audio_tokens(frames)
    tower, hidden, words = sizes.audio_config.d_model, sizes.text_config.hidden_size, sizes.text_config.vocab_size
    picture = Drawing("From a sound to a word", "", 518)
    time = np.arange(samples) / audio.SAMPLE_RATE
    tones = (np.sin(2 * np.pi * time * k * (300 + 160 * (time // 2.5))) / k for k in range(1, 9))
    wave = np.exp(-3 * (time % 2.5)) * sum(tones) / 2  # four strokes, each higher than the last
    mel = audio.log_mel(wave, bins)[:, :frames].reshape(16, bins // 16, 40, frames // 40).mean((1, 3))
    steps = (
        ("Wave", f"{samples:,} numbers", f"{audio.SAMPLE_RATE:,} a second, one channel"),
        ("Log-mel spectrogram", f"{frames:,} columns x {bins} bands", f"{frames // seconds} columns a second"),
        ("Audio tower", f"{tokens} vectors x {tower:,}", f"halved twice: {frames:,}, {places}, {tokens}"),
        ("Projector", f"{tokens} vectors x {hidden:,}", "one linear layer: the width of words"),
        ("One row of tokens", f"words, {tokens} of sound, words", f"{tokens // seconds} tokens a second of sound"),
        ("Language model", f"{words:,} probabilities", "the next token: here the answer begins"),
    )
    high, left, right = 80, 30, 296
    for place, texts in enumerate(steps):
        y = 20 + place * high + 30
        picture.text(right, y - 14, texts[0], "bold")
        picture.text(right, y + 4, texts[1], "mono", size=SMALL)
        picture.text(right, y + 22, texts[2], size=SMALL)
        if place:
            picture.arrow(left + 110, y - 51, left + 110, y - 33)
    peaks = np.abs(wave).reshape(100, -1).max(1)
    for place, peak in enumerate(peaks):
        x = left + 1 + 2.2 * place
        picture.line(x, 50 - 24 * peak - 0.5, x, 50 + 24 * peak + 0.5, hue="blue", thick=1.4)
    picture.rectangle(left - 1, 101, 222, 60, "blue", 2, 1)
    levels = np.asarray((mel - mel.min()) / (mel.max() - mel.min()) * 5).round() / 5
    _mel(picture, levels, left, 103, 5.5, 3.5)
    picture.box(
        left,
        20 + 2 * high,
        220,
        58,
        "2 convolutions",
        f"{sizes.audio_config.encoder_layers} layers",
        "pooling",
        hue="blue",
        head="",
        size=SMALL,
    )
    picture.box(left + 50, 30 + 3 * high, 120, 38, f"{tower:,} to {hidden:,}", hue="blue", head="", size=SMALL)
    for place, hue in enumerate(("grey",) * 3 + ("blue",) * 5 + ("grey",) * 3):
        picture.rectangle(left + 20 * place + 2, 34 + 4 * high, 16, 28, hue, 3)
    layers = f"{sizes.text_config.num_hidden_layers} layers"
    picture.box(left, 25 + 5 * high, 140, 46, "transformer", layers, hue="green", head="", size=SMALL)
    picture.arrow(left + 144, 48 + 5 * high, left + 164, 48 + 5 * high)
    picture.text(left + 168, 52 + 5 * high, "<answer>", "mono", size=SMALL)
    picture.text(30, 506, "Sizes: Qwen2-Audio-7B and a clip of 10 s. The tiny model differs in size alone.", size=11)
    picture.description = " ".join(f"{name}: {shape}, {note}." for name, shape, note in steps)
    return picture


def rewards() -> Drawing:
    """Score replies by the strict and by the faithful rewards."""
    replies = {
        "<answer>dog</answer>": "as asked",
        "<answer>Dog.</answer>": "a capital, a full stop",
        "dog": "no tag",
        "It is <answer>dog</answer>": "words before the tag",
        "<answer>cat</answer>": "wrong",
        "<answer>dog</answer><answer>cat</answer>": "a hedge",
    }
    rules = (reward.accuracy, reward.format, reward.faithful_accuracy, reward.faithful_format)
    texts, right = list(replies), ["dog"] * len(replies)
    columns = {"answer": right, "choices": [["dog", "cat", "rain"]] * len(replies)}
    scores = [rule(None, texts, **columns) for rule in rules]
    picture = Drawing("What the rewards read in a reply", "", 424)
    picture.text(20, 30, "What barks?  dog, cat, rain", "bold")
    x, y = 136, 74
    picture.text(x, y, "It is ", "mono", size=15)
    picture.rectangle(x + 51, y - 18, 188, 26, "blue", 4)
    picture.text(x + 55, y, "<answer>dog</answer>", "mono", size=15)
    picture.line(x + 128, y + 13, x + 128, y + 18, x + 155, y + 18, x + 155, y + 13, hue="blue")
    picture.text(x + 141, y + 35, "accuracy: is it the right choice?", hue="blue", anchor="middle")
    picture.line(x, y + 13, x, y + 18, x + 38, y + 18, x + 38, y + 13, hue="orange")
    picture.text(x - 116, y + 35, "format: nothing here", hue="orange")
    tops, columns_x = 146, (342, 402, 464, 524)
    for place, name in enumerate(("strict (ours)", "the paper's")):
        picture.text((372, 492)[place], tops, name, "bold", anchor="middle", size=SMALL, space=130)
    for name, column in zip(("accuracy", "format") * 2, columns_x, strict=True):
        picture.text(column, tops + 19, name, anchor="middle", size=11)
    picture.line(16, tops + 28, WIDTH - 16, tops + 28, hue="grey")
    for place, (text, note) in enumerate(replies.items()):
        row = tops + 48 + 38 * place
        picture.text(20, row, text, "mono", size=SMALL, space=310)
        picture.text(20, row + 15, note, size=11, hue="grey")
        for column, values in zip(columns_x, scores, strict=True):
            picture.mark(column, row + 1, bool(values[place]))
    picture.line(432, tops + 10, 432, tops + 264, hue="grey", dashed=True)
    names = ("strict accuracy", "strict format", "faithful accuracy", "faithful format")
    picture.description = "Right answer: dog. " + " ".join(
        f"{text} ({note}): "
        + ", ".join(f"{name} {values[place]:g}" for name, values in zip(names, scores, strict=True))
        + "."
        for place, (text, note) in enumerate(replies.items())
    )
    return picture


def words() -> Drawing:
    """Judge replies by MMAU's rule of word sets."""
    answer, choices = "a dog", ("a dog", "a cat", "a wolf")
    must = sorted(mmau.words(answer))
    must_not = sorted(frozenset().union(*map(mmau.words, choices)) - mmau.words(answer))
    replies = ("A dog!", "dog", "a dog, not a cat", "not a dog", "a hound", "")
    verdicts = [mmau.official(reply, answer, choices) for reply in replies]
    picture = Drawing("MMAU's rule: sets of words", "", 372)
    picture.text(20, 32, f"Choices: {', '.join(choices)}. Right: {answer}.", "bold")
    picture.box(20, 48, 252, 54, "must hold all of", "  ".join(must), hue="blue", head="", kind="bold")
    picture.box(288, 48, 252, 54, "must hold none of", "  ".join(must_not), hue="orange", head="", kind="bold")
    for x, head in ((20, "reply"), (190, "its words"), (352, "lacks"), (412, "forbidden"), (520, "right?")):
        picture.text(x, 132, head, "bold", size=SMALL, anchor="middle" if head == "right?" else "start")
    picture.line(16, 140, WIDTH - 16, 140, hue="grey")
    for place, (reply, verdict) in enumerate(zip(replies, verdicts, strict=True)):
        y, said = 162 + 28 * place, mmau.words(reply)
        picture.text(20, y, reply or "(empty)", hue="" if reply else "grey")
        picture.text(190, y, "  ".join(sorted(said)) or "none", "mono" if said else "", size=SMALL)
        picture.text(352, y, "  ".join(word for word in must if word not in said), "mono", "orange", SMALL)
        picture.text(412, y, "  ".join(word for word in must_not if word in said), "mono", "orange", SMALL)
        picture.mark(520, y - 4, verdict)
    picture.text(20, 336, "It cannot read: \u201cnot a dog\u201d passes; a thought that names a wrong choice fails.")
    picture.text(20, 354, "So it is given the extracted answer, with a strict reading next to it.")
    picture.description = f"For the answer {answer} among {', '.join(choices)}: " + " ".join(
        f"\u201c{reply}\u201d is {'right' if verdict else 'wrong'}."
        for reply, verdict in zip(replies, verdicts, strict=True)
    )
    return picture


def controls() -> Drawing:
    """Show what each control takes away from a question."""
    rows = {"as asked": ("sound", ("dog", "cat", "rain"), "the score")}
    told = {
        "silent": ("silence", ("dog", "cat", "rain"), "falls to a guess, if it listens"),
        "shuffled": ("sound", ("rain", "dog", "cat"), "stays, if it chooses by content"),
        "text-only": ("no clip", ("dog", "cat", "rain"), "what the words give away"),
    }
    rows |= {name: told[name] for name in CONTROLS}
    picture = Drawing("Three controls: does the model listen?", "", 316)
    for x, head in ((112, "clip"), (214, "choices"), (348, "what its score should do")):
        picture.text(x, 32, head, "bold", size=SMALL)
    time = np.linspace(0, 1, 41)
    wave = np.sin(2 * np.pi * 5 * time) * np.exp(-3 * ((2 * time) % 1))
    for place, (name, (clip, choices, result)) in enumerate(rows.items()):
        y = 44 + 66 * place
        picture.text(20, y + 32, name, "bold")
        if clip == "no clip":
            picture.text(112, y + 32, "no clip", hue="grey")
        else:
            picture.rectangle(110, y + 6, 90, 42, "blue" if clip == "sound" else "grey")
            heights = wave * (clip == "sound")
            points = [p for t, h in zip(time, heights, strict=True) for p in (115 + 80 * t, y + 27 - 17 * h)]
            picture.line(
                *(points if heights.any() else [*points[:2], *points[-2:]]), hue="blue" if clip == "sound" else "grey"
            )
        for number, choice in enumerate(choices):
            picture.box(
                214 + 40 * number, y + 13, 36, 28, choice, hue="green" if choice == "dog" else "grey", head="", size=11
            )
        picture.lines(348, y + (25 if len(wrap(result, 200)) > 1 else 32), wrap(result, 200))
        if place:
            picture.line(16, y - 4, WIDTH - 16, y - 4, hue="grey", thick=1)
    picture.description = " ".join(
        f"{name}: {clip}, choices {', '.join(c)}; {r}." for name, (clip, c, r) in rows.items()
    )
    return picture


def thought() -> Drawing:
    """Put prompt 2 next to prompt 3: what is written, and what the rewards read."""
    replies = {2: "<answer>a dog</answer>", 3: "<think>It meows.</think><answer>a dog</answer>"}
    formats = {2: reward.format, 3: reward.think_format}
    earned = {
        style: (reward.accuracy(None, [text], ["a dog"])[0], formats[style](None, [text])[0])
        for style, text in replies.items()
    }
    picture = Drawing("A thought before the answer", "", 350)
    picture.text(20, 30, "One clip, one question: What do you hear?", "bold")
    tops = {2: 48, 3: 178}
    asks = {
        2: "\u201cOutput the final answer in <answer> </answer>.\u201d",
        3: "\u201cOutput the thinking process in <think> </think> and final answer ...\u201d",
    }
    for style, top in tops.items():
        high = 116 if style == 2 else 158
        picture.rectangle(16, top, WIDTH - 32, high, "grey")
        picture.text(28, top + 24, f"Prompt {style}", "bold")
        picture.text(112, top + 24, asks[style], size=11)
        answer = 28 if style == 2 else 224
        y = top + 62
        if style == 3:
            picture.rectangle(28, y - 19, 188, 28, "yellow", 4)
            picture.text(32, y, "<think>It meows.</think>", "mono", size=SMALL)
        picture.rectangle(answer, y - 19, 168, 28, "blue", 4)
        picture.text(answer + 4, y, replies[2], "mono", size=SMALL)
        picture.line(answer + 63, y + 14, answer + 63, y + 20, answer + 99, y + 20, answer + 99, y + 14, hue="blue")
        accuracy, form = earned[style]
        picture.text(answer + 81, y + 36, f"accuracy reads this: {accuracy:g}", hue="blue", anchor="middle", size=SMALL)
        picture.text(answer + 186, y, f"format: {form:g}", hue="green")
        if style == 3:
            picture.text(122, y + 27, "read by no reward", hue="yellow", anchor="middle", size=SMALL)
            told = f"It thinks of a cat, answers a dog, and earns {accuracy + form:g} of 2: a thought is paid"
            picture.lines(28, y + 66, (told, "for being there, and for the answer that follows it."), size=SMALL)
    told = [
        f"Prompt {style}: {text} earns accuracy {earned[style][0]:g} and format {earned[style][1]:g}."
        for style, text in replies.items()
    ]
    told.append("The format reward asks that a thought be there; no reward reads what it says.")
    picture.description = " ".join(told)
    return picture


def errors() -> Drawing:
    """Lead from an error to its cause."""
    base = {"choices": ["a dog", "rain"], "answer": "a dog", "official": ""}
    rows = {"none": "", "outside": "a bark", "same": "rain", "other": "rain"}
    run = [base | {"id": name, "prediction": text, "official": text} for name, text in rows.items()]
    deaf = [base | {"id": name, "prediction": "rain" if name == "same" else "a dog"} for name in rows]
    found = causes.suggest(Predictions("run", run), Predictions("silent", deaf))
    by_ear = [name for name in causes.CAUSES if name not in found.values()]
    picture = Drawing("From an error to its cause", "", 424)
    asks = (
        ("Could an answer be read?", "no", "none"),
        ("Is it one of the choices?", "no", "outside"),
        ("Is it the same with silence?", "yes", "same"),
    )
    picture.box(60, 16, 200, 34, "A question that went wrong", head="", size=SMALL)
    for place, (ask, leaves, name) in enumerate(asks):
        y = 76 + 74 * place
        picture.arrow(160, y - (26 if not place else 30), 160, y - 2)
        picture.box(40, y, 240, 42, ask, hue="blue", head="")
        picture.arrow(282, y + 21, 346, y + 21)
        picture.text(314, y + 15, leaves, anchor="middle", size=SMALL)
        picture.box(348, y, 196, 42, found[name], hue="orange")
        if place:
            picture.text(170, y - 12, "yes", size=SMALL)
    picture.arrow(160, 268, 160, 296)
    picture.text(170, 284, "no", size=SMALL)
    picture.box(60, 298, 200, 34, found["other"], hue="orange")
    picture.text(348, 320, "So far a rule can tell:", size=SMALL)
    picture.text(348, 336, "a guess, not a finding.", size=SMALL)
    picture.arrow(100, 333, 100, 358)
    picture.box(20, 360, 124, 50, "Listen, then", "name it yourself", hue="green", head="", size=SMALL)
    picture.arrow(146, 385, 164, 385)
    left = 166
    for name in by_ear:
        wide = {"other": 62}.get(name, 152)
        picture.box(left, 368, wide, 34, name, hue="green", head="", size=SMALL)
        left += wide + 6
    picture.description = (
        f"No answer could be read: {found['none']}. Read, but none of the choices: {found['outside']}. "
        f"The same answer with silence: {found['same']}. Else: {found['other']}. By ear also: {', '.join(by_ear)}."
    )
    return picture


FIGURES: dict[str, Callable[[], Drawing]] = {
    "course": course,
    "before_after": before_after,
    "hearing": hearing,
    "rewards": rewards,
    "grpo_cycle": learning.cycle,
    "advantages": learning.advantage,
    "clipping": learning.clipping,
    "wrong_label": learning.wrong_label,
    "shared_row": learning.row,
    "mmau_rule": words,
    "controls": controls,
    "thought": thought,
    "errors": errors,
    "joined": joining.joined,
}


def markdown(name: str, folder: str = "figures") -> str:
    """Return the line that shows a figure in a notebook, with its description as alternative text."""
    picture = FIGURES[name]()
    alt = html.escape(f"{picture.title}. {picture.description}", quote=False).translate(str.maketrans("[]", "()"))
    return f"![{alt}]({folder}/{name}.svg)"


def write(names: Sequence[str] = (), folder: Path = FOLDER) -> None:
    """Write pictures into a folder, all if none is named."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or FIGURES:
        (folder / f"{name}.svg").write_text(FIGURES[name]().svg(), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m aqa_lib.course.figures", description="Draw the notebooks' figures."
    )
    parser.add_argument("names", nargs="*", choices=[*FIGURES, []], help="only these; all if not given")
    write(parser.parse_args().names)
