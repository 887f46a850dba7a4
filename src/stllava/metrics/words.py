"""The words of an answer: `normalise` for plain comparison, `medical` for one form of what medicine writes in many.

Reads and returns plain strings.
"""

import re
import unicodedata
from decimal import Decimal
from functools import lru_cache

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    word: str(value)
    for words, first in (
        (("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 0),
        (("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"), 11),
    )
    for value, word in enumerate(words, first)
}

_BRITISH = {
    "haem": "hem",
    "anaem": "anem",
    "leukaem": "leukem",
    "oedema": "edema",
    "oesoph": "esoph",
    "tumour": "tumor",
    "caecum": "cecum",
    "caecal": "cecal",
    "coeliac": "celiac",
    "diarrhoea": "diarrhea",
    "dyspnoea": "dyspnea",
    "aetiolog": "etiolog",
    "faec": "fec",
    "foet": "fet",
    "gynaec": "gynec",
    "paed": "ped",
    "anaesth": "anesth",
    "grey": "gray",
    "colour": "color",
    "centre": "center",
    "fibre": "fiber",
    "calibre": "caliber",
    "litre": "liter",
    "metre": "meter",
    "isation": "ization",
    "ised": "ized",
}
_SPELLING = re.compile("|".join(sorted(_BRITISH, key=len, reverse=True)))

_PLURALS = {
    "metastases": "metastasis",
    "diagnoses": "diagnosis",
    "stenoses": "stenosis",
    "thromboses": "thrombosis",
    "prostheses": "prosthesis",
    "axes": "axis",
    "testes": "testis",
    "pelves": "pelvis",
    "lenses": "lens",
    "sinuses": "sinus",
    "viruses": "virus",
    "thrombi": "thrombus",
    "emboli": "embolus",
    "bronchi": "bronchus",
    "calculi": "calculus",
    "nuclei": "nucleus",
    "sulci": "sulcus",
    "gyri": "gyrus",
    "foci": "focus",
    "hila": "hilum",
    "atria": "atrium",
    "diverticula": "diverticulum",
    "vertebrae": "vertebra",
    "bullae": "bulla",
    "varices": "varix",
    "halves": "half",
    "feet": "foot",
    "teeth": "tooth",
    "men": "man",
    "women": "woman",
    "children": "child",
}
_ALIKE = (
    "lens pancreas ascites diabetes herpes series species caries rabies scabies atlas biceps triceps quadriceps forceps "
    "feces measles mumps always sometimes versus this does"
)
_SINGULAR = frozenset(_ALIKE.split())

_UNITS = {
    "mm": ("mm", 1),
    "millimeter": ("mm", 1),
    "cm": ("mm", 10),
    "centimeter": ("mm", 10),
    "ml": ("ml", 1),
    "cc": ("ml", 1),
    "milliliter": ("ml", 1),
    "dl": ("ml", 100),
    "liter": ("ml", 1000),
}
_GLUED = re.compile(r"(?<=\d)(mm|cm|ml|cc|dl)\b")
_NUMBER = re.compile(r"\d+(\.\d+)?")

# Each row: the one form, then what else is written for it, as words after `normalise` and in the singular.
_SYNONYMS = """
left: left hand side, on left hand side, left sided, left side, on left side, on left, to left, lt
right: right hand side, on right hand side, right sided, right side, on right side, on right, to right, rt
bilateral: both side, on both side, both, bilaterally, left and right, right and left, both left and right
x ray: xray, radiograph, radiography, plain film, plain radiograph, plain x ray, x ray film, x ray image, roentgenogram
chest x ray: cxr, chest film
ct: computed tomography, computerized tomography, computed tomography scan, cat scan, ct scan, ct image
mri: mr, magnetic resonance, magnetic resonance imaging, mr imaging, mri scan, mr scan, mr image, mri image
us: ultrasound, ultrasonography, sonography, sonogram, ultrasound scan, ultrasound image
pa: posteroanterior, posterior anterior, postero anterior, posterior to anterior
ap: anteroposterior, anterior posterior, antero posterior, anterior to posterior
axial: transverse plane, transverse view, transverse section, transaxial
sagittal: saggital
t1 weighted: t1w, t1wi, t1 weighted image, t1 weighted imaging
t2 weighted: t2w, t2wi, t2 weighted image, t2 weighted imaging
flair: fluid attenuated inversion recovery
dwi: diffusion weighted imaging, diffusion weighted image, diffusion weighted
"""
_CANONICAL = {
    other.strip(): form
    for form, _, others in (line.partition(": ") for line in _SYNONYMS.strip().splitlines())
    for other in others.split(",")
}
_PHRASE = re.compile(rf"\b(?:{'|'.join(sorted(_CANONICAL, key=len, reverse=True))})\b")

_PILE = 30
"""Combining marks on one letter; Unicode's stream-safe text has no more."""
_VIEW = re.compile(r"\b(pa|ap|lateral|axial|coronal|sagittal) (?:view|projection|plane|section)\b")


def composed(text: str) -> str:
    """The text in Unicode's form NFKC; of a pile of combining marks the first 30 stay.

    Python sorts each pile in time that grows with its square: 50,000 marks, as a model repeats them, would take minutes.
    """
    if text.isascii():
        return text
    kept, pile = [], 0
    for character in text:
        pile = pile + 1 if unicodedata.combining(character) else 0
        if pile <= _PILE:
            kept.append(character)
    return unicodedata.normalize("NFKC", "".join(kept))


_VANISHING = re.compile(r"(?<=\w)['’](?=\w)|(?<=\d),(?=\d{3}(?!\d))")
_BLANK = re.compile(r"(?!(?<=\d)\.(?=\d))[\W_]")
_TEXTS_KEPT = 1024
"""Texts whose form is kept: one answer is compared by many rules, and with many answers."""


@lru_cache(maxsize=_TEXTS_KEPT)
def normalise(text: str) -> str:
    """The text as words joined by single blanks.

    Lower case; apostrophes and commas inside numbers vanish, points inside numbers stay, all other punctuation is a
    blank; a, an and the are dropped unless nothing else is left; zero to twenty become digits.
    """
    text = composed(text).casefold()
    words = _BLANK.sub(" ", _VANISHING.sub("", text)).split()
    content = [word for word in words if word not in _ARTICLES]
    return " ".join(_NUMBERS.get(word, word) for word in content or words)


@lru_cache(maxsize=_TEXTS_KEPT)
def medical(text: str) -> str:
    """The text in one medical form: what `normalise` leaves, American, in the singular, by one name, in mm or ml.

    Synonyms are of modality, plane, projection and side; a side never becomes another. It is for comparing, not for
    reading: "left side" is "left", and "3 cm" is "30 mm".
    """
    whole_decimals = re.sub(r"(?<![\d.])\.(?=\d)", "0.", text)
    words = normalise(_GLUED.sub(r" \1", whole_decimals.casefold())).split()
    words = [_singular(_SPELLING.sub(lambda found: _BRITISH[found.group()], word)) for word in words]
    named = _PHRASE.sub(lambda found: _CANONICAL[found.group()], " ".join(_in_base_units(words)))
    return "axial" if named == "transverse" else _VIEW.sub(r"\1", named)


def _singular(word: str) -> str:
    """The singular of a noun; other words, "mass", "pelvis" and "thrombus" among them, stay."""
    if word in _PLURALS:
        return _PLURALS[word]
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")) or word in _SINGULAR:
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "shes", "ches")) and not word.endswith("aches"):
        return word[:-2]
    return word[:-1]


def _in_base_units(words: list[str]) -> list[str]:
    """Every single measure in mm or ml; of "3 x 4 cm" and "3 to 4 cm" the unit belongs to both, so they stay."""
    made = list(words)
    for place in range(1, len(words)):
        number, unit = words[place - 1], words[place]
        before = words[place - 2] if place > 1 else ""
        if unit in _UNITS and _NUMBER.fullmatch(number) and not (before in {"x", "by", "to"} or _NUMBER.fullmatch(before)):
            name, factor = _UNITS[unit]
            made[place - 1 : place + 1] = [f"{(Decimal(number) * factor).normalize():f}", name]
    return made
