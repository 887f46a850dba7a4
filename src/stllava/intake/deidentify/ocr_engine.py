"""The networks that read text: `rapidocr-onnxruntime` 1.4.4 (the extra `ocr`), whose models are in its wheel.

Reads and writes nothing; nothing is fetched or sent.
"""

import importlib
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stllava.errors import StllavaError

Pixels = NDArray[np.uint8]


class _Detector(Protocol):
    def infer(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]: ...

    def postprocess_op(
        self, pred: NDArray[np.float32], ori_shape: tuple[int, int]
    ) -> tuple[NDArray[np.int32], list[float]]: ...

    def order_points_clockwise(self, pts: NDArray[np.int32]) -> NDArray[np.float32]: ...

    def clip_det_res(self, points: NDArray[np.float32], img_height: int, img_width: int) -> NDArray[np.float32]: ...


class _Recogniser(Protocol):
    def __call__(self, img_list: list[Pixels], return_word_box: bool) -> tuple[list[tuple[str, float]], float]: ...


class _Turner(Protocol):
    def __call__(self, img_list: list[Pixels]) -> tuple[list[Pixels], object, float]: ...


class Engine(Protocol):
    """What is used of RapidOCR: its three networks and how it cuts places out, of BGR pictures."""

    text_det: _Detector
    text_cls: _Turner
    text_rec: _Recogniser

    def get_crop_img_list(self, img: Pixels, dt_boxes: NDArray[np.float32]) -> list[Pixels]: ...


@cache
def engine() -> Engine:
    """The reader, on one thread, loaded once a process; a missing one is a `StllavaError` that names the extra."""
    try:
        module = importlib.import_module("rapidocr_onnxruntime")
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise StllavaError(
            f"no finder of burned-in text ({error})",
            expected="the extra `ocr`, unless only rules are asked for",
            remedy="Run `pip install 'stllava[ocr]'`, or give --look-for-text rules: what may hold text is then kept back.",
        ) from None
    # One thread because the importer keeps all cores busy.
    rapid = module.RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1)
    # RapidOCR lets its networks give their memory back after every picture, which doubles the time of a look.
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    frugal = [("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})]
    for part, name in (
        (rapid.text_det.infer, "ch_PP-OCRv4_det_infer.onnx"),
        (rapid.text_cls.infer, "ch_ppocr_mobile_v2.0_cls_infer.onnx"),
        (rapid.text_rec.session, "ch_PP-OCRv4_rec_infer.onnx"),
    ):
        model = str(Path(str(module.__file__)).parent / "models" / name)
        part.session = runtime.InferenceSession(model, sess_options=options, providers=frugal)
    reader: Engine = rapid
    return reader


def detect(picture: Pixels) -> tuple[NDArray[np.float32], list[float]]:
    """The corners of what may be text in a BGR picture, [n, 4, 2], and how much it looks like text."""
    import cv2

    detector = engine().text_det
    height, width = picture.shape[:2]
    # Sides that the network takes; ours are multiples of it but for the last ones of a picture.
    size = [max(32, round(side / 32) * 32) for side in (width, height)]
    fitted = picture if size == [width, height] else cv2.resize(picture, size)
    batch = np.asarray(cv2.dnn.blobFromImage(fitted, 1 / 127.5, mean=(127.5, 127.5, 127.5)), dtype=np.float32)
    found, scores = detector.postprocess_op(detector.infer(batch)[0], (height, width))
    boxes, kept = [], []
    for box, score in zip(found, scores, strict=True):
        corners = detector.clip_det_res(detector.order_points_clockwise(box), height, width)
        if min(np.linalg.norm(corners[0] - corners[1]), np.linalg.norm(corners[0] - corners[3])) > 3:
            boxes.append(corners)
            kept.append(float(score))
    return np.array(boxes, dtype=np.float32).reshape(-1, 4, 2), kept


def read(picture: Pixels, boxes: NDArray[np.float32], which: list[int], *, mirrored: bool = False) -> list[tuple[str, float]]:
    """What some of the places say, and how surely."""
    if not which:
        return []
    reader = engine()
    pieces = reader.get_crop_img_list(picture, boxes[which])
    # A line that runs upwards reaches the reader upside down unless its direction is looked for.
    turned, *_ = reader.text_cls([np.ascontiguousarray(piece[:, ::-1]) for piece in pieces] if mirrored else pieces)
    texts, _ = reader.text_rec(turned, False)
    return texts
