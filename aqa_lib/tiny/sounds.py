"""Synthesise sounds, music and voices together with the facts they were built from.

The audible half of `synth.py`: `clip` draws one clip of 2.0 to 2.5 s, from nothing but numpy and the random
generator it is given. Every clip has its own source parameters, loudness, noise, echo and start, so that there
is nothing to memorise. The voices are vowels with formants, not words: nobody was recorded for them.
"""

from functools import lru_cache

import numpy as np

from ..audio import SAMPLE_RATE

F32 = np.float32

# What can be heard. Each fact's values are also the choices of its questions.
SOURCES = (
    "a siren", "rain", "a clock", "an engine", "a bird", "a dog", "an alarm", "wind", "footsteps", "a bell",
    "a cat",
)  # fmt: skip
COUNTABLE = ("a bird", "a dog", "an alarm", "a bell", "a cat")
INSTRUMENTS = ("piano", "guitar", "violin", "flute", "trumpet", "clarinet", "organ", "xylophone")
VOWELS = {  # their formants in Hz, for a man
    "ah": (730, 1090, 2440), "ee": (270, 2290, 3010), "oo": (310, 870, 2240), "eh": (530, 1840, 2480),
    "aw": (570, 840, 2410),
}  # fmt: skip
# their pitch in Hz
VOICES = {"a man": (90, 130), "a woman": (180, 235), "a child": (290, 370), "a robot": (120, 170)}
NUMBERS = ("one", "two", "three", "four", "five", "six")
LOUDNESS = ("getting louder", "getting quieter", "staying the same", "rising then falling")
CONTOURS = ("going up", "going down", "up then down", "down then up", "staying the same")
INTONATIONS = ("going up", "going down", "up then down", "staying the same")


def clip(task: str, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, str]]:
    """Draw one clip of a task, (S,) float32 of 2.0 to 2.5 s at 16 kHz, and the facts that can be heard in it.

    facts: values of `synth.FACTS`, and "noise", the signal-to-noise ratio in dB. Takes 1 to 3 ms.
    """
    S = int(rng.uniform(2.0, 2.5) * SAMPLE_RATE)
    wave, facts = {"sound": _sound, "music": _music, "speech": _speech}[task](rng, S)
    if rng.random() < 0.3:  # one echo, as off a wall
        delay = rng.integers(400, 2400)
        wave[delay:] += F32(rng.uniform(0.1, 0.35)) * wave[:-delay]
    snr = rng.uniform(5, 30)
    hiss = _noise(rng, S, rng.choice([0.0, 0.5, 1.0]))
    wave = wave / _rms(wave) + hiss * F32(10 ** (-snr / 20) / _rms(hiss))
    wave *= F32(10 ** (rng.uniform(-24, -1) / 20) / np.abs(wave).max())
    return wave, facts | {"noise": f"{snr:.0f} dB"}


# ---- sounds ----


def _sound(rng, S: int) -> tuple[np.ndarray, dict[str, str]]:
    """One source whose loudness may change, two sources in turn, or one source heard one to four times."""
    layout = rng.choice(["one", "turn", "times"], p=[0.5, 0.25, 0.25])
    if layout == "turn":
        first, last = (str(name) for name in rng.choice(SOURCES, 2, replace=False))
        at = int(S * rng.uniform(0.42, 0.58))
        wave = np.zeros(S, F32)
        for name, start, stop in ((first, 0, at), (last, at, S)):
            part = _source(rng, name, stop - start)
            wave[start:stop] = part / _rms(part) * F32(rng.uniform(0.7, 1.3)) * _fade(stop - start, 800)
        return wave, {"first": first, "last": last}
    if layout == "times":
        name, count = str(rng.choice(COUNTABLE)), int(rng.integers(1, 5))
        wave = np.zeros(S, F32)
        slot = S // 4 if count == 4 else int(S * rng.uniform(0.24, min(0.5, 0.95 / count)))
        start = int(rng.uniform(0, S - slot * count + 1))
        call = _call(rng, name, int(slot * rng.uniform(0.5, 0.75)))
        for i in range(count):
            wave[start + i * slot : start + i * slot + len(call)] = call * F32(rng.uniform(0.7, 1.0))
        return wave, {"source": name, "times": NUMBERS[count - 1]}
    name, change = str(rng.choice(SOURCES)), str(rng.choice(LOUDNESS))
    wave = _source(rng, name, S)
    ramp = np.linspace(0, 1, S, dtype=F32)
    shape = {"getting louder": ramp, "getting quieter": 1 - ramp, "staying the same": np.ones(S, F32)}
    shape["rising then falling"] = 1 - np.abs(2 * ramp - 1)
    wave *= F32(10) ** (F32(rng.uniform(1.0, 1.6)) * (shape[change] - 1))
    return wave, {"source": name, "loudness": change}


