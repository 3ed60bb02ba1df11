"""One image file -> pixels. It needs NumPy and Pillow alone: every export has a copy of it.

What becomes of unusual images:

- The orientation of EXIF is applied where it can be read. Metadata that cannot be read never cost
  an image: a PNG or TIFF that Pillow refuses is read again without them.
- Transparency is composed over `Pixels.background`. The alpha channel of a BMP or TGA file that is
  0 everywhere is no alpha channel: many programs leave it empty.
- Grey of more than 8 bits is scaled from the range of its values to 0 to 255. The range is what
  the file says for certain (a TIFF of 12 bits, the maximum of a PGM), else `Pixels.pixel_range`,
  else what the tags of a TIFF say: MaxSampleValue where it is that of a depth (1023, 4095, ...; any
  other value is a statistic of the image), SMinSampleValue and SMaxSampleValue of integers of 32
  bits, signed ones and floats. What says nothing has the whole range where it has 16 bits, and is
  refused where it has 32 or is signed. Not a number counts as black. White-is-zero is honoured.
- Of colours with 16 bits each, Pillow keeps the upper 8.
- CMYK, YCbCr and Lab become RGB, CMYK without its colour profile. Of further bands of a TIFF that
  have no meaning, the first one or three count.
- Of several pages or frames the first counts, or every one is an image. Smaller copies and masks
  of a TIFF are no pages; nor are the further pictures of an MPO (stereo, depth, preview) or the
  layers of a PSD.
"""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageOps, ImageStat, UnidentifiedImageError

# What is tried, in this order, and the extensions that mean an image. What Pillow knows beyond it
# is left out: EPS, PS, WMF and PDF are programs for a printer, for which it runs Ghostscript or
# Windows; MPEG and FLI are videos; ICO, CUR and ICNS hold icons of several sizes, which it does not
# bound; FITS, HDF5, GRIB and BUFR are arrays or mere stubs; the rest is of a single game or tool.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "PPM": (".pgm", ".ppm", ".pbm", ".pnm", ".pfm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "MPO": (".mpo",),
    "DIB": (".dib",),
    "PCX": (".pcx",),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "SUN": (".ras",),
    "DDS": (".dds",),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
    "TGA": (".tga", ".icb", ".vda", ".vst"),  # has no signature
}
HEIF = (".heic", ".heif", ".hif")  # of pi-heif, which is imported for the first such file
EXTENSIONS = (*(ending for endings in FORMATS.values() for ending in endings), *HEIF)
PAGED = ("TIFF", "GIF", "PNG", "WEBP", "AVIF", "HEIF")  # whose frames are images of their own
WITHOUT_ALPHA = ("BMP", "DIB", "TGA")  # if it is 0 everywhere

# Pixels that a JPEG may be shrunk to while it is decoded, per pixel of the result's side. The rest
# is done by the antialiasing filter, so the picture stays as good as from the full size.
DRAFT_FACTOR = 2
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
VANISHING = 8  # times less contrast on white than on black: then black is behind an image
WHOLE_RANGE = (0, 65535)  # of 16 bits
DEPTHS = tuple(2**bits - 1 for bits in range(9, 16))  # largest values of fewer bits than 16

# Tags of EXIF and TIFF.
ORIENTATION, SUBFILE_TYPE, BITS, PHOTOMETRIC, BANDS = 274, 254, 258, 262, 277
MAX_SAMPLE, SAMPLE_FORMAT, SMIN_SAMPLE, SMAX_SAMPLE = 281, 339, 340, 341
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

PNG = b"\x89PNG\r\n\x1a\n"
PNG_KEPT = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")  # of what is not critical
TIFF = (b"II*\0", b"MM\0*")
TIFF_KEPT = {  # all that says how pixels are stored
    *(*range(254, 260), PHOTOMETRIC, 266, 273, ORIENTATION, *range(277, 282), 284, 292, 293, 301),
    *(317, 320, *range(322, 326), *range(338, 342), 347, *range(512, 533)),
}
MAX_REREAD = 2**30  # bytes of a file that Pillow refuses and that is read again


class RefusedError(ValueError):
    """A sound file that gives no image; the message says why."""


