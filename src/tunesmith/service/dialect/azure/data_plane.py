"""Azure's `data_plane`."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()
