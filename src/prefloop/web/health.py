"""A sign of life, by which runs that wait for people find out whether the address in the store is one that answers."""

from fastapi import APIRouter

from prefloop.labels import serving

router = APIRouter()


@router.get(serving.HEALTH_PATH)
async def health() -> dict[str, str]:
    """Says that this is a labelling server."""
    return serving.HEALTH
