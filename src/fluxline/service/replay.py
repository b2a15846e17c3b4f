"""Telling again what became of a job, from its row and the store of pictures."""

from fluxline.errors import EngineError, StorageError
from fluxline.jobs import JobRow, JobState
from fluxline.request import CancelledEvent, Done, Failed, ImageReady
from fluxline.service.feed import Feed
from fluxline.service.record import Drawn, result_of
from fluxline.storage import Pictures


async def replay(row: JobRow, feed: Feed, pictures: Pictures | None) -> None:
    """Publish the pictures and the end of a job that is over. pictures None: without the files."""
    match row.state:
        case JobState.CANCELLED:
            feed.publish(CancelledEvent(row.id))
        case JobState.FAILED:
            feed.publish(Failed(row.id, row.error_code or "", row.error_message or ""))
        case _:
            try:
                for drawn in result_of(row.result):
                    image = drawn.image(await _fetched(drawn, pictures) if pictures else b"")
                    feed.publish(ImageReady(row.id, image))
                feed.publish(Done(row.id))
            except EngineError as exc:  # they are not kept, or cannot be read
                feed.publish(exc)


async def _fetched(drawn: Drawn, pictures: Pictures) -> bytes:
    data = await pictures.get(drawn.key) if drawn.key else None
    if data is None:
        raise StorageError("the pictures of this job are not kept any more")
    return data
