r"""Show what comes from data as text, wherever it goes: HTML, Markdown, a terminal, a figure.

Outside the flow, below all of it. A question file, a model's reply, a record and a file's name come from somebody else,
and each place reads some of their characters as commands: `<img onerror=...>` runs in a notebook, `|` and a line break
forge a table, `$...$` is typeset, an escape sequence moves a terminal's cursor. Code that puts such a value into one of
these places calls `escape.html(value)`, `markdown`, `terminal` or `figure`.
"""

import html as _html
import logging
import re
import reprlib

LONGEST = 5_000  # characters of one text that are shown
LABEL = 80  # characters of a name in a figure
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
# A carriage return overwrites its line; the others show letters in a different order from the one they are in.
DECEIVING = re.compile(r"\r(?!\n)|[\u202a-\u202e\u2066-\u2069]")
NO_MATH = 'class="mathjax_ignore tex2jax_ignore"'  # for HTML: MathJax (an older one in Colab) leaves it alone
MARK = "\N{REPLACEMENT CHARACTER}"

_repr = reprlib.Repr()
_repr.maxstring = 100
show = _repr.repr  # bounded, and control characters escaped: fit for a message


def plain(value: object) -> str:
    r"""Turn anything into text that can be shown: cut if it is long, control characters replaced by a mark.

    >>> plain("a\x00b"), len(plain("a" * 1_000_000)) < 6_000
    ('a\ufffdb', True)
    """
    value = str(value)
    more = f" ... ({len(value) - LONGEST} more characters)" if len(value) > LONGEST else ""
    return terminal(value[:LONGEST]) + more


def terminal(text: object) -> str:
    r"""Replace what a terminal would obey by a mark; lines and tabs stay.

    >>> terminal("one\n\x1b[2Jtwo")
    'one\n\ufffd[2Jtwo'
    """
    return DECEIVING.sub(MARK, UNPRINTABLE.sub(MARK, str(text)))


def line(value: object) -> str:
    r"""Turn anything into one line of text.

    >>> line(" one\n two ")
    'one two'
    """
    return " ".join(plain(value).split())


def html(value: object) -> str:
    """Turn anything into HTML that shows it as text.

    >>> html("<b onclick='x'>&")
    '&lt;b onclick=&#x27;x&#x27;&gt;&amp;'
    """
    return _html.escape(plain(value))


def markdown(value: object) -> str:
    r"""Turn anything into one line of Markdown, inside a table or not, that shows it as text.

    Only what would be read as markup is changed, so that a terminal shows ordinary names as they are. Dollar signs and
    backslashes get an element of their own: MathJax looks for pairs of them in the page, after Markdown is done.

    >>> print(markdown("a|b <b>"), markdown("my_run-2.jsonl"), markdown("$x$"))
    a\|b &lt;b&gt; my_run-2.jsonl <span>&#36;</span>x<span>&#36;</span>
    """
    text = _html.escape(re.sub(r"&(?!#?\w+;)", "\0", line(value)), quote=False).replace("\0", "&")
    text = re.sub(r"([`*\[\]|~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text.replace("\\", "\0"))
    if "{" not in text:  # as in a Windows path; what is left may be TeX's
        text = re.sub("\0(?=\\w)", r"\\\\", text)
    text = text.replace("://", ":&#47;/").replace("www.", "www&#46;")  # else a bare address becomes a link
    return text.replace("\0", "<span>&#92;</span>").replace("$", "<span>&#36;</span>")


def figure(value: object) -> str:
    r"""Turn anything into a label that matplotlib draws as it stands: no formula, one line, and in the legend.

    >>> print(figure("$x^2$"), figure("_base"))
    \$x^2\$  _base
    """
    text = line(value)
    text = text if len(text) <= LABEL else text[: LABEL - 3] + "..."
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


class Terminal:
    """A stream whose readers are people: whatever is printed to it is shown, not obeyed."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(terminal(text))

    def __getattr__(self, name):
        return getattr(self.stream, name)


class Formatter(logging.Formatter):
    """Format log records for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return terminal(super().format(record))
