"""Figures of a run for a tracker: trackio, Weights & Biases, TensorBoard or MLflow.

    track_run(Path("runs/phantom-0"), Tracking(tool="trackio"), name="phantom-0", config={})

What may leave is made in `figures`: names of stages, metrics and causes, and numbers. No path, no text of a record and no image
is among them, so that a tracker on another machine learns nothing of a patient. Only where `track_samples` says so do texts and
images go along (`samples`). `places` hands it all to the tools.
"""

from stllava.tracking.figures import StageFigures, numbers_of, stage_figures
from stllava.tracking.places import Tracking, track_run

__all__ = ["StageFigures", "Tracking", "numbers_of", "stage_figures", "track_run"]
