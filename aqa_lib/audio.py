"""Turn any audio file into what the model hears: mono float32 at 16 kHz, then a log-mel spectrogram.

First step of the flow: `audio -> dataset -> prompt -> model -> ...`. The paper's code takes the first channel
and pads every clip to 30 s; here all channels are mixed down (in most real multi-channel clips the first differs
from the mean) and the mel is computed on the clip's own length: the same numbers, 3 to 7 times faster.
"""

import contextlib
import io
import logging
import math
import mmap
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from .reading import streams
from .runtime import files
from .runtime.errors import AqaError

SAMPLE_RATE = 16_000  # samples per second, Whisper's and Qwen2-Audio's
HOP = 160  # samples between two mel frames: 10 ms
N_FFT = 400  # samples in one analysis window: 25 ms
MAX_SECONDS = 30.0  # what Qwen2-Audio's encoder can hold; transformers cuts longer clips without a word
MIN_FRAMES = 7  # gives two audio tokens; one token crashes transformers
MIN_SAMPLES = (MIN_FRAMES - 1) * HOP + 1
SILENCE = 1e-5  # peak below which a clip counts as silent (-100 dBFS)
BLOCK = 2**20  # samples, over all channels, that are decoded at a time: 4 MB
LARGE = 2**23  # bytes from which on a file is not searched merely for its length
UNKNOWN = 2**62  # what libsndfile reports for a header that does not know its number of samples
LOUDEST = 1e3  # peak above which it is not sound but integers stored as floats, or damage (+60 dBFS)

logger = logging.getLogger(__name__)


class AudioError(AqaError):
    """A clip that cannot be used; its one sentence names the clip, the fault and the remedy."""


@dataclass(frozen=True)
class Clip:
    """A sound, ready for the model.

    wave: (S,) float32, mono, 16 kHz, unclipped. name: where it came from. notes: what was done to it, in words.
    """

    wave: np.ndarray
    name: str = "array"
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.wave) / SAMPLE_RATE


def load(
    source: str | Path | bytes | tuple[np.ndarray, int],
    start: float | None = None,
    end: float | None = None,
    name: str | None = None,
    max_seconds: float = MAX_SECONDS,
) -> Clip:
    """Load a sound from a file, from the bytes of a file, or from `(array, rate)`.

    An array is (S,) or (S, channels). start, end: seconds to keep. A clip longer than `max_seconds` is cut, and the
    cut is logged and noted. Raises AudioError if the source is unreadable, empty, not finite, silent or too short.

    >>> load((np.sin(np.arange(48_000) / 5), 48_000)).wave.shape
    (16000,)
    """
    name = name or (
        str(source) if isinstance(source, str | Path) else "audio bytes" if isinstance(source, bytes) else "array"
    )
    start, end = _seconds(start, 0.0), _seconds(end, math.inf)
    if not 0 <= start < min(end, streams.LONGEST):
        raise AudioError(f"{name}: cannot cut from {start:g} s to {end:g} s; give 0 <= start < end in seconds.")
    stop = min(end, start + max_seconds)
    wave, rate, total, channels, *notes = _decode(source, name, start, stop)
    for note in notes:
        logger.warning("%s: %s.", name, note)
    if min(end, total) - start > max_seconds + 1 / rate:
        notes.append(f"cut from {min(end, total) - start:.2f} s to {max_seconds:g} s")
        logger.warning("%s: %s, the longest that the model hears.", name, notes[-1])
    if channels > 1:
        notes.append(f"{channels} channels mixed down")
    if rate != SAMPLE_RATE and len(wave):
        notes.append(f"resampled from {rate} Hz")
        wave = _resample(wave, rate, SAMPLE_RATE)
    wave = np.ascontiguousarray(wave[: int(max_seconds * SAMPLE_RATE)], dtype=np.float32)
    if len(wave) < MIN_SAMPLES:
        raise AudioError(
            f"{name}: {len(wave) / SAMPLE_RATE:.3f} s of sound, less than the {MIN_SAMPLES / SAMPLE_RATE:.3f} s that "
            "give two audio tokens; use a longer clip or leave it out."
        )
    if np.abs(wave).max() < SILENCE:
        raise AudioError(f"{name}: silent (peak under {SILENCE:g}); check the recording or leave it out.")
    return Clip(wave, name, tuple(notes))


def _seconds(value: object, default: float) -> float:
    """Read seconds; NaN, for which every comparison is false, if the value is not a number."""
    try:
        return default if value is None else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _mix(wave: np.ndarray, name: str) -> np.ndarray:
    """Mix channels down, (S, channels) to (S,); raises AudioError if the samples cannot be sound."""
    if not np.isfinite(wave).all():
        raise AudioError(f"{name}: contains NaN or infinite samples; export the clip again or leave it out.")
    if wave.size and np.abs(wave).max() > LOUDEST:
        raise AudioError(f"{name}: a peak of {np.abs(wave).max():.3g} where full scale is 1; export the clip again.")
    return wave.mean(1)


