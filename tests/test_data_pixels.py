"""One image file of every kind -> pixels."""

from __future__ import annotations

import base64
import io
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from vitdc.data.decoding import decode_chunk
from vitdc.data.pixels import EXTENSIONS, Pixels, decode, decode_file

RGB8 = Pixels(image_size=8, channels=3, max_pixels=10_000)
GREY8 = Pixels(image_size=8, channels=1, max_pixels=10_000)
ORANGE = (250, 120, 10)
RAMP = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def halves(left: Any, right: Any, mode: str = "RGB") -> Image.Image:
    """A 16 x 16 image of two colours."""
    image = Image.new(mode, (16, 16), left)
    image.paste(right, (8, 0, 16, 16))
    return image


def tiff(values: np.ndarray, *, tags: dict[int, Any] | None = None) -> bytes:
    """A TIFF of one band, with tags beside or instead of Pillow's."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in (tags or {}).items():
        info[tag] = value
    return encoded(Image.fromarray(values), "TIFF", tiffinfo=info)


def packed_tiff(pixels: bytes, entries: list[tuple[int, int]], *, side: int = 8) -> bytes:
    """A TIFF made by hand: its strip, then a directory of numbers."""
    needed = {256: side, 257: side, 259: 1, 273: 8, 278: side, 279: len(pixels)}
    rows = sorted((needed | dict(entries)).items())
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in rows)
    start = struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
    return start + pixels + struct.pack("<H", len(rows)) + directory + bytes(4)


def grey(file: bytes, pixels: Pixels = GREY8) -> np.ndarray:
    """(8, 8) uint8."""
    return decode(file, pixels)[..., 0]


def reason(file: bytes, pixels: Pixels = GREY8) -> str:
    """Why a file is unreadable."""
    return decode_chunk([file], pixels).problems[0]


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_every_format_gives_its_colour(format_name):
    pixels = decode(encoded(Image.new("RGB", (16, 16), ORANGE), format_name), RGB8)
    assert pixels.shape == (8, 8, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels, np.broadcast_to(ORANGE, (8, 8, 3)), atol=4)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, 255),
        ("L", 77, 77),
        ("P", 0, 0),
        ("LA", (77, 255), 77),
        ("RGB", (77, 77, 77), 77),
        ("RGBA", (77, 77, 77, 255), 77),
    ],
)
@pytest.mark.parametrize("wanted", [RGB8, GREY8])
def test_every_png_mode_gives_its_grey(mode, colour, expected, wanted):
    pixels = decode(encoded(Image.new(mode, (16, 16), colour), "PNG"), wanted)
    assert pixels.shape == wanted.shape
    assert (pixels == expected).all()


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(format_name):
    deep = np.repeat(np.array([0, 256, 32768, 65535], np.uint16), 16).reshape(8, 8)
    pixels = decode(encoded(Image.fromarray(deep), format_name), GREY8)
    np.testing.assert_array_equal(pixels[..., 0], np.round(deep / 65535 * 255))


def test_transparency_is_composited_on_white():
    half_seen = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    pixels = decode(encoded(half_seen, "PNG"), RGB8)
    np.testing.assert_allclose(pixels[0, 0], (255, 127, 127), atol=1)


def test_transparent_palette_entry_is_white():
    image = halves(0, 1, mode="P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    pixels = decode(encoded(image, "PNG", transparency=0), RGB8)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, -1].tolist() == [0, 0, 255]


def test_cmyk_jpeg_gives_its_colour():
    pixels = decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), RGB8)
    np.testing.assert_allclose(pixels[0, 0], (255, 0, 0), atol=6)


def test_exif_orientation_is_honoured():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    data = encoded(halves("black", "white"), "JPEG", exif=exif, quality=95)
    pixels = decode(data, GREY8)[..., 0]
    assert pixels[0].max() < 40  # what was stored left is shown at the top
    assert pixels[-1].min() > 215


def test_first_frame_of_an_animation_counts():
    frames = [Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, RGB8)[0, 0].tolist() == [255, 0, 0]


def test_short_side_is_resized_and_the_long_one_centre_cropped():
    wide = np.zeros((16, 64), np.uint8)
    wide[:, 24:40] = 255  # only the central square is white
    pixels = decode(encoded(Image.fromarray(wide), "PNG"), GREY8)
    assert pixels.mean() > 240
    tall = decode(encoded(Image.fromarray(wide.T), "PNG"), GREY8)
    np.testing.assert_array_equal(tall[..., 0], pixels[..., 0].T)


def test_shrinking_is_antialiased():
    checkers = (np.indices((80, 80)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels = decode(encoded(Image.fromarray(checkers), "PNG"), GREY8)
    np.testing.assert_allclose(pixels, 127, atol=3)


def test_a_large_jpeg_decodes_to_what_its_full_size_gives():
    random = np.random.default_rng(0)
    small = Image.fromarray(random.integers(0, 256, (16, 24, 3), dtype=np.uint8))
    photo = small.resize((768, 512), Image.Resampling.BICUBIC)
    pixels = Pixels(image_size=32, channels=3, max_pixels=10**6)
    drafted = decode(encoded(photo, "JPEG", quality=95), pixels)
    full = decode(encoded(photo, "PNG"), pixels)
    assert np.abs(drafted.astype(int) - full).mean() < 2


# --- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extension", "format_name", "tolerance"),
    [
        ("pgm", "PPM", 0),
        ("jfif", "JPEG", 4),
        ("jp2", "JPEG2000", 0),
        ("avif", "AVIF", 6),
        ("tga", "TGA", 0),
        ("pcx", "PCX", 0),
        ("sgi", "SGI", 0),
        ("dib", "DIB", 0),
        ("dds", "DDS", 0),
    ],
)
def test_what_pillow_decodes_is_an_image(extension, format_name, tolerance):
    assert f".{extension}" in EXTENSIONS
    found = grey(encoded(Image.fromarray(RAMP), format_name))
    np.testing.assert_allclose(found.astype(int), RAMP, atol=tolerance)


# RAMP at 32 x 32 pixels, written by pillow-heif at quality 60: pi-heif does not encode
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAA"
    "AAAAAAAAACJpbG9jAAAAAERAAAEAAQAAAAABoQABAAAAAAAAACIAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABo"
    "dmMxAAAAAA5waXRtAAAAAAABAAAA/WlwcnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEA"
    "GEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAA"
    "AwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAACAAAAAB"
    "AAAAIAAAAAH////gAAAAAv///+AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAACpt"
    "ZGF0AAAAHigBrwngPydMueLwOvdooDHdYdWz7XIllr/+lQ7/wA=="
)


def test_heic_is_an_image():
    smooth = Image.fromarray(RAMP).resize((32, 32)).convert("RGB")
    assert ".heic" in EXTENSIONS
    np.testing.assert_allclose(grey(HEIC).astype(int), grey(encoded(smooth, "PNG")), atol=4)
    assert reason(HEIC[:200]) == "damaged: HEIF"


def test_programs_and_videos_are_no_images():
    assert not {".eps", ".ps", ".pdf", ".mpg", ".mpeg", ".wmf", ".fli"} & {*EXTENSIONS}
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n") == (
        "not an image of a known format"
    )


@pytest.mark.parametrize(
    ("file", "start"),
    [
        (b"this is text", "not an image of a known format"),
        (b"", "not an image of a known format"),
        (encoded(Image.fromarray(RAMP), "PNG")[:50], "damaged: "),
        (encoded(Image.fromarray(RAMP), "JPEG")[:200], "damaged: "),
        (encoded(Image.fromarray(RAMP), "TIFF")[:90], "damaged: "),
        (encoded(Image.fromarray(RAMP), "WEBP")[:40], "damaged: "),
        (encoded(Image.new("1", (101, 100)), "PNG"), "too large: 101 x 100 pixels exceed"),
        (
            packed_tiff(bytes(128), [(258, 10), (262, 1), (277, 1)]),
            "of an unsupported kind: TIFF, unknown pixel mode of 1 bands with 10 bits",
        ),
        (tiff(np.ones((8, 8), np.float32)), "of an unsupported kind: pixels of mode F"),
        (tiff(np.ones((8, 8), np.int32)), "of an unsupported kind: pixels of mode I"),
    ],
)
def test_a_refused_file_is_told_why(file, start):
    assert reason(file).startswith(start)


@pytest.mark.parametrize("format_name", ["PNG", "PPM"])
def test_an_image_may_come_through_a_pipe(tmp_path, format_name):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as thread:
        for file in (encoded(Image.fromarray(RAMP), format_name), b"no image"):
            thread.submit((tmp_path / "pipe").write_bytes, file)
            images, problems, *_ = decode_chunk([str(tmp_path / "pipe")], GREY8)
            assert problems == ({} if len(images) else {0: "not an image of a known format"})


# --- depth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "JPEG2000"])
def test_fewer_bits_than_the_file_has_are_scaled_by_the_range_that_is_set(bits, format_name):
    deep = np.round(RAMP / 255 * (2**bits - 1)).astype(np.uint16)
    pixels = replace(GREY8, pixel_range=(0, 2**bits - 1))
    file = encoded(Image.fromarray(deep), format_name)
    np.testing.assert_array_equal(grey(file, pixels), RAMP)
    found = decode_file(file, GREY8)
    assert found.brightest == deep.max()  # which tells what to set


def test_a_tiff_of_12_bits_has_the_range_of_12_bits():
    deep = np.round(RAMP / 255 * 4095).astype(int).ravel()
    pairs = zip(deep[::2].tolist(), deep[1::2].tolist(), strict=True)
    packed = b"".join((a << 12 | b).to_bytes(3, "big") for a, b in pairs)
    file = packed_tiff(packed, [(258, 12), (262, 1), (277, 1)])
    for pixel_range in (None, (0, 65535)):
        np.testing.assert_array_equal(grey(file, replace(GREY8, pixel_range=pixel_range)), RAMP)


@pytest.mark.parametrize(
    ("largest", "white"), [(1023, 1023), (4095, 4095), (16383, 16383), (1700, 65535), (0, 65535)]
)
def test_the_largest_sample_of_a_tiff_is_its_range_if_it_is_that_of_a_depth(largest, white):
    deep = np.round(RAMP / 255 * 1000).astype(np.uint16)
    file = tiff(deep, tags={281: largest})
    np.testing.assert_array_equal(grey(file), np.round(deep / white * 255))
    set_by_hand = replace(GREY8, pixel_range=(0, 1000))
    np.testing.assert_array_equal(grey(file, set_by_hand), RAMP)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_white_is_zero_is_honoured(dtype):
    pixels = replace(GREY8, pixel_range=(0, 255))
    values = RAMP.astype(dtype)
    bits, kind = values.itemsize * 8, 3 if values.dtype.kind == "f" else 1
    entries = [(258, bits), (277, 1), (339, kind)]
    for photometric, expected in ((1, RAMP), (0, 255 - RAMP)):
        file = packed_tiff(values.tobytes(), [*entries, (262, photometric)])
        np.testing.assert_array_equal(grey(file, pixels), expected)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.float32])
def test_values_without_a_range_of_their_own_get_the_one_that_is_set(dtype):
    low, high = {"i": (-1000, 3000), "u": (2**31, 2**32 - 1), "f": (-0.5, 0.5)}[
        np.dtype(dtype).kind
    ]
    values = (low + RAMP / 255 * (high - low)).astype(dtype)
    kind = {"i": 2, "u": 1, "f": 3}[values.dtype.kind]
    entries = [(258, values.itemsize * 8), (262, 1), (277, 1), (339, kind)]
    file = packed_tiff(values.tobytes(), entries)
    assert "set data.pixel_range" in reason(file)
    found = grey(file, replace(GREY8, pixel_range=(low, high)))
    np.testing.assert_allclose(found.astype(int), RAMP, atol=1)


def test_floats_have_the_range_of_their_tags_and_what_is_no_number_is_black():
    values = np.linspace(2, 4, 64, dtype=np.float32).reshape(8, 8)
    values[0, 0] = np.nan
    found = grey(tiff(values, tags={340: 2.0, 341: 4.0}))
    expected = np.round((values - 2) / 2 * 255)
    expected[0, 0] = 0
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("largest", [15, 255, 1023, 4095, 65535])
def test_the_maximum_of_a_pgm_is_its_white(largest):
    values = np.round(RAMP / 255 * largest)
    raw = values.astype(">u2" if largest > 255 else np.uint8).tobytes()
    file = f"P5 8 8 {largest}\n".encode() + raw
    np.testing.assert_array_equal(grey(file), np.round(values / largest * 255))


def test_of_colours_with_16_bits_the_range_counts_for_the_upper_8():
    deep = np.repeat((RAMP.astype(np.uint16) << 4)[..., None], 3, axis=2)  # 12 of 16 bits
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    file = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)
    assert decode_file(file, RGB8).brightest == 4095
    found = decode(file, replace(RGB8, pixel_range=(0, 4095)))
    np.testing.assert_allclose(found[..., 1].astype(int), RAMP, atol=16)
    assert found.max() > 230


# --- transparency --------------------------------------------------------------------------------


def logo(mode: str, colour: tuple[int, ...]) -> Image.Image:
    """A square of a colour in the middle of nothing."""
    alpha = Image.new("L", (8, 8), 0)
    alpha.paste(255, (2, 2, 6, 6))
    image = Image.new("RGB", (8, 8), colour)
    image.putalpha(alpha)
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa"])
@pytest.mark.parametrize("level", [0, 100, 240, 255])
def test_a_logo_of_any_colour_stays_visible(mode, level):
    format_name = "TIFF" if mode == "RGBa" else "PNG"
    image = logo("RGBA" if mode == "RGBa" else mode, (level,) * 3)
    found = grey(encoded(image, format_name)).astype(int)
    assert abs(found[4, 4] - found[0, 0]) >= 100
    assert found[0, 0] == (255 if level < 200 else 0)
    assert found[4, 4] == level


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16"])
def test_a_colour_that_stands_for_transparency_is_the_background(mode):
    white = {"RGB": (255,) * 3, "I;16": 65535, "1": 1}.get(mode, 255)
    black = (0, 0, 0) if mode == "RGB" else 0
    image = halves(black, white, mode=mode)
    if mode == "P":
        image.putpalette([level for level in range(256) for _ in range(3)])
    file = encoded(image, "PNG", transparency=black)
    found = decode(file, replace(RGB8, background="#804020"))
    assert found[0, 0].tolist() == [0x80, 0x40, 0x20]
    assert found[0, -1].tolist() == [255, 255, 255]


def test_the_background_is_composed_by_the_alpha():
    file = encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 51)), "PNG")
    found = decode(file, replace(RGB8, background="rgb(0, 100, 200)"))
    np.testing.assert_allclose(found[0, 0].astype(int), (51, 80, 160), atol=1)


def test_an_empty_alpha_channel_of_a_bmp_is_none():
    pixels = np.dstack([RAMP] * 3 + [0 * RAMP])
    found = grey(encoded(Image.fromarray(pixels), "TGA"))
    np.testing.assert_array_equal(found, RAMP)
    assert (grey(encoded(Image.fromarray(pixels), "PNG")) == 255).all()


# --- shape and pages -----------------------------------------------------------------------------


def test_padding_keeps_all_of_an_image_and_its_shape():
    wide = np.zeros((16, 64), np.uint8)
    wide[:, :16] = wide[:, 48:] = 200  # at both ends
    file = encoded(Image.fromarray(wide), "PNG")
    assert not grey(file).any()
    padded = grey(file, replace(GREY8, fit="pad", background="#ffffff"))
    assert (padded[:3] == 255).all()
    assert (padded[5:] == 255).all()
    assert padded[3:5, :2].min() > 150
    assert padded[3:5, -2:].min() > 150
    assert padded[3:5, 3:5].max() < 50
    assert not grey(file, replace(GREY8, fit="pad"))[:3].any()  # black by itself
    tall = grey(encoded(Image.fromarray(wide.T), "PNG"), replace(GREY8, fit="pad"))
    np.testing.assert_array_equal(tall, grey(file, replace(GREY8, fit="pad")).T)


def test_stretching_keeps_all_of_an_image():
    wide = np.zeros((8, 64), np.uint8)
    wide[:, 32:] = 255
    found = grey(encoded(Image.fromarray(wide), "PNG"), replace(GREY8, fit="stretch"))
    assert found[:, :3].max() < 20
    assert found[:, -3:].min() > 235


@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
def test_a_line_becomes_a_square(how):
    file = encoded(Image.new("L", (1, 5000), 80), "PNG")
    assert grey(file, replace(GREY8, fit=how)).shape == (8, 8)


@pytest.mark.parametrize("format_name", ["TIFF", "GIF", "WEBP", "PNG"])
def test_pages_are_counted_or_images_of_their_own(format_name):
    frames = [Image.new("L", (8, 8), level).convert("RGB") for level in (10, 120, 240)]
    options = {"lossless": True} if format_name == "WEBP" else {}
    file = encoded(frames[0], format_name, save_all=True, append_images=frames[1:], **options)
    first = decode_chunk([file], GREY8)
    assert (len(first.images), first.left_out, first.pages) == (1, {0: 2}, {})
    pages = decode_chunk([b"", file, encoded(frames[0], "PNG")], replace(GREY8, pages="all"))
    assert pages.images[:, 0, 0, 0].tolist() == [10, 120, 240, 10]
    assert [name for _, name in pages.sources(["a", "b", "c"])] == ["b#1", "b#2", "b#3", "c"]
    assert [position for position, _ in pages.sources(["a", "b", "c"])] == [1, 1, 1, 2]


def test_smaller_copies_in_a_tiff_are_no_pages():
    small = Image.new("L", (4, 4))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    file = encoded(Image.fromarray(RAMP), "TIFF", save_all=True, append_images=[small])
    assert decode_file(file, GREY8).left_out == 0


def test_what_follows_a_sound_first_page_does_not_matter():
    frames = [Image.fromarray(RAMP)] * 2
    file = bytearray(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    file[-90:] = bytes(90)
    np.testing.assert_array_equal(grey(bytes(file)), RAMP)


# --- metadata ------------------------------------------------------------------------------------


def chunk(name: bytes, body: bytes, checksum: int | None = None) -> bytes:
    """Of a PNG."""
    checksum = zlib.crc32(name + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def with_chunk(made: bytes) -> bytes:
    """A PNG with another chunk after its header."""
    file = encoded(Image.fromarray(RAMP), "PNG")
    return file[:33] + made + file[33:]


def large_text(**options: Any) -> bytes:
    info = PngInfo()
    info.add_itxt("workflow", "x" * 2_000_000, **options)
    return encoded(Image.fromarray(RAMP), "PNG", pnginfo=info)


@pytest.mark.parametrize(
    "file",
    [
        large_text(),
        large_text(zip=True),
        encoded(Image.fromarray(RAMP), "PNG", icc_profile=bytes(2_000_000)),
        with_chunk(chunk(b"tEXt", b"Comment\0hello", 0)),
        with_chunk(chunk(b"zTXt", b"Comment\0\0garbage")),
        with_chunk(chunk(b"iCCP", b"p\0\7garbage")),
        with_chunk(chunk(b"pHYs", b"\0")),
        with_chunk(chunk(b"eXIf", b"\0\x08\0\x02\x01\x12")),
        encoded(Image.fromarray(RAMP), "PNG")[:-12],
    ],
)
def test_a_sound_png_is_not_lost_to_its_metadata(file):
    np.testing.assert_array_equal(grey(file), RAMP)


def test_a_png_read_without_its_metadata_keeps_what_changes_its_pixels():
    exif = Image.Exif()
    exif[0x0112] = 3
    file = encoded(Image.fromarray(RAMP), "PNG", transparency=0, exif=exif)
    file = file[:33] + chunk(b"tEXt", b"Comment\0hello", 0) + file[33:]
    found = grey(file, replace(GREY8, background="#808080"))
    expected = RAMP.copy()
    expected[0, 0] = 128
    np.testing.assert_array_equal(found, expected[::-1, ::-1])


def test_a_damaged_png_stays_damaged():
    file = encoded(Image.fromarray(RAMP), "PNG")
    assert reason(file[:19] + b"\x09" + file[20:]).startswith("damaged")  # its header
    assert reason(file[:-30] + file[-12:]).startswith("damaged")  # its pixels


ORIENTED = {
    "short": (struct.pack("<HHI", 0x112, 3, 1) + struct.pack("<HH", 6, 0), b""),
    "text": (struct.pack("<HHI", 0x112, 2, 2) + b"6\0\0\0", b""),
    "two values": (struct.pack("<HHI", 0x112, 3, 2) + struct.pack("<HH", 6, 6), b""),
    "rational": (struct.pack("<HHII", 0x112, 5, 1, 26), struct.pack("<II", 6, 1)),
}
MAKE = struct.pack("<HHI", 0x10F, 3, 1) + struct.pack("<HH", 5, 0)
UNKNOWN_TYPE = struct.pack("<HHI", 0x11A, 99, 1) + b"abcd"


def with_exif(*entries: bytes, tail: bytes = b"", head: bytes = b"") -> bytes:
    """A JPEG whose left half is black, with an EXIF block made by hand."""
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4) + tail
    block = b"Exif\0\0" + head + b"II*\0\x08\0\0\0" + directory
    file = encoded(halves("black", "white"), "JPEG", quality=95)
    return file[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + file[2:]


@pytest.mark.parametrize(
    "file",
    [
        *(with_exif(entry, tail=tail) for entry, tail in ORIENTED.values()),
        with_exif(MAKE, ORIENTED["short"][0]),
        with_exif(ORIENTED["short"][0], UNKNOWN_TYPE),
        with_exif(ORIENTED["short"][0], head=b"Exif\0\0"),
    ],
)
def test_an_orientation_that_can_be_read_is_honoured(file):
    found = grey(file)
    assert found[0].max() < 40
    assert found[-1].min() > 215


@pytest.mark.parametrize(
    "file",
    [
        with_exif(struct.pack("<HHI", 0x112, 3, 1) + struct.pack("<HH", 77, 0)),
        with_exif(struct.pack("<HHI", 0x112, 2, 4) + b"top\0"),
        with_exif(struct.pack("<HHII", 0x112, 5, 1, 26), tail=struct.pack("<II", 6, 0)),
        with_exif(b"cut"),
        with_exif(head=b"\0\0\0\0"),
    ],
)
def test_an_orientation_that_cannot_be_read_costs_nothing(file):
    found = grey(file)
    assert found[:, 0].max() < 40
    assert found[:, -1].min() > 215


def test_a_tiff_is_not_lost_to_a_tag_that_cannot_be_read():
    entries = [(258, 8), (262, 1), (277, 1), (339, 1)]
    file = packed_tiff(RAMP.tobytes(), [*entries, (270, 1)])
    at = file.index(struct.pack("<HHI", 270, 4, 1))
    beyond_the_end = struct.pack("<II", 20, len(file) - 4)
    file = file[: at + 4] + beyond_the_end + file[at + 12 :]
    np.testing.assert_array_equal(grey(file), RAMP)
