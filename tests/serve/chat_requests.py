"""Requests of chat completions and what is read of their replies."""

from tests.serve.api_fixtures import user

PATH = "/v1/chat/completions"


def ask(client, *parts, **fields):
    messages = fields.pop("messages", None) or [user(*parts)]
    return client.post(PATH, json={"model": "tiny", "messages": messages, "max_tokens": 24, **fields})


def answer(client, *parts, **fields):
    reply = ask(client, *parts, **fields)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]


def refused(client, *parts, status=400, **fields):
    reply = ask(client, *parts, **fields)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error