def _decode(source, name: str, start: float, stop: float) -> tuple:
    """Read `start` to `stop` seconds, mixed down to (S,) float32, with rate, full length in seconds, channels, notes.

    Only the wanted part is decoded, so an hour-long file costs no more than its first 30 s. If a file ends before
    `stop`, or does not know its length, its header is not believed: see `streams`.
    """
    if isinstance(source, tuple):
        wave, rate = np.asarray(source[0]), int(source[1])
        if wave.ndim not in (1, 2) or not wave.size or wave.dtype.kind not in "fiu" or not 1_000 <= rate <= 768_000:
            raise AudioError(
                f"{name}: an array of shape {wave.shape}, type {wave.dtype} at {rate} Hz is not a sound; "
                "give (S,) or (S, channels) numbers and their rate."
            )
        if wave.dtype.kind in "iu":  # PCM integers: full scale is 1.0
            info = np.iinfo(wave.dtype)
            wave = wave / 2.0 ** (info.bits - 1) - (wave.dtype.kind == "u")
        wave = wave.astype(np.float32).reshape(len(wave), -1)
        return _mix(wave[int(start * rate) : _index(stop, rate)], name), rate, len(wave) / rate, wave.shape[1]
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise AudioError(f"{name}: no such file; check the path and the audio folder.")
    found, fault = None, AudioError(name)
    try:
        found = _read(source, name, start, stop)
        if len(found[0]) >= (stop - start) * found[1] - 1:
            return found
    except AudioError as error:
        fault = error
    if parts := streams.parts(_mapped(source)):
        return _join(parts, name, start, stop, fault)
    if found is None:
        raise fault
    return found


def _join(parts: list[bytes], name: str, start: float, stop: float, fault: AudioError) -> tuple:
    """Read `start` to `stop` seconds of streams one after the other; returns and raises as `_decode` does."""
    waves: list[np.ndarray] = []
    rates: list[int] = []
    length, widest = 0.0, 0
    for part in parts:
        try:
            wave, rate, seconds, channels = _read(part, name, max(start - length, 0.0), max(stop - length, 0.0))
        except AudioError as error:
            fault = error
            continue
        waves.append(wave if rate == (rates or [rate])[0] else _resample(wave, rate, rates[0]))
        rates, length, widest = [*rates, rate], length + seconds, max(widest, channels)
    if not waves:
        raise fault
    notes = [f"{len(parts)} streams joined"] if len(parts) > 1 else []
    if len(waves) < len(parts):
        notes.insert(0, f"cut by {len(parts) - len(waves)} of {len(parts)} streams that cannot be read")
    return np.concatenate(waves), rates[0], length, widest, *notes


