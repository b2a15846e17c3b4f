"""Where pictures lie that somebody comes back for: memory, a folder, or an S3-compatible store."""

from fluxline.storage.pictures import Pictures, Stored, open_pictures

__all__ = ["Pictures", "Stored", "open_pictures"]
