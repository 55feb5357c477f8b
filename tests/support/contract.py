"""Holds replies against the description of the API: whatever a test asks for, the answer must be as described."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from server.protocol import heads
from server.protocol.replies import headers_of
from server.protocol.whole_reply import WholeReply

# What HTTP itself adds, or a file that is sent.
UNDESCRIBED = {
    "Content-Type", "Content-Length", "Date", "Server", "Connection", "Transfer-Encoding", "Accept-Ranges",
    "Last-Modified", "Content-Range", "Content-Encoding", "Vary",
}  # fmt: skip
_ENOUGH = 50  # of one kind, for tests that ask for the same thousands of times
_ROOT = "urn:description"
# Whose `default` tells what a URL may answer that isn't described, for it doesn't exist.
_ANYWHERE = ("paths", "/healthz", "get")


class Validators:
    """What checks instances against the schemas of one document."""

    def __init__(self, document: Any) -> None:
        self.document = document
        resource = Resource.from_contents(document, default_specification=DRAFT202012)
        self._registry = Registry().with_resource(_ROOT, resource)
        self._formats = FormatChecker(["uuid"])
        self._formats.checks("date-time", raises=ValueError)(_is_moment)
        self._made: dict[tuple[str, ...], Draft202012Validator] = {}

    def at(self, *path: str) -> Draft202012Validator:
        """Return the one for the schema at this place."""
        if path not in self._made:
            pointer = "/".join(part.replace("~", "~0").replace("/", "~1") for part in path)
            self._made[path] = Draft202012Validator(
                {"$ref": f"{_ROOT}#/{pointer}"}, registry=self._registry, format_checker=self._formats
            )
        return self._made[path]


_known: list[Validators] = []


def _validators_of(document: Any) -> Validators:
    """Return those of an earlier document that is the same: one test's server after the other has it, and they take long."""
    for validators in _known:
        if validators.document == document:
            return validators
    _known.append(Validators(document))
    return _known[-1]


class Contract:
    """One description, and what was seen of it."""

    def __init__(self, document: Any) -> None:
        self.document = document
        self.seen: Counter[tuple[str, str, int]] = Counter()
        self.faults: list[str] = []
        self._validators = _validators_of(document)

    def validator(self, *path: str) -> Draft202012Validator:
        """Return what checks instances against the schema at this place of the document."""
        return self._validators.at(*path)

    async def check(self, request: web.Request, response: web.StreamResponse) -> None:
        """Check a reply just before it is sent; for `on_response_prepare`."""
        resource = request.match_info.route.resource
        url = resource.canonical if resource is not None else ""
        method = "GET" if request.method == "HEAD" else request.method
        self.seen[method, url, response.status] += 1
        if self.seen[method, url, response.status] > _ENOUGH:
            return
        place = ("paths", url, method.lower()) if url else _ANYWHERE
        where = f"{request.method} {request.path_qs} -> {response.status}"
        self.faults += [f"{where}: {fault}" for fault in self._faults(place, response)]

    def _faults(self, place: tuple[str, ...], response: web.StreamResponse) -> list[str]:
        replies = self._find(*place, "responses")
        status = str(response.status)
        if status not in replies:
            if response.status not in (
                {403, 404, 405, 417, 421, 500} if place == _ANYWHERE else {404, 405, 417, 421, 500}
            ):
                return ["this status is not described"]
            status = "default"
        described = replies[status]
        return [
            *self._faults_of_headers(described["headers"], response),
            *self._faults_of_content((*place, "responses", status), described.get("content", {}), response),
        ]

    def _faults_of_headers(self, described: Any, response: web.StreamResponse) -> list[str]:
        given = {name.title(): value for name, value in _headers(response).items()}
        faults = [f"header {name} is not described" for name in given.keys() - _titles({*described, *UNDESCRIBED})]
        for name in described:
            header = self._find("components", "headers", name)
            if name.title() in given:
                validator = self.validator("components", "headers", name, "schema")
                faults += [f"header {name}: {error.message}" for error in validator.iter_errors(given[name.title()])]
            elif header["required"]:
                faults.append(f"header {name} is missing")
        return faults

    def _faults_of_content(self, place: tuple[str, ...], described: Any, response: web.StreamResponse) -> list[str]:
        body = response.body if isinstance(response, web.Response) else None
        if isinstance(response, WholeReply):
            body = response.reply.compose(0.0)[2]
        if not described:
            return ["there should be no content"] if body else []
        content_type = _headers(response).get("Content-Type", "").partition(";")[0]
        if content_type not in described:
            return [] if "*/*" in described else [f"{content_type} is not described"]
        if not content_type.endswith("json") or not isinstance(body, bytes):
            return []
        validator = self.validator(*place, "content", content_type, "schema")
        return [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(json.loads(body))]

    def _find(self, *path: str) -> Any:
        found = self.document
        for part in path:
            found = found[part]
        return found


def _headers(response: web.StreamResponse) -> Mapping[str, str]:
    if not isinstance(response, WholeReply):
        return response.headers
    lines = response.reply.to_bytes(0.0, "0" * 16, heads.end_of_head(close=False)).partition(b"\r\n\r\n")[0]
    return headers_of(lines.partition(b"\r\n")[2])


def _titles(names: set[str]) -> set[str]:
    return {name.title() for name in names}


def _is_moment(value: object) -> bool:
    return not isinstance(value, str) or dt.datetime.fromisoformat(value).tzinfo is not None
