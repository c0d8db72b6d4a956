import base64
import io
import re

import numpy as np
import soundfile

from aqa_lib import audio, loss
from aqa_lib.audio import Clip
from aqa_lib.course import show

HOSTILE = '<img src=x onerror="alert(1)">'


def clip(peak: float = 0.5) -> Clip:
    return Clip((peak * np.sin(np.arange(32_000) / 8)).astype(np.float32))


def test_a_player_holds_the_sound_as_mp3():
    html = show.player(clip())
    data = re.search(r'src="data:audio/mpeg;base64,([^"]+)"', html)[1]
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
    assert rate == audio.SAMPLE_RATE and abs(len(wave) - 32_000) < 2_500  # MP3 pads to whole frames
    assert 0.45 < np.abs(wave).max() < 0.55
    assert len(data) < 32_000 * 2 / 3  # smaller than WAV


def test_a_loud_clip_is_scaled_and_not_clipped():
    data = re.search(r"base64,([^\"]+)", show.player(clip(4.0)))[1]
    wave, _ = soundfile.read(io.BytesIO(base64.b64decode(data)))
    inner = wave[4_000:-4_000]
    assert abs(np.std(inner) / np.abs(inner).max() - 0.5**0.5) < 0.03  # still a sine


def test_captions_cells_and_signs_are_escaped():
    assert "<img" not in show.player(clip(), HOSTILE) and "<img" not in show.listen({HOSTILE: clip()}).data
    cells = show.table([{"reply": HOSTILE + " a|b `c` $d$", HOSTILE: 1}]).data
    assert "<img" not in cells and "a\\|b" in cells and "\\`c\\`" in cells


def test_source_is_the_code_that_runs():
    shown = show.source(loss.kl_divergence).data
    assert "return d.exp() - d - 1" in shown and '"""' not in shown
    assert '"""' in show.source(loss.kl_divergence, doc=True).data


def test_surroundings_name_scale_and_versions():
    assert "tiny" in show.surroundings().data and "transformers" in show.surroundings().data
