"""The HTTP interface of the page, for this machine only.

Everything is served from here, so the page needs no network (Content-Security-Policy 'self'). There
is no login; what keeps other web pages out are the address (loopback), the Host header (a foreign
name that points to 127.0.0.1 is refused), Sec-Fetch-Site and, where something is written, Origin.

A page may still be open when another run is served at the same address. So it says with every
request which clusters it shows, and gets nothing of others.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel

from vitdc import __version__
from vitdc.errors import InputError, one_line
from vitdc.explore import exporting
from vitdc.explore.collection import Collection
from vitdc.explore.corrections import Corrections, OutdatedError, Patch
from vitdc.explore.layout import MapMaker, Progress
from vitdc.explore.search import Neighbours, Strangers, nearest
from vitdc.explore.thumbnails import MAX_STRIP, Thumbnails, encode, tile_side
from vitdc.prediction import unsure_limit

STATIC = Path(__file__).parent / "static"
MAX_UPLOAD = 64 * 2**20
FOREVER = "public, max-age=31536000, immutable"
CONTENTS = ("/api/", "/tiles/", "/images/", "/export/")  # the rest is the same for everybody
OTHER_RUN = "another run is served here now; reload the page"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Change(BaseModel):
    """A patch, and the revision of the annotations it was made for."""

    revision: str
    patch: Patch


def create_app(images: Collection, *, cache: Path, hosts: set[str]) -> FastAPI:
    """The page and its interface.

    Args:
        images: What it shows.
        cache: Directory for thumbnails, the map and a lock; exists.
        hosts: The values of the Host header that are answered, e.g. "127.0.0.1:8790".
    """
    app = FastAPI(title="vitdc explore", docs_url=None, redoc_url=None, openapi_url=None)
    corrections = Corrections(images, cache=cache)
    _add_guard(app, hosts, clustering=images.run.clustering_digest)
    _add_errors(app)
    _add_columns(app, images, MapMaker(images, cache))
    _add_pictures(app, images, Thumbnails(images, cache))
    _add_search(app, images)
    _add_corrections(app, images, corrections)
    app.mount("/", StaticFiles(directory=STATIC, html=True))
    return app


def _add_guard(app: FastAPI, hosts: set[str], *, clustering: str) -> None:
    origins = {f"http://{host}" for host in hosts}

    def refusal(request: Request) -> Response | None:
        if request.headers.get("host") not in hosts:
            return JSONResponse({"error": "this address is not mine"}, 421)
        asked_by = request.headers.get("sec-fetch-site", "none")  # "none" is a person
        if request.url.path.startswith(CONTENTS) and asked_by not in ("same-origin", "none"):
            return JSONResponse({"error": "only this page may see this"}, 403)
        writes = request.method not in ("GET", "HEAD")
        if writes and request.headers.get("origin") not in origins:
            return JSONResponse({"error": "only this page may change anything"}, 403)
        shown = request.headers.get("vitdc-clustering", request.query_params.get("clustering"))
        if shown != clustering and (shown is not None or writes):
            return JSONResponse({"error": OTHER_RUN}, 410)
        return None

    @app.middleware("http")
    async def guard(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = refusal(request) or await call_next(request)
        response.headers.update(HEADERS)
        response.headers.setdefault("Cache-Control", "no-cache")  # browsers would keep even a 410
        return response


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(InputError)
    async def wrong_input(_: Request, error: InputError) -> Response:
        return JSONResponse({"error": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    async def wrong_request(_: Request, error: RequestValidationError) -> Response:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"][1:])
        return JSONResponse({"error": one_line(f"{where}: {problem['msg']}")}, 422)


def _add_columns(app: FastAPI, images: Collection, map_maker: MapMaker) -> None:
    @app.get("/api/run")
    def run() -> dict[str, Any]:
        return describe(images)

    @app.get("/api/columns/{name}")
    def column(name: str) -> Response:
        columns: dict[str, Callable[[], np.ndarray]] = {
            "cluster": lambda: images.cluster,
            "distance": lambda: images.distance,
            "label": lambda: images.label,
            "atypicality": lambda: images.atypicality,
        }
        if name not in columns:
            raise HTTPException(404)
        return _binary(columns[name]())

    @app.get("/api/rounds/{number}")
    def round(number: int) -> Response:
        if not 0 <= number < len(images.run.clusterings):
            raise HTTPException(404)
        return _binary(images.assignment(number))

    @app.get("/api/map")
    def map() -> Response:
        found = map_maker.get()
        if isinstance(found, Progress):
            if found.failed:
                return JSONResponse({"error": found.stage}, 500)
            return JSONResponse(found._asdict(), 202)
        return _binary(found)


def _add_pictures(app: FastAPI, images: Collection, thumbnails: Thumbnails) -> None:
    def check_key(key: str) -> None:
        if key != _picture_key(images):  # a browser would keep these pictures as those of that set
            raise HTTPException(410, OTHER_RUN)

    @app.get("/tiles/{key}/{numbers}")
    def tiles(key: str, numbers: str) -> Response:
        check_key(key)
        try:
            wanted = [int(number) for number in numbers.split(",", MAX_STRIP)]
        except ValueError:
            raise InputError(f"not image numbers: {numbers[:40]}") from None
        for number in wanted:
            _check_number(images, number)
        content, kind = thumbnails.strip(wanted)
        return Response(content, media_type=kind, headers={"Cache-Control": FOREVER})

    @app.get("/images/{key}/{number}")
    def picture(key: str, number: int) -> Response:
        check_key(key)
        _check_number(images, number)
        content, kind = encode(images.pixels(number))
        return Response(content, media_type=kind, headers={"Cache-Control": FOREVER})


def _add_search(app: FastAPI, images: Collection) -> None:
    strangers = Strangers(images)
    count = 200

    @app.get("/api/images/{number}")
    def image(number: int) -> dict[str, Any]:
        _check_number(images, number)
        return describe_image(images, number)

    @app.get("/api/images/{number}/neighbours")
    def neighbours(number: int) -> dict[str, Any]:
        _check_number(images, number)
        found = nearest(images, images.embedding(number), count=count + 1)
        others = found.images != number
        return _describe_neighbours(
            Neighbours(found.images[others][:count], found.distance[others][:count])
        )

    @app.post("/api/look-up")
    async def look_up(request: Request) -> dict[str, Any]:
        from starlette.concurrency import run_in_threadpool

        file = bytearray()
        async for part in request.stream():
            file += part
            if len(file) > MAX_UPLOAD:
                raise InputError(f"this file is larger than {MAX_UPLOAD >> 20} MiB")
        found = await run_in_threadpool(strangers.look_up, bytes(file), count=count)
        cluster, prediction = int(found.prediction.cluster[0]), found.prediction
        return {
            "cluster": cluster,
            "distance": float(prediction.distance[0]),
            "margin": float(prediction.margin[0]),
            "unsure": bool(prediction.unsure[0]),
            "picture": _data_url(found.pixels),
            **_describe_neighbours(found.neighbours),
        }


def _add_corrections(app: FastAPI, images: Collection, corrections: Corrections) -> None:
    @app.get("/api/annotations")
    def state() -> dict[str, Any]:
        return corrections.state()._asdict()

    @app.post("/api/annotations")
    def change(change: Change) -> Response:
        try:
            after, undo = corrections.apply(change.patch, revision=change.revision)
        except OutdatedError:
            return JSONResponse({"state": corrections.state()._asdict()}, 409)
        return JSONResponse({"state": after._asdict(), "undo": undo.model_dump(mode="json")})

    @app.get("/export/{name}.csv")
    def export(name: str) -> Response:
        tables = {"names": exporting.names_csv, "assignments": exporting.assignments_csv}
        if name not in tables:
            raise HTTPException(404)
        return StreamingResponse(
            tables[name](images, corrections.load()),
            media_type="text/csv; charset=utf-8",
            headers={"Content-Disposition": f'attachment; filename="{name}.csv"'},
        )


def describe(images: Collection) -> dict[str, Any]:
    """What the page needs before it draws anything."""
    run = images.run
    limit = unsure_limit(run.clustering)
    return {
        "version": __version__,
        "dataset": run.dataset.name,
        "results": str(run.results),
        "key": _picture_key(images),
        "clustering": run.clustering_digest,
        "num_train": images.num_train,
        "num_images": len(images),
        "num_clusters": len(run.clustering.centroids),
        "class_names": run.dataset.class_names,
        "has_labels": bool((images.label >= 0).any()),
        "image_shape": list(run.dataset.image_shape),
        "tile_side": tile_side(images),
        "unsure_limit": limit if math.isfinite(limit) else None,
        "best_round": run.best_round,
        "rounds": [asdict(row) for row in run.evaluation.rows],
        "metrics": run.evaluation.metrics,
    }


def describe_image(images: Collection, number: int) -> dict[str, Any]:
    """What is known about one image beyond the columns."""
    run = images.run
    distance = np.linalg.norm(run.clustering.centroids - images.embedding(number), axis=1)
    nearest_first = np.argsort(distance, kind="stable")[:4]
    return {
        "name": images.name(number),
        "history": images.history(number),
        "nearest": [[int(cluster), float(distance[cluster])] for cluster in nearest_first],
        "predicted": images.predicted(number),
    }


def _picture_key(images: Collection) -> str:
    return images.run.dataset_digest[:16]


def _describe_neighbours(found: Neighbours) -> dict[str, Any]:
    return {"images": found.images.tolist(), "distances": found.distance.tolist()}


def _check_number(images: Collection, number: int) -> None:
    if not 0 <= number < len(images):
        raise HTTPException(404, f"there is no image {number}")


def _binary(values: np.ndarray) -> Response:
    """Little-endian, as the page reads it."""
    content = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    return Response(content, media_type="application/octet-stream")


def _data_url(pixels: np.ndarray) -> str:
    import base64

    content, kind = encode(pixels)
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
