"""Rate limits by network and by user."""

from __future__ import annotations

import random
import time

import limits
import limits.aio

from server import config
from server.errors import TooManyRequests


class RateLimits:
    """Limits by counters in memory, so for this process alone. Polls are counted here, the rest by `limits`."""

    def __init__(self, settings: config.LimitSettings) -> None:
        """Read the rules, such as "10 per minute".

        Raises:
            ValueError: a rule can't be read.
        """
        self._enabled = settings.enabled
        self._limiter = limits.aio.strategies.MovingWindowRateLimiter(limits.aio.storage.MemoryStorage())
        self._rules = {name: limits.parse(getattr(settings, name)) for name in ("login", "register", "create", "token")}
        self._poll_rule = limits.parse(settings.poll)
        self._polls: dict[str, int] = {}
        self._polls_end = 0.0

    async def check(self, name: str, who: str) -> None:
        """Count a request of `who` under the rule of this name.

        Raises:
            TooManyRequests: it is one too many; says when another try makes sense.
        """
        rule = self._rules[name]
        if self._enabled and not await self._limiter.hit(rule, name, who):
            stats = await self._limiter.get_window_stats(rule, name, who)
            raise refusal(rule, stats.reset_time - time.time())

    def check_poll(self, who: str) -> None:
        """Count a poll. One window for everybody and a plain dictionary: the library's 10 µs are much for a poll.

        Raises:
            TooManyRequests: it is one too many.
        """
        if not self._enabled:
            return
        now = time.monotonic()
        if now >= self._polls_end:
            self._polls = {}
            self._polls_end = now + self._poll_rule.get_expiry()
        count = self._polls[who] = self._polls.get(who, 0) + 1
        if count > self._poll_rule.amount:
            raise refusal(self._poll_rule, self._polls_end - now)


def refusal(rule: limits.RateLimitItem, seconds: float, why: str = "") -> TooManyRequests:
    """Return the 429, with the time after which to try again."""
    wait = max(seconds, 1) * random.uniform(1, 1.25)  # spread out, or everybody comes back at once
    return TooManyRequests(why or f"At most {rule} are accepted.", retry_after=wait)
