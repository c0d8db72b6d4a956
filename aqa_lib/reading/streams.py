"""Find the streams in a sound file, whatever its first header says about their length.

`[streams] -> audio`. libsndfile reads only the first stream of joined Ogg, MP3, FLAC and WAV files, and only as much of
it as its header claims. Recordings that were piped or cut off have headers that never learned the length; files that
were joined, by `cat` or by a radio recorder, have several. Nothing is decoded here: bytes are split where a stream
begins, and wrong headers are repaired.
"""

import re
from mmap import mmap
from struct import pack_into, unpack_from

OGG = re.compile(rb"OggS\x00[\x02\x06]\x00{8}")  # a first page, of no samples
FLAC = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # with its STREAMINFO, always 34 bytes
WAV = re.compile(rb"RIFF.{4}WAVE", re.DOTALL)
LONGEST = 1e9  # seconds; no recording starts later in its file
JUNK = 1024  # bytes after a WAV's sound that are taken for a tag, not for sound
SURPLUS = 3  # MP3 frames beyond a header's number from which on the header counts as wrong
KBPS = {  # of MPEG 1 and of MPEG 2 and 2.5, layer III
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def parts(data: bytes | mmap) -> list[bytes]:
    """Cut a file's bytes into files of one stream each, with repaired headers; [] if it is a single, correct one.

    data: may be a memory map of the file; only what is searched is read, and only what is repaired is copied.

    >>> parts(b"fLaC and no more")
    []
    """
    if data[:4] == b"OggS":
        found = _slices(data, _ogg(data))
    elif data[:4] == b"fLaC":
        found = [_mended_flac(part) for part in _slices(data, [m.start() for m in FLAC.finditer(data)])]
    elif data[:4] == b"RIFF":
        found = [_mended_wav(part) for part in _slices(data, [m.start() for m in WAV.finditer(data)])]
    elif data[:3] == b"ID3" or data[:1] == b"\xff":
        found = _slices(data, _mp3(data))
    else:
        found = []
    return [] if len(found) == 1 and found[0] is data else found


def _slices(data: bytes | mmap, starts: list[int]) -> list[bytes]:
    starts = [0, *(start for start in starts if start)]
    if len(starts) == 1:
        return [data]  # and no copy of it
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def _ogg(data: bytes | mmap) -> list[int]:
    """Find where chained streams begin; parallel streams, as in a film, begin with one page after the other."""
    starts, end = [], -1
    for match in OGG.finditer(data):
        start = match.start()
        if start != end:
            starts.append(start)
        segments = data[start + 26 : start + 27]
        end = start + 27 + sum(segments) + sum(data[start + 27 : start + 27 + sum(segments)])
    return starts


# -- WAV ---------------------------------------------------------------------------------------------------------------


def _mended_wav(data: bytes | mmap) -> bytes:
    """Extend a sound's size to the end if what follows it is not a chunk but more sound, as in a stream."""
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], unpack_from("<I", data, at + 4)[0]
        left = len(data) - at - 8
        if name == b"data":
            if size >= left or left - size <= JUNK or (size and _chunks(data, at + 8 + size + size % 2)):
                return data
            mended = bytearray(data)
            pack_into("<I", mended, at + 4, min(left, 2**32 - 1))
            pack_into("<I", mended, 4, min(len(data) - 8, 2**32 - 1))
            return bytes(mended)
        at += 8 + size + size % 2
    return data


def _chunks(data: bytes | mmap, at: int) -> bool:
    """Return whether there is nothing but chunks from here to the end."""
    while at + 8 <= len(data):
        name, size = data[at : at + 4], unpack_from("<I", data, at + 4)[0]
        if not all(32 <= letter < 127 for letter in name):
            return not any(data[at:])  # zeros that fill up a block
        at += 8 + size + size % 2
    return at <= len(data) + 8


# -- FLAC --------------------------------------------------------------------------------------------------------------


def _mended_flac(data: bytes | mmap) -> bytes:
    """Write the number of samples that the last frame implies into STREAMINFO, if that has 0 or another number."""
    total = _flac_samples(data)
    packed = unpack_from(">Q", data, 18)[0] if len(data) >= 42 else 0
    if total is None or packed % 2**36 == total:
        return data
    mended = bytearray(data)
    pack_into(">Q", mended, 18, packed - packed % 2**36 + total)
    return bytes(mended)