@dataclass(frozen=True)
class Pixels:
    """The pixels that are wanted of every image.

    Attributes:
        image_size: Side of the square.
        channels: 1 or 3.
        max_pixels: Larger images are refused before they are decoded.
        convert: Resize and convert what is different; else it is refused.
        fit: How a picture that is not square becomes one: "crop", "pad" or "stretch".
        background: Colour behind what is transparent and around what is padded. "auto" is black
            around a picture without transparency, and white elsewhere, unless nearly nothing would
            be seen on it (white logos), when it is black.
        pixel_range: The values that are black and white in pixels of more than 8 bits, where the
            file does not say it for certain.
        pages: "first", or "all" as images of their own.
    """

    image_size: int
    channels: int
    max_pixels: int
    convert: bool = True
    fit: str = "crop"
    background: str = "auto"
    pixel_range: tuple[float, float] | None = None
    pages: str = "first"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, self.channels


class Found(NamedTuple):
    """What is in a file.

    Attributes:
        images: (H, W, C) uint8 each, at least one.
        left_out: Further pages that are not among the images.
        brightest: The largest value of pixels with 16 bits whose range nothing says; None if there
            are none.
    """

    images: list[np.ndarray]
    left_out: int = 0
    brightest: int | None = None


class Flat(NamedTuple):
    """An opaque image.

    Attributes:
        image: 8-bit greyscale ("L") or RGB.
        border: RGB colour to pad it with.
        brightest: As of `Found`.
    """

    image: Image.Image
    border: tuple[int, ...]
    brightest: int | None = None


def decode(file: str | bytes, pixels: Pixels) -> np.ndarray:
    """Decode the first page of an image file, given by its path or its bytes.

    Returns:
        (H, W, C) uint8.

    Raises:
        Exception: As `decode_file`.
    """
    return decode_file(file, pixels).images[0]


def decode_file(file: str | bytes, pixels: Pixels) -> Found:
    """Decode an image file, given by its path or its bytes.

    Raises:
        Exception: Of any type that Pillow or a codec raises on a file that is not a sound image;
            `explain` says what it means.
    """
    if isinstance(file, str) and not _can_be_read_twice(file):
        file = Path(file).read_bytes()
    try:
        return _decode(file, pixels)
    except RefusedError:
        raise
    except Exception as error:
        if (bare := _without_metadata(file)) is None:
            raise
        try:
            return _decode(bare, pixels)
        except RefusedError:
            raise
        except Exception:
            raise error from None


