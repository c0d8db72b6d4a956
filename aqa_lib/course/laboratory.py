"""A laboratory for one sound: choose it, add noise, change its speed, listen, and watch the probabilities move.

`evaluation, synth -> [laboratory] -> notebooks 00, 01, 07`. Plain functions change a clip and draw what models make of
it; `Laboratory` puts controls around them. The sound may also be the reader's own, from a file or a microphone. Models
answer whatever they are given, so the page says when a sound or a word lies outside of what this one was raised on.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import matplotlib
import numpy as np
import soundfile
from PIL import Image

from .. import audio, inputs, scale
from ..audio import Clip
from ..dataset import Question
from ..evaluation import choice_probabilities
from ..results.plotting import COLOURS, METHOD_COLOURS
from ..runtime.errors import AqaError
from ..runtime.escape import NO_MATH, html
from ..tiny import sounds, synth
from . import microphone, show, widgets
from .browser import WHOLE, choose, with_page
from .inspection import LEFT, TOLD, alert, data_url

NONE = -math.inf  # dB: no noise at all
NOISES = (("none", NONE), *((f"{level:+d} dB", float(level)) for level in range(-30, 25, 5)))
SPEEDS = tuple((f"{2 ** (step / 4):.2f}", 2 ** (step / 4)) for step in range(-4, 5))
TINY_WORLD = {"source": sounds.SOURCES, "instrument": sounds.INSTRUMENTS, "voice": tuple(sounds.VOICES)}
WORDS = {value for fact in (*synth.FACTS.values(), *synth.VIEWS.values()) for value in fact.values}


@dataclass(frozen=True)
class Source:
    """A sound and what is asked about it. kind: "asked" (a test clip), "made" here, or the reader's "own"."""

    clip: Clip
    question: Question
    kind: str


def made(fact: str, value: str) -> Source:
    """Draw the first clear clip of the tiny world in which a fact has a value, and ask for that fact."""
    task = synth.FACTS[fact].task
    for seed in range(10_000):
        rng = np.random.default_rng([seed, 7])
        wave, facts = sounds.clip(task, rng)
        if facts.get(fact) == value and float(facts["noise"].split()[0]) > 15:
            clip = audio.load((wave, audio.SAMPLE_RATE), name=f"made here: {value}")
            return Source(clip, synth.ask(facts, rng, fact, id=clip.name), "made")
    raise LookupError(f"no clip with {value} was found.")


def change(clip: Clip, noise: float = NONE, speed: float = 1.0, max_seconds: float = audio.MAX_SECONDS) -> Clip:
    """Add white noise to a clip and play it at another speed, as a tape: faster is also higher.

    noise: its loudness in dB over the clip's own (root mean square). What is longer than `max_seconds` is cut off.
    """
    played = audio.load((clip.wave, round(audio.SAMPLE_RATE * speed)), name=clip.name, max_seconds=max_seconds)
    cut = (note for note in played.notes if note.startswith("cut"))  # that it was resampled is the speed's affair
    loudness = np.sqrt(np.mean(played.wave**2)) * 10 ** (noise / 20)
    hiss = np.random.default_rng(0).normal(size=len(played.wave)).astype(np.float32)
    return Clip(played.wave + np.float32(loudness) * hiss, clip.name, (*clip.notes, *cut))


def likelihoods(models: Mapping[str, tuple], question: Question, clip: Clip) -> dict[str, dict[str, float]]:
    """Compute each model's probability of each choice, had the question been asked about this clip."""
    file = io.BytesIO()
    soundfile.write(file, clip.wave, audio.SAMPLE_RATE, format="WAV", subtype="FLOAT")
    asked = replace(question, audio=file.getvalue(), meta={})
    return {name: choice_probabilities(*model, asked) for name, model in models.items()}


