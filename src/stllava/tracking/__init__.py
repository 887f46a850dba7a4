"""Figures of a run for a tracker: trackio, Weights & Biases, TensorBoard or MLflow.

    track_run(Path("runs/phantom-0"), Tracking(tool="trackio"), name="phantom-0", config={})

What may leave is made in `figures`: names of stages, metrics and causes, and numbers. No path, no text of a record and no image
is among them, so that a tracker on another machine learns nothing of a patient. Only where `track_samples` says so do texts and
images go along (`samples`). `places` says what is new; `trackers` hands it to the tools, and keeps them from adding anything.
"""

from stllava.tracking.figures import StageFigures, numbers_of, stage_figures
from stllava.tracking.places import require_tracker, track_run
from stllava.tracking.trackers import TrackerError, Tracking

__all__ = ["StageFigures", "TrackerError", "Tracking", "numbers_of", "require_tracker", "stage_figures", "track_run"]