def explain(error: Exception, file: str | bytes) -> str:
    """Why a file gives no image: unknown format, unsupported kind, damaged, too large, or unread.

    Args:
        error: From `decode_file`.
        file: What it was given.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, RefusedError):
        return text
    if isinstance(error, UnidentifiedImageError):
        return _why_unidentified(file if _can_be_read_twice(file) else b"")
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "too large for the memory that there is"
    if re.search("not available|unsupported|not (yet )?supported", text, re.IGNORECASE):
        return f"of an unsupported kind: {text}"
    return f"damaged: {text}"


def to_pixels(image: Image.Image, pixels: Pixels) -> tuple[np.ndarray, int | None]:
    """A Pillow image as the wanted (H, W, C) uint8, upright; and `Found.brightest`."""
    flat = flatten(image, background=pixels.background, pixel_range=pixels.pixel_range)
    image.load()  # a TIFF turns itself upright then
    orientation = _orientation(image)
    upright = flat.image.transpose(TURNS[orientation]) if orientation in TURNS else flat.image
    if not pixels.convert:
        _check_same(upright, pixels)
    fitted = fit(
        upright,
        image_size=pixels.image_size,
        channels=pixels.channels,
        how=pixels.fit,
        border=flat.border,
    )
    return fitted, flat.brightest


def flatten(
    image: Image.Image,
    *,
    background: str = "auto",
    pixel_range: tuple[float, float] | None = None,
) -> Flat:
    """Any Pillow image as an opaque one of 8 bits per channel.

    Args:
        image: In any mode; best not loaded yet, because loading forgets how its file stores it.
        background: See `Pixels`.
        pixel_range: See `Pixels`.

    Raises:
        RefusedError: The range of its values is not known.
    """
    border = border_colour(background)
    if image.mode in ("L", "RGB") and "transparency" not in image.info and not _is_deep(image):
        return Flat(image, border)
    brightest = None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image, brightest = _from_deep_grey(image, pixel_range)
    elif _is_deep(image):
        image, brightest = _from_deep_colours(image, pixel_range)
    if image.has_transparency_data:
        see_through = image.convert("LA") if image.mode == "La" else image
        see_through = see_through.convert("RGBA")
        if image.format in WITHOUT_ALPHA and see_through.getchannel("A").getextrema() == (0, 0):
            return Flat(see_through.convert("RGB"), border, brightest)
        return Flat(*_composed(see_through, background), brightest)
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return Flat(image, border, brightest)


def fit(
    image: Image.Image,
    *,
    image_size: int,
    channels: int,
    how: str = "crop",
    border: tuple[int, ...] = BLACK,
) -> np.ndarray:
    """Bring an "L" or "RGB" image to a square.

    Args:
        image: The image.
        image_size: Side of the square.
        channels: 1 or 3.
        how: "crop" resizes the short side and cuts both ends off the long one, "pad" resizes the
            long side and fills up the short one, "stretch" resizes both.
        border: RGB colour that "pad" fills with.

    Returns:
        (H, W, C) uint8.
    """
    mode, size = "L" if channels == 1 else "RGB", (image_size, image_size)
    image, filtering = image.convert(mode), Image.Resampling.BICUBIC
    if image.size != size:  # one antialiased resampling of the part that is kept
        if how == "crop":
            image = ImageOps.fit(image, size, filtering)
        elif how == "stretch":
            image = image.resize(size, filtering)
        else:
            image = _padded(image, image_size, Image.new("RGB", size, border).convert(mode))
    return np.asarray(image).reshape(image_size, image_size, channels)


def border_colour(background: str) -> tuple[int, ...]:
    """The RGB colour around an opaque picture that is padded."""
    return BLACK if background == "auto" else ImageColor.getrgb(background)


# --- files ---------------------------------------------------------------------------------------


def _decode(file: str | bytes, pixels: Pixels) -> Found:
    with _open(file) as image:
        _check_size(image, pixels)
        if pixels.convert:
            draft_size = DRAFT_FACTOR * pixels.image_size
            image.draft(None, (draft_size, draft_size))
        first, brightest = to_pixels(image, pixels)
        if pixels.pages == "first":
            return Found([first], _count_further_pages(image), brightest)
        images = [first]
        for _ in _further_pages(image):
            _check_size(image, pixels)
            decoded, deepest = to_pixels(image, pixels)
            images.append(decoded)
            brightest = brightest if deepest is None else max(deepest, brightest or 0)
        return Found(images, 0, brightest)


def _open(file: str | bytes) -> Image.Image:
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    start = _start(file)
    if start.startswith((b"\xff\xd8\xff", PNG)):  # importing all other formats takes time
        return Image.open(source, formats=("JPEG", "PNG"))
    if _is_heif(start):
        _register_heif()
        return Image.open(source, formats=("HEIF",))
    return Image.open(source, formats=_all_formats())


@cache
def _all_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF is new in Pillow 11.3


def _can_be_read_twice(file: str | bytes) -> bool:
    """Unlike a pipe."""
    return isinstance(file, bytes) or Path(file).is_file()


def _start(file: str | bytes) -> bytes:
    if isinstance(file, bytes):
        return file[:64]
    with Path(file).open("rb") as opened:
        return opened.read(64)


def _is_heif(start: bytes) -> bool:
    of_hevc = re.search(rb"hei[cxms]|hev[cx]", start[8:])
    of_any = start[8:12] in (b"mif1", b"msf1") and b"avif" not in start
    return start[4:8] == b"ftyp" and bool(of_hevc or of_any)


@cache
def _register_heif() -> None:
    try:
        from pi_heif import register_heif_opener
    except ImportError:
        raise RefusedError(
            "of an unsupported kind: HEIC needs the package pi-heif, which is not installed"
        ) from None
    register_heif_opener(decode_threads=1)  # files are decoded side by side


def _further_pages(image: Image.Image) -> Iterator[int]:
    """Go to every page but the first."""
    for number in range(1, _num_frames(image)):
        image.seek(number)
        if not (image.format == "TIFF" and _tag(image, SUBFILE_TYPE, 0) & 0b101):
            yield number


def _count_further_pages(image: Image.Image) -> int:
    try:
        if image.format == "TIFF":
            return sum(1 for _ in _further_pages(image))
        return _num_frames(image) - 1
    except Exception:  # whatever follows, the first page is sound
        return 0


def _num_frames(image: Image.Image) -> int:
    is_paged = image.format in PAGED and getattr(image, "is_animated", False)
    return image.n_frames if is_paged else 1  # type: ignore[attr-defined]


def _without_metadata(file: str | bytes) -> bytes | None:
    """A PNG or TIFF without all that says nothing about its pixels; None if it is neither."""
    start = _start(file)
    strip = _bare_png if start.startswith(PNG) else _bare_tiff if start[:4] in TIFF else None
    if strip is None:
        return None
    if isinstance(file, bytes):
        return strip(file)
    path = Path(file)
    return strip(path.read_bytes()) if path.stat().st_size <= MAX_REREAD else None


def _bare_png(data: bytes) -> bytes | None:
    """What is kept gets a new checksum, unless it is critical; a missing end is added."""
    kept, at, name = [PNG], len(PNG), b""
    while at + 8 <= len(data) and name != b"IEND":
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        if end > len(data):  # cut off
            if name[:1].isupper():
                return None
            break
        if name in PNG_KEPT:
            checksum = zlib.crc32(data[at + 4 : end - 4]).to_bytes(4, "big")
            kept.append(data[at : end - 4] + checksum)
        elif name[:1].isupper():
            kept.append(data[at:end])
        at = end
    if name != b"IEND":
        kept.append(b"\0\0\0\0IEND\xae\x42\x60\x82")
    return b"".join(kept)


def _bare_tiff(data: bytes) -> bytes | None:
    """The first directory becomes shorter, and everything else stays where it is."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    at = int.from_bytes(data[4:8], order)
    end = at + 2 + 12 * int.from_bytes(data[at : at + 2], order)
    entries = [data[i : i + 12] for i in range(at + 2, end, 12)]
    kept = [entry for entry in entries if int.from_bytes(entry[:2], order) in TIFF_KEPT]
    if len(kept) == len(entries):
        return None
    directory = len(kept).to_bytes(2, order) + b"".join(kept) + data[end : end + 4]
    return data[:at] + directory + data[at + len(directory) :]


