"""Tell which questions are about one recording, whatever their files are called, so that a split does not leak.

`[recordings] -> dataset`. A data set has one sound under several names: copies, parts cut from one video, the same clip
in two formats. What is known of a recording: the file, its content, where `prepare` or the data set says it came from,
and the YouTube id in names like VGGSound's. The paper's code looks at none of these.
"""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

SOURCE, HEARD = OURS = "source_recording", "heard_sha256"  # what `prepare` writes into a row
NAMED = (*OURS, "video_name", "youtube_id", "ytid")  # columns that name a recording
YOUTUBE = re.compile(r"Y?([\w-]{11})_\d{6}")  # as VGGSound and AVQA name a part: id and first second
PARTS = 8  # most parts of one video under such a name; more, and the name means something else
SAMPLE = 4096  # bytes at the start, middle and end of a file that are compared before all of it is


def groups(questions: Sequence) -> list[int]:
    """Number the recordings that questions are about: equal numbers, one recording."""
    of = list(range(len(questions)))

    def first(index: int) -> int:
        while of[index] != index:
            of[index] = index = of[of[index]]
        return index

    for member, other in _pairs(questions):
        one, two = sorted((first(member), first(other)))
        of[two] = one
    return [first(index) for index in range(len(questions))]


def shared(some: Sequence, others: Sequence) -> int:
    """Count how many of `others` are about recordings that `some` are about too."""
    numbers = groups([*some, *others])
    known = set(numbers[: len(some)])
    return sum(number in known for number in numbers[len(some) :])


def _pairs(questions: Sequence) -> Iterator[tuple[int, int]]:
    """Yield questions that are about one recording; each with the first of its kind."""
    clips = defaultdict(list)  # questions on one file
    for index, question in enumerate(questions):
        for clip in question.clips:
            key = hashlib.sha256(clip).digest() if isinstance(clip, bytes) else os.path.realpath(clip)
            clips[key].append((index, clip))
    firsts = [members[0] for members in clips.values()]
    for (first, _), *others in clips.values():
        yield from ((first, other) for other, _ in others)
    contents = _alike(range(len(firsts)), lambda number: _content(firsts[number][1]))
    yield from ((firsts[one][0], firsts[other][0]) for one, other in contents)
    ones = list(dict.fromkeys(index for index, _ in firsts))
    for name in NAMED:
        values = [_named(question.meta.get(name)) for question in questions]
        if name in OURS or len(set(values)) > 1:  # a column of one value names no recording
            yield from _alike(range(len(questions)), values.__getitem__)
    yield from _videos(questions, ones)


def _videos(questions: Sequence, ones: Sequence[int]) -> Iterator[tuple[int, int]]:
    videos = defaultdict(list)
    for index in ones:
        if video := _video(questions[index]):
            videos[video].append(index)
    for members in videos.values():
        if len(members) <= PARTS:
            yield from ((members[0], other) for other in members[1:])


def _alike(indices: Sequence[int], key: Callable[[int], Hashable]) -> Iterator[tuple[int, int]]:
    seen: dict[Hashable, int] = {}
    for index in indices:
        if (value := key(index)) is not None:
            if value in seen:
                yield seen[value], index
            seen.setdefault(value, index)


def _named(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


class _Content:
    """A sound's bytes, equal to another's if all of them are: read whole only where size and samples agree."""

    def __init__(self, audio: Path | bytes):
        self.audio = audio
        self.size = len(audio) if isinstance(audio, bytes) else os.path.getsize(audio)
        places = sorted({0, max(0, self.size // 2 - SAMPLE // 2), max(0, self.size - SAMPLE)})
        if isinstance(audio, bytes):
            samples = [audio[place : place + SAMPLE] for place in places]
        else:
            with open(audio, "rb") as file:
                samples = [file.read(SAMPLE) for place in places if file.seek(place) == place]
        self.sampled = self.size, hashlib.sha256(b"".join(samples)).digest()

    def __hash__(self) -> int:
        return hash(self.sampled)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Content) and self.sampled == other.sampled and self.whole() == other.whole()

    def whole(self) -> bytes:
        return self.audio if isinstance(self.audio, bytes) else self.audio.read_bytes()


def _content(audio: Path | bytes) -> _Content | None:
    try:
        return _Content(audio)
    except OSError:  # it is not there, or may not be read
        return None


def _video(question) -> str | None:
    """Read the YouTube id of the video that a question's clip is a part of; None if its names hold none."""
    names = [question.meta.get("video_name")]
    names += [question.audio.stem] if isinstance(question.audio, Path) else []
    for name in names:
        if isinstance(name, str) and (found := YOUTUBE.fullmatch(name)) and re.search(r"[A-Z0-9-]", found[1]):
            return found[1]
    return None
