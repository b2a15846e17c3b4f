"""How a request is asked, read from the headers that the official clients send by themselves."""

import pytest
from fastapi import Request

from fluxline.server.exchange import terms_of


async def terms(headers):
    async def receive():
        return {"type": "http.request", "body": b"{}", "more_body": False}

    spelt = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": spelt}
    return await terms_of(Request(scope, receive), door="openai")


@pytest.mark.parametrize(
    ("headers", "patience_s"),
    [
        ({"x-stainless-read-timeout": "1.5", "x-stainless-timeout": "9"}, 1.5),  # Python's
        ({"x-stainless-timeout": "600"}, 600.0),  # Node's
        ({"x-stainless-timeout": "0"}, None),  # Node's of less than a second
        ({"x-stainless-read-timeout": "soon"}, None),
        ({}, None),
    ],
)
async def test_the_official_clients_say_how_long_they_wait(headers, patience_s):
    assert (await terms(headers)).patience_s == patience_s


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, (False, False)),
        ({"x-stainless-retry-count": "0"}, (True, False)),
        ({"x-stainless-retry-count": "1"}, (True, True)),
    ],
)
async def test_the_official_clients_say_that_they_come_again(headers, expected):
    told = await terms(headers)

    assert (told.may_retry, told.is_retry) == expected
