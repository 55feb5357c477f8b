"""Tasks made by POST and changed by cancel: all that a client without the database can do.

A task can be canceled once, so each is changed once; a worker that is faster changes it by itself.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from typing import Final, Self

from server.commands.loadtest.control import Control, Reply
from server.commands.loadtest.workloads import Commit, Task
from server.errors import LoadTestError

_NO_LIMITS: Final = "start the server with LONGPOLL_LIMITS__ENABLED=false"


class HttpStage:
    """Tasks of one account."""

    def __init__(self, control: Control, *, tasks: int, secret: str | None, account: tuple[str, str] | None) -> None:
        """Use a token, or an account (email and password; registered if need be), or register one of our own."""
        self._control = control
        self._count = tasks
        self._secret = secret
        self._account = account or (f"loadtest-{secrets.token_hex(6)}@loadtest.invalid", secrets.token_urlsafe(12))
        self._is_own = account is None and secret is None
        self._cookie: str | None = None
        self._token_id: str | None = None
        self._left: set[int] = set()
        self._foreign = 0
        self.tasks: list[Task] = []

    def __enter__(self) -> Self:
        try:
            secret = self._secret or self._make_token()
            for _ in range(self._count):
                self.tasks.append(self._make_task(secret))
        except BaseException:
            self._remove()
            raise
        self._left = set(range(self._count))
        return self

    def __exit__(self, *_error: object) -> None:
        self._remove()

    @property
    def left(self) -> bool:
        """Whether any task was not canceled yet."""
        return bool(self._left)

    def change(self, task: int) -> Commit | None:
        """Cancel a task; None if that was done before."""
        if task not in self._left:
            return None
        self._left.discard(task)
        sent = time.monotonic()
        reply = self._request("POST", "/api/generate/cancel", {"taskId": self.tasks[task].task_id})
        returned = time.monotonic()
        version = int(reply.json["data"]["version"])
        self._foreign += version - self.tasks[task].version - 1
        return Commit(task, version, sent, returned)

    def change_all(self, *, singly: bool, ending: bool) -> list[Commit]:  # noqa: ARG002 - a cancel is always both
        """Cancel every task."""
        changes = [self.change(task) for task in range(self._count)]
        return [commit for commit in changes if commit is not None]

    def foreign_changes(self) -> int:
        """Return how many changes beside the cancel each task had: those of a worker."""
        return self._foreign

    def _make_token(self) -> str:
        email, password = self._account
        account = {"email": email, "password": password}
        entered = self._control.request("POST", "/api/auth/register", account)
        if entered.status == 409:
            entered = self._control.request("POST", "/api/auth/login", account)
        self._cookie = _checked(entered).cookie
        made = self._request("POST", "/api/auth/tokens", {"name": "load test"}).json
        self._token_id = str(made["id"])
        return str(made["token"])

    def _make_task(self, secret: str) -> Task:
        headers = {"Authorization": f"Bearer {secret}"}
        reply = _checked(self._control.request("POST", "/api/generate", {"prompt": "load test"}, headers)).json
        return Task(str(reply["taskId"]), secret, int(reply["data"]["version"]))

    def _remove(self) -> None:
        """Delete the tasks and the token; an account of our own with all that is in it."""
        with contextlib.suppress(LoadTestError):  # whatever went wrong was said before
            if self._is_own and self._delete_account():
                return
            for task in self.tasks:
                self._control.request("DELETE", f"/api/generate/tasks/{task.task_id}", headers=self._headers())
            if self._token_id is not None:
                self._control.request("DELETE", f"/api/auth/tokens/{self._token_id}", headers=self._headers())

    def _delete_account(self) -> bool:
        password = {"currentPassword": self._account[1]}
        deleted = self._control.request("POST", "/api/auth/delete_account", password, self._headers())
        return deleted.status < 300

    def _headers(self) -> dict[str, str]:
        if self._cookie is not None:
            return {"Cookie": self._cookie}
        return {"Authorization": f"Bearer {self._secret}"}

    def _request(self, method: str, path: str, body: dict[str, object]) -> Reply:
        return _checked(self._control.request(method, path, body, self._headers()))


def _checked(reply: Reply) -> Reply:
    if reply.status == 429:
        raise LoadTestError(f"the server refuses by its rate limits ({reply.json.get('detail')}): {_NO_LIMITS}")
    if reply.status >= 400:
        said = reply.json
        raise LoadTestError(
            f"the server answers {reply.status}: {said.get('detail') or said.get('title') or reply.body!r}"
        )
    return reply
