"""Let a browser record a sound for a notebook's kernel, with nothing but core ipywidgets.

`[microphone] -> laboratory`. A `widgets.HTML` runs no script, but a button in it has an `onclick`. It records, turns
what came into 16-bit samples at 16 kHz, and writes them in base64 into a text area that nobody sees, whose value
reaches the kernel as if it had been typed. Where a browser has no microphone, or refuses it, the button says so and
points to the upload.
"""

import base64

import numpy as np

from .. import audio
from ..audio import Clip
from ..runtime.escape import html

SECONDS = 2.5
ROOM, BOX = "aqa-laboratory", "aqa-recorded"  # classes of what holds the button, and of the text area
SCRIPT = """(async button => {
const says = text => { button.nextElementSibling.textContent = ' ' + text; };
if (!navigator.mediaDevices || !window.MediaRecorder)
    return says('No microphone can be reached from this page (a browser wants https or localhost); upload a file.');
let stream;
try { stream = await navigator.mediaDevices.getUserMedia({audio: true}); }
catch (error) { return says('The browser gives no microphone (' + error.name + '); upload a file.'); }
button.disabled = true;
try {
    const parts = [], recorder = new MediaRecorder(stream);
    recorder.ondataavailable = event => parts.push(event.data);
    const stopped = new Promise(done => { recorder.onstop = done; });
    recorder.start();
    says('Listening ...');
    await new Promise(done => setTimeout(done, SECONDS * 1000));
    recorder.stop();
    await stopped;
    const heard = await new Blob(parts).arrayBuffer();
    const sound = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(heard);
    const samples = Int16Array.from(sound.getChannelData(0), x => 32767 * Math.max(-1, Math.min(1, x)));
    let text = '';
    new Uint8Array(samples.buffer).forEach(byte => { text += String.fromCharCode(byte); });
    const box = button.closest('.ROOM').querySelector('.BOX textarea');
    box.value = btoa(text);
    for (const kind of ['input', 'change']) box.dispatchEvent(new Event(kind, {bubbles: true}));
    says('Recorded.');
} catch (error) { says('The recording failed (' + error.name + '); upload a file.'); }
finally { button.disabled = false; stream.getTracks().forEach(track => track.stop()); }
})(this)"""


def button() -> str:
    """Return the button's HTML; it has to stand in an element of the class `ROOM`, with a text area in one of `BOX`."""
    script = SCRIPT.replace("SECONDS", str(SECONDS)).replace("ROOM", ROOM).replace("BOX", BOX)
    label = f"Record {SECONDS:g} s"
    return f'<button class="jupyter-button" onclick="{html(script)}">{label}</button><span role="status"></span>'


def clip(text: str, max_seconds: float = audio.MAX_SECONDS) -> Clip:
    """Decode what the button wrote. Raises AudioError for silence, ValueError for what the button did not write.

    >>> round(clip(base64.b64encode(np.full(16_000, 16_384, "<i2").tobytes()).decode()).wave.max().item(), 2)
    0.5
    """
    samples = np.frombuffer(base64.b64decode(text, validate=True), dtype="<i2")
    return audio.load((samples, audio.SAMPLE_RATE), name="your recording", max_seconds=max_seconds)