def _check_size(image: Image.Image, pixels: Pixels) -> None:
    if image.width * image.height > pixels.max_pixels:
        raise RefusedError(
            f"too large: {image.width} x {image.height} pixels exceed"
            f" data.max_pixels={pixels.max_pixels}"
        )


def _check_same(image: Image.Image, pixels: Pixels) -> None:
    found = (image.width, image.height, 1 if image.mode == "L" else 3)
    wanted = (pixels.image_size, pixels.image_size, pixels.channels)
    if found != wanted:
        described = [f"{w} x {h} {'greyscale' if c == 1 else 'RGB'}" for w, h, c in (found, wanted)]
        raise RefusedError(f"{described[0]}, not {described[1]}")


def _why_unidentified(file: str | bytes) -> str:
    """Pillow says the same of what it does not know and of what it knows and cannot read."""
    start = _start(file)
    if _is_heif(start):
        return "damaged: HEIF"
    for name in _all_formats():
        factory, accept = Image.OPEN[name]
        accepted = accept(start[:16].ljust(16, b"\0")) if accept else False
        if isinstance(accepted, str):  # a format that Pillow was built without
            return f"of an unsupported kind: {accepted}"
        if accepted:
            data = file if isinstance(file, bytes) else Path(file).read_bytes()
            try:
                factory(io.BytesIO(data), "")
            except Exception as error:
                text = f"{name}, {' '.join(str(error).split()) or type(error).__name__}"
                if "unknown" in text:
                    return f"of an unsupported kind: {text}{_kind_of_tiff(data)}"
                return f"damaged: {text}"
    return "not an image of a known format"


def _kind_of_tiff(data: bytes) -> str:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    try:
        tags, file = ImageFileDirectory_v2(data[:8]), io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
    except Exception:  # not a TIFF, or a large one
        return ""
    bits, bands = tags.get(BITS, (1,)), tags.get(BANDS, 1)
    return f" of {bands} bands with {'/'.join(map(str, bits))} bits"


# --- metadata ------------------------------------------------------------------------------------


def _orientation(image: Image.Image) -> int:
    """From EXIF or XMP, 1 to 8; 1 where it cannot be read."""
    try:
        value: Any = image.getexif().get(ORIENTATION)
        number = int(value[0] if isinstance(value, tuple) else value)
    except Exception:  # metadata may hold anything
        return 1
    return number if number in TURNS else 1


def _tag(image: Image.Image, number: int, default: Any = None) -> Any:
    """The first value of a tag of a TIFF; the default where there is no number."""
    try:
        value = getattr(image, "tag_v2", {}).get(number)
        first = value[0] if isinstance(value, tuple) else value
    except Exception:  # metadata may hold anything
        return default
    return first if isinstance(first, Real) else default


# --- depth ---------------------------------------------------------------------------------------


def _is_deep(image: Image.Image) -> bool:
    """Whether the file stores colours of 16 bits, of which Pillow gives 8."""
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    raw_mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    of_16_bits = isinstance(raw_mode, str) and raw_mode.endswith((";16B", ";16L", ";16N"))
    return of_16_bits and image.mode in ("RGB", "RGBA")


