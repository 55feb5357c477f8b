"""Accounts and tokens."""

from __future__ import annotations

from server.errors import (
    AddressTaken,
    NotFound,
    PayloadTooLarge,
    SessionRequired,
    TooManyTokens,
    UnsupportedMedia,
    WrongCredentials,
    WrongPassword,
)
from server.protocol.replies import JSON
from server.storage.sessions import MOST_SESSIONS
from server.storage.tokens import MOST_TOKENS
from server.web.handlers.parameters import FORM
from server.web.openapi.parts import HTML, Json, body, operation, parameters, redirect, reply, schema

_TAG = "Accounts"
_BY_COOKIE = "A token may not do this."


def paths() -> Json:
    """Describe them by URL and method."""
    return {
        "/api/auth/register": {"post": _register()},
        "/api/auth/login": {"post": _log_in()},
        "/api/auth/logout": {"post": _log_out()},
        "/api/auth/user": {"get": _user()},
        "/api/auth/logout_everywhere": {"post": _log_out_everywhere()},
        "/api/auth/sessions": {"get": _list_sessions()},
        "/api/auth/sessions/{session_id}": {"delete": _end_session()},
        "/api/auth/password": {"post": _change_password()},
        "/api/auth/delete_account": {"post": _delete_account()},
        "/api/auth/tokens": {"get": _list_tokens(), "post": _create_token()},
        "/api/auth/tokens/{token_id}": {"delete": _revoke_token()},
    }


def _register() -> Json:
    return operation(
        "register",
        "Make an account and log in",
        tag=_TAG,
        body=_credentials("NewAccount"),
        replies={
            "201": reply("Made, and logged in by cookie", schema("Account"), headers=["Set-Cookie"]),
            "303": _sent_on(),
        },
        refused=[AddressTaken, PayloadTooLarge, UnsupportedMedia],
        public=True,
        changes=True,
        counted=True,
        html=True,
    )


def _log_in() -> Json:
    return operation(
        "logIn",
        "Log in",
        "Every login begins a new session. A wrong password and an unknown address are answered alike.",
        tag=_TAG,
        body=_credentials("Credentials"),
        replies={
            "200": reply("Logged in by cookie", schema("Account"), headers=["Set-Cookie"]),
            "303": _sent_on(),
        },
        refused=[WrongCredentials, PayloadTooLarge, UnsupportedMedia],
        public=True,
        changes=True,
        counted=True,
        html=True,
    )


def _credentials(name: str) -> Json:
    return body({JSON: schema(name), FORM: schema(name)}, "The address and the password.")


def _sent_on() -> Json:
    return redirect(f"For a browser, which accepts {HTML}: logged in, on to `next`", headers=["Set-Cookie"])


def _log_out() -> Json:
    return operation(
        "logOut",
        "End the session",
        "It ends in every process at once. Who isn't logged in is answered the same.",
        tag=_TAG,
        replies={
            "204": reply("Ended", headers=["Set-Cookie"]),
            "303": redirect("For a browser: ended, on to the login", headers=["Set-Cookie"]),
        },
        public=True,
        changes=True,
        html=True,
    )


def _user() -> Json:
    return operation(
        "getUser",
        "Who is logged in",
        tag=_TAG,
        replies={"200": reply("You", schema("Account")), "303": _to_login()},
        html=True,
    )


def _log_out_everywhere() -> Json:
    return operation(
        "logOutEverywhere",
        "End all your sessions",
        f"This one, too. Tokens stay. {_BY_COOKIE}",
        tag=_TAG,
        replies={"204": reply("Ended, in every process at once, with all that they hold", headers=["Set-Cookie"])},
        refused=[SessionRequired],
        changes=True,
        html=True,
    )


def _list_sessions() -> Json:
    return operation(
        "listSessions",
        "List where you are logged in",
        f"The latest used first; you may have {MOST_SESSIONS}, the one that was unused for longest gives way. {_BY_COOKIE}",
        tag=_TAG,
        replies={"200": reply("All of them", schema("Sessions")), "303": _to_login()},
        refused=[SessionRequired],
        html=True,
    )


def _end_session() -> Json:
    return operation(
        "endSession",
        "Log out somewhere else",
        _BY_COOKIE,
        tag=_TAG,
        takes=parameters("session_id"),
        replies={"204": reply("Ended, in every process at once, with all that it holds")},
        refused=[NotFound, SessionRequired],
        changes=True,
        html=True,
    )


def _change_password() -> Json:
    return operation(
        "changePassword",
        "Change the password",
        f"Every other session ends; tokens stay. {_BY_COOKIE}",
        tag=_TAG,
        body=body({JSON: schema("PasswordChange"), FORM: schema("PasswordChange")}, "The present one and the new one."),
        replies={"204": reply("Changed", headers=["Set-Cookie"])},
        refused=[PayloadTooLarge, UnsupportedMedia, WrongPassword, SessionRequired],
        changes=True,
        counted=True,
        html=True,
    )


def _delete_account() -> Json:
    return operation(
        "deleteAccount",
        "Delete your account",
        f"With all its tasks, pictures, tokens and sessions. It can't be undone. {_BY_COOKIE}",
        tag=_TAG,
        body=body({JSON: schema("Confirmation"), FORM: schema("Confirmation")}, "The present password."),
        replies={"204": reply("Deleted", headers=["Set-Cookie"])},
        refused=[PayloadTooLarge, UnsupportedMedia, WrongPassword, SessionRequired],
        changes=True,
        counted=True,
        html=True,
    )


def _list_tokens() -> Json:
    return operation(
        "listTokens",
        "List your tokens",
        "Without their secrets, the newest first.",
        tag=_TAG,
        takes=parameters("limit", "cursor"),
        replies={"200": reply("A page of them", schema("TokenPage")), "303": _to_login()},
        html=True,
    )


def _create_token() -> Json:
    return operation(
        "createToken",
        "Make a token for a script",
        "It is sent as `Authorization: Bearer …`. What concerns the account itself, and making tokens, takes a login: a"
        f" token that leaks makes no others. You may have {MOST_TOKENS} at a time.",
        tag=_TAG,
        body=body({JSON: schema("TokenOrder")}, "What you will call it, what it may do, and for how long."),
        replies={"201": reply("Its secret is in this answer and nowhere else", schema("NewToken"))},
        refused=[PayloadTooLarge, UnsupportedMedia, SessionRequired, TooManyTokens],
        changes=True,
        counted=True,
        html=True,
    )


def _revoke_token() -> Json:
    return operation(
        "revokeToken",
        "End a token",
        tag=_TAG,
        takes=parameters("token_id"),
        replies={"204": reply("Ended, in every process at once")},
        refused=[NotFound],
        changes=True,
        html=True,
    )


def _to_login() -> Json:
    return redirect("For a browser that isn't logged in: to the login")
