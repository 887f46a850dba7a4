"""Writes files of every kind with a name of its own planted in every place that can hold text.

Reads nothing; writes below the folder that each writer is given. Needs pydicom, nibabel and tifffile.
"""

import gzip
import io
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, TiffImagePlugin, TiffTags
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

nibabel = pytest.importorskip("nibabel")

SIDE = 48
PERSONS = {
    "plain": ("Quixolm", "Zoltabrin"),
    "umlaut": ("Wölfgrüblitz", "Jürgöfrid"),
    "japanese": ("薔薇鷲", "鶴亀丸"),
}
"""Family and given name by alphabet; no word, hash or header holds any of them by chance."""
NUMBERS = {"patient's number": "8157264903", "day of birth": "19471123", "day of study": "20190317"}


@dataclass
class Names:
    """Hands out names, each once, and remembers in which place of which file each is."""

    places: dict[str, str] = field(default_factory=dict)
    """Place by the letters that only its name has."""
    file: str = ""
    """What is being written."""
    alphabet: str = "plain"

    def name(self, place: str, *, between: str = " ") -> str:
        """Family and given name, each with letters of their own behind it."""
        family, given = PERSONS[self.alphabet]
        letters = self._letters(place)
        return f"{family}{letters}{between}{given}{letters}"

    def person(self, place: str) -> str:
        """As DICOM writes names."""
        return self.name(place, between="^")

    def code(self, place: str) -> str:
        """A family name in plain capitals, up to 16 of them."""
        return f"{PERSONS['plain'][0]}{self._letters(place)}".upper()

    def raw(self, place: str) -> bytes:
        """A whole name in UTF-8."""
        return self.name(place).encode()

    def _letters(self, place: str) -> str:
        count = len(self.places)
        letters = "".join(chr(97 + count // 26**power % 26) for power in (2, 1, 0))
        self.places[letters] = f"{self.file}: {place}"
        return letters


Writer = Callable[[Path, Names, int], None]
"""Writes a file of one kind; the number makes its pixels."""


def noise(seed: int, *shape: int, high: int = 256) -> NDArray[np.integer]:
    """Pixels that no other seed gives."""
    kind = np.uint8 if high <= 256 else np.uint16
    return np.random.default_rng(seed).integers(0, high, shape, dtype=kind)


def plant(folder: Path, names: Names) -> list[Path]:
    """Every file, in folders and under file names that hold names too; what is returned should become pictures."""
    paths: list[Path] = []
    made = [(alphabet, *kind) for alphabet in PERSONS for kind in (*_dicoms(alphabet), *_OTHERS)]
    for seed, (alphabet, end, write) in enumerate(made):
        names.file, names.alphabet = f"{end} in {alphabet}", alphabet
        under = folder / names.name("folder's name")
        under.mkdir(parents=True)
        # Systems keep the dots of umlauts apart from their letters, too.
        name = names.name("file's name") if seed % 2 else unicodedata.normalize("NFD", names.name("file's name"))
        path = under / f"{name}{end}"
        write(path, names, seed)
        paths.append(path)
    return paths


def cut(paths: list[Path], folder: Path) -> None:
    """Copies of all files that end early, so that what is said of damage is seen too; and a text."""
    for path in paths:
        data = path.read_bytes()
        (folder / f"cut {path.name}").write_bytes(data[: len(data) // 3])
        (folder / f"short {path.name}").write_bytes(data[:700])
    (folder / f"letter on {PERSONS['plain'][0]}.txt").write_text(f"Dear {' '.join(PERSONS['plain'])}")


# --- DICOM -----------------------------------------------------------------------------------------------------------


def _dicoms(alphabet: str) -> Iterator[tuple[str, Writer]]:
    sets: dict[str, dict[str, str | list[str] | None]] = {
        "plain": {".dcm": None, "-packed.dcm": None, "-implicit": None},
        "umlaut": {"-latin.dcm": "ISO_IR 100", "-utf.dcm": "ISO_IR 192", "-unsaid.dcm": None},
        "japanese": {"-jis.dcm": ["", "ISO 2022 IR 87"], "-utf": "ISO_IR 192"},
    }
    for end, charset in sets[alphabet].items():
        syntax = {"-packed.dcm": DeflatedExplicitVRLittleEndian, "-implicit": ImplicitVRLittleEndian}.get(end)
        yield end, _DicomWriter(charset, syntax or ExplicitVRLittleEndian, unsaid=end == "-unsaid.dcm")


@dataclass(frozen=True)
class _DicomWriter:
    charset: str | list[str] | None
    syntax: str
    unsaid: bool = False
    """Whether the names are in an alphabet that the file does not announce."""

    def __call__(self, path: Path, names: Names, seed: int) -> None:
        """A CT slice with names in all of its parts."""
        data = Dataset()
        data.file_meta = _meta(names, self.syntax)
        if self.charset is not None:
            data.SpecificCharacterSet = self.charset
        elif self.unsaid:
            data.SpecificCharacterSet = "ISO_IR 192"
        _pixels(data, seed)
        _words(data, names)
        _nested(data, names)
        _private(data, names)
        _overlay(data, names)
        data.preamble = names.raw("preamble")[:128].ljust(128, b"\0")
        data.add_new(0xFFFCFFFC, "OB", names.raw("trailing padding") + b"\0")
        with pydicom.config.disable_value_validation():
            data.save_as(path, enforce_file_format=True)
        whole = path.read_bytes()
        if self.unsaid:
            # As careless programs write: Latin-1 in a file that announces another alphabet.
            for word in PERSONS[names.alphabet]:
                latin = word.encode("latin-1")
                whole = whole.replace(word.encode(), latin.ljust(len(word.encode()), b"\xe4"))
        path.write_bytes(whole)


def _meta(names: Names, syntax: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(f"1.2.3.{len(names.places)}")
    meta.ImplementationVersionName = names.code("ImplementationVersionName")
    meta.SourceApplicationEntityTitle = names.code("SourceApplicationEntityTitle")
    meta.PrivateInformationCreatorUID = pydicom.uid.UID("1.2.3.4")
    meta.PrivateInformation = names.raw("PrivateInformation")
    return meta


def _pixels(data: Dataset, seed: int) -> None:
    values = noise(seed, SIDE, SIDE, high=4096)
    data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.CTImageStorage, data.file_meta.MediaStorageSOPInstanceUID
    data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.Rows, data.Columns, data.SamplesPerPixel = SIDE, SIDE, 1
    data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.WindowCenter, data.WindowWidth = 1024, 4096
    data.PixelData = values.tobytes()
    data["PixelData"].VR = "OW"


_FREE = (
    "PatientComments PatientAddress OtherPatientNames ReferringPhysicianName PerformingPhysicianName OperatorsName"
    " NameOfPhysiciansReadingStudy InstitutionName InstitutionAddress InstitutionalDepartmentName StudyDescription"
    " SeriesDescription ProtocolName ImageComments AdditionalPatientHistory DerivationDescription DeviceSerialNumber"
    " PatientMotherBirthName ResponsiblePerson Occupation MedicalAlerts ContrastBolusAgent FrameComments TextValue"
    " WindowCenterWidthExplanation AcquisitionDeviceProcessingDescription UnformattedTextValue LongCodeValue"
)
_SHORT = (
    "StationName AccessionNumber StudyID BodyPartExamined ViewPosition RescaleType RetrieveAETitle Laterality"
    " ImageLaterality PatientSex PresentationLUTShape ScanningSequence ConvolutionKernel FilterType PatientPosition"
    " SoftwareVersions LossyImageCompressionMethod"
)


def _words(data: Dataset, names: Names) -> None:
    """Names in elements of the main data set, in those too that the set may tell something of."""
    with pydicom.config.disable_value_validation():
        data.PatientName = names.person("PatientName")
        data.PatientID, data.PatientBirthDate, data.StudyDate = NUMBERS.values()
        data.StudyInstanceUID, data.SeriesInstanceUID = f"1.2.3.{NUMBERS['day of birth']}", f"1.2.4.{len(names.places)}"
        data.RetrieveURL = f"https://ward.example/{names.code('RetrieveURL')}"
        for keyword in _FREE.split():
            person = pydicom.datadict.dictionary_VR(keyword) == "PN"
            setattr(data, keyword, names.person(keyword) if person else names.name(keyword))
        for keyword in _SHORT.split():
            setattr(data, keyword, names.code(keyword))


def _item(**elements: object) -> list[Dataset]:
    data = Dataset()
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return [data]


def _nested(data: Dataset, names: Names) -> None:
    """Names in sequences, down to the third level, and in an icon."""
    with pydicom.config.disable_value_validation():
        deepest = _item(TextValue=names.name("third level"), PersonName=names.person("third level's person"))
        second = _item(PatientComments=names.name("second level"), ContentSequence=deepest)
        data.ContentSequence = _item(PersonName=names.person("first level"), ContentSequence=second)
        data.OtherPatientIDsSequence = _item(PatientID=names.name("other number"))
        data.RequestAttributesSequence = _item(RequestedProcedureDescription=names.name("request"))
        data.AnatomicRegionSequence = _item(CodeMeaning=names.name("region"), CodeValue=names.code("region's code"))
        icon = names.raw("icon")
        data.IconImageSequence = _item(Rows=1, Columns=len(icon), PixelData=icon + b"\0" * (len(icon) % 2))
        data.IconImageSequence[0]["PixelData"].VR = "OB"
        voi = _item(LUTExplanation=names.name("look-up table"), LUTDescriptor=[4096, 0, 12])
        voi[0].LUTData = np.arange(4096, dtype="<u2").tobytes()
        voi[0]["LUTDescriptor"].VR, voi[0]["LUTData"].VR = "US", "OW"
        data.VOILUTSequence = voi


def _private(data: Dataset, names: Names) -> None:
    """Names in elements that no dictionary knows, as text, as bytes, as unknown types and packed."""
    block = data.private_block(0x0029, names.code("private creator"), create=True)
    block.add_new(1, "LO", names.name("private text"))
    block.add_new(2, "OB", b"\0\1" + names.raw("private bytes") + b"\0\3")
    block.add_new(3, "UN", names.raw("private unknown"))
    block.add_new(4, "SQ", _item(PatientComments=names.name("private sequence")))
    block.add_new(5, "UN", names.name("private in UTF-16").encode("utf-16-le"))
    block.add_new(6, "OB", zlib.compress(names.raw("private, packed")))
    block.add_new(7, "OW", names.raw("private words").ljust(64, b"\0"))
    inside = names.raw("unknown sequence")
    element = struct.pack("<HHI", 0x0010, 0x4000, len(inside)) + inside
    block.add_new(8, "UN", struct.pack("<HHI", 0xFFFE, 0xE000, len(element)) + element)
    data.add_new(0x00430001, "UN", names.raw("unknown without a creator"))


def _overlay(data: Dataset, names: Names) -> None:
    with pydicom.config.disable_value_validation():
        for tag, kind, value in (
            (0x60000010, "US", SIDE),
            (0x60000011, "US", SIDE),
            (0x60000022, "LO", names.name("overlay's description")),
            (0x60000040, "CS", "G"),
            (0x60000050, "SS", [1, 1]),
            (0x60000100, "US", 1),
            (0x60000102, "US", 0),
            (0x60001500, "LO", names.name("overlay's label")),
            (0x60003000, "OW", names.raw("overlay's bits").ljust(SIDE * SIDE // 8, b"\0")),
            (0x60004000, "LT", names.name("overlay's comments")),
        ):
            data.add_new(tag, kind, value)


# --- NIfTI and TIFF --------------------------------------------------------------------------------------------------


def _nifti(names: Names, seed: int, *, pair: bool = False) -> Any:
    """A volume of 4 slices with a name in each field of text of its header; call inside of the file's naming."""
    kind = nibabel.Nifti1Pair if pair else nibabel.Nifti1Image
    image = kind(noise(seed, SIDE, SIDE, 4), np.eye(4))
    for place, size in {"descrip": 80, "aux_file": 24, "intent_name": 16, "db_name": 18}.items():
        image.header[place] = names.raw(place)[:size] if size > 24 else names.code(place).encode()
    image.header["data_type"] = PERSONS["plain"][0].encode()
    for code in (4, 6, 30):
        text = names.raw(f"extension {code}")
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(code, text))
    return image


def _volume(path: Path, names: Names, seed: int) -> None:
    path.write_bytes(_nifti(names, seed).to_bytes() + names.raw("behind the volume"))


def _packed_volume(path: Path, names: Names, seed: int) -> None:
    data = _nifti(names, seed).to_bytes()
    packed = gzip.compress(data)
    head = packed[:3] + b"\x18" + packed[4:10] + names.raw("packed name") + b".nii\0" + names.raw("packed comment") + b"\0"
    path.write_bytes(head + packed[10:])


def _pair(path: Path, names: Names, seed: int) -> None:
    files = nibabel.Nifti1Pair.make_file_map({"header": io.BytesIO(), "image": io.BytesIO()})
    _nifti(names, seed, pair=True).to_file_map(files)
    path.write_bytes(files["header"].fileobj.getvalue() + names.raw("behind the header"))
    path.with_suffix(".img").write_bytes(files["image"].fileobj.getvalue() + names.raw("behind the numbers"))


def _xmp(text: str) -> bytes:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><dc:creator owner="{text}">{text}</dc:creator></x:xmpmeta>'.encode()


def _photoshop(names: Names) -> bytes:
    """A block of Photoshop with IPTC's author and caption in it."""
    fields = ((80, names.raw("IPTC by-line")), (120, names.raw("IPTC caption")))
    iptc = b"".join(b"\x1c\x02" + struct.pack(">BH", field, len(text)) + text for field, text in fields)
    blocks = ((0x0404, iptc), (0x040C, names.raw("Photoshop's thumbnail")))
    return b"Photoshop 3.0\0" + b"".join(
        b"8BIM" + struct.pack(">HHI", kind, 0, len(data)) + data + b"\0" * (len(data) % 2) for kind, data in blocks
    )


def _exif(names: Names) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010E], exif[0x013B], exif[0x8298] = (names.raw(tag) for tag in ("EXIF description", "EXIF artist", "copyright"))
    exif[0x9C9D], exif[0x9C9B] = (names.name(tag).encode("utf-16-le") for tag in ("XPAuthor", "XPTitle"))
    inner = exif.get_ifd(0x8769)
    inner[0x9286] = b"UNICODE\0" + names.name("UserComment").encode("utf-16-be")
    inner[0x927C] = names.raw("MakerNote")
    inner[0xA430] = names.raw("CameraOwnerName")
    exif.get_ifd(0x8825)[0x001B] = b"ASCII\0\0\0" + names.raw("GPS method")
    return exif


def _deep_tiff(path: Path, names: Names, seed: int) -> None:
    with tifffile.TiffWriter(path) as file:
        for page in range(2):
            texts = {
                270: ("description", 2),
                269: ("document's name", 2),
                285: ("page's name", 2),
                315: ("artist", 2),
                316: ("computer", 2),
                33432: ("copyright", 2),
                700: ("XMP", 1),
                33723: ("IPTC", 7),
                34377: ("Photoshop", 1),
                65000: ("private text", 2),
                65001: ("private bytes", 7),
            }
            tags = []
            for code, (place, kind) in texts.items():
                value = names.raw(f"{place} of page {page}") + b"\0" * (kind == 2)
                tags.append((code, kind, len(value), value, False))
            values = noise(1000 * page + seed, SIDE, SIDE, high=65536)
            file.write(values, extratags=tags, metadata=None, software=None, description=None)
    with path.open("ab") as more:
        more.write(names.raw("behind the pages"))


def _plain_tiff(path: Path, names: Names, seed: int) -> None:
    exif, tables = _exif(names), TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in exif.items():
        tables[tag] = value
    # Pillow takes inner tables over from here only.
    for tag in (0x8769, 0x8825):
        tables.tagtype[tag] = TiffTags.LONG
        tables._tags_v2[tag] = dict(exif.get_ifd(tag))
    Image.fromarray(noise(seed, SIDE, SIDE, 3)).save(path, "TIFF", tiffinfo=tables)


def write_slide(path: Path, names: Names, seed: int) -> None:
    """As scanners write: tissue on glass, a coarser level, and a label."""
    values = np.full((256, 256, 3), 240, np.uint8)
    values[32:224, 32:224] = noise(seed, 192, 192, 3) // np.array([2, 8, 3])
    texts = [f"Aperio |Patient = {names.name('slide description')}".encode(), names.raw("label's description")]
    with tifffile.TiffWriter(path) as file:
        file.write(values, tile=(128, 128), photometric="rgb", metadata=None, description=texts[0])
        file.write(values[::4, ::4], tile=(64, 64), photometric="rgb", metadata=None)
        file.write(noise(seed, 64, 64, 3), photometric="rgb", metadata=None, description=texts[1], subfiletype=1)


# --- photographs -----------------------------------------------------------------------------------------------------


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _png(path: Path, names: Names, seed: int, *, deep: bool = False) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text(names.code("keyword"), names.code("tEXt"))
    info.add_text("Author", names.code("zTXt") * 9, zip=True)
    info.add_itxt("Author", names.name("iTXt"), tkey=names.name("iTXt's translated keyword"))
    info.add_itxt("Comment", names.name("packed iTXt") * 9, zip=True)
    info.add(b"naMe", names.raw("unknown chunk"))
    values = noise(seed, SIDE, SIDE, high=65536 if deep else 256)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", pnginfo=info, exif=_exif(names), icc_profile=names.raw("iCCP"))
    data = buffer.getvalue()
    late = _chunk(b"tEXt", b"Author\0" + names.raw("late tEXt")) + _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + _xmp("x"))
    path.write_bytes(data[:-12] + late + data[-12:] + names.raw("behind IEND") + zlib.compress(names.raw("packed behind IEND")))


def _deep_png(path: Path, names: Names, seed: int) -> None:
    _png(path, names, seed, deep=True)


def _jpeg(path: Path, names: Names, seed: int) -> None:
    buffer = io.BytesIO()
    exif, profile = _exif(names), names.raw("ICC profile")
    Image.fromarray(noise(seed, SIDE, SIDE, 3)).save(buffer, "JPEG", exif=exif, icc_profile=profile)
    segments = (
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + _xmp(names.name("XMP"))),
        (0xED, _photoshop(names)),
        (0xEA, names.raw("unknown segment")),
        (0xEE, b"Adobe\0\x64\0\0\0\0\1"),
        (0xFE, names.raw("comment")),
        (0xFE, names.name("comment in UTF-16").encode("utf-16-le")),
    )
    more = b"".join(struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data for kind, data in segments)
    data = buffer.getvalue()
    path.write_bytes(data[:2] + more + data[2:] + names.raw("behind the end"))


def _gif(path: Path, names: Names, seed: int) -> None:
    frames = [Image.fromarray(noise(seed + more, SIDE, SIDE)) for more in (0, 1000)]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:], comment=names.raw("comment"))
    text = names.raw("application")
    data = path.read_bytes()[:-1] + b"!\xff\x0bNAMEIS  1.0" + bytes([len(text)]) + text + b"\0;" + names.raw("behind the end")
    path.write_bytes(data)


def _webp(path: Path, names: Names, seed: int) -> None:
    xmp = _xmp(names.name("XMP"))
    Image.fromarray(noise(seed, SIDE, SIDE, 3)).save(path, "WEBP", lossless=True, exif=_exif(names), xmp=xmp)
    text = names.raw("unknown chunk")
    data = path.read_bytes() + b"NAME" + struct.pack("<I", len(text)) + text + b"\0" * (len(text) % 2)
    path.write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:] + names.raw("behind the end"))


def _bmp(path: Path, names: Names, seed: int) -> None:
    Image.fromarray(noise(seed, SIDE, SIDE, 3)).save(path, "BMP")
    data, text = path.read_bytes(), names.raw("before the pixels")
    moved = struct.pack("<I", 54 + len(text))
    path.write_bytes(data[:10] + moved + data[14:54] + text + data[54:] + names.raw("behind the pixels"))


_OTHERS: tuple[tuple[str, Writer], ...] = (
    (".nii", _volume),
    (".nii.gz", _packed_volume),
    (".hdr", _pair),
    ("-deep.tif", _deep_tiff),
    (".tif", _plain_tiff),
    (".svs", write_slide),
    (".png", _png),
    ("-deep.png", _deep_png),
    (".jpg", _jpeg),
    (".gif", _gif),
    (".webp", _webp),
    (".bmp", _bmp),
)
