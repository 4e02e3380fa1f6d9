"""What a request may say: everything else is refused, clearly, and changes nothing."""

import json
from io import BytesIO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

LONE_SURROGATES = st.characters(categories=["Cs"])
# Any character but for NUL, white space included; hypothesis makes every script and emoji.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")


def send(client, method, url, body, content_type="application/json"):
    return client.open(url, method=method, data=body, content_type=content_type)


def refused(answer, status, kind):
    assert answer.status_code == status, answer.text
    assert answer.mimetype == "application/problem+json"
    assert answer.json["status"] == status
    assert answer.json["type"] == f"/problems/{kind}"
    assert answer.json["instance"] == answer.headers["X-Request-Id"]
    return answer.json


@given(title=st.text(CHARACTERS, min_size=1, max_size=255).filter(str.strip))
@example(title="\N{FAMILY}\u200d\N{WOMAN}" * 85)
@example(title="\u202e\ufeff\U0010ffff")
def test_a_title_is_kept_as_it_was_sent_but_for_white_space_around_it(client, tasks_url, title):
    answer = client.post(tasks_url, json={"title": title})

    assert answer.status_code == 201, answer.text
    assert answer.json["title"] == title.strip()
    assert client.get(answer.headers["Location"]).json == answer.json


@given(
    around=st.text("\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2003\u2028\u202f\u205f\u3000"),
    title=st.text(CHARACTERS, min_size=255, max_size=255).filter(lambda t: t == t.strip()),
)
def test_the_length_of_a_title_is_counted_in_characters_without_what_is_around_it(
    client, tasks_url, around, title
):
    assert client.post(tasks_url, json={"title": around + title + around}).status_code == 201
    refused(client.post(tasks_url, json={"title": title + "x"}), 422, "invalid")


@given(description=st.text(CHARACTERS, max_size=400))
@example(description="\N{BEAR FACE}" * 10_000)
@example(description=" \n around \t")
def test_a_description_is_kept_as_it_was_sent(client, tasks_url, description):
    answer = client.post(tasks_url, json={"title": "Title", "description": description})

    assert answer.status_code == 201, answer.text
    assert answer.json["description"] == description


@given(before=st.text(CHARACTERS, max_size=20), bad=st.one_of(st.just("\x00"), LONE_SURROGATES))
@pytest.mark.parametrize("field", ["title", "description"])
def test_what_no_database_can_hold_is_refused(client, tasks_url, field, before, bad):
    answer = client.post(tasks_url, json={"title": "Title"} | {field: before + bad + "x"})

    problem = refused(answer, 422, "invalid")
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
        ({"title": "x", "id": "019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21"}, ["/id"]),
        ({"title": "x", "user_id": "019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21"}, ["/user_id"]),
        ({"title": "x", "revision": 9}, ["/revision"]),
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
def test_a_value_that_breaks_a_rule_is_named(client, task, tasks_url, method, body, pointers):
    url = tasks_url if method == "POST" else task.url

    problem = refused(send(client, method, url, json.dumps(body)), 422, "invalid")

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
        ([], [""]),
    ],
)
def test_a_patch_has_the_same_rules(client, task, body, pointers):
    problem = refused(client.patch(task.url, json=body), 422, "invalid")

    assert [error["pointer"] for error in problem["errors"]] == pointers
    assert client.get(task.url).json == task