def _from_deep_colours(
    image: Image.Image, pixel_range: tuple[float, float] | None
) -> tuple[Image.Image, int | None]:
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    if pixel_range is None:
        return image, 256 * int(np.asarray(image)[..., :3].max()) + 255
    table = _scaled(257 * np.arange(256), pixel_range).tolist()
    alpha = list(range(256)) if image.mode == "RGBA" else []
    scaled = image.point(3 * table + alpha)
    scaled.info.pop("transparency", None)
    if isinstance(transparent, tuple):
        scaled.putalpha(image.convert("RGBA").getchannel("A"))
    return scaled, None


def _from_deep_grey(
    image: Image.Image, pixel_range: tuple[float, float] | None
) -> tuple[Image.Image, int | None]:
    """Grey of 16 or 32 bits or floats as "L", or "LA" where a value stands for transparency."""
    known = _known_range(image, pixel_range)
    values = np.asarray(image)
    if known is None and not _has_whole_range(image):
        found = f"{np.nanmin(values):g} to {np.nanmax(values):g}"
        raise RefusedError(
            f"of an unsupported kind: pixels of mode {image.mode} (32 bits or signed) have no"
            f" defined range; set data.pixel_range to the values of black and white (here are"
            f" {found})"
        )
    if image.mode == "I" and _tag(image, BITS) == 32 and _tag(image, SAMPLE_FORMAT, 1) == 1:
        values = values.view(np.uint32)
    low, high = known or WHOLE_RANGE
    if image.mode.startswith("I;16"):
        levels = _scaled(np.arange(65536), (low, high))[values]
    else:
        levels = _scaled(values, (low, high))
    if _tag(image, PHOTOMETRIC) == 0:  # white is zero
        levels = 255 - levels
    grey = Image.fromarray(levels)
    if isinstance(transparent := image.info.get("transparency"), int):
        seen = np.where(values == transparent, 0, 255).astype(np.uint8)
        grey = Image.merge("LA", (grey, Image.fromarray(seen)))
    return grey, None if known else int(values.max())


def _known_range(
    image: Image.Image, pixel_range: tuple[float, float] | None
) -> tuple[float, float] | None:
    """The values that are black and white, as far as the file or the caller says so."""
    is_short = image.mode.startswith("I;16")
    if is_short and _tag(image, BITS) == 12:
        return 0, 4095
    tile = getattr(image, "tile", None)
    if image.format == "PPM" and tile and tile[0][0] != "raw":
        return WHOLE_RANGE  # Pillow has scaled it to that
    if pixel_range is not None:
        return pixel_range
    if is_short and (largest := _tag(image, MAX_SAMPLE)) in DEPTHS:
        return 0, largest
    limits = _tag(image, SMIN_SAMPLE), _tag(image, SMAX_SAMPLE)
    if not is_short and None not in limits and limits[0] < limits[1]:
        return limits
    return None


def _has_whole_range(image: Image.Image) -> bool:
    """Whether values without a known range have that of 16 bits."""
    return image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I")


def _scaled(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Values between the limits as 0 to 255, uint8."""
    low, high = limits
    scaled = np.subtract(values, low, dtype=np.float64)
    scaled *= 255 / (high - low)
    np.clip(np.nan_to_num(scaled, copy=False, nan=0), 0, 255, out=scaled)
    levels: np.ndarray = np.rint(scaled, out=scaled).astype(np.uint8)
    return levels


# --- colours -------------------------------------------------------------------------------------


def _composed(image: Image.Image, background: str) -> tuple[Image.Image, tuple[int, ...]]:
    """An RGBA image on its background, and the colour of that."""
    colour = WHITE if background == "auto" else ImageColor.getrgb(background)
    composed = _on(image, colour)
    if background == "auto" and (contrast := _contrast(composed)) < 255 / 2 / VANISHING:
        on_black = _on(image, BLACK)
        if _contrast(on_black) > VANISHING * contrast:
            return on_black, BLACK
    return composed, colour


def _on(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert("RGB")


def _contrast(image: Image.Image) -> float:
    """Standard deviation of the grey."""
    return math.sqrt(ImageStat.Stat(image.convert("L")).var[0])


def _padded(image: Image.Image, side: int, canvas: Image.Image) -> Image.Image:
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    shrunk = image.resize((width, height), Image.Resampling.BICUBIC)
    canvas.paste(shrunk, ((side - width) // 2, (side - height) // 2))
    return canvas
