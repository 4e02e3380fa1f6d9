"""The owner of a path, whose token a request to a FastAPI peer must have."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Header, HTTPException
from tokens import SECRET, user_of


async def get_owner(user_id: UUID, authorization: Annotated[str | None, Header()] = None) -> UUID:
    if SECRET:
        user = user_of(authorization)
        if user is None:
            raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})
        if user != str(user_id):
            raise HTTPException(404)
    return user_id


Owner = Annotated[UUID, Depends(get_owner)]
