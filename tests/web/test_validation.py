"""Validation of requests: an invalid request gets a clear error and changes nothing."""

import json
from io import BytesIO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

LONE_SURROGATES = st.characters(categories=["Cs"])
# Any character except NUL and surrogates; includes white space, all scripts and emoji.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")


def send(client, method, url, body, content_type="application/json"):
    return client.open(url, method=method, data=body, content_type=content_type)


def check_problem(response, status, type_name):
    """Check that the response is a problem of this status and type; return its JSON object."""
    assert response.status_code == status, response.text
    assert response.mimetype == "application/problem+json"
    assert response.json["status"] == status
    assert response.json["type"] == f"/problems/{type_name}"
    assert response.json["instance"] == response.headers["X-Request-Id"]
    return response.json


@given(title=st.text(CHARACTERS, min_size=1, max_size=255).filter(str.strip))
@example(title="\N{FAMILY}\u200d\N{WOMAN}" * 85)
@example(title="\u202e\ufeff\U0010ffff")
def test_title_is_stored_without_surrounding_white_space(client, tasks_url, title):
    response = client.post(tasks_url, json={"title": title})

    assert response.status_code == 201, response.text
    assert response.json["title"] == title.strip()
    assert client.get(response.headers["Location"]).json == response.json


@given(
    white_space=st.text(
        "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2003\u2028\u202f\u205f\u3000"
    ),
    title=st.text(CHARACTERS, min_size=255, max_size=255).filter(lambda t: t == t.strip()),
)
def test_length_of_a_title_does_not_count_surrounding_white_space(
    client, tasks_url, white_space, title
):
    assert (
        client.post(tasks_url, json={"title": white_space + title + white_space}).status_code == 201
    )
    check_problem(client.post(tasks_url, json={"title": title + "x"}), 422, "invalid")


@given(description=st.text(CHARACTERS, max_size=400))
@example(description="\N{BEAR FACE}" * 10_000)
@example(description=" \n around \t")
def test_description_is_stored_unchanged(client, tasks_url, description):
    response = client.post(tasks_url, json={"title": "Title", "description": description})

    assert response.status_code == 201, response.text
    assert response.json["description"] == description


@given(
    before=st.text(CHARACTERS, max_size=20), character=st.one_of(st.just("\x00"), LONE_SURROGATES)
)
@pytest.mark.parametrize("field", ["title", "description"])
def test_text_with_nul_or_lone_surrogates_is_refused(client, tasks_url, field, before, character):
    response = client.post(tasks_url, json={"title": "Title"} | {field: before + character + "x"})

    problem = check_problem(response, 422, "invalid")
    assert [error["pointer"] for error in problem["errors"]] == [f"/{field}"]


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, ["/title"]),
        ({"title": None}, ["/title"]),
        ({"title": 5}, ["/title"]),
        ({"title": ["Buy"]}, ["/title"]),
        ({"title": True}, ["/title"]),
        ({"title": ""}, ["/title"]),
        ({"title": " \t\n\u3000\u2003"}, ["/title"]),
        ({"title": "x" * 256}, ["/title"]),
        ({"title": "x", "description": 5}, ["/description"]),
        ({"title": "x", "description": "x" * 10_001}, ["/description"]),
        ({"title": "x", "completed": 1}, ["/completed"]),
        ({"title": "x", "completed": 1.0}, ["/completed"]),
        ({"title": "x", "completed": "true"}, ["/completed"]),
        ({"title": "x", "completed": None}, ["/completed"]),
        ({"title": "x", "id": "{019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21}"}, ["/id"]),
        ({"title": "x", "id": None}, ["/id"]),
        ({"title": "x", "user_id": "019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21"}, ["/user_id"]),
        ({"title": "x", "revision": 0}, ["/revision"]),
        ({"title": "x", "a/b~c": 1}, ["/a~1b~0c"]),
        ({"title": "x", "\ud800": 1}, ["/?"]),
        ({"title": "", "completed": 0, "due": "now"}, ["/title", "/completed", "/due"]),
        ([], [""]),
        ([{"title": "x"}], [""]),
        ("x", [""]),
        (5, [""]),
        (None, [""]),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_error_names_each_invalid_value(client, task, tasks_url, method, body, pointers):
    url = tasks_url if method == "POST" else task.url

    problem = check_problem(send(client, method, url, json.dumps(body)), 422, "invalid")

    assert [error["pointer"] for error in problem["errors"]] == pointers
    assert client.get(tasks_url).json == [task]


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({"title": None}, ["/title"]),
        ({"title": "  "}, ["/title"]),
        ({"completed": None}, ["/completed"]),
        ({"completed": "yes"}, ["/completed"]),
        ({"description": 5}, ["/description"]),
        ({"deleted_at": None}, ["/deleted_at"]),
        ({"metadata": {"_schema": 5, "a/b": 5}}, ["/metadata/_schema", "/metadata/a~1b"]),
        ([], [""]),
    ],
)
def test_patch_refuses_invalid_values(client, task, body, pointers):
    problem = check_problem(client.patch(task.url, json=body), 422, "invalid")

    assert [error["pointer"] for error in problem["errors"]] == pointers
    assert client.get(task.url).json == task


