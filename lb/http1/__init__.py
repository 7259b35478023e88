"""HTTP/1.1 heads, framing, forwarding and replies: pure functions on bytes."""
