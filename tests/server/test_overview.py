"""/docs: all that can be asked, on a page that needs nothing from elsewhere."""


async def test_the_page_has_every_operation_of_the_document(http):
    page = (await http.get("/docs")).text
    document = (await http.get("/openapi.json")).json()
    operations = [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]

    assert len(operations) > 30
    for method, path, operation in operations:
        assert f"<code>{method.upper()} {path}</code>" in page
        assert operation["description"]


async def test_the_page_runs_and_loads_nothing(http):
    answer = await http.get("/docs")

    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "<script" not in answer.text
    assert "http" not in answer.text
