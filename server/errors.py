"""Every error this project raises on purpose.

ServerError
├── ConfigurationError        a setting is wrong: the start is refused
├── StorageError
│   ├── DatabaseUnavailable   Postgres can't be reached, or didn't answer in time
│   │   └── RowLocked         somebody else holds what was to be changed
│   ├── BoardStopped          nothing is read just now, because this process stops or restarts a part of itself
│   ├── PicturesUnavailable   the folder of the pictures can't be read or written
│   ├── ConstraintViolated    a statement would break a rule of the schema
│   ├── MigrationError        the schema can't be brought up to date
│   └── EmbeddedPostgresError the embedded server can't be started
├── GenerationError           a generator couldn't make the picture
│   ├── GenerationCanceled    its owner asked it to stop
│   ├── LeaseLost             another worker has taken the task over
│   └── GeneratorLost         the generator's process has ended, or had to be ended
├── MalformedFrame            a generator's process says what none would say
├── LoadTestError             a load test can't be run
└── Problem                   what a client is told, as application/problem+json
    └── BadRequest, NotSignedIn, TaskNotFound, …
"""

from __future__ import annotations


class ServerError(Exception):
    """The root of every error raised on purpose."""


class ConfigurationError(ServerError):
    """A setting is unknown or has a value that can't be used."""


class StorageError(ServerError):
    """Something kept in Postgres or in a file couldn't be read or written."""


class DatabaseUnavailable(StorageError):
    """Postgres can't be reached, or didn't answer in time. Trying later may help.

    Attributes:
        told: what a client is told.
    """

    told = "The database can't be reached just now."


class RowLocked(DatabaseUnavailable):
    """Somebody else holds the row that was to be changed, and for longer than is waited."""

    told = "Something else is changing this just now."


class PicturesUnavailable(StorageError):
    """The folder of the pictures is full, gone, somebody else's, or can't be read or written. Trying later may help.

    Attributes:
        told: what a client is told.
    """

    told = "Pictures can't be stored or read just now."


class BoardStopped(StorageError):
    """Nothing is read at this moment: the process stops, or what reads has failed and is started again."""


class ConstraintViolated(StorageError):
    """A statement was refused because it would break a rule of the schema.

    Attributes:
        constraint: the name of the broken constraint, empty when a trigger refused.
    """

    def __init__(self, message: str, constraint: str = "") -> None:
        super().__init__(message)
        self.constraint = constraint


class MigrationError(StorageError):
    """The schema can't be brought up to date, or was changed behind our back."""


class EmbeddedPostgresError(StorageError):
    """The embedded Postgres can't be installed, started or stopped."""


class GenerationError(ServerError):
    """A generator couldn't make the picture. Its message is shown to the task's owner.

    Attributes:
        retryable: whether another attempt may succeed.
    """

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class GenerationCanceled(GenerationError):
    """The task's owner asked for it to be canceled."""

    def __init__(self) -> None:
        super().__init__("Canceled", retryable=False)


class LeaseLost(GenerationError):
    """Another worker has taken the task over: nothing more may be written for it."""

    def __init__(self) -> None:
        super().__init__("The lease was lost", retryable=False)


class GeneratorLost(GenerationError):
    """The generator's process has ended, or had to be ended. Another one may succeed."""


class MalformedFrame(ServerError):
    """What comes from a generator's process is no frame, or one that must not come."""


class LoadTestError(ServerError):
    """A load test can't be run, or not as it was asked for."""


class Problem(ServerError):
    """What a client is told when its request can't be served (RFC 9457).

    Attributes:
        status: the HTTP status code.
        code: a short name that programs may compare.
        title: one sentence that is always the same for this code.
        detail: what was wrong with this very request, and what would be right.
        retry_after: seconds after which another try makes sense, or None.
    """

    status: int = 500
    code: str = "internal_server_error"
    title: str = "Internal server error"

    def __init__(self, detail: str | None = None, *, retry_after: float | None = None) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.retry_after = retry_after


class BadRequest(Problem):
    """A parameter or the body is not as the contract says."""

    status, code, title = 400, "bad_request", "Bad request"


class TaskIdRequired(Problem):
    """The status of no task in particular was asked for."""

    status, code, title = 400, "task_id_required", "Task ID is required"