@pytest.mark.parametrize(
    ("body", "came"),
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
def test_a_body_that_is_no_object_is_told_what_is_wanted(
    client, task, tasks_url, method, body, came
):
    url = tasks_url if method == "POST" else task.url

    problem = refused(send(client, method, url, body), 422, "invalid")

    assert problem["errors"] == [{"pointer": "", "detail": f"Must be an object, not {came}."}]


@pytest.mark.parametrize("name", ["created_after", "updated_before"])
def test_a_plus_that_is_not_escaped_is_told_how_to_write_it(client, tasks_url, name):
    unescaped = refused(client.get(f"{tasks_url}?{name}=2026-01-01T00:00:00+02:00"), 422, "invalid")
    other = refused(client.get(f"{tasks_url}?{name}=2026-01-01+00:00:00Z"), 422, "invalid")
    escaped = client.get(f"{tasks_url}?{name}=2026-01-01T00:00:00%2B02:00")

    (fault,) = unescaped["errors"]
    assert fault["parameter"] == name
    assert "write the + of its offset as %2B, like 2026-11-21T09:30:00%2B02:00" in fault["detail"]
    assert "%2B" not in other["errors"][0]["detail"]
    assert escaped.status_code == 200


@pytest.mark.parametrize("body", [{"completed": 1}, {"completed": None}, {"done": True}, [], 1])
def test_a_completion_has_the_same_rules(client, task, body):
    refused(client.patch(f"{task.url}/complete", json=body), 422, "invalid")

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
def test_a_body_that_is_not_json_is_refused(client, task, tasks_url, method, body):
    url = tasks_url if method == "POST" else task.url

    refused(send(client, method, url, body), 400, "malformed")

    assert client.get(tasks_url).json == [task]


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "json"],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_a_body_of_another_type_is_refused(client, task, tasks_url, method, content_type):
    url = tasks_url if method == "POST" else task.url

    refused(
        send(client, method, url, b'{"title": "x"}', content_type), 415, "unsupported-media-type"
    )

    assert client.get(tasks_url).json == [task]


def test_a_merge_patch_is_for_patching_only(client, tasks_url):
    answer = send(client, "POST", tasks_url, b'{"title": "x"}', "application/merge-patch+json")

    refused(answer, 415, "unsupported-media-type")


def test_a_parameter_of_the_media_type_does_no_harm(client, tasks_url):
    answer = send(client, "POST", tasks_url, b'{"title": "x"}', "Application/JSON; charset=utf-8")

    assert answer.status_code == 201


def test_a_body_may_have_128_kib(client, tasks_url):
    fits = json.dumps({"title": "x"}).ljust(128 * 1024).encode()

    assert send(client, "POST", tasks_url, fits).status_code == 201
    refused(send(client, "POST", tasks_url, fits + b" "), 413, "too-large")


CHUNKED = {"Transfer-Encoding": "chunked"}


def send_stream(client, url, stream):
    """As a server hands over a chunked body whose end it finds itself."""
    return client.post(
        url,
        input_stream=stream,
        content_type="application/json",
        headers=CHUNKED,
        environ_overrides={"wsgi.input_terminated": True},
    )


def test_a_body_that_does_not_say_how_long_it_is_is_bounded_too(client, tasks_url):
    fits = json.dumps({"title": "x"}).ljust(128 * 1024).encode()

    assert send_stream(client, tasks_url, BytesIO(fits)).status_code == 201
    refused(send_stream(client, tasks_url, BytesIO(fits + b" ")), 413, "too-large")


class BrokenOff(BytesIO):
    def read(self, *_):
        raise ConnectionResetError


def test_a_client_that_breaks_off_is_no_fault_of_ours(client, tasks_url):
    refused(send_stream(client, tasks_url, BrokenOff()), 400, "malformed")


def test_a_chunked_body_that_the_server_does_not_read_is_refused(client, task):
    """Taken for none, it would complete the task."""
    answer = client.patch(f"{task.url}/complete", headers=CHUNKED, content_type="application/json")

    refused(answer, 411, "length-required")
    assert client.get(task.url).json == task


@pytest.mark.parametrize("given", ["x", "-1", "+2", "0x2", "2, 2", "2.0", "²", "9" * 5000])
def test_a_content_length_that_is_no_number_is_refused(client, task, given):
    answer = client.patch(f"{task.url}/complete", environ_overrides={"CONTENT_LENGTH": given})

    assert refused(answer, 400, "malformed")["detail"] == "Content-Length must be a number."
    assert client.get(task.url).json == task