def _source(rng, name: str, S: int) -> np.ndarray:
    """Fill S samples with one source."""
    t = np.arange(S, dtype=F32) / SAMPLE_RATE
    if name == "rain":
        drops = np.where(rng.random(S, F32) < rng.uniform(0.005, 0.03), 6, 1).astype(F32)
        return _noise(rng, S, rng.uniform(-0.4, 0.0)) * drops
    if name == "wind":
        gusts = 1 + 0.8 * np.sin(2 * np.pi * rng.uniform(0.4, 1.0) * t + rng.uniform(0, 6.3))
        return _noise(rng, S, 1.0, rng.uniform(120, 250), rng.uniform(500, 900)) * gusts.astype(F32)
    if name == "a siren":
        sweep = np.sin(2 * np.pi * rng.uniform(0.6, 2.2) * t + rng.uniform(0, 6.3))
        return _tone(rng.uniform(700, 1000) * (1 + rng.uniform(0.25, 0.45) * sweep), (1, 0.4, 0.25))
    if name == "an engine":
        f = rng.uniform(35, 80) * (1 + 0.06 * np.sin(2 * np.pi * rng.uniform(0.3, 1) * t + rng.uniform(0, 6.3)))
        return _tone(f, 1 / np.arange(1, 25) ** 0.6) + F32(0.4) * _noise(rng, S, 1.0, 50, 1500)
    # all others repeat one call, each at its own interval in seconds
    every = {
        "a clock": (0.22, 0.5), "footsteps": (0.35, 0.6), "a bird": (0.2, 0.4), "a dog": (0.35, 0.6),
        "an alarm": (0.2, 0.45), "a bell": (0.6, 1.0), "a cat": (0.7, 1.0),
    }[name]  # fmt: skip
    period = int(rng.uniform(*every) * SAMPLE_RATE)
    wave, start = np.zeros(S + period, F32), int(rng.uniform(0, 0.3) * period)
    while start < S:
        call = _call(rng, name, min(int(period * rng.uniform(0.7, 0.9)), S + period - start))
        wave[start : start + len(call)] += call * F32(rng.uniform(0.8, 1))
        start += int(period * rng.uniform(0.95, 1.05))
    return wave[:S]


