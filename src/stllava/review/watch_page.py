"""The page of a run at work: one address that tells all, made anew each time it is asked.

    GET  /             the page, which asks for itself again every few seconds
    GET  /image/ID     pixels of an image that is shown on it
    GET  /static/NAME  the script and the stylesheet

Guarded like the page on which people vote (`security`).
"""

import time
from pathlib import Path
from threading import Lock

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from stllava.errors import ItemError, StllavaError
from stllava.progress import clock
from stllava.records import Score
from stllava.report import wording
from stllava.report.charts import Line, line_chart
from stllava.review.image_store import ImageStore, image_id
from stllava.review.security import Door, Gate
from stllava.review.watch import RunReader, RunView, StageView, cost_of
from stllava.rundir import BLIND
from stllava.text import printable

PAGE = Path(__file__).parent / "page"
STATIC = {"watch.js": "text/javascript", "review.css": "text/css"}
SHOWN_CURVES = ("loss", "reward_margin", "reward_accuracy", "chosen_logp", "rejected_logp")


def watch_app(reader: RunReader, door: Door) -> ASGIApp:
    """The page's application, guarded."""
    environment = Environment(loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {
        "clock": clock,
        "duration": wording.duration,
        "percent": wording.percent,
        "policy": wording.policy_label,
        "metric": wording.metric_label,
        "plain": wording.plain,
        "printable": printable,
        "moment": lambda seconds: time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)),
    }
    page = environment.get_template("watch.html.jinja")
    assets = {name: (PAGE / name).read_bytes() for name in STATIC}
    pictures = _Pictures()

    def render() -> str:
        view = reader.read()
        pictures.show(view)
        return page.render(
            view=view,
            current=view.current,
            curves=curves_of(view),
            table=score_table(view.scores),
            costs=cost_of(view.stages),
            image_id=image_id,
            state=state_of(view),
        )

    async def show_page(_: Request) -> Response:
        try:
            return HTMLResponse(await run_in_threadpool(render))
        except StllavaError as error:
            return PlainTextResponse(printable(str(error)), 503)

    async def show_image(request: Request) -> Response:
        png = await run_in_threadpool(pictures.png, request.path_params["key"])
        return Response(png, media_type="image/png") if png is not None else Response(status_code=404)

    async def show_asset(request: Request) -> Response:
        name = request.path_params["name"]
        return Response(assets[name], media_type=STATIC[name]) if name in assets else Response(status_code=404)

    app = Starlette(
        routes=[Route("/", show_page), Route("/image/{key}", show_image), Route("/static/{name}", show_asset)],
    )
    return Gate(app, door)


class _Pictures:
    """The images of the newest answers, and no others."""

    def __init__(self) -> None:
        self._store: ImageStore | None = None
        self._paths: tuple[str, ...] = ()
        self._lock = Lock()

    def show(self, view: RunView) -> None:
        """Take the images that are on the page now."""
        paths = tuple(row.image for row in view.newest if row.image is not None)
        with self._lock:
            if view.images is not None and paths != self._paths:
                self._paths, self._store = paths, ImageStore(view.images, paths)

    def png(self, key: str) -> bytes | None:
        """The PNG of one of them; None of another id, and of an image that cannot be read."""
        store = self._store
        try:
            return store.png(key) if store is not None else None
        except ItemError:
            return None


def state_of(view: RunView) -> str:
    """What the run is doing, or how it ended, in a sentence or two."""
    current = view.current
    if view.outcome is not None and current is None and not view.at_work:
        return " ".join(view.outcome.sentences[-2:])
    if view.at_work:
        return f"At work on {current.name}." if current is not None else "At work."
    where = f" in {current.name}" if current is not None else ""
    return (
        f"No process is at work: the run stopped{where}. What stopped it stands on the terminal that ran it; the same command "
        "goes on from here."
    )


def curves_of(view: RunView) -> list[tuple[str, list[tuple[str, Markup]]]]:
    """The curves of the newest two trainings, the one at work first."""
    trained = [stage for stage in view.stages if stage.curves][-2:]
    return [(stage.name, _charts(stage)) for stage in reversed(trained)]


def _charts(stage: StageView) -> list[tuple[str, Markup]]:
    made = []
    for name in SHOWN_CURVES:
        if stage.curves.get(name):
            label = wording.CURVES.get(name, wording.plain(name))
            line = Line(stage.name, tuple(stage.curves[name]), None)
            made.append((label, line_chart(f"{label} by step", [line], share="accuracy" in name)))
    return made


def score_table(scores: tuple[Score, ...]) -> list[tuple[str, list[str], list[tuple[str, list[Score | None]]]]]:
    """Each benchmark with its metrics and a row for each policy, in the order in which they were scored."""
    tables = []
    shown = [score for score in scores if not score.policy.startswith(BLIND)]
    for benchmark in dict.fromkeys(score.benchmark for score in shown):
        rows = [score for score in shown if score.benchmark == benchmark and score.rule.startswith("robust")]
        metrics = list(dict.fromkeys(score.metric for score in rows))
        found = {(score.policy, score.metric): score for score in rows}
        policies = list(dict.fromkeys(score.policy for score in rows))
        tables.append((benchmark, metrics, [(name, [found.get((name, metric)) for metric in metrics]) for name in policies]))
    return tables
