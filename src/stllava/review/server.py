"""The page on which readers vote: routes over a `ReviewSession`, served to this machine alone unless told otherwise.

    GET  /             the page
    GET  /task         what the reader has on screen
    POST /vote         a vote on that; answered by the expert's verdict
    POST /respond      the response to the verdict
    POST /next         leave a task that was voted on
    POST /undo         take back the last vote
    GET  /image/ID     pixels
    GET  /deep/ID      16-bit pixels, where they were kept
    GET  /static/NAME  the script and the stylesheet

All but the last needs a reader's cookie (`security`). What is posted is JSON of the classes below and nothing else.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from stllava.data.image_set import DeepImage
from stllava.errors import ItemError, StllavaError
from stllava.records import ItemChoice, ItemTask
from stllava.review.choices import BUTTONS, LONGEST_ANSWER, Shown, Side
from stllava.review.image_store import ImageStore
from stllava.review.open_task import OpenTask, RefusedVoteError, sentences
from stllava.review.readings import StandingVote
from stllava.review.security import READER, Door, Gate
from stllava.review.series_slices import shown_images
from stllava.review.session import ReviewSession
from stllava.text import printable

PAGE_READER = "X-Reader"
"""The header in which the page says, quoted as in an address, for whom it was opened."""
PAGE = Path(__file__).parent / "page"
STATIC = {"review.js": "text/javascript", "review.css": "text/css"}
M = TypeVar("M", bound=BaseModel)


class _Posted(BaseModel):
    """What the page sends about the task on screen."""

    model_config = ConfigDict(extra="forbid", strict=True)

    task: str = Field(max_length=64)
    turn: int = Field(ge=0, le=1)


class PostedVote(_Posted):
    """A vote."""

    choice: Shown | ItemChoice
    struck: tuple[tuple[Side, int], ...] = Field(default=(), max_length=200)
    """Sentences, each by its answer and its place in it."""
    typed: str = Field(default="", max_length=LONGEST_ANSWER)
    """The right answer, if the reader typed one."""


class PostedResponse(_Posted):
    """A response to the expert's verdict."""

    decision: Literal["confirm", "overturn"] | None
    reason: str = Field(default="", max_length=4000)
    significant: bool | None = None
    typed: str = Field(default="", max_length=LONGEST_ANSWER)


