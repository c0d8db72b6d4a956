"""Show code, sounds and surroundings in a notebook; everything that comes from data is escaped.

`[show] -> notebooks`. A notebook never holds a copy of the library: `source` prints the code that runs. A player holds
its sound as MP3, an eighth of a WAV's size, in an `<audio>` element, which also plays in a notebook that was saved.
"""

import base64
import inspect
import io
import platform
import textwrap
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

import soundfile
import torch
from IPython.display import HTML, Markdown

from .. import audio, scale
from ..audio import Clip
from ..runtime import escape

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "librosa")


def source(function: Callable, doc: bool = False) -> Markdown:
    """Show the code that runs when a function or class is called. doc: with its docstring.

    >>> print(source(audio.num_positions).data)  # doctest: +NORMALIZE_WHITESPACE
    From `aqa_lib/audio.py`:
    <BLANKLINE>
    ```python
    def num_positions(frames: int) -> int:
        return (frames - 1) // 2 + 1
    ```
    """
    text = textwrap.dedent(inspect.getsource(function)).rstrip()
    if not doc and (docstring := inspect.getdoc(function)):
        text = _without_docstring(text, docstring)
    module = inspect.getmodule(function).__name__.replace(".", "/")
    return Markdown(f"From `{module}.py`:\n\n```python\n{text}\n```")


def _without_docstring(text: str, docstring: str) -> str:
    """Cut the first text in triple quotes, which is the docstring, with the blank line behind it."""
    start = text.find('"""')
    if start < 0 or docstring.splitlines()[0] not in text[start : text.find("\n", start)]:
        return text
    end = text.index('"""', start + 3) + 3
    return text[:start].rstrip() + "\n" + text[end:].lstrip("\n")


def player(clip: Clip, caption: str = "") -> str:
    """Return HTML that plays a clip: an `<audio>` element with its sound as MP3, and a caption.

    A clip louder than full scale is scaled down to it, as MP3 would clip it.
    """
    file = io.BytesIO()
    wave = clip.wave / max(1.0, float(abs(clip.wave).max()))
    soundfile.write(file, wave, audio.SAMPLE_RATE, format="MP3")
    data = base64.b64encode(file.getvalue()).decode()
    words = escape.html(caption or f"{clip.seconds:.1f} s")
    return (
        f'<figure {escape.NO_MATH} style="margin:0 0 .5em"><audio controls preload="metadata" aria-label="{words}" '
        f'src="data:audio/mpeg;base64,{data}"></audio><figcaption>{words}</figcaption></figure>'
    )


def listen(clips: Mapping[str, Clip]) -> HTML:
    """Show a player for each clip under its caption."""
    return HTML("".join(player(clip, caption) for caption, clip in clips.items()))


def table(rows: Sequence[Mapping], digits: int = 3) -> Markdown:
    """Show rows with the same keys as a table; a cell for None or nan stays empty.

    >>> print(table([{"answer": "a|b", "reward": 1.0, "tokens": 1120.0}]).data)
    | answer | reward | tokens |
    |---|---|---|
    | a\\|b | 1 | 1,120 |
    """
    names = list(rows[0])
    lines = [f"| {' | '.join(_cell(name, digits) for name in names)} |", "|" + "---|" * len(names)]
    lines += [f"| {' | '.join(_cell(row[name], digits) for name in names)} |" for row in rows]
    return Markdown("\n".join(lines))


def _cell(value, digits: int) -> str:
    if value is None or value != value:  # only nan differs from itself
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
    return escape.markdown(value)


def surroundings() -> Markdown:
    """Show what this notebook runs on: scale, device and its memory, and the versions that matter."""
    here = scale.get()
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        device = f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB"
    else:
        threads = torch.get_num_threads()
        device = f"CPU, {threads} thread{'s' * (threads > 1)} (no GPU is needed at the scale tiny)"
    rows = {"scale": f"{here.name}: {here.machine}", "device": device, "Python": platform.python_version()}
    rows |= {name: version(name) for name in PACKAGES}
    return table([{"what": name, "here": value} for name, value in rows.items()])