class NotSignedIn(Problem):
    """The request carries neither a live session nor a valid token."""

    status, code, title = 401, "not_signed_in", "Not signed in"


class WrongCredentials(Problem):
    """The address is unknown or the password is wrong; which of them is not told."""

    status, code, title = 401, "wrong_credentials", "Wrong email address or password"


class WrongPassword(Problem):
    """The present password was asked for, and this isn't it."""

    status, code, title = 403, "wrong_password", "Wrong password"


class CrossOrigin(Problem):
    """A page of another site tried to change something here."""

    status, code, title = 403, "cross_origin", "Cross-origin request refused"


class MetricsRefused(Problem):
    """The metrics were asked for through a proxy."""

    status, code, title = 403, "metrics_refused", "Metrics are not given to everybody"


class ScopeTooNarrow(Problem):
    """The token may read only."""

    status, code, title = 403, "scope_too_narrow", "This token may only read"


class SessionRequired(Problem):
    """A token came where only somebody who is logged in may act."""

    status, code, title = 403, "session_required", "A login is required, not a token"


class WorkerTokenRefused(Problem):
    """A worker's token came where users are served."""

    status, code, title = 403, "worker_token_refused", "A worker's token may not do this"


class WorkerTokenRequired(Problem):
    """A user came where workers are served."""

    status, code, title = 403, "worker_token_required", "A worker's token is required"


class PriorityRefused(Problem):
    """The task was to have a priority that its user may not use."""

    status, code, title = 403, "priority_refused", "This priority is not for everybody"


class NotFound(Problem):
    """No such URL."""

    status, code, title = 404, "not_found", "Not found"


class TaskNotFound(Problem):
    """The task doesn't exist, or isn't the caller's: the reply is the same."""

    status, code, title = 404, "task_not_found", "Task not found"


class MethodNotAllowed(Problem):
    """The URL exists, but not for this method."""

    status, code, title = 405, "method_not_allowed", "Method not allowed"


class AddressTaken(Problem):
    """There is an account with this email address already."""

    status, code, title = 409, "address_taken", "This email address is already registered"


class OtherUser(Problem):
    """The client says for whom it asks, and somebody else is logged in."""

    status, code, title = 409, "other_user", "Somebody else is logged in"


class TooManyTokens(Problem):
    """The user has as many tokens as may be."""

    status, code, title = 409, "too_many_tokens", "Too many tokens"


class TaskDeleted(Problem):
    """The task was deleted while its status was awaited."""

    status, code, title = 410, "task_deleted", "Task deleted"


class PayloadTooLarge(Problem):
    """The body is larger than this server accepts."""

    status, code, title = 413, "payload_too_large", "Payload too large"


class UriTooLong(Problem):
    """The address that is asked for is longer than this server reads."""

    status, code, title = 414, "uri_too_long", "Address too long"


class UnsupportedMedia(Problem):
    """The body, or the image in it, is of a kind that isn't accepted."""

    status, code, title = 415, "unsupported_media_type", "Unsupported media type"


class ExpectationFailed(Problem):
    """The request has an Expect header that asks for something unknown."""

    status, code, title = 417, "expectation_failed", "Expectation failed"


class Misdirected(Problem):
    """The request names another site in its Host."""

    status, code, title = 421, "misdirected", "Not a name of this server"


class IdempotencyMismatch(Problem):
    """The idempotency key was used before, for a request with another body."""

    status, code, title = 422, "idempotency_mismatch", "Idempotency key used with another request"


class ImageRejected(Problem):
    """The uploaded image can't be used."""

    status, code, title = 422, "image_rejected", "Image rejected"


class TooManyRequests(Problem):
    """The caller is over a limit."""

    status, code, title = 429, "too_many_requests", "Too many requests"


class TooManyWaiting(Problem):
    """The user has as many tasks in the queue as one user may have."""

    status, code, title = 429, "too_many_waiting", "Too many of your tasks are waiting"


class HeadersTooLarge(Problem):
    """The headers are more than this server reads: cookies, mostly, and mostly those of others on the same host."""

    status, code, title = 431, "headers_too_large", "Too many cookies or other headers"


class Unavailable(Problem):
    """The server can't do this just now."""

    status, code, title = 503, "unavailable", "Service unavailable"