def review_app(session: ReviewSession, images: ImageStore, door: Door, *, title: str) -> ASGIApp:
    """The page's application, guarded."""
    environment = Environment(loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("review.html.jinja")
    assets = {name: (PAGE / name).read_bytes() for name in STATIC}

    async def show_page(request: Request) -> Response:
        reader, buttons = _reader(request), BUTTONS[session.kind]
        return HTMLResponse(page.render(title=title, reader=reader, kind=session.kind, buttons=buttons))

    async def show_task(request: Request) -> Response:
        reader = _page_reader(request)
        opened = await run_in_threadpool(session.open_task, reader)
        return await run_in_threadpool(_told, session, images, reader, opened)

    async def take_vote(request: Request) -> Response:
        said = await _said(request, PostedVote)

        return await _done(
            session,
            images,
            request,
            lambda reader: session.vote(reader, said.task, said.turn, said.choice, struck=said.struck, typed=said.typed),
        )

    async def take_response(request: Request) -> Response:
        said = await _said(request, PostedResponse)
        return await _done(
            session,
            images,
            request,
            lambda reader: session.respond(
                reader,
                said.task,
                said.turn,
                decision=said.decision,
                reason=said.reason,
                significant=said.significant,
                typed=said.typed,
            ),
        )

    async def go_on(request: Request) -> Response:
        said = await _said(request, _Posted)
        return await _done(session, images, request, lambda reader: session.advance(reader, said.task, said.turn))

    async def take_back(request: Request) -> Response:
        return await _done(session, images, request, session.undo)

    async def show_image(request: Request) -> Response:
        try:
            png = await run_in_threadpool(images.png, request.path_params["key"])
        except ItemError as error:
            return JSONResponse({"error": f"The image cannot be read: {error.cause}."}, 422)
        return Response(png, media_type="image/png") if png is not None else JSONResponse({"error": "No such image."}, 404)

    async def show_deep(request: Request) -> Response:
        try:
            found = await run_in_threadpool(images.deep_pixels, request.path_params["key"])
        except ItemError as error:
            return JSONResponse({"error": f"The 16-bit pixels cannot be read: {error.cause}."}, 422)
        if found is None:
            return JSONResponse({"error": "No such image."}, 404)
        pixels, width, height = found
        return Response(pixels, media_type="application/octet-stream", headers={"X-Width": str(width), "X-Height": str(height)})

    async def show_asset(request: Request) -> Response:
        name = request.path_params["name"]
        return Response(assets[name], media_type=STATIC[name]) if name in assets else Response(status_code=404)

    async def refuse(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 409 if isinstance(error, RefusedVoteError) else 400)

    app = Starlette(
        routes=[
            Route("/", show_page),
            Route("/task", show_task),
            Route("/vote", take_vote, methods=["POST"]),
            Route("/respond", take_response, methods=["POST"]),
            Route("/next", go_on, methods=["POST"]),
            Route("/undo", take_back, methods=["POST"]),
            Route("/image/{key}", show_image),
            Route("/deep/{key}", show_deep),
            Route("/static/{name}", show_asset),
        ],
        exception_handlers={RefusedVoteError: refuse, _BadRequestError: refuse},
    )
    return Gate(app, door)


class _BadRequestError(Exception):
    """What was posted is not what the page posts."""


async def _said(request: Request, kind: type[M]) -> M:
    """What was posted, checked."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise _BadRequestError("Only JSON is read.")
    try:
        return kind.model_validate_json(await request.body())
    except ClientDisconnect:
        raise _BadRequestError("That is too long.") from None
    except ValidationError as error:
        raise _BadRequestError(f"That cannot be read: {error.errors()[0]['msg']}.") from None


async def _done(
    session: ReviewSession, images: ImageStore, request: Request, write: Callable[[str], OpenTask | None]
) -> Response:
    """Write what a reader did and tell what is on screen after it; what the disk refuses is told too.

    The writing goes on where the browser no longer waits for it.
    """
    reader = _page_reader(request)

    def act() -> Response:
        try:
            opened = write(reader)
        except StllavaError as error:
            return JSONResponse({"error": str(error)}, 507)
        return _told(session, images, reader, opened)

    acting: Awaitable[Response] = asyncio.shield(run_in_threadpool(act))
    return await acting


def _reader(request: Request) -> str:
    """Whose cookie a request brought."""
    reader: str = request.scope[READER]
    return reader


def _page_reader(request: Request) -> str:
    """Whose page a request came from, which must be whose cookie it brought.

    A browser has one cookie for all of its tabs: whoever opened the page there last would vote for those who did before.
    """
    reader, of_page = _reader(request), unquote(request.headers.get(PAGE_READER, ""))
    if of_page != reader:
        raise _BadRequestError(
            f"This browser has opened the page for {reader} since, so nothing was saved: two readers need two browsers."
        )
    return reader


def _told(session: ReviewSession, images: ImageStore, reader: str, opened: OpenTask | None) -> Response:
    """What a reader has on screen, as the page wants it: before the vote nothing that an expert or a rule says."""
    progress = session.progress(reader)
    preload: list[JsonValue] = [images.ids[path] for task in progress.upcoming for path in task.images]
    told: dict[str, JsonValue] = {"read": progress.read, "left": progress.left, "state": "done", "preload": preload}
    if opened is None:
        return JSONResponse(told)
    shown, asked = shown_images(opened.task.images, images.series)
    told |= {
        "state": "open",
        "task": opened.task.id,
        "turn": opened.turn,
        "question": printable(opened.task.question),
        "images": [images.ids[path] for path in shown],
        "slice": asked,
        "deep": {images.ids[path]: _units(images.deep[path]) for path in shown if path in images.deep},
        "answers": [[printable(part) for part in sentences(text)] for text in opened.texts],
    }
    if isinstance(opened.task, ItemTask):
        told["references"] = [printable(text) for text in opened.task.references]
        told["boxes"] = [list(box) for box in opened.task.boxes]
    if opened.vote is not None:
        told |= {"state": "voted", "typed": opened.vote.correct_answer or "", **_judged(opened, opened.vote)}
    return JSONResponse(told)


def _units(deep: DeepImage) -> JsonValue:
    """What an image's 16-bit pixels stand for, and which of them its 8-bit picture shows as black and white."""
    return {"offset": deep.offset, "step": deep.step, "black": deep.black, "white": deep.white}


def _judged(opened: OpenTask, given: StandingVote) -> dict[str, JsonValue]:
    """What a reader said of a task, and what is told after that alone: the expert's verdict, or what the rules say."""
    if isinstance(opened.task, ItemTask):
        readings = {True: "right", False: "wrong", None: "cannot be read, which counts as wrong"}
        rules: list[JsonValue] = [[rule, readings[said]] for rule, said in opened.task.rules.items()]
        return {"choice": opened.shown(given.choice), "rules": rules}
    return {
        "choice": opened.shown(given.blind),
        "verdict": opened.shown(opened.task.verdict),
        "grounds": printable(opened.task.reason),
        "decision": given.response.decision if given.response is not None else None,
        "reason": given.response.reason if given.response is not None else "",
        "significant": given.response.significant if given.response is not None else None,
    }