def _flac_samples(data: bytes | mmap) -> int | None:
    """Count a stream's samples by its last frame; None if no frame is found. Source: RFC 9639, section 9."""
    at, last = 4, False
    while not last and at + 4 <= len(data):
        last, at = data[at] >= 0x80, at + 4 + int.from_bytes(data[at + 1 : at + 4], "big")
    first, end = data[at : at + 4], len(data)
    if len(first) < 4:
        return None
    while (end := data.rfind(first[:2], at, end)) >= 0:  # the sync code, and whether blocks have one size
        header = data[end : end + 16]
        alike = len(header) == 16 and header[2] & 15 == first[2] & 15 and header[3] & 15 == first[3] & 15
        if alike and (found := _flac_frame(header)):
            number, size = found
            return size + (number if first[1] & 1 else number * int.from_bytes(data[8:10], "big"))
    return None


def _flac_frame(header: bytes) -> tuple[int, int] | None:
    """Read a frame's number and its block's size; None if its checksum says that it is not a frame."""
    extra = max(0, 7 - (header[4] ^ 0xFF).bit_length())  # a number is encoded as UTF-8 encodes a letter
    number = header[4] & (0x3F >> extra if extra else 0x7F)
    for byte in header[5 : 5 + extra]:
        number = number << 6 | byte & 0x3F
    at, code = 5 + extra, header[2] >> 4
    wide = {6: 1, 7: 2}.get(code, 0)
    size = int.from_bytes(header[at : at + wide], "big") + 1
    if code == 1:
        size = 192
    elif 2 <= code <= 5:
        size = 576 << code - 2
    elif code >= 8:
        size = 256 << code - 8
    at += wide + {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    return (number, size) if at < len(header) and _crc8(header[:at]) == header[at] else None


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc << 1 ^ (0x107 if crc & 0x80 else 0)
    return crc


# -- MP3 ---------------------------------------------------------------------------------------------------------------


def _mp3(data: bytes | mmap) -> list[int]:
    """Find where streams begin: at a header that counts frames, and after as many frames as the one before claims."""
    starts, at, lost = [0], 0, True
    left, surplus = None, []  # frames that the last header still claims; starts of those beyond
    while at + 4 <= len(data):
        length, tag = _mp3_frame(data, at)
        if not length or (lost and at + length + 4 <= len(data) and not _mp3_frame(data, at + length)[0]):
            step = 10 + _synchsafe(data[at + 6 : at + 10]) if data[at : at + 3] == b"ID3" else 1
            at, lost = data.find(b"\xff", at + step), True
            if at < 0:
                break
            continue
        lost = False
        if data[at + tag : at + tag + 4] in (b"Xing", b"Info"):
            starts += surplus[:1] if len(surplus) >= SURPLUS else []
            starts += [at] if left is not None or at > starts[-1] + 4096 else []
            told = data[at + tag + 4 : at + tag + 12]  # flags, and a count if the first is set
            left = int.from_bytes(told[4:], "big") if len(told) == 8 and told[3] & 1 else None
            surplus = []
        elif left == 0:
            surplus.append(at)
        elif left is not None:
            left -= 1
        at += length
    return starts + (surplus[:1] if len(surplus) >= SURPLUS else [])


def _mp3_frame(data: bytes | mmap, at: int) -> tuple[int, int]:
    """Read a layer III frame's length, and where in it a count of frames would be; (0, 0) if it is not a frame."""
    a, b, c, d = data[at : at + 4].ljust(4, b"\0")
    version, rate = b >> 3 & 3, c >> 2 & 3
    if a != 0xFF or b & 0xE6 != 0xE2 or version == 1 or rate == 3 or c >> 4 in (0, 15):
        return 0, 0
    first = version == 3
    hertz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    length = (144 if first else 72) * KBPS[3 if first else 2][c >> 4] * 1000 // hertz + (c >> 1 & 1)
    mono = d >> 6 == 3
    return length, 4 + ((17 if mono else 32) if first else (9 if mono else 17))


def _synchsafe(data: bytes) -> int:
    size = 0
    for byte in data:
        size = size << 7 | byte & 0x7F
    return size