def _call(rng, name: str, S: int) -> np.ndarray:
    """Make one tick, step, chirp, bark, beep, stroke or meow of at most S samples."""
    x = np.linspace(0, 1, S, dtype=F32)
    t = np.arange(S, dtype=F32) / SAMPLE_RATE
    if name == "a clock":
        return _tone(np.full(S, rng.uniform(1800, 3200)), (1, 0, 0.5)) * np.exp(-t * 250) + F32(0.3) * _noise(
            rng, S, -0.3
        ) * np.exp(-t * 500)
    if name == "footsteps":
        return _noise(rng, S, 0.8, 60, 500) * np.exp(-t * 35) + F32(0.4) * _noise(rng, S, 0.0, 800, 3000) * np.exp(
            -t * 60
        )
    if name == "a bird":
        trill = 1 + rng.uniform(0.05, 0.2) * np.sin(2 * np.pi * rng.uniform(15, 35) * t)
        return _tone(rng.uniform(2800, 4500) * (1 + rng.uniform(-0.3, 0.3) * x) * trill, (1, 0.15)) * _fade(S, S // 4)
    if name == "a dog":
        f = rng.uniform(280, 600) * (1 + 0.5 * np.sin(np.pi * np.minimum(1, x * 1.6))) * (1 - 0.3 * x)
        bark = _tone(f, 1 / np.arange(1, 9) ** 0.7) + F32(0.6) * _noise(rng, S, 0.5, 400, 2500)
        return bark * np.exp(-x * 4) * _fade(S, 300)
    if name == "an alarm":
        return _tone(np.full(S, rng.uniform(1500, 2800)), (1, 0, 0.33)) * _fade(S, 100)
    if name == "a bell":
        f = rng.uniform(500, 1100)
        parts = sum(
            _tone(np.full(S, f * ratio), (1,)) * np.exp(-t * d) for ratio, d in ((1, 3), (2.0, 4), (2.76, 5), (5.4, 9))
        )
        return parts.astype(F32) * _fade(S, 60)
    f = rng.uniform(450, 700) * (0.8 + 0.5 * np.sin(np.pi * x**0.7))  # a cat
    return _formants(_tone(f, 1 / np.arange(1, 11) ** 0.5), ((900, 300), (1900, 400))) * _fade(S, S // 5)


# ---- music and voices ----


def _music(rng, S: int) -> tuple[np.ndarray, dict[str, str]]:
    """Two to six notes of one instrument, along a contour, slow or fast."""
    instrument, tempo = str(rng.choice(INSTRUMENTS)), str(rng.choice(["slow", "fast"]))
    count = int(rng.integers(2, 6) if tempo == "slow" else rng.integers(3, 7))
    gap = (rng.uniform(0.36, 0.5) if tempo == "slow" else rng.uniform(0.17, 0.23)) * SAMPLE_RATE
    gap = int(min(gap, 0.96 * S / count))
    melody = str(rng.choice(CONTOURS if count > 2 else ("going up", "going down", "staying the same")))
    starts = int(rng.uniform(0, S - gap * count)) + gap * np.arange(count)
    pitches = rng.uniform(200, 480) * 2 ** (_contour(rng, melody, count) / 12)
    owner = np.clip(np.searchsorted(starts, np.arange(S), side="right") - 1, 0, None)  # the note of each sample
    since = (np.arange(S) - starts[owner]).astype(F32) / SAMPLE_RATE  # seconds
    length, own = gap / SAMPLE_RATE, starts[0] / SAMPLE_RATE
    h = np.arange(1, 13)
    bright = 10 ** rng.uniform(-0.15, 0.15)
    amplitudes, attack, decay = {
        "piano": (0.6**h + 0.1 / h, 0.004, 5), "guitar": (np.abs(np.sin(h * 0.9)) / h**0.6, 0.003, 8),
        "violin": (1 / h**0.8, 0.06, 0), "flute": (np.where(h < 4, 0.25 ** (h - 1.0), 0), 0.05, 0),
        "trumpet": (np.exp(-(((h - 4) / 3) ** 2)), 0.025, 0.5),
        "clarinet": (np.where(h % 2, 1 / h**0.7, 0.02), 0.03, 0),
        "organ": (np.isin(h, (1, 2, 4, 8)) * 0.8 ** np.log2(h), 0.008, 0),
        "xylophone": (np.isin(h, (1, 4, 10)) / h**0.5, 0.001, 22),
    }[instrument]  # fmt: skip
    frequency = pitches[owner]
    if instrument == "violin":
        frequency = frequency * (1 + 0.015 * np.sin(2 * np.pi * rng.uniform(5, 7) * np.arange(S) / SAMPLE_RATE))
    wave = _tone(frequency, amplitudes * bright**h)
    if instrument == "flute":
        wave += F32(0.25) * _noise(rng, S, 0.2, 1500, 6000)
    envelope = np.minimum(1, since / attack) * np.exp(-decay * since) * np.clip((length - since) / 0.02, 0, 1)
    envelope[: int(own * SAMPLE_RATE)] = 0
    accents = rng.uniform(0.7, 1, count)[owner]
    facts = {"instrument": instrument, "melody": melody, "tempo": tempo, "notes": NUMBERS[count - 1]}
    return (wave * envelope * accents).astype(F32), facts


def _speech(rng, S: int) -> tuple[np.ndarray, dict[str, str]]:
    """One to five syllables of one vowel by one voice, its pitch along a contour."""
    voice, vowel, count = (
        str(rng.choice(list(VOICES))),
        str(rng.choice(list(VOWELS))),
        int(rng.integers(1, 6)),
    )
    facts = {"voice": voice, "vowel": vowel, "syllables": NUMBERS[count - 1]}
    gap = int(min(rng.uniform(0.3, 0.5) * SAMPLE_RATE, 0.95 * S / count))
    start, stop = (first := int(rng.uniform(0, S - gap * count))), first + gap * count
    x = np.clip((np.arange(S, dtype=F32) - start) / (stop - start), 0, 1)
    f = np.full(S, rng.uniform(*VOICES[voice]), F32)
    if voice != "a robot":
        facts["pitch"] = str(rng.choice(INTONATIONS))
        bend = {
            "going up": x - 0.5,
            "going down": 0.5 - x,
            "up then down": 0.5 - np.abs(2 * x - 1),
            "staying the same": 0 * x,
        }
        f *= 2 ** (F32(rng.uniform(0.9, 1.4)) * bend[facts["pitch"]])
    if voice in ("a man", "a child"):
        facts["height"] = "low" if voice == "a man" else "high"
    wave = _tone(f, 1 / np.arange(1, 31) ** (0.3 if voice == "a robot" else 0.8))
    if voice == "a robot":
        wave *= 1 + F32(0.8) * np.sin(2 * np.pi * F32(rng.uniform(45, 70)) * np.arange(S, dtype=F32) / SAMPLE_RATE)
    size = {"a man": 1.0, "a woman": 1.14, "a child": 1.3, "a robot": 1.0}[voice] * rng.uniform(0.95, 1.05)
    wave = _formants(wave + F32(0.03) * _noise(rng, S, 0.0), [(f * size, 60 + 0.05 * f) for f in VOWELS[vowel]])
    envelope, hush = np.zeros(S, F32), int(gap * rng.uniform(0.2, 0.35))
    for i in range(count):
        a, b = start + i * gap + hush, start + (i + 1) * gap
        envelope[a:b] = F32(rng.uniform(0.7, 1)) * _fade(b - a, (b - a) // 5)
    wave = wave / _rms(wave) * envelope
    if rng.random() < 0.5:  # a consonant before each syllable
        burst = _noise(rng, hush, -0.3, rng.uniform(2500, 4500), 8000) * _fade(hush, hush // 3)
        burst *= F32(rng.uniform(0.1, 0.3)) / _rms(burst)
        for i in range(count):
            wave[start + i * gap : start + i * gap + hush] += burst
    return wave, facts


def _contour(rng, name: str, count: int) -> np.ndarray:
    """Return the pitch of each note along a contour, in semitones."""
    steps = rng.integers(3, 6, count - 1)
    turn = (count - 1 + rng.integers(0, 2) * ((count - 1) % 2)) // 2
    signs = np.where(np.arange(count - 1) < max(turn, 1), 1, -1)
    sign = {
        "going up": 1,
        "going down": -1,
        "staying the same": 0,
        "up then down": signs,
        "down then up": -signs,
    }[name]
    line = np.concatenate([[0], np.cumsum(sign * steps)])
    return line - line.mean()


# ---- signals ----


def _tone(frequency: np.ndarray, amplitudes) -> np.ndarray:
    """Sum harmonics of a moving frequency, (S,) in Hz, leaving out those above 7.5 kHz."""
    amplitudes = np.asarray(amplitudes, float)
    top = int(7500 / max(float(np.max(frequency)), 1))
    h = np.arange(1, min(len(amplitudes), max(top, 1)) + 1)
    # one period, read at the speed of the frequency
    period = np.sin(2 * np.pi * np.outer(np.arange(2048) / 2048, h) + h**2) @ amplitudes[: len(h)]
    phase = np.cumsum(frequency, dtype=np.float64) * (2048 / SAMPLE_RATE)
    return period.astype(F32)[phase.astype(np.int64) & 2047]


def _noise(rng, S: int, slope: float = 0.0, low: float = 0.0, high: float = 8000.0) -> np.ndarray:
    """Draw noise of unit loudness whose spectrum falls as 1 / f^slope between two frequencies in Hz."""
    N = _length(S)
    shape = np.maximum(_bins(N), 30) ** F32(-slope)
    if low:
        shape /= 1 + (F32(low) / np.maximum(_bins(N), 1)) ** 4
    if high < 8000:
        shape /= 1 + (_bins(N) / F32(high)) ** 6
    spectrum = rng.standard_normal(2 * len(shape), F32).view(np.complex64) * shape
    wave = np.fft.irfft(spectrum, N)[:S]
    return wave / _rms(wave)


def _formants(wave: np.ndarray, peaks) -> np.ndarray:
    """Filter a wave through resonances, given as (frequency, width) in Hz."""
    S, N = len(wave), _length(len(wave))
    f = _bins(N)
    gain = sum(F32(0.7**i) / (1 + ((f - F32(p)) / F32(w)) ** 2) for i, (p, w) in enumerate(peaks)) + F32(0.005)
    return np.fft.irfft(np.fft.rfft(wave.astype(F32), N) * gain, N)[:S]


def _length(S: int) -> int:
    """Round up to a length at which the Fourier transform is fast."""
    step = 1 << max(S.bit_length() - 5, 1)
    return -(-S // step) * step


@lru_cache
def _bins(N: int) -> np.ndarray:
    return np.linspace(0, SAMPLE_RATE / 2, N // 2 + 1, dtype=F32)


def _fade(S: int, samples: int) -> np.ndarray:
    """Rise from 0 to 1 and back within a number of samples at either end."""
    ramp = np.minimum(np.arange(S), np.arange(S)[::-1]).astype(F32)
    return np.minimum(1, ramp / max(samples, 1))


def _rms(wave: np.ndarray) -> F32:
    return np.sqrt(np.mean(np.square(wave), dtype=np.float64)).astype(F32)
