"""Room for what callers send: never more than there is, and first come, first served."""

import asyncio

import pytest

from fluxline.server.room import Room


async def test_who_comes_first_is_served_first():
    room, served = Room(10), []

    async def take(name, size):
        await room.take(size, 20)
        served.append(name)

    await take("there", 6)
    waiting = [asyncio.create_task(take(name, size)) for name, size in (("large", 8), ("small", 1))]
    await asyncio.sleep(0.01)
    assert served == ["there"]
    room.leave(6)
    await asyncio.gather(*waiting)
    assert served == ["there", "large", "small"]


async def test_who_finds_no_room_in_time_gives_up_and_takes_none():
    room = Room(10)
    await room.take(6, 20)
    with pytest.raises(TimeoutError):
        await room.take(5, 0.01)
    await room.take(4, 0.01)
    room.leave(10)
    await room.take(10, 0.01)
