"""Every URL, one line each."""

from __future__ import annotations

from aiohttp import web

from server.web.handlers import account, account_page, docs, login, ops, pages, status, tasks, tokens, user, work

ROUTES = [
    web.get("/", pages.generate),
    web.post("/", pages.create),
    web.get("/tasks", pages.history),
    web.get("/tasks/{task_id}", pages.task),
    web.get("/login", pages.log_in),
    web.get("/register", pages.register),
    web.get("/account", account_page.show),
    web.post("/account", account_page.act),
    web.get("/ops", ops.overview),
    web.get("/ops/figures", ops.figures),
    web.post("/api/generate", tasks.create),
    web.post("/api/generate_advanced", tasks.create_advanced),
    web.post("/api/generate/tasks/{task_id}/again", tasks.create_again),
    web.get("/api/generate/status", status.status),
    web.get("/api/generate/status/batch", status.batch),
    web.post("/api/generate/cancel", tasks.cancel),
    web.get("/api/generate/tasks", tasks.listing),
    web.delete("/api/generate/tasks/{task_id}", tasks.delete),
    web.get("/api/generate/tasks/{task_id}/image", tasks.image),
    web.get("/api/work/token", work.token),
    web.post("/api/auth/register", login.register),
    web.post("/api/auth/login", login.log_in),
    web.post("/api/auth/logout", login.log_out),
    web.get("/api/auth/user", user.show),
    web.post("/api/auth/logout_everywhere", account.log_out_everywhere),
    web.get("/api/auth/sessions", account.list_sessions),
    web.delete("/api/auth/sessions/{session_id}", account.end_session),
    web.post("/api/auth/password", account.change_password),
    web.post("/api/auth/delete_account", account.delete_account),
    web.get("/api/auth/tokens", tokens.listing),
    web.post("/api/auth/tokens", tokens.create),
    web.delete("/api/auth/tokens/{token_id}", tokens.revoke),
    web.get("/healthz", ops.healthz),
    web.get("/readyz", ops.readyz),
    web.get("/metrics", ops.exposition),
    web.get("/openapi.json", docs.description),
    web.get("/docs", docs.read),
    web.get("/static/{filename}", pages.static),
    web.get("/static/{folder}/{filename}", pages.static),
]
