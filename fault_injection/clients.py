"""An HTTP client with one keep-alive connection."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Response:
    """The response to a request. The names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def __str__(self) -> str:
        return f"{self.status} {self.body[:300]!r}"


class Client:
    """A client that keeps its connection open, and opens another one after an error."""

    def __init__(self, address: tuple[str, int], timeout: float = 30) -> None:
        self._connection = HTTPConnection(*address, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send a request once. Raises OSError or HTTPException if no response comes."""
        fields = dict(headers or {})
        if body is not None:
            fields["Content-Type"] = "application/json"
        try:
            self._connection.request(
                method, path, None if body is None else json.dumps(body), fields
            )
            response = self._connection.getresponse()
            content = response.read()
        except BaseException:
            self._connection.close()
            raise
        lowered = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, lowered, content)
