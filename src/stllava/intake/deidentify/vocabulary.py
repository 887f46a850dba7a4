"""The only words that an image set may say of its pictures. Reads and writes nothing.

Codes of DICOM: modalities (PS3.3 C.7.3.1.1.1), body parts (PS3.16 annex L, the usual ones), view positions (C.8.1, C.8.11).
A word that is also a common name (such as `hand`) is harmless as a body part, and says nothing of who it is.
"""

import re


def _words(text: str, *, between: str) -> frozenset[str]:
    """The words of a text; newlines are blanks."""
    return frozenset(word.strip() for word in " ".join(text.split()).split(between) if word.strip())


MODALITIES = _words(
    """
    AR AS BI BMD CD CF CR CT DD DF DG DM DS DX EC ECG EM EPS ES FA FS GM HD IO IVOCT IVUS KER LEN LP LS MA MG MR MS NM OAM
    OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PT PX RF RG RTDOSE RTIMAGE SC SM SMR SR SRF ST TG US VA VF XA XC XRF
    """,
    between=" ",
)
BODY_PARTS = _words(
    """
    abdomen; abdomen pelvis; abdomenpelvis; ac joint; adrenal; ankle; aorta; arm; axilla; back; bladder; brain; breast;
    bronchus; buttock; calcaneus; calf; carotid; cerebellum; cervix; cheek; chest; chest abdomen; chest abdomen pelvis;
    chestabdomen; chestabdpelvis; circle of willis; clavicle; coccyx; colon; cornea; coronary artery; cspine; ctspine;
    duodenum; ear; elbow; entire body; esophagus; extremity; eye; eyelid; face; femur; finger; foot; forearm; gallbladder;
    hand; head; head neck; headneck; heart; heel; hip; humerus; iac; ileum; ilium; jaw; jejunum; kidney; knee; larynx;
    leg; liver; low extremity; lspine; lsspine; lung; mandible; maxilla; mediastinum; mouth; neck; neck chest; neckchest;
    neckchestabdomen; neckchestabdpelvis; nose; orbit; ovary; pancreas; parotid; patella; pelvis; penis; pharynx;
    prostate; rectum; retina; rib; ribs; sacrum; scalp; scapula; sclera; scrotum; sella; shoulder; si joint; sinus;
    sinuses; skin; skull; spinal cord; spine; spleen; sspine; sternoclavicular joint; sternum; stomach; teeth; testis;
    thigh; thorax; thumb; thymus; thyroid; tlspine; tmj; toe; tongue; tooth; trachea; tspine; up extremity; ureter;
    urethra; uterus; vagina; vulva; whole body; wholebody; wrist; zygoma
    """,
    between=";",
)
VIEWS = _words(
    """
    AP AXIAL CC CORONAL CV DECUBITUS FB FRONTAL ISO LAO LAT LATERAL LL LLD LLO LM LMO LPO ML MLO OBLIQUE PA PRONE RAO RL
    RLD RLO RPO SAGITTAL SIO SUPINE UPRIGHT XCC XCCL XCCM axial coronal sagittal
    """,
    between=" ",
)
LATERALITIES = frozenset({"L", "R", "B"})

_NUMBER = re.compile(r"-?\d{1,4}(\.\d{1,4})?", re.ASCII)
_CODE = re.compile(r"SE|IR|GR|EP|RM", re.ASCII)
LABELS = {
    "slice_thickness": _NUMBER,
    "pixel_spacing": _NUMBER,
    "level": _NUMBER,
    "tile_row": _NUMBER,
    "tile_column": _NUMBER,
    "time_point": _NUMBER,
    "window_centre": _NUMBER,
    "window_width": _NUMBER,
    "plane": re.compile(r"axial|coronal|sagittal"),
    "scanning_sequence": _CODE,
    "photometric": re.compile(r"MONOCHROME1|MONOCHROME2|PALETTE COLOR|RGB|YBR_FULL|YBR_FULL_422|YBR_ICT|YBR_RCT"),
    "contrast": re.compile(r"yes|no"),
}
"""Labels by name, each with the pattern of all that it may say: short numbers and codes."""

DONE_WORDS = _words(
    """
    a abdomen above after all and angio as assumed at auto axes axial b background below bit bits black body bone brain
    brightest burned by canonical centre clipped cmyk colour colours converted coronal crop cropped curve darkest deep
    depth e exact exif f file first flipped float for frame frames from full gives grey greys head header hounsfield hsv
    hu i ict image in intensity into inverted kept l la lab large largest last least left level linear lung lut luts made
    masked maximum mean mediastinum middle minimum mip modality mode monochrome monochrome1 monochrome2 most n no none nth
    of on one orientation original out over overlay overlays p palette percent percentile percentiles picture pixel pixels
    place plane point preset presets projection pyramid range rct reduced removed reoriented resampled rescale rescaled
    resized rgb rgba right rotated round s sagittal sampled sampling scaled scaling sigmoid slice slices smallest soft
    spacing square step table tables text th the tile tiles time tissue to turned upright upside value values voi volume
    voxel voxels white width window with without x y ybr ycbcr z
    """,
    between=" ",
)
"""The words in which readers tell what they did; a step with any other word is left out and counted."""

OWN_WORDS = _words(
    """
    bottom content done false frame height image images index interval jpeg labels laterality linear_exact marker masked near
    null number open other page passed patient places quarantined readme series source split study test text train training
    true unknown validation width ybr_full ybr_full_422 ybr_ict ybr_rct yes
    """,
    between=" ",
)
"""Words of the output's own keys and values: no text of a source is found in it because it is one of them."""
