"""Whose pictures are whose: numbers, names and days as real exports spell them, and nobody on two sides.

The ways are those of public reports: padding and case; numbers that lost their zeros in a spreadsheet (twixtools #24); names
with and without their empty parts (dicognito #78); two numbers within one study (RSNA anonymizer #18); numbers in HL7's form
(dcm4che); one number of two issuers; objects of a workstation that lack what the scanner wrote.
"""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian

from helpers.intake_parts import import_folder
from stllava.config import IntakeOptions
from stllava.config.intake import SplitShares
from stllava.data.image_set import Imported, read_imported
from stllava.intake.convert import default_toolbox
from stllava.intake.deidentify.pseudonyms import pseudonymise
from stllava.intake.deidentify.spelling import name_key, number_key, number_of
from stllava.intake.patients import Patients, folder_of
from stllava.intake.readers.dicom.stack import read_slice
from stllava.intake.readers.frame import Identity

SALT = bytes(range(32))
DICOMS = IntakeOptions(workers=2, look_for_text="rules", splits=SplitShares(train=0.5, test=0.5))
CR = UID("1.2.840.10008.5.1.4.1.1.1")
NAMES = (
    "DOE^JANE",
    "Doe^Jane^^^",
    "DOE^JANE^^Dr",
    "Jane Doe",
    "DOE, JANE",
    "Doe^Jane=山田^太郎",
    "",
    "ANONYMOUS",
    "Müller^Jane",
)
FIRST = date(2020, 2, 22)
DAYS = ("%Y%m%d", "%Y.%m.%d", "%Y-%m-%d", "%Y%m%d113000")


@dataclass
class Person:
    """One patient's files, each by what its header says of him."""

    files: list[dict[str, object]] = field(default_factory=list)


def several(*spellings: str, **more: object) -> Person:
    """A patient with a file and a study for each spelling of his number."""
    return Person([{"PatientID": spelling, **more} for spelling in spellings])


def issued(number: str, issuer: str) -> dict[str, object]:
    return {"PatientID": number, "IssuerOfPatientID": issuer}


def other(number: str, issuer: str = "") -> list[Dataset]:
    """An item of OtherPatientIDsSequence."""
    item = Dataset()
    item.PatientID, item.TypeOfPatientID = number, "TEXT"
    if issuer:
        item.IssuerOfPatientID = issuer
    return [item]


def people() -> list[Person]:
    """A hundred patients."""
    kinds: list[Person] = []
    for at in range(19):
        number = f"{7310 + at}"
        kinds.append(several(number, f" {number}", f"{number}  ", f"{number}\0"))
        kinds.append(several(f"000{number}9", f"{number}9", f"0{number}9"))
        kinds.append(several(f"PAT-{number}", f"pat_{number}", f"Pat {number}", f"PAT{number}"))
    for at in range(5):
        number = f"{943_476_5910 + at}"
        kinds.append(several(number, f"{number[:3]} {number[3:6]} {number[6:]}", f"{number[:3]}-{number[3:6]}-{number[6:]}"))
        kinds.append(several(f"{510 + at}^^^HospA&1.2.3&ISO", f"{510 + at}^7^M11^HospA^MR"))
        kinds.append(Person([issued(f"{620 + at}", "North"), issued(f"0{620 + at}", "NORTH "), {"PatientID": f"{620 + at}"}]))
        # One number of two issuers is two patients.
        kinds += [
            Person([issued(f"{880 + at}", clinic), issued(f"{880 + at}", clinic.upper())]) for clinic in ("North", "South")
        ]
        kinds.append(several(f"AB{at}-1-11", f"ab{at}-1-11"))
        kinds.append(several(f"AB{at}-11-1", f"ab{at}_11_1"))
    kinds.append(several("０００４７１１", "4711"))
    study, accession = "1.2.840.113619.2.55.1", {"AccessionNumber": "20-0012345", "StudyDate": "20200229"}
    # A workstation's object that lost the number, and two numbers within one study.
    kinds.append(Person([{"PatientID": "A1", "StudyInstanceUID": study}, {"PatientID": "", "StudyInstanceUID": study}]))
    kinds.append(
        Person([{"PatientID": "B1", "StudyInstanceUID": f"{study}.2"}, {"PatientID": "TMP9", "StudyInstanceUID": f"{study}.2"}])
    )
    kinds.append(Person([{"PatientID": "C1", **accession}, {"PatientID": "UNKNOWN", **accession}]))
    kinds.append(Person([{"PatientID": "D1", "OtherPatientIDsSequence": other("D2")}, {"PatientID": "D2"}]))
    kinds.append(Person([{"PatientID": number, "FrameOfReferenceUID": f"{study}.20200229.7"} for number in ("E1", "")]))
    kinds.append(several("", "NONE", "0", PatientName="QUARTEY^ADAEZE"))
    kinds.append(several("", "XXXX", PatientName="", StudyInstanceUID=f"{study}.3"))
    return kinds


