"""The check of the folder in which the pictures lie: is it this database's, and can it be written?"""

from __future__ import annotations

from server.commands.doctor.deployment import Deployment
from server.commands.doctor.report import Finding, failed, ok, skipped
from server.storage.images import ID_FILE, FileImages
from server.storage.retention import identify


async def check_pictures(deployment: Deployment) -> Finding:
    """Compare the ids of folder and database, and write something."""
    images = FileImages.below(deployment.config.database.data_dir)
    async with deployment.opened() as database:
        identity = await identify(database)
    found = await images.join(identity.id, make=False)
    if found is None:
        return skipped(f"no server has used {images.folder} yet (it has no {ID_FILE}); a worker would not start here")
    if found != identity.id:
        return failed(
            f"{images.folder} holds the pictures of another database: its id is {found}, this one's is {identity.id}",
            "set database.data_dir to the folder of this database, or to a new one",
        )
    if not await images.check():
        return failed(
            f"nothing can be written to {images.folder}", "see that there is room, and that the server's user may write"
        )
    return ok(f"{images.folder} is this database's, and can be written")
