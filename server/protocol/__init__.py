"""HTTP as the socket sees it: connections, held polls without a coroutine, and bytes."""