def picture(clip: Clip, bins: int, seconds: float) -> str:
    """Draw the log-mel spectrogram that a model gets, as HTML; `seconds` would fill the width."""
    mel = audio.log_mel(clip.wave, bins)[:, : audio.num_frames(len(clip.wave))].numpy()[
        ::-1
    ]  # low pitches at the bottom
    shades = np.clip((mel - mel.max() + 2) / 2, 0, 1)
    file = io.BytesIO()
    pixels = (255 * matplotlib.colormaps["magma"](shades)[..., :3]).astype("uint8")
    Image.fromarray(pixels).save(file, "webp", quality=80)
    style = f"width: {min(100, 100 * clip.seconds / seconds):.0f}%; height: 9em; max-width: none; margin: 0"
    return f'<img style="{style}" alt="Mel spectrogram, low frequencies at the bottom" src="{data_url(file, "webp")}">'


def bars(question: Question, shares: Mapping[str, Mapping[str, float]]) -> str:
    """Draw each model's probability of each choice, as an HTML table."""
    head = "".join(f'<th scope="col" {LEFT}>{html(name)}</th>' for name in shares)
    lines = []
    for choice in dict.fromkeys(question.choices):
        right = " &#10004;" if choice == question.answer else ""
        cells = "".join(_bar(name, share[choice]) for name, share in shares.items())
        lines.append(f'<tr><th scope="row" style="text-align: left; font-weight: normal">{html(choice)}{right}</th>')
        lines.append(f"{cells}</tr>")
    return f"<table><thead><tr><th {LEFT}>choice</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _bar(name: str, share: float) -> str:
    style = f"display: inline-block; height: .8em; width: {8 * share:.2f}em; margin-right: .4em"
    colour = METHOD_COLOURS.get(name, COLOURS[0])
    drawn = f'<span style="{style}; background: {colour}"></span>'
    return f'<td style="text-align: left; min-width: 11em; white-space: nowrap">{drawn}{100 * share:.0f} %</td>'


def remarks(source: Source, question: Question, speed: float, tiny: bool) -> list[str]:
    """Say what a reader should know before believing the bars. tiny: the models were raised in the tiny world."""
    said = []
    if tiny and source.kind == "own":
        said.append(
            "Outside its world: this model was raised on synthetic sounds of two seconds and has never heard a "
            "recording. The bars show what it would say if it had to choose, not what it knows."
        )
    if not tiny and source.kind == "made":
        said.append("Outside its world: this sound is computed, and the model was raised on recordings.")
    strange = [choice for choice in question.choices if choice not in WORDS]
    if tiny and strange:
        said.append(f"Words it never met as an answer: {', '.join(strange)}. A probability it gives them means little.")
    if speed != 1 and question.answer:
        said.append("The tick stands at what was right at speed 1; tempo, pitch and voices change with the speed.")
    return said