def write(folder: Path, kinds: Sequence[Person]) -> None:
    """Files of all patients, whose first two pixels say whose file it is; a study a week, each day spelt in another way."""
    folder.mkdir(parents=True)
    for number, person in enumerate(kinds):
        for at, said in enumerate(person.files):
            uid = f"1.2.826.0.1.{number + 1}.{at + 1}"
            fields: dict[str, object] = {
                "PatientName": NAMES[(number + at) % len(NAMES)],
                "StudyInstanceUID": uid,
                "SeriesInstanceUID": f"{uid}.1",
                "StudyDate": (FIRST + timedelta(weeks=at)).strftime(DAYS[(number + at) % len(DAYS)]),
                **said,
            }
            pixels = np.random.default_rng([number, at]).integers(0, 256, (40, 40), dtype=np.uint8)
            pixels[0, :2] = number, at
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom says what is wrong with such days and numbers.
                save(folder / f"{number:03}-{at}", pixels, fields, uid=UID(f"{uid}.1.1"))


def save(path: Path, pixels: NDArray[np.uint8], fields: Mapping[str, object], *, uid: UID) -> None:
    """A radiograph with such a header."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CR
    meta.MediaStorageSOPInstanceUID = uid
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = CR, uid
    data.SpecificCharacterSet = "ISO_IR 192"
    data.Modality, data.BurnedInAnnotation = "CR", "NO"
    for name, value in fields.items():
        setattr(data, name, Items(value) if isinstance(value, list) and name.endswith("Sequence") else value)
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)


def whose(folder: Path, row: Imported) -> tuple[int, int]:
    """The patient and file of a picture, by its first pixels."""
    with Image.open(folder / row.path) as image:
        pixels = np.asarray(image)
    return int(pixels[0, 0]), int(pixels[0, 1])


def test_of_a_hundred_patients_spelt_as_exports_do_none_is_on_two_sides_and_all_are_counted(tmp_path: Path) -> None:
    kinds = people()
    assert len(kinds) == 100
    write(tmp_path / "in", kinds)
    manifest = import_folder(tmp_path, DICOMS, make=default_toolbox)
    assert manifest.counts_out == sum(len(person.files) for person in kinds)
    ids, sides, days = (defaultdict[int, set[object]](set) for _ in range(3))
    for row in read_imported(tmp_path / "data"):
        number, at = whose(tmp_path / "data", row)
        ids[number].add(row.patient)
        sides[number].add(row.split)
        together = "AccessionNumber" in kinds[number].files[at]
        days[number].add(row.interval == (0 if together else 7 * at))
    assert len(ids) == 100
    assert {number: found for number, found in ids.items() if len(found) > 1} == {}
    assert len(set.union(*ids.values())) == 100, "no two patients were taken for one"
    assert {len(found) for found in sides.values()} == {1}
    assert set.union(*sides.values()) == {"train", "test"}
    assert set.union(*days.values()) == {True}
    measures = manifest.measures
    assert measures["patients"] == 100
    told = {name.removeprefix("patients told by "): n for name, n in measures.items() if name.startswith("patients told by ")}
    assert told == {"PatientID and issuer": 20, "PatientID": 78, "name": 1, "study": 1}
    card = (tmp_path / "data" / "README.md").read_text()
    assert f"{manifest.counts_out} pictures of 100 patients" in card
    assert "20 by PatientID and its issuer, 78 by PatientID, 1 by the name, having no number, 1 by their study" in card
    assert "Patients known by a single study or file alone: 1." in card


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("4711", " 4711\0"),
        ("4711", "0004711"),
        ("4711", "４７１１"),
        ("pat-0007", "PAT_7"),
        ("PAT 7", "pat7"),
        ("DOE^JANE", "Doe^Jane^^"),
        ("943 476 5919", "943-476-5919"),
        ("LIDC-IDRI-0001", "lidc_idri_0001"),
        ("c\u0327a", "ç\u200ba"),
        ("4711", "4711.0"),
        ("4711", "'04711"),
    ],
)
def test_a_number_is_the_same_however_it_is_spelt(one: str, other: str) -> None:
    assert number_key(one) == number_key(other) != ""


@pytest.mark.parametrize(("one", "other"), [("1-11", "11-1"), ("71", "710"), ("A1", "B1"), ("A-1-11", "A-11-1"), ("a", "b")])
def test_numbers_of_two_patients_stay_two(one: str, other: str) -> None:
    assert number_key(one) != number_key(other)


@pytest.mark.parametrize(
    "text", ["", " ", "\0", "0", "000-00", "Anonymous", "ANON", "UNKNOWN", "x", "XXXX", "n/a", "No Name", "----"]
)
def test_what_stands_for_nobody_is_neither_number_nor_name(text: str) -> None:
    assert number_key(text) == ""
    assert name_key(text) in ("", "0", "00 000")


@pytest.mark.parametrize("name", ["DOE^JANE", "Doë^Jané", "DOE, JANE", "Jane Doe", "doe^jane^^^=山田^太郎", " DOE ^ JANE \0"])
def test_a_name_is_its_words(name: str) -> None:
    assert name_key(name) == "doe jane"


def test_hl7s_parts_are_no_part_of_the_number() -> None:
    assert number_of("4711^^^HospA&1.2.3&ISO", "") == ("4711", "hospa") == number_of("4711^7^M11^Hosp A^MR", "")
    assert number_of("4711^^^HospA", "North") == ("4711", "north")
    assert number_of("ANON^^^HospA", "") == ("", "")
    assert number_of("DOE^JANE^^^", "") == ("doejane", "")
    assert number_of("", "North") == ("", "")


@given(st.text(max_size=80))
def test_any_text_has_a_key_that_is_its_own_key(text: str) -> None:
    assert number_key(number_key(text)) == number_key(text)
    assert name_key(name_key(text)) == name_key(text)


def settled(*identities: Identity) -> list[str]:
    """The patients of files, one after the other."""
    hidden = [pseudonymise(identity, SALT, source=str(at)) for at, identity in enumerate(identities)]
    patients = Patients()
    for who in hidden:
        patients.add(who)
    patients.settle()
    return [patients.head(who) for who in hidden]


def test_a_number_without_an_issuer_belongs_to_all_who_have_it() -> None:
    north, south = Identity(patient="7", issuer="North"), Identity(patient="7", issuer="South")
    assert len({*settled(north, south)}) == 2
    assert len({*settled(north, south, Identity(patient="7"))}) == 1
    assert len({*settled(north, Identity(patient="8", others=(("7", ""),)))}) == 1
    assert len({*settled(north, Identity(patient="8", others=(("7", "South"),)))}) == 2


def test_a_number_in_groups_is_the_undivided_one_where_that_is_there() -> None:
    assert len({*settled(Identity(patient="1-11"), Identity(patient="11-1"))}) == 2
    assert len({*settled(Identity(patient="12-345-6"), Identity(patient="0123456"), Identity(patient="7"))}) == 2
    assert len({*settled(Identity(patient="1-11"), Identity(patient="11-1"), Identity(patient="111"))}) == 1


def test_a_name_joins_files_without_a_number_and_parts_nobody() -> None:
    named = Identity(name="DOE^JANE", study="1.1")
    assert len({*settled(named, Identity(name="Jane Doe", study="1.2"))}) == 1
    assert len({*settled(named, Identity(patient="7", name="Jane Doe", study="1.2"))}) == 1
    assert len({*settled(Identity(patient="7", name="DOE^JANE"), Identity(patient="8", name="DOE^JANE"))}) == 2
    # Its study already says who it is.
    both = [Identity(patient=str(at), name="DOE^JANE", study=f"1.{at}") for at in (1, 2)]
    assert len({*settled(*both, Identity(name="DOE^JANE", study="1.1"))}) == 2


def test_an_atlas_and_a_constant_are_no_frame_of_one_patient() -> None:
    for frame, patients in (("1.2.840.10008.1.4.1.1", 2), ("1.2.3", 2), ("", 2), ("1.2.840.113619.2.55.20200229.7", 1)):
        assert len({*settled(*(Identity(study=at, frame_of_reference=frame) for at in ("1.1", "1.2")))}) == patients


def test_who_has_a_number_is_not_taken_for_another_by_a_frame_or_an_accession_number() -> None:
    # As of files that were copied and given new numbers.
    copied = [
        Identity(patient=at, study=at, accession="20-0012345", date="20200229", frame_of_reference="1.2.840.113619.2.55.1.7")
        for at in ("41", "42")
    ]
    assert len({*settled(*copied)}) == 2


def test_a_new_study_does_not_change_a_patients_id_and_so_not_his_split() -> None:
    for number in range(30):
        first = Identity(patient=f"p{number}", study=f"1.{number}")
        more = [Identity(patient=f"P{number}", study=f"1.{number}.{at}", series=f"2.{number}.{at}") for at in range(5)]
        assert settled(first)[0] == settled(*more, first)[0] == pseudonymise(first, SALT, source="x").patient


@given(st.permutations(range(7)))
def test_the_order_of_files_changes_nothing(order: Sequence[int]) -> None:
    files = [
        Identity(patient="7", issuer="North", name="DOE^JANE", study="1.1"),
        Identity(patient="07", study="1.2"),
        Identity(patient="8", study="1.2"),
        Identity(name="Jane Doe", study="1.4"),
        Identity(study="1.1", series="5"),
        Identity(patient="9", others=(("10", ""),)),
        Identity(patient="10", name="ROE^RAY"),
    ]
    found = settled(*(files[at] for at in order))
    assert [found[order.index(at)] for at in range(7)] == settled(*files)
    assert len({*found}) == 2


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("a.png", ""),
        ("p1/a.png", "p1"),
        ("p1/left/a.png", "p1/left"),
        ("sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "sub-01"),
        ("ds/sub-01/func/sub-01_bold.nii.gz", "ds/sub-01"),
        ("all/sub-02_T1w.nii.gz", "all/sub-02"),
        ("sub-02_T1w.nii.gz", "sub-02"),
        ("subject/a.png", "subject"),
    ],
)
def test_a_folder_or_a_subject_of_bids_stands_for_the_patient_of_a_file_that_says_nothing(path: str, folder: str) -> None:
    assert folder_of(Path("/in") / path, Path("/in")) == folder


@pytest.mark.parametrize(("unnamed", "patients", "told"), [("folder", 4, {"folder": 2, "file": 2}), ("file", 6, {"file": 6})])
def test_pictures_that_say_nothing_go_by_folder_and_the_card_says_so(
    unnamed: str, patients: int, told: dict[str, float], tmp_path: Path
) -> None:
    for at, name in enumerate(("a.png", "b.png", "p1/a.png", "p1/b.png", "p2/a.png", "p2/c.png")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(at).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    manifest = import_folder(
        tmp_path, DICOMS.model_copy(update={"unnamed": unnamed, "look_for_text": "rules"}), make=default_toolbox
    )
    rows = read_imported(tmp_path / "data")
    assert manifest.measures["patients"] == len({row.patient for row in rows}) == patients
    assert len({(row.patient, row.split) for row in rows}) == patients
    assert {name: manifest.measures.get(f"patients told by {name}") for name in told} == told
    card = (tmp_path / "data" / "README.md").read_text()
    assert ("--unnamed file" in card) == (unnamed == "folder")
    assert f"Patients known by a single study or file alone: {int(told['file'])}." in card


def test_a_set_that_can_hardly_be_split_says_so(tmp_path: Path) -> None:
    write(tmp_path / "in", [several("1", "01", "001"), several("2")])
    manifest = import_folder(tmp_path, DICOMS, make=default_toolbox)
    assert any("3 of 4 pictures must stay in one split" in note for note in manifest.notes)


def test_the_slices_of_a_series_stay_one_stack_when_names_and_numbers_are_spelt_in_two_ways(tmp_path: Path) -> None:
    stacks = set()
    (tmp_path / "in").mkdir()
    for at, (number, name) in enumerate((("4711", "DOE^JANE"), ("04711 ", "Doe^Jane^^"))):
        fields: dict[str, object] = {
            "PatientID": number,
            "PatientName": name,
            "StudyInstanceUID": "1.2.3",
            "SeriesInstanceUID": "1.2.3.4",
            "InstanceNumber": at,
            "ImagePositionPatient": [0, 0, at],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        }
        save(tmp_path / "in" / str(at), np.zeros((8, 8), np.uint8), fields, uid=UID(f"1.2.{at}"))
        found = read_slice(tmp_path / "in" / str(at), coloured=True)
        assert found is not None
        stacks.add(found.stack)
    assert len(stacks) == 1