def _read(source: str | Path | bytes, name: str, start: float, stop: float) -> tuple[np.ndarray, int, float, int]:
    """Read `start` to `stop` seconds of a file's first stream as libsndfile sees it; like `_decode`, without notes."""
    try:
        with soundfile.SoundFile(_Bytes(source) if isinstance(source, bytes) else files.c_name(source)) as file:
            rate, total = file.samplerate, file.frames / file.samplerate
            if not 1_000 <= rate <= 768_000:
                raise AudioError(f"{name}: its header claims {rate} Hz; the file is damaged: replace it.")
            if file.frames >= UNKNOWN:
                raise AudioError(f"{name}: not readable as audio (no whole frame); replace the file or leave it out.")
            if start:
                file.seek(min(int(start * rate), file.frames))
            # in blocks, each mixed down at once: a damaged header may claim hours, a small file may hold 255 channels
            channels, size = file.channels, max(1, BLOCK // file.channels)
            blocks, wanted = [], min(_index(stop, rate), file.frames) - int(start * rate)
            while wanted > 0 and len(block := file.read(min(wanted, size), dtype="float32", always_2d=True)):
                blocks.append(_mix(block, name))
                wanted -= len(block)
            wave = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    except TypeError as error:  # soundfile takes a .raw for samples whose form it must be told
        raise AudioError(
            f"{name}: a .raw file has no header, so its rate, channels and sample format are unknown; save it as WAV "
            "or FLAC, or leave it out."
        ) from error
    except (soundfile.SoundFileError, OSError, MemoryError) as error:
        reason = str(error).strip().rstrip(".").split(": ")[-1]
        raise AudioError(f"{name}: not readable as audio ({reason}); replace the file or leave it out.") from error
    return wave, rate, total, channels


def length(source: str | Path | bytes) -> float:
    """Return a sound's length in seconds, according to the headers of all its streams; 0 if it cannot be read.

    A large file's first header is believed if it claims more than a model hears.
    """
    known = 0.0
    with contextlib.suppress(soundfile.SoundFileError, OSError, MemoryError, TypeError):  # TypeError: headerless .raw
        info = soundfile.info(_Bytes(source) if isinstance(source, bytes) else files.c_name(source))
        known = info.duration if info.frames < UNKNOWN else 0.0
    with contextlib.suppress(soundfile.SoundFileError, OSError, MemoryError):
        data = _mapped(source)
        if known < MAX_SECONDS or len(data) < LARGE:
            known = sum(soundfile.info(_Bytes(part)).duration for part in streams.parts(data)) or known
    return known


def _mapped(source: str | Path | bytes) -> bytes | mmap.mmap:
    """Look at a file's bytes without reading all of them into memory."""
    if isinstance(source, bytes):
        return source
    with open(source, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if os.path.getsize(source) else b""


def _resample(wave: np.ndarray, rate: int, target: int) -> np.ndarray:
    return librosa.resample(wave, orig_sr=rate, target_sr=target, res_type="soxr_hq")


class _Bytes(io.BytesIO):
    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to the start if a damaged header asks for a place before it; otherwise soundfile prints a traceback."""
        return super().seek(offset if whence else max(offset, 0), whence)


def _index(seconds: float, rate: int) -> int:
    return 2**62 if math.isinf(seconds) else math.ceil(seconds * rate)


def silence(clip: Clip) -> Clip:
    """Return a silent clip of the same length: the control for a model that only reads.

    >>> float(silence(Clip(np.ones(2000, np.float32))).wave.sum())
    0.0
    """
    return Clip(np.zeros_like(clip.wave), clip.name, (*clip.notes, "silenced"))


def num_frames(samples: int) -> int:
    """Count the mel frames F of S samples: one every 10 ms.

    >>> num_frames(64_512)
    404
    """
    return math.ceil(samples / HOP)


def num_positions(frames: int) -> int:
    """Count the encoder's positions for F mel frames, after its stride-2 convolution."""
    return (frames - 1) // 2 + 1


def num_audio_tokens(frames: int) -> int:
    """Count the audio tokens that F mel frames become: one every 40 ms.

    >>> [num_audio_tokens(F) for F in (404, 1000, 3000)]
    [101, 250, 750]
    """
    return num_positions(frames) // 2


@lru_cache
def mel_filters(num_mel_bins: int) -> Tensor:
    """Return Whisper's mel filter bank, (M, 201) float32."""
    filters = mel_filter_bank(1 + N_FFT // 2, num_mel_bins, 0.0, 8000.0, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(filters).float().T.contiguous()


@lru_cache
def _sparse_filters(num_mel_bins: int) -> Tensor:
    return mel_filters(num_mel_bins).to_sparse()  # no filter is wider than 9 of the 201 frequencies


@lru_cache
def _window() -> Tensor:
    return torch.hann_window(N_FFT)


def log_mel(wave: np.ndarray | Tensor, num_mel_bins: int = 128, chunk_length: int = 30) -> Tensor:
    """Compute Whisper's log-mel spectrogram on the clip's own length.

    wave: (S,) at 16 kHz, at most `chunk_length` seconds. Returns (M, min(F + 2, 100 * chunk_length)) float32: the F
    valid frames and the two after them, which the encoder's convolutions still see. Equal to the same frames of
    `WhisperFeatureExtractor`, which pads to 30 s first.

    >>> log_mel(np.sin(np.arange(16_000) / 9)).shape
    torch.Size([128, 102])
    """
    wave = torch.as_tensor(wave, dtype=torch.float32)
    whole, frames = chunk_length * SAMPLE_RATE, num_frames(len(wave))
    if len(wave) > whole:
        raise AudioError(
            f"a clip of {len(wave) / SAMPLE_RATE:.2f} s is longer than the model's {chunk_length} s; cut it."
        )
    # Zeros up to where the last frame's window ends, but never past the chunk: there Whisper reflects instead.
    padded = min((frames + 1) * HOP + N_FFT // 2 + 1, whole)
    wave = torch.nn.functional.pad(wave, (0, padded - len(wave)))
    wave = torch.nn.functional.pad(wave[None], (N_FFT // 2, N_FFT // 2), mode="reflect")[0]
    windows = wave.unfold(0, N_FFT, HOP)[: min(frames + 2, whole // HOP)]  # (F + 2, 400)
    spectrum = torch.fft.rfft(windows * _window()).T  # (201, F + 2)
    # abs() ** 2 would take a root, and new memory for every step costs as much as the step
    power = torch.mul(spectrum.real, spectrum.real, out=torch.empty(spectrum.shape))
    power.addcmul_(spectrum.imag, spectrum.imag)
    log = torch.sparse.mm(_sparse_filters(num_mel_bins), power).clamp_(min=1e-10).log10_()  # (M, F + 2)
    return log.clamp_(min=log.max() - 8.0).add_(4.0).div_(4.0)