class Laboratory:
    """What notebooks show. view: its widgets; source: the sound at hand; clip: the sound after noise and speed.

    models: `(model, processor)` by name, such as "base" and "grpo". questions: those whose clips are on offer.
    """

    def __init__(self, models: Mapping[str, tuple], questions: Sequence[Question]):
        self.models, self.tiny = dict(models), scale.get().train.parent == scale.TINY
        processor = next(iter(models.values()))[1]
        self.longest, self.bins = inputs.max_seconds(processor), processor.feature_extractor.feature_size
        self.offered = {f"{number}. {q.task}: {q.question}": q for number, q in enumerate(questions, 1)}
        self.offered |= {f"made here: {v}": (fact, v) for fact, values in TINY_WORLD.items() for v in values}
        self.own: Source | None = None
        self.filling = False

        self.sound = choose("sound", list(self.offered), "auto")
        self.noise = widgets.SelectionSlider(options=NOISES, description="noise", style=WHOLE)
        self.speed = widgets.SelectionSlider(options=SPEEDS, value=1.0, description="speed", style=WHOLE)
        self.question = widgets.Text(description="question", continuous_update=False, style=WHOLE)
        self.choices = widgets.Text(description="choices", continuous_update=False, style=WHOLE)
        for text in (self.question, self.choices):
            text.layout = widgets.Layout(width="auto", flex="1 1 20em")
        self.upload = widgets.FileUpload(accept="audio/*", description="Upload")
        self.record, self.recorded = widgets.HTML(microphone.button()), widgets.Textarea(continuous_update=False)
        self.recorded.layout.display = "none"
        self.recorded.add_class(microphone.BOX)
        self.page = widgets.HTML()
        rows = [[self.sound, self.noise, self.speed], [self.question, self.choices]]
        rows.append([self.upload, self.record, self.recorded])
        wrapped = widgets.Layout(flex_flow="row wrap")
        self.view = widgets.VBox([*(widgets.HBox(row, layout=wrapped) for row in rows), self.page])
        self.view.add_class(microphone.ROOM)
        self.sound.observe(lambda change: self.act(self.choose), "value")
        for control in (self.noise, self.speed, self.question, self.choices):
            control.observe(lambda change: self.act(self.show), "value")
        self.upload.observe(lambda change: self.act(self.take_file), "value")
        self.recorded.observe(lambda change: self.act(self.take_recording), "value")
        self.act(self.choose)

    def _repr_mimebundle_(self, **options):
        return with_page(self.view, self.page.value, options)

    def act(self, step) -> None:
        """Do what a control asks for; what is wrong (`TOLD`) is told on the page."""
        if self.filling:
            return
        try:
            step()
        except TOLD as error:
            self.page.value = alert(error)

    def choose(self) -> None:
        """Take the chosen sound, with its question."""
        offered = self.offered[self.sound.value]
        if isinstance(offered, Question):
            part = offered.meta.get("start"), offered.meta.get("end")
            offered = Source(audio.load(offered.audio, *part, "the clip", self.longest), offered, "asked")
        self.source = offered if isinstance(offered, Source) else made(*offered)
        self.filling = True
        self.question.value, self.choices.value = (
            self.source.question.question,
            " | ".join(self.source.question.choices),
        )
        self.filling = False
        self.show()

    def take_file(self) -> None:
        """Take an uploaded file for the sound."""
        for file in self.upload.value[-1:]:
            name = str(file["name"])
            self.take(audio.load(bytes(file["content"]), name=name, max_seconds=self.longest))

    def take_recording(self) -> None:
        """Take what the microphone's button wrote for the sound."""
        if self.recorded.value:
            text, self.recorded.value = self.recorded.value, ""
            self.take(microphone.clip(text, self.longest))

    def take(self, clip: Clip) -> None:
        """Offer the reader's own sound, unchanged, and ask about it what was asked last; nobody knows the answer."""
        question = replace(self.asked(), id=clip.name, audio=None, answer="", meta={})
        name = f"yours: {clip.name}"
        self.offered[name] = Source(clip, question, "own")
        self.filling = True
        self.sound.options = list(self.offered)
        self.sound.value, self.noise.value, self.speed.value = name, NONE, 1.0
        self.filling = False
        self.choose()

    def asked(self) -> Question:
        """Read the question from the page; the answer is known where it is still among the choices."""
        choices = tuple(dict.fromkeys(choice.strip() for choice in self.choices.value.split("|") if choice.strip()))
        if len(choices) < 2 or not self.question.value.strip():
            raise AqaError("Ask something, and give two choices or more, with | between them.")
        same = self.question.value == self.source.question.question
        answer = self.source.question.answer if same and self.source.question.answer in choices else ""
        return replace(self.source.question, question=self.question.value, choices=choices, answer=answer)

    def show(self) -> None:
        """Change the sound as the sliders say, ask the models, and show what they make of it."""
        question = self.asked()
        self.clip = change(self.source.clip, self.noise.value, self.speed.value, self.longest)
        self.shares = likelihoods(self.models, question, self.clip)
        said = remarks(self.source, question, self.speed.value, self.tiny)
        told = "".join(f"<p><small>{html(remark)}</small></p>" for remark in said)
        label = ", ".join([self.clip.name, f"{self.clip.seconds:.1f} s", *self.clip.notes])
        seen = picture(self.clip, self.bins, self.longest)
        left = f'<div style="flex: 0 1 22em">{show.player(self.clip, label)}{seen}</div>'
        right = f'<div style="flex: 1 1 22em">{bars(question, self.shares)}{told}</div>'
        self.page.value = f'<div {NO_MATH} style="display: flex; flex-wrap: wrap; gap: 0 1.5em">{left}{right}</div>'