@pytest.mark.parametrize("terminated", [True, False])
def test_a_body_that_ends_before_its_length_is_refused(client, task, terminated):
    """A server that finds the end of bodies itself may end one that was cut off in silence."""
    cut_off = {"CONTENT_LENGTH": "10"} | ({"wsgi.input_terminated": True} if terminated else {})
    for method, url in [
        ("POST", task.url.rpartition("/")[0]),
        ("PUT", task.url),
        ("PATCH", task.url),
        ("PATCH", f"{task.url}/complete"),
        ("DELETE", task.url),
        ("POST", f"{task.url}/restore"),
        ("DELETE", task.url.partition("/tasks")[0]),
    ]:
        for sent in (b"", b"{}       "):
            answer = client.open(
                url,
                method=method,
                input_stream=BytesIO(sent),
                content_type="application/json",
                environ_overrides=cut_off,
            )
            detail = refused(answer, 400, "malformed")["detail"]
            assert detail == "The body ended before its Content-Length."

    assert client.get(task.url).json == task


class Longer(BytesIO):
    """What a connection holds that stays open: to read on would be to wait for ever."""

    def readinto(self, buffer):
        assert self.tell() + len(buffer) <= len(self.getvalue()), "It would wait."
        return super().readinto(buffer)


def test_nothing_is_read_beyond_the_content_length(client, tasks_url):
    body = b'{"title": "x"}'
    stream = Longer(body + b"GET / HTTP/1.1")

    answer = client.post(
        tasks_url,
        input_stream=stream,
        content_type="application/json",
        environ_overrides={"CONTENT_LENGTH": str(len(body))},
    )

    assert answer.status_code == 201
    assert stream.read() == b"GET / HTTP/1.1"


@pytest.mark.parametrize("method", ["DELETE", "POST"])
def test_a_body_that_nobody_wants_may_be_no_longer_than_others(client, task, method):
    url = task.url if method == "DELETE" else f"{task.url}/restore"

    refused(client.open(url, method=method, data=b" " * (128 * 1024 + 1)), 413, "too-large")
    assert client.get(task.url).json == task


@pytest.mark.parametrize(
    "bad",
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
def test_an_id_that_is_not_a_uuid_is_refused(client, tasks_url, user_id, bad):
    for url, name in [
        (f"{tasks_url}/{bad}", "task_id"),
        (f"/api/{bad}/tasks", "user_id"),
        (f"/api/{bad}/tasks/{user_id}", "user_id"),
    ]:
        problem = refused(client.get(url), 422, "invalid")
        assert problem["errors"] == [{"parameter": name, "detail": "Must be a UUID."}]


def test_refusals_come_in_the_contracts_order(client, tasks_url):
    """405, 415, 413, 400, 422, and only then the statement."""
    bad = f"{tasks_url}/x?y=1"
    large = b" " * (128 * 1024 + 1)

    assert send(client, "POST", bad, large, "text/plain").status_code == 405
    assert send(client, "PUT", bad, large, "text/plain").status_code == 415
    assert send(client, "PUT", bad, large).status_code == 413
    assert send(client, "PUT", bad, b"{").status_code == 400
    assert send(client, "PUT", bad, b"{}").status_code == 422


@pytest.mark.parametrize(
    "url", ["/livez?x=1", "/health?x=1", "/openapi.json?x=1", "/api/{0}/tasks/{0}?x=1"]
)
def test_no_operation_ignores_a_parameter(client, user_id, url):
    problem = refused(client.get(url.format(user_id)), 422, "invalid")

    assert problem["errors"] == [{"parameter": "x", "detail": "There is no such parameter."}]


def test_a_flood_of_faults_is_answered_in_part(client, tasks_url):
    answer = client.post(tasks_url, json={f"{number}" * 200: 1 for number in range(200)})

    assert len(refused(answer, 422, "invalid")["errors"]) == 100
    assert len(answer.data) < 64 * 1024