@pytest.mark.parametrize(
    ("body", "sent_type"),
    [
        ("null", "null"),
        ("true", "a boolean"),
        ("5", "an integer"),
        ("5.5", "a number"),
        ('"x"', "a string"),
        ("[{}]", "an array"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_error_of_a_body_that_is_no_object_names_the_required_type(
    client, task, tasks_url, method, body, sent_type
):
    url = tasks_url if method == "POST" else task.url

    problem = check_problem(send(client, method, url, body), 422, "invalid")

    assert problem["errors"] == [{"pointer": "", "detail": f"Must be an object, not {sent_type}."}]


@pytest.mark.parametrize("name", ["created_after", "updated_before"])
def test_error_of_an_unescaped_plus_says_how_to_write_it(client, tasks_url, name):
    unescaped = check_problem(
        client.get(f"{tasks_url}?{name}=2026-01-01T00:00:00+02:00"), 422, "invalid"
    )
    other = check_problem(client.get(f"{tasks_url}?{name}=2026-01-01+00:00:00Z"), 422, "invalid")
    escaped = client.get(f"{tasks_url}?{name}=2026-01-01T00:00:00%2B02:00")

    (fault,) = unescaped["errors"]
    assert fault["parameter"] == name
    assert "write the + of the offset as %2B, like 2026-11-21T09:30:00%2B02:00" in fault["detail"]
    assert "%2B" not in other["errors"][0]["detail"]
    assert escaped.status_code == 200


@pytest.mark.parametrize("body", [{"completed": 1}, {"completed": None}, {"done": True}, [], 1])
def test_complete_refuses_invalid_values(client, task, body):
    check_problem(client.patch(f"{task.url}/complete", json=body), 422, "invalid")

    assert client.get(task.url).json == task


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"title",
        b'{"title": "x",}',
        b"{'title': 'x'}",
        b'{"title": NaN}',
        b'{"title": Infinity}',
        b'{"title": -Infinity}',
        b'{"title": "x", "title": "y"}',
        b'{"title": "x", "more": {"a": 1, "a": 1}}',
        b'{"title": "x"} {}',
        b'{"title": "\xff"}',
        b'{"title": "\xed\xa0\x80"}',
        b'\xef\xbb\xbf{"title": "x"}',
        '{"title": "x"}'.encode("utf-16"),
        b'{"title": "\n"}',
        b"[" * 10_000,
        b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
        b'{"title": ' + b"9" * 5_000 + b"}",
        b"\x00",
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_body_that_is_not_json_is_refused(client, task, tasks_url, method, body):
    url = tasks_url if method == "POST" else task.url

    check_problem(send(client, method, url, body), 400, "malformed")

    assert client.get(tasks_url).json == [task]


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "json"],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_body_of_another_media_type_is_refused(client, task, tasks_url, method, content_type):
    url = tasks_url if method == "POST" else task.url

    check_problem(
        send(client, method, url, b'{"title": "x"}', content_type), 415, "unsupported-media-type"
    )

    assert client.get(tasks_url).json == [task]


def test_merge_patch_is_refused_for_post(client, tasks_url):
    response = send(client, "POST", tasks_url, b'{"title": "x"}', "application/merge-patch+json")

    check_problem(response, 415, "unsupported-media-type")


def test_parameter_of_the_media_type_is_accepted(client, tasks_url):
    response = send(client, "POST", tasks_url, b'{"title": "x"}', "Application/JSON; charset=utf-8")

    assert response.status_code == 201


def test_body_larger_than_128_kib_is_refused(client, tasks_url):
    largest = json.dumps({"title": "x"}).ljust(256 * 1024).encode()

    assert send(client, "POST", tasks_url, largest).status_code == 201
    check_problem(send(client, "POST", tasks_url, largest + b" "), 413, "too-large")


CHUNKED = {"Transfer-Encoding": "chunked"}


def send_stream(client, url, stream):
    """Send a chunked body in the form in which a server that decodes chunks passes it on."""
    return client.post(
        url,
        input_stream=stream,
        content_type="application/json",
        headers=CHUNKED,
        environ_overrides={"wsgi.input_terminated": True},
    )


def test_chunked_body_larger_than_128_kib_is_refused(client, tasks_url):
    largest = json.dumps({"title": "x"}).ljust(256 * 1024).encode()

    assert send_stream(client, tasks_url, BytesIO(largest)).status_code == 201
    check_problem(send_stream(client, tasks_url, BytesIO(largest + b" ")), 413, "too-large")


class LostConnection(BytesIO):
    def read(self, *_):
        raise ConnectionResetError


def test_lost_connection_in_the_body_is_a_400(client, tasks_url):
    check_problem(send_stream(client, tasks_url, LostConnection()), 400, "malformed")


def test_chunked_body_that_the_server_does_not_decode_is_refused(client, task):
    """Without this error, the body would be ignored and the task completed."""
    response = client.patch(
        f"{task.url}/complete", headers=CHUNKED, content_type="application/json"
    )

    check_problem(response, 411, "length-required")
    assert client.get(task.url).json == task


@pytest.mark.parametrize("content_length", ["x", "-1", "+2", "0x2", "2, 2", "2.0", "²", "9" * 5000])
def test_invalid_content_length_is_refused(client, task, content_length):
    response = client.patch(
        f"{task.url}/complete", environ_overrides={"CONTENT_LENGTH": content_length}
    )

    assert (
        check_problem(response, 400, "malformed")["detail"]
        == "Send a Content-Length that is a number."
    )
    assert client.get(task.url).json == task


@pytest.mark.parametrize("terminated", [True, False])
def test_body_shorter_than_its_content_length_is_refused(client, task, terminated):
    """A server that sets wsgi.input_terminated may end a truncated body without an error."""
    environ = {"CONTENT_LENGTH": "10"} | ({"wsgi.input_terminated": True} if terminated else {})
    for method, url in [
        ("POST", task.url.rpartition("/")[0]),
        ("PUT", task.url),
        ("PATCH", task.url),
        ("PATCH", f"{task.url}/complete"),
        ("DELETE", task.url),
        ("POST", f"{task.url}/restore"),
        ("DELETE", task.url.partition("/tasks")[0]),
    ]:
        for body in (b"", b"{}       "):
            response = client.open(
                url,
                method=method,
                input_stream=BytesIO(body),
                content_type="application/json",
                environ_overrides=environ,
            )
            detail = check_problem(response, 400, "malformed")["detail"]
            assert detail == "Send the whole body: it ended before its Content-Length."

    assert client.get(task.url).json == task


class OpenConnection(BytesIO):
    """A connection that stays open: a read after the end of the body would wait for ever."""

    def readinto(self, buffer):
        assert self.tell() + len(buffer) <= len(self.getvalue()), (
            "The application reads after the end of the body."
        )
        return super().readinto(buffer)


def test_nothing_is_read_after_the_content_length(client, tasks_url):
    body = b'{"title": "x"}'
    stream = OpenConnection(body + b"GET / HTTP/1.1")

    response = client.post(
        tasks_url,
        input_stream=stream,
        content_type="application/json",
        environ_overrides={"CONTENT_LENGTH": str(len(body))},
    )

    assert response.status_code == 201
    assert stream.read() == b"GET / HTTP/1.1"


@pytest.mark.parametrize("method", ["DELETE", "POST"])
def test_unused_body_larger_than_128_kib_is_refused(client, task, method):
    url = task.url if method == "DELETE" else f"{task.url}/restore"

    check_problem(client.open(url, method=method, data=b" " * (256 * 1024 + 1)), 413, "too-large")
    assert client.get(task.url).json == task


@pytest.mark.parametrize(
    "invalid_id",
    [
        "1",
        "x" * 36,
        "019aa5c86f3a7cc49a513f0a4a9d7b21",
        "{019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21}",
        "urn:uuid:019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21",
        "019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b2g",
        "019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21%0a",
        "%00",
        "%ff",
        "'; DROP TABLE tasks; --",
    ],
)
def test_id_that_is_not_a_uuid_is_refused(client, tasks_url, user_id, invalid_id):
    for url, name in [
        (f"{tasks_url}/{invalid_id}", "task_id"),
        (f"/api/{invalid_id}/tasks", "user_id"),
        (f"/api/{invalid_id}/tasks/{user_id}", "user_id"),
    ]:
        problem = check_problem(client.get(url), 422, "invalid")
        assert problem["errors"] == [{"parameter": name, "detail": "Must be a UUID."}]


def test_checks_run_in_the_order_of_the_contract(client, tasks_url):
    """The order is 405, 415, 413, 400, 422; the statement runs only after all checks."""
    invalid_url = f"{tasks_url}/x?y=1"
    large = b" " * (256 * 1024 + 1)

    assert send(client, "POST", invalid_url, large, "text/plain").status_code == 405
    assert send(client, "PUT", invalid_url, large, "text/plain").status_code == 415
    assert send(client, "PUT", invalid_url, large).status_code == 413
    assert send(client, "PUT", invalid_url, b"{").status_code == 400
    assert send(client, "PUT", invalid_url, b"{}").status_code == 422


@pytest.mark.parametrize(
    "url", ["/livez?x=1", "/health?x=1", "/openapi.json?x=1", "/api/{0}/tasks/{0}?x=1"]
)
def test_every_operation_refuses_unknown_parameters(client, user_id, url):
    problem = check_problem(client.get(url.format(user_id)), 422, "invalid")

    assert problem["errors"] == [{"parameter": "x", "detail": "Unknown parameter."}]


def test_response_has_at_most_100_errors(client, tasks_url):
    response = client.post(tasks_url, json={f"{number}" * 200: 1 for number in range(200)})

    assert len(check_problem(response, 422, "invalid")["errors"]) == 100
    assert len(response.data) < 64 * 1024
